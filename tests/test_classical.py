"""Classical detectors: features against hand counts and known spectra, models against scikit-learn's own verdicts."""

import itertools
import pickle
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ffjax import classical
from ffjax.classical import BINS, Classical, as_detector, features, fit, margins
from ffjax.data.codecs import jpeg, to_float, to_uint8
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import ImageSet

SIZE = 32
SHAPE = (SIZE, SIZE, 3)
EULER = 0.5772156649
"""The logarithm of a power that is distributed as of white noise lies below that of its mean by this, on average."""


def photographs(count: int, seed: int) -> np.ndarray:
    """(count, SIZE, SIZE, 3) uint8: soft blobs with grain of a strength of each one's own."""
    rng = np.random.default_rng(seed)
    blobs = 6 * ndimage.gaussian_filter(rng.normal(size=(count, *SHAPE)), (0, 3, 3, 0))
    grain = rng.uniform(0.02, 0.08, (count, 1, 1, 1)) * rng.normal(size=(count, *SHAPE))
    return to_uint8(0.5 + 0.2 * blobs + grain)


def median(images: np.ndarray) -> np.ndarray:
    return ndimage.median_filter(images, (1, 3, 3, 1))


def compressed(images: np.ndarray) -> np.ndarray:
    return to_uint8(jpeg(to_float(images), 60))


def pairs(count: int, seed: int, change=median, wrong: float = 0.0) -> ImageSet:
    """Every second image changed and so called fake; of the labels a share is wrong."""
    images, labels = photographs(count, seed), (np.arange(count) % 2).astype(np.int32)
    images[1::2] = change(images[1::2])
    labels = np.where(np.random.default_rng(seed).random(count) < wrong, 1 - labels, labels)
    return ImageSet(images, labels, np.arange(count, dtype=np.int32), tuple(map(str, range(count))))


@pytest.fixture(scope="module", params=classical.KINDS)
def fitted(request: pytest.FixtureRequest) -> Classical:
    """Both models, fitted to labels a quarter of which are wrong, so that they are not sure of themselves."""
    return fit(request.param, pairs(80, 0, wrong=0.25), seed=3)


