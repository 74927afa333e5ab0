"""JPEG as maths: its values are a real codec's to the level, its derivatives those of the codec that does not round."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image

from ffjax import engine, goals, jpeg
from ffjax.attacks.fast_gradient import bim
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.types import Batch

QUALITIES = np.arange(30, 96)
SIZES = [(33, 47, 3), (17, 9, 3), (7, 4, 3), (34, 5, 3), (1, 1, 3), (13, 21, 1)]


@functools.partial(jax.jit, static_argnames=("subsampling", "rounding", "arithmetic"))
def coded(image, qualities, **options):
    """(H, W, C) at many qualities -> (Q, H, W, C)."""
    return jax.vmap(lambda quality: jpeg.coded(image, quality, **options))(qualities)


def noise(shape, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32) / 255


def stored(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(codecs.to_uint8(image)).save(file, "JPEG", quality=int(quality), subsampling=subsampling)
    return np.asarray(Image.open(file))


def as_file(images) -> np.ndarray:
    """Float images that are whole levels -> the levels."""
    levels = np.asarray(images) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    return np.rint(levels).astype(np.uint8)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_it_is_the_real_codec_to_the_level_on_noise_of_any_size(shape):
    image, qualities = noise(shape), np.array([1, 5, 30, 49, 50, 61, 75, 90, 95, 100])
    real = np.stack([codecs.jpeg(image[None], int(q))[0] for q in qualities])
    assert np.array_equal(as_file(coded(image, qualities)), codecs.to_uint8(real))


def test_it_is_the_real_codec_to_the_level_on_photographs(shared):
    """Each at three of the qualities 30 .. 95, all of which come up; 481 x 321 is padded on both sides."""
    colour = sorted((shared / "kodak" / "colour").glob("*.png"))
    colour += sorted((shared / "bsds500-subset" / "val").glob("*.jpg"))[:10]
    files = colour + sorted((shared / "kodak" / "gray256").glob("*.png"))[:8]
    assert len(files) == 22
    met = set()
    for i, file in enumerate(files):
        image = codecs.to_float(np.asarray(Image.open(file)))
        image = image[..., None] if image.ndim == 2 else image
        if file in colour:
            image = (image if image.shape[0] < image.shape[1] else image.swapaxes(0, 1))[:321, :481]
        qualities = QUALITIES[3 * i : 3 * i + 3]
        met |= set(qualities)
        real = np.stack([codecs.jpeg(image[None], int(q))[0] for q in qualities])
        assert np.array_equal(as_file(coded(image, qualities)), codecs.to_uint8(real)), file.name
    assert met == set(QUALITIES)


def test_without_subsampling_it_is_pillows_444():
    image, qualities = noise((19, 30, 3)), np.array([30, 60, 95])
    real = np.stack([stored(image, q, "4:4:4") for q in qualities])
    assert np.array_equal(as_file(coded(image, qualities, subsampling="4:4:4")), real)
    assert np.abs(real.astype(int) - as_file(coded(image, qualities))).max() > 10


def test_tables_are_libjpegs_at_every_quality():
    blank, qualities = np.zeros((8, 8, 3), np.uint8), range(1, 101)
    luma, chroma = jax.vmap(jpeg.tables)(jnp.array(qualities))
    for quality, ours in zip(qualities, zip(luma, chroma, strict=True), strict=True):
        theirs = Image.open(io.BytesIO(codecs.jpeg_bytes(blank, quality))).quantization
        for k in (0, 1):
            assert np.array_equal(ours[k], np.reshape(theirs[k], (8, 8))), (quality, k)
    outside = jax.vmap(jpeg.tables)(jnp.array([-3, 0, 101]))
    for table, ends in zip(outside, (luma, chroma), strict=True):
        assert np.array_equal(table, ends[np.array([0, 0, -1])])


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_an_image_of_one_grey_is_found_again(value):
    image = np.full((16, 16, 3), value / 255, np.float32)
    assert np.array_equal(as_file(coded(image, np.array([95]))), np.full((1, 16, 16, 3), value))


def test_an_image_between_levels_is_stored_as_its_nearest_level():
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    image[0, 0] = 0.5 / 255  # a half, which goes to the even level here as in a file
    real = codecs.jpeg(image[None], 80)
    assert np.array_equal(as_file(coded(image, np.array([80]))), codecs.to_uint8(real))


def test_the_integer_transform_is_the_cosine_transform():
    near = jpeg.FIXED_POINT - np.sqrt(8) * 2**jpeg.POINT * jpeg.COSINES
    assert np.abs(near).max() < 1.3
    np.testing.assert_allclose(jpeg.COSINES @ jpeg.COSINES.T, np.eye(8), atol=1e-15)


def identity(x):
    return x


def surrogate(x):
    """The published one: its value is cubic too."""
    nearest = jax.lax.stop_gradient(jnp.round(x))
    return nearest + (x - nearest) ** 3


def soft(shape, seed=0):
    """An image far enough from black and white that no value in the codec is clipped."""
    return np.random.default_rng(seed).uniform(0.35, 0.65, shape)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("rounding", [identity, surrogate])
def test_gradients_in_real_arithmetic_are_finite_differences_in_float64(subsampling, rounding):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        image, way, weights = soft((21, 13, 3)), rng.normal(size=(21, 13, 3)), rng.normal(size=(21, 13, 3))

        @jax.jit
        def value(x):
            once = jpeg.coded(x, 60, subsampling=subsampling, rounding=rounding, arithmetic=jpeg.REAL)
            return jnp.sum(weights * once)

        h = 1e-7
        slope = (value(image + h * way) - value(image - h * way)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(jax.grad(value)(jnp.asarray(image)) * way), slope, rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("subsampling", "rounding", "arithmetic"))
def pulled(image, weights, quality=60, **options):
    """The codec's value, and its gradient along weights."""
    value, back = jax.vjp(lambda x: jpeg.coded(x, quality, **options), image)
    return value, back(weights)[0]


