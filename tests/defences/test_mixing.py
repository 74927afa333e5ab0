"""Attacked images inside the bound, drawn by id; mixed losses as their equations say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import attacked_copy, defences, train
from ffjax.data import codecs
from ffjax.data.batches import batch_at
from ffjax.defences import mixing
from ffjax.errors import InputError
from ffjax.individual import batch_of
from ffjax.objectives import cross_entropy
from ffjax.types import Batch

KEY, EPS = jax.random.key(5), 0.05
PLAIN = train.cross_entropy(toys.TOY)
FORWARD = toys.forward()


def batch(count: int = 8) -> Batch:
    return batch_at(toys.images(20), count, 0, 0)


def variables():
    return toys.TOY.init(jax.random.key(0))


@pytest.mark.parametrize("start", ["clean", "uniform", "near"])
@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_what_is_made_is_an_image_inside_the_bound(start, ranged, steps):
    some = batch()
    made = np.asarray(defences.climb(EPS, steps, 1.25, start, ranged)(FORWARD, some, KEY))
    assert made.min() >= 0 and made.max() <= 1
    moved = np.abs(made - some.images).max(axis=(1, 2, 3))
    assert moved.max() <= EPS * (1 + 1e-5)
    if steps and not ranged:
        assert moved.min() > 0.99 * EPS
    if steps and ranged:  # each its own bound
        assert len(np.unique(np.round(moved, 5))) == len(moved)


def test_one_step_is_fgsm_and_more_raise_the_loss():
    some = batch()
    slope = jax.grad(lambda x: jnp.sum(cross_entropy(FORWARD(x), some)))(jnp.asarray(some.images))
    expected = np.clip(some.images + EPS * np.sign(slope), 0, 1)
    np.testing.assert_allclose(defences.climb(EPS)(FORWARD, some, KEY), expected, atol=1e-6)
    losses = [cross_entropy(FORWARD(defences.climb(EPS, k, 0.25)(FORWARD, some, KEY)), some).mean() for k in (0, 2, 8)]
    assert losses[0] < losses[1] < losses[2]


def test_more_steps_are_shorter_ones_unless_told():
    some = batch()

    def made(stride, steps):
        return defences.climb(EPS, steps, stride)(FORWARD, some, KEY)

    for steps, stride in ((1, 1.0), (5, 0.5)):
        np.testing.assert_array_equal(made(None, steps), made(stride, steps))
    assert not np.array_equal(made(None, 5), made(1.0, 5))


@pytest.mark.parametrize("attack", [partial(defences.climb, EPS), partial(defences.shared, EPS, heap=2)])
def test_an_attack_weighs_the_mask_as_it_is_told(attack):
    two, some = toys.two_headed().forward, batch_at(toys.masked(20), 6, 0, 0)
    bare = some._replace(masks=None)
    plain, without, heavy = (
        attack(up=partial(mixing.labels, mask=weight))(two, data, KEY)
        for weight, data in ((1.0, bare), (0.0, some), (4.0, some))
    )
    np.testing.assert_array_equal(plain, without)
    assert not np.array_equal(heavy, without)


def test_draws_are_of_the_image_and_not_of_its_place():
    some = batch()
    turned = jax.tree.map(lambda x: x[::-1], some)
    attack = defences.climb(EPS, 1, 1.25, "uniform", ranged=True)
    np.testing.assert_allclose(attack(FORWARD, some, KEY), attack(FORWARD, turned, KEY)[::-1], atol=1e-6)
    other = attack(FORWARD, some, jax.random.key(6))
    assert not np.allclose(other, attack(FORWARD, some, KEY), atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_is_the_weighted_sum_of_both_losses(share):
    v, some, attacker = variables(), batch(), defences.climb(EPS, 2, 0.5)
    told, (outputs, _) = defences.mixed(PLAIN, toys.TOY, attacker, share)(v, some, KEY)
    attacked = some._replace(images=attacker(FORWARD, some, jax.random.fold_in(KEY, mixing._ATTACK)))
    (clean, (said, _)), (hard, _) = PLAIN(v, some, KEY), PLAIN(v, attacked, KEY)
    np.testing.assert_allclose(told, (1 - share) * clean + share * hard, rtol=1e-5)
    np.testing.assert_allclose(outputs.logits, said.logits, rtol=1e-5)
    assert (np.asarray(hard) > np.asarray(clean)).all()


def test_adversarial_is_the_loss_of_the_attacked_images_alone():
    v, some, attacker = variables(), batch(), defences.climb(EPS, 2, 0.5)
    told, (outputs, _) = defences.adversarial(PLAIN, toys.TOY, attacker)(v, some, KEY)
    attacked = some._replace(images=attacker(FORWARD, some, jax.random.fold_in(KEY, mixing._ATTACK)))
    hard, (said, _) = PLAIN(v, attacked, KEY)
    np.testing.assert_allclose(told, hard, rtol=1e-5)
    np.testing.assert_allclose(outputs.logits, said.logits, rtol=1e-5)


def test_nothing_is_differentiated_through_the_attack():
    """The gradient of the mixed loss is that of the loss on fixed attacked images."""
    v, some, attacker = variables(), batch(), defences.climb(EPS, 3, 0.5)
    fixed = some._replace(images=attacker(FORWARD, some, jax.random.fold_in(KEY, mixing._ATTACK)))
    slope = jax.grad(lambda p: defences.mixed(PLAIN, toys.TOY, attacker, 1.0)({"params": p}, some, KEY)[0].sum())
    expected = jax.grad(lambda p: PLAIN({"params": p}, fixed, KEY)[0].sum())(v["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slope(v["params"]), expected)


def test_clean_and_attacked_rows_go_through_one_training_forward():
    seen = []

    def watching(variables, images, key):
        seen.append(images.shape)
        return toys.TOY.apply(variables, images), variables

    detector = toys.TOY._replace(train=watching)
    defences.mixed(train.cross_entropy(detector), detector, defences.climb(EPS))(variables(), batch(), KEY)
    assert seen == [(16, *toys.SHAPE)]


def test_trades_adds_the_divergence_that_its_attack_climbs():
    v, some = variables(), batch()
    attacker = defences.climb(EPS, 10, 0.25, "near", up=defences.kl)
    told, _ = defences.trades(PLAIN, toys.TOY, attacker, 6.0)(v, some, KEY)
    attacked = attacker(FORWARD, some, jax.random.fold_in(KEY, mixing._ATTACK))
    p, q = (np.asarray(jax.nn.softmax(FORWARD(x).logits), np.float64) for x in (some.images, attacked))
    divergence = np.sum(p * np.log(p / q), axis=1)
    np.testing.assert_allclose(told - PLAIN(v, some, KEY)[0], 6 * divergence, rtol=1e-3)
    near = defences.climb(EPS, 0, start="near")(FORWARD, some, KEY)
    begun = mixing.divergence(FORWARD(some.images), FORWARD(near), some)
    assert (divergence > 10 * np.asarray(begun)).all()


def test_trades_counts_the_divergence_of_masks_as_it_is_told():
    two, some = toys.masking(), batch_at(toys.masked(20), 6, 0, 0)
    v, loss = two.init(jax.random.key(0)), train.cross_entropy(two)
    attacker = defences.climb(EPS, 3, 0.5, "near", up=defences.kl)
    forward = partial(two.apply, v)
    attacked = attacker(forward, some, jax.random.fold_in(KEY, mixing._ATTACK))
    bare, told = (defences.trades(loss, two, attacker, 6.0, mask)(v, some, KEY)[0] for mask in (0.0, 0.5))
    p, q = (np.asarray(jax.nn.sigmoid(forward(x).mask), np.float64) for x in (some.images, attacked))
    pixels = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert pixels.mean() > 1e-4
    np.testing.assert_allclose(told - bare, 6 * 0.5 * pixels.mean(axis=(1, 2)), rtol=1e-3, atol=1e-5)
    verdicts = partial(defences.kl, mask=0.0)
    unmasked = defences.climb(EPS, 3, 0.5, "near", up=verdicts)(forward, some, jax.random.fold_in(KEY, mixing._ATTACK))
    assert not np.array_equal(unmasked, attacked)


def test_wrappers_combine_in_any_order():
    """The penalty of what is mixed is of the clean images; what is penalised and then mixed is penalised on both."""
    v, some, attacker = variables(), batch(), defences.climb(EPS)
    one = defences.gradient_norm(defences.mixed(PLAIN, toys.TOY, attacker), toys.TOY, 0.5)(v, some, KEY)[0]
    two = defences.mixed(defences.gradient_norm(PLAIN, toys.TOY, 0.5), toys.TOY, attacker)(v, some, KEY)[0]
    bare = defences.mixed(PLAIN, toys.TOY, attacker)(v, some, KEY)[0]
    clean = defences.gradient_norm(PLAIN, toys.TOY, 0.5)(v, some, KEY)[0] - PLAIN(v, some, KEY)[0]
    np.testing.assert_allclose(one - bare, clean, rtol=1e-3, atol=1e-5)
    attacked = some._replace(images=attacker(FORWARD, some, jax.random.fold_in(KEY, mixing._ATTACK)))
    hard = defences.gradient_norm(PLAIN, toys.TOY, 0.5)(v, attacked, KEY)[0] - PLAIN(v, attacked, KEY)[0]
    np.testing.assert_allclose(two - bare, (clean + hard) / 2, rtol=1e-3, atol=1e-5)


def test_masks_are_attacked_and_trained_on_too():
    two = toys.two_headed().forward
    data = batch_at(toys.masked(20), 6, 0, 0)
    plain, masked = (cross_entropy(two(data.images), some) for some in (data._replace(masks=None), data))
    assert (np.asarray(masked) > np.asarray(plain)).all()
    with_masks, without = (defences.climb(EPS)(two, some, KEY) for some in (data, data._replace(masks=None)))
    assert not np.array_equal(with_masks, without)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_shared_perturbation_is_one_for_its_heap_and_inside_the_bound(steps):
    some = batch()
    some = some._replace(images=0.3 + 0.4 * np.asarray(some.images))  # clear of black and white, which would cut it
    made = np.asarray(defences.shared(EPS, steps, 0.5, heap=4)(FORWARD, some, KEY)) - some.images
    assert np.abs(made).max() <= EPS * (1 + 1e-5)
    for heap in (made[:4], made[4:]):
        np.testing.assert_allclose(heap, heap[:1].repeat(4, axis=0), atol=1e-6)
    assert np.abs(made[0] - made[4]).max() > 0.01


def test_a_shared_perturbation_climbs_the_heaps_own_loss_and_alone_it_is_climbs():
    some = batch()
    losses = [
        cross_entropy(FORWARD(defences.shared(EPS, k, 0.25, heap=4)(FORWARD, some, KEY)), some).mean()
        for k in (0, 2, 8)
    ]
    assert losses[0] < losses[1] < losses[2]
    inner = some._replace(images=0.3 + 0.4 * np.asarray(some.images))
    alone, each = (
        attack(FORWARD, inner, KEY)
        for attack in (defences.shared(EPS, 2, 0.5, heap=1), defences.climb(EPS, 2, 0.5, "uniform"))
    )
    np.testing.assert_allclose(alone, each, atol=1e-6)


def test_what_is_no_whole_number_of_heaps_is_refused():
    with pytest.raises(InputError, match="heap: a batch of 8 is no whole number of heaps of 3"):
        defences.shared(EPS, heap=3)(FORWARD, batch(), KEY)


def test_a_fused_set_is_the_set_and_its_attacked_copy():
    data = toys.images(20)
    twice = attacked_copy.fused(data, FORWARD, defences.climb(EPS), rows=8)
    assert len(twice.labels) == 40 and len(set(twice.names)) == 40
    np.testing.assert_array_equal(twice.images[:20], data.images)
    for field in ("labels", "groups"):
        np.testing.assert_array_equal(getattr(twice, field), np.tile(getattr(data, field), 2))
    whole = batch_of(data, np.arange(20))
    expected = codecs.to_uint8(np.asarray(defences.climb(EPS)(FORWARD, whole, KEY)))
    np.testing.assert_array_equal(twice.images[20:], expected)
