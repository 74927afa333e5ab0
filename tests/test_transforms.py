"""Random transformations: images of the same shape and range, drawn from the key alone, with exact gradients, and each
what its name says by somebody else's account."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scipy import ndimage

from ffjax import engine, goals, gradients, transforms
from ffjax.attacks.descent import descent
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.types import Batch

EVERY = {
    "noise": transforms.noise(0.1),
    "blur": transforms.blur((0.3, 2.0)),
    "resize": transforms.resize((0.4, 1.2)),
    "crop": transforms.crop((0.5, 1.0)),
    "shift": transforms.shift(3),
    "jpeg": transforms.jpeg((30, 95)),
    "chain": transforms.chain(transforms.resize((0.5, 1.0)), transforms.noise(0.02), transforms.shift(2)),
    "one_of": transforms.one_of(transforms.chain(), transforms.blur((1.0, 1.0)), transforms.shift(3)),
}
SMOOTH = sorted(set(EVERY) - {"jpeg"})
"""jpeg's gradient is straight through: tests/test_jpeg.py."""

SHAPE = (14, 11, 3)
KEYS = jax.random.split(jax.random.key(0), 6)
every = pytest.mark.parametrize("name", EVERY)


def picture(low=0.0, high=1.0, shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


@functools.cache
def pulled(name):
    """(keys (K,), images (K, H, W, C)) -> (the images drawn, the gradients of their sums), compiled; and its traces."""
    traces = []

    def one(key, image):
        traces.append(1)
        found, back = jax.vjp(lambda x: EVERY[name](key, x), image)
        return found, back(jnp.ones(SHAPE))[0]

    return jax.jit(jax.vmap(one)), traces


def at(transform, image, keys=KEYS) -> np.ndarray:
    """One image at many keys."""
    return np.asarray(jax.jit(jax.vmap(transform, (0, None)))(keys, image))


@every
def test_draws_are_images_of_the_same_shape_and_range_and_of_their_key_alone(name):
    image = picture()
    image[:3], image[-3:] = 0, 1
    images, (call, traces) = np.stack([image] * len(KEYS)), pulled(name)
    found = np.asarray(call(KEYS, images)[0])
    assert found.shape == images.shape and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    assert len({one.tobytes() for one in found}) > 2  # one_of may leave several as they are
    other = np.stack([image] + [picture(seed=i) for i in range(1, len(KEYS))])
    np.testing.assert_array_equal(call(KEYS[::-1], other[::-1])[0][-1], found[0])
    assert len(traces) == 1


@every
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_flat_images_stay_finite_and_what_averages_pixels_leaves_them_with_their_gradient(name, value):
    """At black and white too, where a rounding error past the bound must not switch it off."""
    images = np.full((len(KEYS), *SHAPE), value, np.float32)
    found, gradients = pulled(name)[0](KEYS, images)
    assert np.isfinite(found).all() and np.isfinite(gradients).all()
    if name in ("blur", "resize", "crop", "shift", "one_of"):
        np.testing.assert_allclose(found, images, atol=1e-6)
        np.testing.assert_allclose(jnp.sum(gradients, (1, 2, 3)), images[0].size, rtol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_fault_29_gradients_are_finite_differences_in_float64(name):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        image, way, weights = rng.uniform(0.4, 0.6, SHAPE), rng.normal(size=SHAPE), rng.normal(size=SHAPE)
        if name == "noise":  # of sd 0.1: a few pixels are cut, and have no slope
            image = rng.uniform(0, 1, SHAPE)

        @jax.jit
        def value_and_grad(x, key):
            return jax.value_and_grad(lambda x: jnp.sum(weights * EVERY[name](key, x)))(x)

        h = 1e-6
        for key in jax.random.split(jax.random.key(2), 3):
            ahead, behind = (value_and_grad(image + side * h * way, key)[0] for side in (1, -1))
            found = value_and_grad(image, key)[1]
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(jnp.sum(found * way), (ahead - behind) / (2 * h), rtol=1e-7)


def test_noise_has_its_deviation_and_is_cut():
    image = np.zeros((40, 80, 3), np.float32)
    image[:, 40:] = 0.5
    found = at(transforms.noise(0.05), image)
    added = (found - image)[:, :, 40:]
    np.testing.assert_allclose(added.std(), 0.05, rtol=0.02)
    assert abs(added.mean()) < 1e-3
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.05
    np.testing.assert_allclose(np.mean(found[:, :, :40] == 0), 0.5, atol=0.02)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 3.0])
