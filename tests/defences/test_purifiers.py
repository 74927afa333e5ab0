"""Purifiers: images of the same shape and range, drawn from the key alone, with the derivative that each claims; each
what its name says by somebody else's account; and the detector behind them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, optimize

from ffjax.defences import purifiers
from ffjax.defences.purifiers import PURIFIERS
from ffjax.errors import InputError
from ffjax.objectives import margin

SHAPE = (14, 11, 3)
KEYS = jax.random.split(jax.random.key(0), 4)
RANDOM = [name for name, purifier in PURIFIERS.items() if purifier.random]
every = pytest.mark.parametrize("name", PURIFIERS)


def picture(low=0.0, high=1.0, shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


@functools.cache
def pulled(name, bpda=False):
    """(key, image) -> (what is made of it, the gradient of its sum), compiled."""
    transform = PURIFIERS[name].transform
    transform = purifiers.around(transform) if bpda else transform

    def one(key, image):
        found, back = jax.vjp(lambda x: transform(key, x), image)
        return found, back(jnp.ones(SHAPE))[0]

    return jax.jit(one)


@every
def test_made_of_an_image_is_one_of_its_shape_and_range_by_the_key_alone(name):
    image = picture()
    image[:3], image[-3:] = 0, 1
    found = [np.asarray(pulled(name)(key, image)[0]) for key in (*KEYS, KEYS[0])]
    assert found[0].shape == SHAPE and found[0].dtype == np.float32
    assert all(one.min() >= 0 and one.max() <= 1 for one in found)
    np.testing.assert_array_equal(found[0], found[-1])
    different = len({one.tobytes() for one in found})
    assert different > 1 if PURIFIERS[name].random else different == 1
    assert np.abs(found[0] - image).max() > 0.01


FLAT = {
    "black": np.zeros(SHAPE, np.float32),
    "white": np.ones(SHAPE, np.float32),
    "grey": np.full(SHAPE, 0.3, np.float32),
    "saturated": np.round(picture()),
}


@every
@pytest.mark.parametrize("bpda", [False, True])
@pytest.mark.parametrize("kind", FLAT)
def test_gradients_are_finite_where_nothing_differs_and_where_all_is_at_the_bounds(name, kind, bpda):
    found, gradient = pulled(name, bpda)(KEYS[0], FLAT[kind])
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["median3", "tv", "resize", "crop"])
def test_what_averages_or_picks_pixels_leaves_flat_images_with_their_gradient(name, value):
    """Each pixel of the result is a mean of some, whose weights sum to one, at black and white too."""
    found, gradient = pulled(name)(KEYS[0], np.full(SHAPE, value, np.float32))
    np.testing.assert_allclose(found, value, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(gradient), np.prod(SHAPE), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, purifier in PURIFIERS.items() if purifier.exact])
def test_gradients_that_are_exact_are_finite_differences_in_float64(name):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        image, way, weights = rng.uniform(0.4, 0.6, SHAPE), rng.normal(size=SHAPE), rng.normal(size=SHAPE)
        transform = PURIFIERS[name].transform
        value_and_grad = jax.jit(jax.value_and_grad(lambda x, key: jnp.sum(weights * transform(key, x))))
        h = 1e-7
        for key in jax.random.split(jax.random.key(2), 2):
            ahead, behind = (value_and_grad(image + side * h * way, key)[0] for side in (1, -1))
            found = value_and_grad(image, key)[1]
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(jnp.sum(found * way), (ahead - behind) / (2 * h), rtol=1e-6)


@every
@pytest.mark.parametrize("key", [0, 1])
def test_bpda_keeps_the_value_and_takes_the_detectors_gradient_at_the_purified_image(name, key):
    transform, forward, key = PURIFIERS[name].transform, toys.forward(), KEYS[key]
    images = np.stack([picture(shape=toys.SHAPE, seed=k) for k in range(3)])

    @jax.jit
    def slope(forward, images):
        return jax.value_and_grad(lambda x: jnp.sum(margin(forward(x))))(images)

    cleaned = jax.jit(jax.vmap(lambda x: transform(key, x)))(images)
    around = jax.jit(jax.vmap(lambda x: purifiers.around(transform)(key, x)))(images)
    np.testing.assert_array_equal(around, cleaned)
    found = slope(purifiers.purified(purifiers.around(transform), key, forward), images)
    for mine, own in zip(found, slope(forward, cleaned), strict=True):
        np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-6)


@every
def test_rows_behind_a_purifier_know_nothing_of_each_other(name):
    forward = jax.jit(purifiers.purified(PURIFIERS[name].transform, KEYS[0], toys.forward()))
    images = np.stack([picture(shape=toys.SHAPE, seed=k) for k in range(20)])
    whole = forward(images)
    turned = forward(images[::-1])
    np.testing.assert_array_equal(whole.logits, turned.logits[::-1])
    others = np.concatenate([images[:1], 1 - images[1:]])
    np.testing.assert_array_equal(whole.logits[0], forward(others).logits[0])
    alike = np.asarray(forward(np.stack([images[0]] * 20)).logits)
    np.testing.assert_array_equal(alike, np.broadcast_to(alike[0], alike.shape))  # one draw for every row


@pytest.mark.parametrize("several", [False, True])
def test_new_keys_and_new_weights_do_not_retrace(several):
    transform, build = purifiers.resize_pad(0.8), purifiers.pooled if several else purifiers.purified
    images = np.stack([picture(shape=toys.SHAPE)] * 2)
    call = jax.jit(lambda forward, x: forward(x).logits)
    toys.TRACES.clear()
    found = [
        np.asarray(call(build(transform, KEYS[k : k + 2] if several else KEYS[k], toys.forward(seed)), images))
        for k, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert len(toys.TRACES) == 1
    np.testing.assert_array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", RANDOM)
def test_pooled_is_the_mean_of_the_draws(name):
    transform, forward = PURIFIERS[name].transform, toys.forward()
    images = np.stack([picture(shape=toys.SHAPE, seed=k) for k in range(3)])
    each = [purifiers.purified(transform, key, forward)(images).logits for key in KEYS]
    assert np.std(each, axis=0).max() > 1e-4
    found = purifiers.pooled(transform, KEYS, forward)(images)
    assert found.mask is None
    np.testing.assert_allclose(found.logits, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


@given(st.sampled_from([1, 3, 5]), st.integers(0, 99))
def test_the_median_is_scipys_mirrored_at_the_border(window, seed):
    image = np.random.default_rng(seed).integers(0, 6, (7, 5, 3)).astype(np.float32) / 5  # with many ties
    found = purifiers.median(window)(KEYS[0], image)
    np.testing.assert_array_equal(found, ndimage.median_filter(image, (window, window, 1), mode="mirror"))


def test_the_medians_gradient_is_shared_by_those_that_hold_its_value():
    image = np.array([[0, 1, 1], [1, 0.5, 0], [0.5, 0, 0.5]], np.float32)[..., None]
    gradient = jax.grad(lambda x: purifiers.median(3)(KEYS[0], x)[1, 1, 0])(image)
    np.testing.assert_allclose(gradient[..., 0], (image[..., 0] == 0.5) / 3, rtol=1e-6)


def test_bits_are_rounded_and_passed_straight_through():
    image = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16, 1)
    found, back = jax.vjp(lambda x: purifiers.bit_depth(3)(KEYS[0], x), image)
    np.testing.assert_allclose(np.unique(np.asarray(found)), np.arange(8) / 7, atol=1e-7)
    assert np.abs(found - image).max() <= 0.5 / 7 + 1e-6
    (gradient,) = back(image)
    np.testing.assert_array_equal(gradient, image)


def energy(u, image, weight, rounded=0.0) -> tuple[float, np.ndarray]:
    """Rudin, Osher and Fatemi's, by loops that are not ours, and its gradient (rounded > 0)."""
    down, across = np.zeros_like(u), np.zeros_like(u)
    down[:-1], across[:, :-1] = u[1:] - u[:-1], u[:, 1:] - u[:, :-1]
    length = np.sqrt(down**2 + across**2 + rounded**2)
    slope = (u - image) / weight
    if rounded:
        for flow, back in ((down / length, np.s_[:-1]), (across / length, np.s_[:, :-1])):
            slope -= flow
            onto = np.s_[1:] if back == np.s_[:-1] else np.s_[:, 1:]
            slope[onto] += flow[back]
    return float(length.sum() + ((u - image) ** 2).sum() / (2 * weight)), slope


