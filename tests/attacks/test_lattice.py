"""Images on the 8-bit grid: exactly what a file holds, inside the bound, and adversarial as such."""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from cases import ALONE
from hypothesis import given
from hypothesis import strategies as st

from ffjax import balls, engine, goals
from ffjax.attacks import ATTACKS, lattice, trail
from ffjax.data import codecs
from ffjax.types import Batch

BOUNDS = {"linf": 3.4 / 255, "l2": 0.3, "l1": 2.0, "l0": 4.0}
TABLE = [("pgd", "linf"), ("apgd", "l2"), ("bim", "l1"), ("fmn", "l2"), ("fmn", "l0"), ("hop_skip_jump", "linf")]
EVERY = pytest.mark.parametrize(("name", "norm"), TABLE)


@functools.cache
def run(name, norm, guide="gradient"):
    """(wrapped process, batch, the attack's own result, the wrapped one's)."""
    goal, entry, batch = goals.verdict(ATTACKS[name].loss), ATTACKS[name], cases.batch()
    plain = entry.build(goal, norm, **cases.SHORT.get(name, {}))
    wrapped = lattice.on_grid(plain, goal, norm, bound=entry.bound, guide=guide)
    results = [engine.run(process, toys.forward(), batch, BOUNDS[norm], 0, ALONE) for process in (plain, wrapped)]
    return wrapped, batch, *results


def opened(images):
    """Each image written as a PNG file and read again."""
    files = [codecs.png_bytes(image) for image in codecs.to_uint8(images)]
    return codecs.to_float(np.stack([codecs.decode(file) for file in files]))


def test_fault_30_the_grid_is_that_of_files():
    """PEERS.md 4a, 30: 256 values at distances of 1/255, and snapping to them changes none of them."""
    files = codecs.to_float(np.arange(256, dtype=np.uint8))
    on = jax.jit(trail.to_grid)(jnp.arange(256.0).reshape(16, 16, 1))
    np.testing.assert_array_equal(np.asarray(on).ravel(), files)
    np.testing.assert_array_equal(codecs.to_uint8(np.asarray(on)).ravel(), np.arange(256))


@EVERY
def test_results_are_bit_for_bit_what_their_files_hold(name, norm):
    """PEERS.md 4a, 16 and 30."""
    _, _, _, result = run(name, norm)
    np.testing.assert_array_equal(result.images, opened(result.images))
    np.testing.assert_array_equal(result.images * np.float32(255), codecs.to_uint8(result.images))


@EVERY
def test_fault_16_success_is_success_as_stored(name, norm):
    _, batch, _, result = run(name, norm)
    np.testing.assert_array_equal(result.success, result.success_8bit)
    goal, outputs = goals.verdict(ATTACKS[name].loss), toys.forward()(opened(result.images))
    sure = np.abs(np.asarray(goals.verdict().objective(outputs, batch))) > 1e-5
    np.testing.assert_array_equal(result.success[sure], np.asarray(goal.reached(outputs, batch))[sure])
    np.testing.assert_allclose(result.loss, goal.objective(outputs, batch), atol=1e-5)


@EVERY
def test_the_bound_holds_and_failures_are_what_they_should_be(name, norm):
    _, batch, _, result = run(name, norm)
    distance = jax.vmap(balls.BALLS[norm](1.0).norm)(jnp.asarray(result.images - batch.images))
    np.testing.assert_allclose(result.distance, distance, rtol=1e-6)
    failed = ~result.success
    if ATTACKS[name].bound == "minimal":
        np.testing.assert_array_equal(result.images[failed], batch.images[failed])
        return
    assert np.all(distance <= BOUNDS[norm] * (1 + 1e-5))
    if norm == "linf":  # exactly: 3.4 levels are 3
        levels = codecs.to_uint8(result.images).astype(int) - codecs.to_uint8(batch.images)
        assert np.abs(levels).max() == 3
    clean = np.asarray(goals.verdict(ATTACKS[name].loss).objective(toys.forward()(batch.images), batch))
    assert np.all(result.loss[failed] >= clean[failed] - 1e-5)