def test_blur_is_scipys(sigma):
    """sigma 3 reaches further than the image is wide: it goes on mirrored, and again."""
    image = picture()
    found = at(transforms.blur((sigma, sigma)), image, KEYS[:1])[0]
    reach = int(np.ceil(transforms.SPREAD * sigma))
    expected = image
    if sigma:
        expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="mirror", radius=(reach, reach, 0))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("scale", [0.01, 0.3, 0.77, 1.3])
def test_resize_is_jaxs_there_and_back(scale):
    image = picture()
    found = at(transforms.resize((scale, scale)), image, KEYS[:1])[0]
    there = tuple(max(1, round(np.float32(scale) * side)) for side in SHAPE[:2])
    small = jax.image.resize(image, (*there, 3), "linear")
    np.testing.assert_allclose(found, jax.image.resize(small, SHAPE, "linear"), atol=2e-6)


def test_crop_is_a_window_of_whole_pixels_enlarged_wherever_it_lies():
    image, share = picture(), 0.6
    height, width = (round(share * side) for side in SHAPE[:2])
    enlarged = jax.jit(lambda window: jax.image.resize(window, SHAPE, "linear"))
    every_window = {
        (top, left): np.asarray(enlarged(image[top : top + height, left : left + width]))
        for top in range(SHAPE[0] - height + 1)
        for left in range(SHAPE[1] - width + 1)
    }
    met = set()
    for found in at(transforms.crop((share, share)), image, jax.random.split(jax.random.key(1), 150)):
        fits = [place for place, window in every_window.items() if np.abs(window - found).max() < 1e-5]
        assert len(fits) == 1
        met.add(fits[0])
    corners = {(top, left) for top in (0, SHAPE[0] - height) for left in (0, SHAPE[1] - width)}
    assert corners <= met and len(met) > 0.9 * len(every_window)
    np.testing.assert_allclose(at(transforms.crop((1.0, 1.0)), image)[0], image, atol=1e-6)


def test_shift_moves_whole_pixels_each_way_as_far_as_it_says_and_repeats_the_border():
    image, pixels = picture(), 2
    rows, columns = (np.arange(side) for side in SHAPE[:2])
    moved = {
        (down, across): image[np.clip(rows + down, 0, SHAPE[0] - 1)][:, np.clip(columns + across, 0, SHAPE[1] - 1)]
        for down in range(-pixels, pixels + 1)
        for across in range(-pixels, pixels + 1)
    }
    met = set()
    for found in at(transforms.shift(pixels), image, jax.random.split(jax.random.key(1), 150)):
        fits = [place for place, one in moved.items() if np.array_equal(one, found)]
        assert len(fits) == 1
        met.add(fits[0])
    assert met == set(moved)
    np.testing.assert_array_equal(at(transforms.shift(0), image)[0], image)


def test_jpeg_is_the_real_codec_at_one_of_its_qualities_and_all_come_up():
    image = picture(shape=(16, 16, 3))
    real = {q: codecs.to_uint8(codecs.jpeg(image[None], q)[0]).tobytes() for q in range(60, 65)}
    found = codecs.to_uint8(at(transforms.jpeg((60, 64)), image, jax.random.split(jax.random.key(1), 40)))
    assert {one.tobytes() for one in found} == set(real.values())


def test_ranges_are_drawn_from_uniformly():
    """Seen at what a blur leaves of a single bright pixel."""
    point = np.zeros((9, 9, 1), np.float32)
    point[4, 4] = 1
    peaks = at(transforms.blur((0.5, 1.0)), point, jax.random.split(jax.random.key(0), 300))[:, 4, 4, 0]
    profiles = [np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2) for sigma in (0.5, 0.75, 1.0)]
    ends = [(profile[4] / profile.sum()) ** 2 for profile in profiles]
    assert ends[2] - 1e-3 < peaks.min() and peaks.max() < ends[0] + 1e-3
    np.testing.assert_allclose(np.median(peaks), ends[1], rtol=0.05)


