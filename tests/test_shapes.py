"""What a pattern may look like: every shape holds its bound, idempotently, and shows what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scipy import fft, ndimage

from ffjax import evaluate
from ffjax.evaluate import Condition
from ffjax.universal import UapConfig, shapes

SIZE = (16, 20, 3)
EPS = 0.05
SHAPES = {
    "additive": shapes.additive("linf"),
    "additive-l2": shapes.additive("l2"),
    "face": shapes.regional("linf", inside=True),
    "background-l2": shapes.regional("l2", inside=False),
    "band": shapes.banded("linf", 4),
    "band-l2": shapes.banded("l2", 4),
    "filter": shapes.filtered(3),
}


def size_of(name: str, v) -> float:
    if name == "filter":
        return float(np.abs(v).sum(axis=(0, 1)).max())
    return float(np.linalg.norm(v) if name.endswith("l2") else np.abs(v).max())


@pytest.mark.parametrize("name", SHAPES)
def test_project_lands_inside_and_is_idempotent(name):
    look = SHAPES[name]
    like = look.start(jax.random.key(0), jnp.float32(EPS), SIZE)
    for seed in range(5):
        v = look.project(0.3 * jax.random.normal(jax.random.key(seed), like.shape), EPS)
        assert 0 < size_of(name, v) <= EPS * (1 + 1e-5)
        np.testing.assert_allclose(look.project(v, EPS), v, atol=1e-7)


@pytest.mark.parametrize("name", SHAPES)
def test_starts_and_noise_are_inside_and_noise_fills_the_bound(name):
    look = SHAPES[name]
    for seed in range(3):
        key = jax.random.key(seed)
        start, noise = (np.asarray(draw(key, jnp.float32(EPS), SIZE)) for draw in (look.start, look.noise))
        assert size_of(name, start) <= EPS * (1 + 1e-5)
        np.testing.assert_allclose(size_of(name, noise), EPS, rtol=1e-4)
        np.testing.assert_allclose(look.project(jnp.asarray(noise), EPS), noise, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.endswith("l2")])
def test_no_pixel_moves_further_than_an_l_inf_bound(name):
    look, images = SHAPES[name], jax.random.uniform(jax.random.key(9), (5, *SIZE))
    patterns = jnp.stack([look.noise(jax.random.key(s), jnp.float32(EPS), SIZE) for s in range(4)])
    shown = np.asarray(look.show(patterns, images))
    assert shown.shape == (5, 4, *SIZE)
    assert np.abs(shown - np.asarray(images)[:, None]).max() <= EPS * (1 + 1e-4)


def test_a_region_leaves_the_rest_alone():
    where = shapes.face(*SIZE[:2])
    assert 0.3 < where.mean() < 0.7 and where[8, 10] and not where[0, 0]
    for inside in (True, False):
        v = shapes.regional("linf", inside=inside).project(jnp.full(SIZE, 0.2), EPS)
        np.testing.assert_allclose(np.abs(v).max(axis=2), np.where(where == inside, EPS, 0))


@pytest.mark.parametrize("inside", [True, False])
def test_a_region_is_at_its_bound_where_all_of_it_is(inside):
    """Or the rescue of stuck patterns would never come: the rest of the picture is no part of it."""
    look = shapes.regional("linf", inside=inside)
    full = look.project(jnp.full(SIZE, 0.2), EPS)
    np.testing.assert_allclose(look.at_bound(full, EPS), 1, rtol=1e-6)
    assert float(look.at_bound(full * 0.5, EPS)) == 0


def test_a_band_holds_its_cosines_alone():
    """Against SciPy's DCT-II: nothing beyond 4 x 4, and a pattern of the band inside the ball stays as it is."""
    v = shapes.banded("linf", 4).project(jax.random.normal(jax.random.key(0), SIZE), EPS)
    found = fft.dctn(np.asarray(v, np.float64), axes=(0, 1), norm="ortho")
    kept = np.abs(found[:4, :4]).max()
    found[:4, :4] = 0
    assert kept > 0.01 and np.abs(found).max() < 1e-6
    np.testing.assert_allclose(np.abs(v).max(), EPS, rtol=1e-5)


def test_a_filter_is_a_correlation_added_to_the_image():
    kernel = shapes.filtered(3).noise(jax.random.key(1), jnp.float32(EPS), SIZE)
    images = jax.random.uniform(jax.random.key(2), (2, *SIZE))
    shown = np.asarray(shapes.filtered(3).show(kernel[None], images))[:, 0]
    for channel in range(3):
        for image, one in zip(np.asarray(images), shown, strict=True):
            moved = ndimage.correlate(image[..., channel], np.asarray(kernel)[..., channel], mode="nearest")
            np.testing.assert_allclose(one[..., channel], image[..., channel] + moved, atol=1e-6)


def test_a_condition_shows_a_filter_as_it_was_made():
    """The same image whether a detector is shown it on the device or from a file of it in float."""
    data, kernel = toys.images(6), 0.02 * np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32)
    condition = Condition("f", "uap", "g", kernel, shape="filter")
    expected = np.clip(shapes.filtered(3).show(jnp.asarray(kernel)[None], data.images / np.float32(255))[:, 0], 0, 1)
    np.testing.assert_allclose(evaluate.shown(data.images, condition), expected, atol=1e-6)
    said = evaluate.margins(toys.forward(), data.images, evaluate.Compute(), kernel, "filter")
    np.testing.assert_allclose(said, evaluate.margins(toys.forward(), expected, evaluate.Compute()), rtol=1e-4)
    assert not np.allclose(said, evaluate.margins(toys.forward(), data.images, evaluate.Compute()), rtol=1e-4)


def test_a_pattern_of_another_size_keeps_its_bound():
    v = shapes.sign_noise(jax.random.key(0), SIZE, EPS)
    for height, width in ((32, 40), (8, 10), (17, 50)):
        other = shapes.resized("additive", v, height, width)
        assert other.shape == (height, width, 3) and 0 < np.abs(other).max() <= EPS
    assert shapes.resized("additive", v, 16, 20) is v
    kernel = jnp.ones((5, 5, 3))
    assert shapes.resized("filter", kernel, 99, 99) is kernel
    flat = jnp.full(SIZE, EPS)
    np.testing.assert_allclose(shapes.resized("additive", flat, 31, 7), EPS, rtol=1e-6)


def test_a_config_has_its_shape():
    for name in ("additive", "face", "background", "band", "filter"):
        look = shapes.shape(UapConfig(shape=name, mode="range_prior"))
        assert look.start(jax.random.key(0), jnp.float32(EPS), SIZE).shape == ((5, 5, 3) if name == "filter" else SIZE)