# --- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (17, 26)])
def test_a_row_depends_on_its_image_alone(shape: tuple[int, int]):
    images = np.random.default_rng(0).integers(0, 256, (11, *shape, 3), dtype=np.uint8)
    found, order = features(images), np.random.default_rng(1).permutation(11)
    assert len(np.unique(found, axis=0)) == 11
    np.testing.assert_array_equal(features(images[order]), found[order])
    np.testing.assert_array_equal(np.concatenate([features(image[None]) for image in images]), found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_and_the_same_as_floats_agree(dtype: type):
    images = photographs(5, 0)
    np.testing.assert_array_equal(features((images / 255).astype(dtype)), features(images))


def test_floats_are_not_rounded_to_bytes():
    images = to_float(photographs(4, 0))
    moved = images + np.float32(0.3 / 255) * np.random.default_rng(1).choice([-1, 1], images.shape).astype(np.float32)
    moved = np.clip(moved, 0, 1)
    np.testing.assert_array_equal(to_uint8(moved), to_uint8(images))
    differs = features(moved) != features(images)
    assert differs[:, :BINS].all() and differs[:, BINS:].any(axis=1).all()


def test_their_number_does_not_depend_on_the_size():
    rng = np.random.default_rng(0)
    shapes = {features(rng.random((2, h, w, 3), np.float32)).shape for h, w in ((16, 16), (33, 50), (128, 128))}
    assert shapes == {(2, 248)}


@pytest.mark.parametrize("level", [0, 1, 100, 255])
def test_a_flat_image_has_no_power_and_one_class(level: int):
    found = features(np.full((1, *SHAPE), level, np.uint8))[0]
    np.testing.assert_allclose(found[:BINS], np.log(classical.FLOOR), atol=1e-3)
    for mean, std, most, least in found[BINS:].reshape(2, 4, 25):
        flat = classical.CLASSES[40]  # 0, 0, 0, 0 in base 3 with digits 1
        np.testing.assert_array_equal(mean, np.arange(25) == flat)
        np.testing.assert_array_equal((most, least, std), (mean, mean, 0 * mean))


@pytest.mark.parametrize("size", [32, 96])
def test_the_spectrum_of_white_noise_is_its_variance_at_every_radius(size: int):
    noise = 0.5 + 0.1 * np.random.default_rng(0).normal(size=(150, size, size, 1))
    found = features(np.repeat(noise, 3, axis=-1).astype(np.float32))[:, :BINS].mean(axis=0)
    radii = np.linspace(0, 0.5**0.5, BINS)
    inner = found[(radii > 2 / size) & (radii < 0.69)]  # at 0 the mean is missing, in the corner the imaginary part
    np.testing.assert_allclose(inner, np.log(0.01) - EULER, atol=0.35)
    assert abs(inner.mean() - (np.log(0.01) - EULER)) < 0.05


@pytest.mark.parametrize("period, axis", [(4, 1), (8, 2), (2.5, 2)])
def test_a_wave_stands_out_at_its_radius(period: float, axis: int):
    rng = np.random.default_rng(0)
    noise = np.repeat(0.5 + 0.01 * rng.normal(size=(1, 80, 80, 1)), 3, axis=-1)
    along = np.moveaxis(np.arange(80).reshape(1, 80, 1, 1), 1, axis)
    rise = features(noise + 0.2 * np.sin(2 * np.pi / period * along))[0] - features(noise)[0]
    assert abs(np.linspace(0, 0.5**0.5, BINS)[rise[:BINS].argmax()] - 1 / period) < 0.02


@pytest.mark.parametrize("degree", classical.DEGREES)
def test_cooccurrences_are_what_counting_by_hand_gives(degree: int):
    side = 16 + 3 + degree  # room for 16 words along a line
    grey = np.random.default_rng(0).integers(100, 106, (side, side))
    cells: dict[tuple, Counter] = {}
    for along, lines in (("rows", grey), ("columns", grey.T)):
        for number, line in enumerate(lines):
            levels = np.clip(np.rint(np.diff(line, n=degree) / 3), -1, 1).astype(int)
            for start in range(16):
                cell = (number * 4 // side, start // 4)
                key = (along, *(cell if along == "rows" else cell[::-1]))
                cells.setdefault(key, Counter())[_first(tuple(map(int, levels[start : start + 4])))] += 1
    kinds = sorted({_first(word) for word in itertools.product((-1, 0, 1), repeat=4)})
    shares = {key: np.array([words[kind] for kind in kinds]) / words.total() for key, words in cells.items()}
    each = np.array([(shares["rows", r, c] + shares["columns", r, c]) / 2 for r in range(4) for c in range(4)])
    image = np.repeat(grey[None, :, :, None], 3, axis=-1).astype(np.uint8)
    found = features(image)[0, BINS:].reshape(2, 4, 25)[degree - 1]
    want = each.mean(axis=0), each.std(axis=0), each.max(axis=0), each.min(axis=0)
    np.testing.assert_allclose(found, want, atol=1e-6)


def _first(word: tuple[int, ...]) -> tuple[int, ...]:
    """The first in order of a word, the same read backwards, and both with the other sign."""
    return min(w for way in (word, word[::-1]) for w in (way, tuple(-v for v in way)))


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((2, 15, 40, 3), np.uint8), "16 pixels"),
        (np.zeros((2, 32, 32, 1), np.uint8), "(N, H, W, 3)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "(N, H, W, 3)"),
        (np.zeros((2, 32, 32, 3), np.int32), "int32"),
        (np.full((2, 32, 32, 3), np.nan, np.float32), "finite"),
    ],
)
def test_what_has_no_features_is_refused(images: np.ndarray, said: str):
    with pytest.raises(InputError) as error:
        features(images)
    assert said in str(error.value)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [median, compressed])
@pytest.mark.parametrize("name", classical.KINDS)
def test_processing_is_told_on_images_not_seen(name: str, change):
    found, held = fit(name, pairs(60, 1, change)), pairs(60, 2, change)
    scores = margins(found, held.images)
    assert scores.shape == (60,) and scores.dtype == np.float32
    assert classical._auc(scores, held.labels) > 0.9
    assert np.mean((scores > 0) == held.labels) > 0.8


def test_a_margin_above_zero_is_the_models_own_verdict_of_fake(fitted: Classical):
    images = np.concatenate([pairs(40, 5).images, photographs(20, 6)])
    called = fitted.model.predict(features(images))
    assert 0 < called.sum() < len(called)
    np.testing.assert_array_equal(margins(fitted, images) > 0, called == 1)


