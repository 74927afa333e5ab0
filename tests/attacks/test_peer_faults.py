"""Faults found in other libraries and in JAX itself (PEERS.md 4a and 4b) that no other file holds us to by name.

The others stand where what they are about is tested, under the same name: `git grep "def test_faults*_"` has all 30.
"""

import functools

import cases
import interior
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
import tyro
from cases import EPS

from experiments.attack_eval import Config
from ffjax import attempts, engine, goals, gradients, sanity
from ffjax.attacks import ATTACKS, rules, trail
from ffjax.data import codecs
from ffjax.detectors.adapters import Convention, from_function
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.types import AttackResult, Batch

COMPUTE = Compute(batch=32, least=32, devices=1, execution="stepped")
BATCH = cases.batch(32)
NEVER = goals.verdict(confidence=1e9)
"""Out of reach: an attack goes on to its last step, and its best iterate is the one of largest objective."""


@functools.cache
def process(name, norm="linf", goal=None, **options):
    """One object for the same words, so that it is compiled once."""
    return ATTACKS[name].build(goal or goals.verdict(ATTACKS[name].loss), norm, **cases.SHORT.get(name, {}) | options)


def attacked(process, eps, batch=BATCH, forward=None, seed=0) -> AttackResult:
    return engine.run(process, forward or toys.forward(), batch, eps, seed, COMPUTE)


def changed(change):
    """The two-layer detector with what it says changed."""
    return jax.tree_util.Partial(lambda v, x: change(toys.TOY.apply(v, x)), toys.forward().args[0])


def grey(labels) -> Batch:
    """Images of one grey for the linear detector, which say nothing but are told apart by their ids and labels."""
    labels = np.asarray(labels, np.int32)
    pictures = np.full((len(labels), *toys.SHAPE), 0.5, np.float32)
    return Batch(pictures, labels, np.arange(len(labels), dtype=np.int32))


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_fault_2_classes_that_change_places_with_the_labels_change_nothing(name):
    """2: multiplied masks instead of a margin. z and labels swapped: every attack sees the same numbers."""
    swapped = changed(lambda outputs: outputs._replace(logits=outputs.logits[:, ::-1]))
    one = attacked(process(name), EPS["linf"])
    two = attacked(process(name), EPS["linf"], BATCH._replace(labels=1 - BATCH.labels), swapped)
    assert cases.same((one.images, one.success), (two.images, two.success)) and one.success.any()


@pytest.mark.parametrize("eps", [0.1, 3.0])
def test_fault_8_a_single_step_in_l2_is_as_long_as_its_bound(eps):
    """8: a step of length one whatever eps. In the middle of the box nothing is clipped."""
    found = attacked(process("fgsm", "l2", goal=NEVER), eps, grey([0, 1] * 16), interior.FORWARD)
    np.testing.assert_allclose(np.linalg.norm((found.images - 0.5).reshape(32, -1), axis=1), eps, rtol=1e-5)
    np.testing.assert_allclose(found.distance, eps, rtol=1e-5)


@pytest.mark.parametrize("scores", [1, 2, 10])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "cw"])
def test_fault_9_a_detector_of_one_two_or_ten_scores_is_attacked(name, scores):
    """9: a clip, a random start and two classes, each of which raised. Ten: nine kinds of fake, and real as class 3."""
    weights = np.random.default_rng(3).normal(size=(*toys.SHAPE, scores)).astype(np.float32) / 10
    output, fake = {1: ("logit", "high"), 2: ("logits", 1), 10: ("logits", (0, 1, 2, 4, 5, 6, 7, 8, 9))}[scores]
    says = Convention(bounds=(0, 1), output=output, fake=fake, classes=max(scores, 2))
    # log 9 sets one class level with nine
    offsets = np.where(np.arange(scores) == 3, np.log(9), 0).astype(np.float32)[None]

    def model(images):
        return jnp.einsum("bhwc,hwck->bk", images - 0.5, weights) + offsets

    adapted = from_function(model, toys.SHAPE, says, check=False)
    forward = jax.tree_util.Partial(adapted.detector.apply, adapted.variables)
    fake = np.asarray(margin(forward(BATCH.images))) > 0
    norm = ATTACKS[name].norms[0]
    found = attacked(process(name, norm), EPS[norm], BATCH._replace(labels=fake.astype(np.int32)), forward)
    after = np.asarray(margin(forward(found.images))) > 0
    assert found.success.any() and (after != fake)[found.success].all()