SOFT = soft((21, 13, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=SOFT.shape).astype(np.float32)


def test_straight_through_is_the_gradient_of_the_codec_that_does_not_round():
    _, ours = pulled(SOFT, WEIGHTS)
    _, smooth = pulled(SOFT, WEIGHTS, rounding=identity, arithmetic=jpeg.REAL)
    np.testing.assert_allclose(ours, smooth, rtol=1e-4, atol=1e-5)
    # which loses nothing but detail of colour: the light's gradient passes as it is, and with 4:4:4 all of it
    np.testing.assert_allclose(jnp.sum(ours, -1), jnp.sum(WEIGHTS, -1), atol=1e-4)
    assert np.abs(ours - WEIGHTS).max() > 0.5
    np.testing.assert_allclose(pulled(SOFT, WEIGHTS, subsampling="4:4:4")[1], WEIGHTS, atol=1e-4)


def test_the_cubic_rounding_has_its_published_gradient_and_the_true_value():
    value, ours = pulled(SOFT, WEIGHTS, rounding=jpeg.cubic)
    assert np.array_equal(value, pulled(SOFT, WEIGHTS)[0])
    _, real = pulled(SOFT, WEIGHTS, rounding=jpeg.cubic, arithmetic=jpeg.REAL)
    _, published = pulled(SOFT, WEIGHTS, rounding=surrogate, arithmetic=jpeg.REAL)
    np.testing.assert_allclose(real, published, rtol=1e-3, atol=1e-5)
    # the roundings of the samples move the coefficients a little, and with them where on the cubic they are
    assert np.corrcoef(ours.ravel(), real.ravel())[0, 1] > 0.8
    flat = np.full_like(SOFT, 128 / 255)
    np.testing.assert_array_equal(pulled(flat, WEIGHTS, rounding=jpeg.cubic)[1], 0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_pixels_keep_their_gradient(value):
    """Where jnp.clip would halve it at every clip on the way."""
    image = np.full_like(SOFT, value)
    once, ours = pulled(image, np.ones_like(SOFT), 95)
    np.testing.assert_allclose(once, image, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(ours, -1), 3, atol=1e-4)


def test_clamped_has_derivative_one_on_the_closed_interval_and_none_beyond():
    x = jnp.array([-1.0, -1e-6, 0.0, 0.4, 2.0, 2.001, jnp.inf])
    np.testing.assert_array_equal(jpeg.clamped(x, 2), jnp.clip(x, 0, 2))
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda v: jpeg.clamped(v, 2)))(x), [0, 0, 1, 1, 1, 0, 0])


def test_one_trace_for_all_qualities_and_rows_do_not_see_one_another():
    traces = []

    @jax.jit
    def many(images, qualities):
        traces.append(1)
        return jax.vmap(jpeg.coded)(images, qualities)

    images, qualities = noise((3, 16, 24, 3)), jnp.array([30, 71, 95])
    together = many(images, qualities)
    swapped = many(images[::-1], qualities[::-1])
    assert len(traces) == 1
    assert np.array_equal(together, swapped[::-1])
    assert np.array_equal(together[1], coded(images[1], jnp.array([71]))[0])


@jax.jit
def behind_a_file(variables, images):
    return toys.TOY.apply(variables, jax.vmap(lambda image: jpeg.coded(image, 75))(images))


def test_what_an_attack_through_it_claims_is_so_of_the_real_file():
    """The codec as a part of the Forward: success is then success after JPEG, row by row."""
    forward = jax.tree_util.Partial(behind_a_file, toys.forward().args[0])
    images = codecs.to_float(toys.images(64).images)
    labels = (np.asarray(margin(forward(images))) > 0).astype(np.int32)
    batch = Batch(images, labels, np.arange(64, dtype=np.int32))  # type: ignore[arg-type]
    compute = Compute(batch=64, least=64, chunk=20, devices=1, execution="stepped")
    result = engine.run(bim(goals.verdict(), steps=20, step=0.1), forward, batch, 8 / 255, 0, compute)
    assert 0.5 < result.success.mean() < 1
    said = np.asarray(margin(toys.forward()(codecs.jpeg(result.images, 75))))
    sure = np.abs(said) > 1e-5
    assert np.array_equal((said > 0)[sure] != labels[sure], result.success[sure])