def test_a_chain_goes_in_order_with_draws_of_its_own_and_an_empty_one_does_nothing():
    image = picture()

    def doubled(key, x):
        return 2 * x

    def plus_one(key, x):
        return x + 1

    np.testing.assert_array_equal(transforms.chain(doubled, plus_one)(KEYS[0], image), 2 * image + 1)
    np.testing.assert_array_equal(transforms.chain()(KEYS[0], image), image)
    twice = transforms.chain(transforms.noise(0.1), transforms.noise(0.1))
    grey = np.full((40, 40, 3), 0.5, np.float32)
    np.testing.assert_allclose((at(twice, grey) - 0.5).std(), 0.1 * np.sqrt(2), rtol=0.02)  # not the same noise twice


def test_one_of_takes_each_as_often_and_gives_it_its_own_key():
    parts = [lambda key, x, i=i: x + i + 0.5 * jax.random.uniform(key) for i in range(3)]
    found = at(transforms.one_of(*parts), np.zeros((1, 1, 1), np.float32), jax.random.split(jax.random.key(0), 600))
    counts = np.bincount(found.ravel().astype(int))
    assert len(counts) == 3 and np.all(abs(counts - 200) < 45)
    for i in range(3):  # the choice tells nothing of the draw
        np.testing.assert_allclose(np.mean(found[found.astype(int) == i] - i), 0.25, atol=0.04)


# ---- in an attack


def linear_batch(rows=8):
    images = picture(0.3, 0.7, (rows, *toys.SHAPE))
    return Batch(jnp.asarray(images), jnp.arange(rows) % 2, jnp.arange(rows))


def slope(estimator, seed=0):
    batch = linear_batch()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch.ids)
    return jax.jit(estimator.at)(keys, batch.images, batch, jnp.zeros(8), toys.forward(0, toys.LINEAR))


def test_expectation_over_no_transformation_is_the_exact_gradient():
    goal = goals.verdict()
    averaged, exact = slope(gradients.averaged(goal, transforms.chain(), 3)), slope(gradients.exact(goal))
    for ours, told in zip(averaged, exact, strict=True):
        np.testing.assert_allclose(ours, told, rtol=1e-5, atol=1e-6)


def test_expectation_over_shifts_of_a_linear_detector_is_the_mean_of_its_shifted_weights():
    """In the middle, where no border is repeated, and the closer the more draws are averaged."""
    weights = np.asarray(toys.forward(0, toys.LINEAR).args[0]["params"]["w"])
    around = [np.roll(weights, (-down, -across), (0, 1)) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    sign = np.where(np.arange(8) % 2 == 1, -1, 1)[:, None, None, None]
    off = []
    for samples in (1, 9):
        found = np.asarray(slope(gradients.averaged(goals.verdict(), transforms.shift(1), samples)).gradient)
        off.append(np.abs(sign * found - np.mean(around, axis=0))[:, 2:-2, 2:-2].mean())
    np.testing.assert_allclose(off[1] / off[0], 1 / 3, rtol=0.25)


def test_an_attack_in_expectation_over_qualities_survives_real_files_where_a_plain_one_does_not():
    goal, rows = goals.verdict(), 64
    images = codecs.to_float(toys.images(rows).images)
    labels = (np.asarray(margin(toys.forward()(images))) > 0).astype(np.int32)
    batch = Batch(images, labels, np.arange(rows, dtype=np.int32))  # type: ignore[arg-type]
    compute = Compute(batch=rows, least=rows, chunk=30, devices=1, execution="stepped")
    through = gradients.averaged(goal, transforms.jpeg((60, 90)), 2)
    survived = {}
    for name, estimator in (("plain", None), ("expected", through)):
        process = descent(goal, steps=30, estimator=estimator, stop=False)
        made = engine.run(process, toys.forward(), batch, 12 / 255, 0, compute).images
        said = [np.asarray(margin(toys.forward()(codecs.jpeg(made, quality)))) > 0 for quality in (65, 75, 85)]
        survived[name] = np.mean(np.stack(said) != labels)
    assert survived["plain"] < 0.5
    assert survived["expected"] > 0.75