@pytest.mark.parametrize(("name", "norm"), [("fmn", "l2"), ("hop_skip_jump", "linf")])
def test_what_rounding_loses_is_won_back_at_hardly_any_distance(name, norm):
    """Minimal perturbations end at the boundary, where rounding to the nearest level undoes a third of them."""
    _, _, plain, result = run(name, norm)
    assert plain.success_8bit.mean() < 0.7 < 0.95 < plain.success.mean()
    assert result.success.mean() >= plain.success.mean() - 1 / 64
    both = plain.success & result.success
    more = result.distance[both] - plain.distance[both]
    if norm == "linf":  # up to the next level, half of one on the way, however small the distance
        assert np.all(more < 1 / 255) and np.median(more) < 0.5 / 255
    else:
        assert np.median(result.distance[both] / plain.distance[both]) < 1.02


def test_inside_a_bound_no_success_is_lost():
    """Where the bound is a whole number of levels, nothing is taken away, and every loose component is gained."""
    goal, batch = goals.verdict(), cases.batch()
    plain = ATTACKS["pgd"].build(goal, "linf", steps=12)
    found = engine.run(plain, toys.forward(), batch, 4 / 255, 0, ALONE)
    result = engine.run(lattice.on_grid(plain, goal), toys.forward(), batch, 4 / 255, 0, ALONE)
    assert np.all(result.success >= found.success) and 0.3 < result.success.mean() < 0.6
    np.testing.assert_array_equal(result.gradients, found.gradients + 1)
    np.testing.assert_array_equal(result.queries, found.queries + 8 + 4)


@pytest.mark.parametrize("eps", [0.0, 0.9 / 255])
def test_below_one_level_nothing_can_be_stored(eps):
    wrapped, batch, *_ = run("pgd", "linf")
    result = engine.run(wrapped, toys.forward(), batch, eps, 0, ALONE)
    np.testing.assert_array_equal(result.images, batch.images)
    assert not result.success.any()


def test_a_clean_image_off_the_grid_is_brought_to_it_first():
    """The bound then holds around the 8-bit image; the distance is told from the given one."""
    wrapped, batch, *_ = run("pgd", "linf")
    off = np.clip(batch.images + np.random.default_rng(0).uniform(-0.5, 0.5, batch.images.shape) / 255, 0, 1)
    given = batch._replace(images=off.astype(np.float32))
    result = engine.run(wrapped, toys.forward(), given, 4 / 255, 0, ALONE)
    np.testing.assert_array_equal(result.images, opened(result.images))
    levels = codecs.to_uint8(result.images).astype(int) - codecs.to_uint8(given.images)
    assert np.abs(levels).max() == 4 and 0.2 < result.success.mean() < 1
    assert 4 / 255 < result.distance.max() <= 4.5 / 255 + 1e-6


def test_displacement_asks_for_no_gradient():
    """As an attack on decisions needs it: a detector without a gradient gives the same."""
    _, batch, plain, result = run("hop_skip_jump", "linf", "displacement")
    np.testing.assert_array_equal(result.gradients, 0)
    np.testing.assert_array_equal(result.queries, plain.queries + 8 + 3)
    assert result.success.mean() > 0.9
    blunt = jax.tree_util.Partial(
        lambda variables, x: jax.lax.stop_gradient(toys.TOY.apply(variables, x)), toys.TOY.init(jax.random.key(0))
    )
    again = engine.run(run("hop_skip_jump", "linf", "displacement")[0], blunt, batch, 0.0, 0, ALONE)
    np.testing.assert_array_equal(result.images, again.images)


def test_rows_are_their_own_and_a_run_cut_anywhere_goes_on():
    wrapped, batch, _, whole = run("apgd", "l2")
    kept, often = [], dataclasses.replace(ALONE, chunk=2, snapshot=2)
    some = np.arange(3, 64, 2)
    part = engine.run(wrapped, toys.forward(), cases.rows(batch, some), BOUNDS["l2"], 0, often)
    assert cases.same(part, cases.rows(whole, some))

    def save(step, state):
        kept.append((step, jax.tree.map(np.copy, state)))

    engine.run(wrapped, toys.forward(), batch, BOUNDS["l2"], 0, often, save=save)
    cut = kept[2]
    resumed = engine.run(wrapped, toys.forward(), batch, BOUNDS["l2"], 0, often, restore=lambda state: cut)
    assert cases.same(resumed, whole)