@pytest.mark.parametrize("name", ["fgsm", "bim", "mi_fgsm", "ti_fgsm"])
def test_fault_12_the_attack_on_the_opposite_label_is_its_mirror_image(name):
    """12: division by the largest component, sign and all, in place of the largest size."""
    for norm in ("linf", "l2"):
        found = attacked(process(name, norm, goal=NEVER), 0.1, grey([0] * 16 + [1] * 16), interior.FORWARD)
        delta = found.images - 0.5
        assert np.abs(delta).max() > 1e-3
        np.testing.assert_allclose(delta[:16], -delta[16:], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fault_13_the_norm_that_is_told_is_the_norm_that_is_meant(norm):
    """13: an l_1 norm told as l_2. The least perturbation of a linear detector is the margin over the dual norm."""
    margins = interior.alternating(0.5, 2)
    found = attacked(process("deepfool", norm), np.inf, interior.batch(margins), interior.FORWARD)
    np.testing.assert_allclose(found.distance, interior.distances(margins, norm), rtol=0.05)


def test_fault_17_a_zero_gradient_leaves_momentum_finite_and_the_image_where_it_was():
    """17: division by a mean size of zero. And what does not move is told: sanity's zero_gradient."""
    rule, zero = rules.momentum(), jnp.zeros((4, 4, 3))
    direction, memory = rule.update(zero, rule.init(zero))
    assert np.all(direction == 0)
    direction, _ = rule.update(zero + 2, memory)
    assert np.all(direction == 1)
    dead = changed(lambda outputs: outputs._replace(logits=jax.lax.stop_gradient(outputs.logits)))
    np.testing.assert_array_equal(attacked(process("mi_fgsm"), 0.1, forward=dead).images, BATCH.images)
    assert "zero_gradient" in sanity.of_forward(dead, goals.verdict(), BATCH)


def test_fault_19_false_on_the_command_line_is_not_true(capsys):
    """19: type=bool, for which any word is true."""
    assert tyro.cli(Config, args=["--no-save"]).save is False and tyro.cli(Config, args=["--save"]).save is True
    for word in ("False", "true", "0"):
        with pytest.raises(SystemExit) as stop:
            tyro.cli(Config, args=["--grid", word])
        assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize("picture", [0.0, 0.5, 1.0])
def test_fault_26_one_flat_image_alone_is_attacked_like_any_other(picture):
    """26: roots of zero, deviations of a constant, a batch of one squeezed away."""
    one = Batch(np.full((1, *toys.SHAPE), picture, np.float32), np.ones(1, np.int32), np.zeros(1, np.int32))
    many = jax.tree.map(lambda x: np.repeat(x, 5, axis=0), one)
    for name in ("pgd", "apgd"):
        alone, among = (attacked(process(name, "l2"), 0.3, batch) for batch in (one, many))
        assert alone.images.shape == (1, *toys.SHAPE) and all(np.all(np.isfinite(x)) for x in alone)
        assert cases.same(alone, cases.rows(among, np.array([3])))


# JAX itself: 4b


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_jax_clip_does_not_halve_the_gradient_of_black_and_white_pixels(value):
    """4b: the derivative of clip exactly at a bound is 1/2. Projection is no part of what is differentiated."""
    batch = grey([1] * 4)
    batch = batch._replace(images=np.full_like(batch.images, value))
    at = gradients.exact(goals.verdict()).at(jnp.zeros(4), batch.images, batch, jnp.zeros(4), interior.FORWARD)
    np.testing.assert_array_equal(at.gradient, np.broadcast_to(-interior.W, batch.images.shape))


def test_jax_cross_entropy_dies_in_float32_where_the_margin_does_not():
    """4b: its gradient is exactly 0 from some margin on. A thousandfold detector is as easy to attack on the margin."""
    loud = changed(lambda outputs: outputs._replace(logits=2.0**16 * outputs.logits))
    plain, scaled = (attacked(process("pgd"), EPS["linf"], forward=f) for f in (None, loud))
    np.testing.assert_array_equal(plain.images, scaled.images)
    dead = attacked(process("bim"), EPS["linf"], forward=loud)  # which climbs the cross-entropy
    assert all(np.all(np.isfinite(x)) for x in dead)
    assert dead.success.mean() < scaled.success.mean()


def test_jax_one_tolerance_for_images_that_lie_on_their_bound():
    """4b: a strict comparison in float32 refuses most images that are whole levels away."""
    clean = (toys.images(32).images // 2).astype(np.uint8)
    for levels in (5, 8):
        start, there = codecs.to_float(clean), codecs.to_float((clean + levels).astype(np.uint8))
        distance = np.abs(there - start).max(axis=(1, 2, 3))
        assert np.any(distance > np.float32(levels / 255))
        yes, none = np.ones(32, bool), np.zeros(32, np.int32)
        result = AttackResult(there, yes, yes, np.zeros(32, np.float32), distance, none, none)
        batch = Batch(start, none, np.arange(32, dtype=np.int32))
        eps = np.full(32, levels / 255, np.float32)
        held = attempts.within(lambda batch, eps, seed, result=result: result)(batch, eps, 0)
        assert held.success.all() and np.array_equal(held.images, there)


def test_jax_images_and_bounds_stay_in_float32_whatever_the_network_runs_in():
    """4b: bfloat16 holds an image near white to half a level of 255."""

    def low(variables, images):
        halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
        outputs = toys.TOY.apply(halves, images.astype(jnp.bfloat16) - jnp.bfloat16(0))
        return outputs._replace(logits=outputs.logits.astype(jnp.float32))

    forward = jax.tree_util.Partial(low, toys.forward().args[0])
    eps = np.float32(1 / 255)
    found = attacked(process("bim", goal=NEVER), eps, forward=forward)
    assert found.images.dtype == found.distance.dtype == np.float32
    delta = np.abs(found.images - BATCH.images)
    assert delta.max() <= eps * (1 + 1e-5) and np.mean(np.abs(delta - eps) < 1e-6) > 0.5
    assert len(np.unique(found.images)) > 600  # bfloat16 has 385 values in [1/8, 1] and few levels below


def test_jax_a_bound_below_half_a_level_is_erased_by_storage_and_told_so():
    """4b: rounding to the nearest level undoes any perturbation below 0.5/255."""
    near = Batch(BATCH.images, BATCH.labels, BATCH.ids)
    found = attacked(process("bim"), 0.49 / 255, near)
    np.testing.assert_array_equal(np.asarray(trail.rounded(jnp.asarray(found.images))), BATCH.images)
    assert not found.success_8bit.any()


def test_jax_keys_are_of_the_image_and_of_the_restart():
    """4b: one key for all rows, or for all restarts, gives them all the same noise."""
    same, bounds = grey([1] * 4), np.full(4, 0.1, np.float32)
    starts = []

    def started(batch, eps, seed):
        def look(state):
            starts.append(np.array(jax.tree.leaves(state.own)[0])[:4])
            return 0, state

        found = engine.run(process("pgd"), interior.FORWARD, batch, eps, seed, COMPUTE, restore=look)
        return found._replace(success=np.zeros(4, bool))

    started(same, bounds, 0)
    started(same._replace(ids=same.ids[::-1].copy()), bounds, 0)
    assert len({x.tobytes() for x in starts[0]}) == 4
    np.testing.assert_array_equal(starts[1], starts[0][::-1])
    attempts.restarts(started, 3)(same, bounds, 0)
    assert len({x.tobytes() for x in np.concatenate(starts[2:])}) == 12