def test_margins_are_finite_on_whatever_image(fitted: Classical):
    plain = [np.full((1, *SHAPE), level, np.float32) for level in (0.0, 0.5, 1.0)]
    harsh = np.random.default_rng(0).integers(0, 2, (2, *SHAPE)).astype(np.float32)
    scores = margins(fitted, np.concatenate([*plain, harsh]))
    assert np.isfinite(scores).all() and len(np.unique(scores)) > 1


def test_a_forest_of_one_mind_has_a_finite_margin():
    class Sure:
        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])

    found = margins(Classical("forest", Sure()), photographs(3, 0))
    np.testing.assert_allclose(found, [np.log(301), -np.log(301), 0], rtol=1e-6)


def test_one_seed_gives_one_model(fitted: Classical):
    images = pairs(40, 7).images
    again = fit(fitted.name, pairs(80, 0, wrong=0.25), seed=3)
    np.testing.assert_array_equal(margins(again, images), margins(fitted, images))


def test_another_seed_gives_another_forest():
    train, images = pairs(80, 0, wrong=0.25), pairs(40, 7).images
    assert np.any(margins(fit("forest", train, seed=1), images) != margins(fit("forest", train, seed=2), images))


def test_it_survives_pickling(fitted: Classical):
    images = pairs(10, 8).images
    np.testing.assert_array_equal(margins(pickle.loads(pickle.dumps(fitted)), images), margins(fitted, images))


@pytest.mark.parametrize("best", range(3))
def test_validation_chooses_the_setting_of_highest_auc(best: int, monkeypatch: pytest.MonkeyPatch):
    """Three machines of which one, each in its turn, is as good as its features, and the others know nothing."""
    kind = classical.KINDS["svm"]

    class Deaf:
        def fit(self, x, labels):
            return self

        def decision_function(self, x):
            return np.zeros(len(x))

    def make(setting: float, seed: int):
        return kind.make(setting, seed) if setting == kind.settings[best] else Deaf()

    monkeypatch.setitem(classical.KINDS, "svm", kind._replace(make=make))
    chosen = fit("svm", pairs(40, 0), pairs(20, 1)).model
    assert not isinstance(chosen, Deaf)
    np.testing.assert_equal(chosen[-1].C, kind.settings[best])


def test_without_validation_it_is_the_middle_setting():
    machine = fit("svm", pairs(20, 0)).model[-1]
    np.testing.assert_equal(machine.C, classical.KINDS["svm"].settings[1])


@pytest.mark.parametrize("name", classical.KINDS)
def test_classes_weigh_alike(name: str):
    """Ten fakes to a hundred reals, a fifth of the labels wrong. Unweighted, the SVM calls 17 % of held-out images fake
    and the forest none."""
    train = pairs(240, 0, wrong=0.2)
    few = np.concatenate([np.flatnonzero(train.labels == label)[:most] for label, most in ((0, 100), (1, 10))])
    train = train._replace(images=train.images[few], labels=train.labels[few])
    assert np.mean(margins(fit(name, train), pairs(100, 1).images) > 0) > 0.25


def test_what_cannot_be_fitted_is_refused():
    train = pairs(20, 0)
    with pytest.raises(InputError, match="known: svm, forest"):
        fit("boosting", train)
    one = train._replace(labels=np.zeros_like(train.labels))
    for args in ((one,), (train, one)):
        with pytest.raises(InputError, match="both classes"):
            fit("svm", *args)


# --- as a detector ------------------------------------------------------------------------------------------------


def test_as_a_detector_under_jit_it_says_what_margins_says(fitted: Classical):
    detector, variables, queries = as_detector(fitted, SHAPE)
    images = to_float(pairs(12, 9).images) + np.float32(0.2 / 255)  # off the lattice of bytes
    images, before = np.clip(images, 0, 1), int(queries.images)
    scores = jax.block_until_ready(jax.jit(lambda x: margin(detector.apply(variables, x)))(images))
    np.testing.assert_allclose(scores, margins(fitted, images), rtol=0, atol=1e-5)
    assert np.ptp(np.asarray(scores)) > 0.1
    assert int(queries.images) - before == 12


def test_it_has_no_gradient(fitted: Classical):
    detector, variables, _ = as_detector(fitted, SHAPE, check=False)
    with pytest.raises(InputError, match="no gradient"):
        jax.grad(lambda x: margin(detector.apply(variables, x)).sum())(jnp.zeros((1, *SHAPE)))