@pytest.mark.parametrize("weight", [0.05, 0.3])
def test_total_variation_finds_what_a_naive_minimiser_finds_in_float64(weight):
    """The energy is 1 / weight strongly convex: an image whose energy is within e of the least is within
    sqrt(2 weight e) of the minimiser."""
    image = np.random.default_rng(3).uniform(0.2, 0.8, (5, 6))
    naive = image

    def told(u, rounded):
        value, slope = energy(u.reshape(image.shape), image, weight, rounded)
        return value, slope.ravel()

    for rounded in (1e-2, 1e-4, 1e-6):  # the last leaves the energy wrong by at most 30 of it
        options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-9}
        naive = optimize.minimize(told, naive.ravel(), (rounded,), "L-BFGS-B", jac=True, options=options).x
    naive = naive.reshape(image.shape)
    with jax.enable_x64(True):
        found = np.asarray(purifiers.total_variation(weight, 4000)(KEYS[0], jnp.asarray(image)[..., None]))[..., 0]
    least = energy(naive, image, weight)[0]
    assert energy(found, image, weight)[0] <= least + 1e-4
    assert np.linalg.norm(found - naive) <= 2 * np.sqrt(2 * weight * 1e-4)
    assert np.linalg.norm(found - image) > 0.3  # it did something