@functools.cache
def fitted(norm, bound="fixed"):
    """rounded, compiled once: (share, clean, delta, favour, eps) -> image."""
    return jax.jit(lambda *arrays: lattice.rounded(*arrays, norm=norm, bound=bound))


@functools.cache
def drawn(norm):
    """(key, clean, eps) -> a perturbation at the bound, within the box."""

    def draw(key, clean, eps):
        ball = balls.BALLS[norm](eps)
        return ball.project(2 * ball.sample(key, toys.SHAPE), -clean, 1 - clean)

    return jax.jit(draw)


def image(seed):
    """(H, W, 3) on the grid, a third of it black or white."""
    levels = np.random.default_rng(seed).integers(-40, 296, toys.SHAPE).clip(0, 255)
    return codecs.to_float(levels.astype(np.uint8))


@pytest.mark.parametrize("norm", balls.BALLS)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.01, 0.5, 1.0]), scale=st.sampled_from([0.2, 1, 5]))
def test_any_perturbation_is_rounded_inside_its_bound(norm, seed, share, scale):
    eps, clean = float(np.float32(scale * {"linf": 2.7 / 255, "l2": 0.2, "l1": 3.0, "l0": 7.3}[norm])), image(seed)
    first, second = jax.random.split(jax.random.key(seed))
    delta, favour = drawn(norm)(first, clean, eps), jax.random.normal(second, toys.SHAPE)
    got = np.asarray(fitted(norm)(share, clean, delta, favour, eps))
    np.testing.assert_array_equal(got, codecs.to_float(codecs.to_uint8(got)))
    levels = codecs.to_uint8(got).astype(int) - codecs.to_uint8(clean)
    if norm == "linf":
        assert np.abs(levels).max() <= np.floor(255 * eps + 1e-4)
    elif norm == "l0":
        assert np.count_nonzero(levels) <= eps
    else:
        assert np.linalg.norm(levels.ravel() / 255, 1 if norm == "l1" else 2) <= eps * (1 + 2e-6)


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.1, 1.0]))
def test_the_largest_share_goes_the_way_of_the_favour_and_the_rest_to_the_nearest(seed, share):
    """Without a bound: by less than a level, and a component that is on a level already stays there."""
    clean, rng = image(seed), np.random.default_rng(seed)
    delta = np.clip(clean + rng.normal(0, 2 / 255, toys.SHAPE) * rng.integers(0, 2, toys.SHAPE), 0, 1) - clean
    favour = rng.normal(size=toys.SHAPE).astype(np.float32)
    got = np.asarray(fitted("l2", "minimal")(share, clean, delta.astype(np.float32), favour, 0.0))
    moved, levels = 255.0 * (clean + delta), codecs.to_uint8(got).astype(int)
    still = delta == 0
    np.testing.assert_array_equal(got[still], clean[still])
    leads = np.abs(favour) >= np.sort(np.abs(favour).ravel())[-max(1, round(share * 432))]
    leads &= share > 0
    assert np.all(np.abs(levels - moved)[~leads] <= 0.5 + 1e-3)
    assert np.all(((levels - moved) * np.sign(favour))[leads] >= -2e-3)
    assert np.all(np.abs(levels - moved)[leads] < 1)


def test_a_detector_that_is_already_wrong_keeps_the_clean_image():
    wrapped, batch, *_ = run("fmn", "l2")
    wrong = Batch(batch.images, 1 - batch.labels, batch.ids)
    result = engine.run(wrapped, toys.forward(), wrong, 0.0, 0, ALONE)
    np.testing.assert_array_equal(result.images, batch.images)
    assert result.success.all()