def test_total_variations_energy_falls_with_its_steps_and_a_constant_stays():
    image = picture()
    least = [image, *(np.asarray(purifiers.total_variation(0.1, n)(KEYS[0], image)) for n in (2, 8, 32, 128))]
    energies = [sum(energy(u[..., c], image[..., c], 0.1)[0] for c in range(3)) for u in least]
    assert all(b < a for a, b in itertools.pairwise(energies))
    np.testing.assert_array_equal(purifiers.total_variation(0.1, 0)(KEYS[0], image), image)
    flat = np.full(SHAPE, 0.37, np.float32)
    np.testing.assert_array_equal(purifiers.total_variation(0.1, 9)(KEYS[0], flat), flat)


def test_the_crop_is_pillows_window_enlarged():
    image = picture(shape=(20, 10, 3))
    found = purifiers.centre_crop(0.8)(KEYS[0], image)
    window = image[2:18, 1:9]
    made = [Image.fromarray(window[..., c]).resize((10, 20), Image.Resampling.BILINEAR) for c in range(3)]
    np.testing.assert_allclose(found, np.stack([np.asarray(one) for one in made], -1), atol=1e-5)
    np.testing.assert_allclose(purifiers.centre_crop(1.0)(KEYS[0], image), image, atol=1e-6)


def test_the_random_padding_is_black_and_as_wide_as_drawn():
    white, smallest = np.ones((40, 40, 3), np.float32), 0.5
    shares = [float(np.mean(purifiers.resize_pad(smallest)(key, white))) for key in jax.random.split(KEYS[0], 200)]
    assert smallest**2 - 0.03 <= min(shares) < 0.3 and 0.9 < max(shares) <= 1
    np.testing.assert_allclose(purifiers.resize_pad(1.0)(KEYS[0], picture()), picture(), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: purifiers.median(4), "median: the window must be odd"),
        (lambda: purifiers.median(-1), "median: the window must be odd"),
        (lambda: purifiers.bit_depth(0), "bit_depth: bits must be from 1 to 8, got 0"),
        (lambda: purifiers.total_variation(0.0, 5), "total_variation: weight must be above 0"),
        (lambda: purifiers.total_variation(0.1, -1), "total_variation: weight must be above 0 and steps at least 0"),
    ],
)
def test_what_no_purifier_can_be_is_refused(build, told):
    with pytest.raises(InputError, match=told):
        build()


def test_a_window_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="needs more than 3 pixels"):
        purifiers.median(7)(KEYS[0], picture(shape=(3, 8, 1)))
