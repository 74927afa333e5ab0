"""Detectors without a gradient, as a transfer study has for targets: hand-made features, a linear SVM and a forest.

The features are those that forensics used before networks, and beside them: the azimuthal mean of the log power
spectrum (Durall et al., arXiv 1911.00686 and CVPR 2020), and co-occurrences of quantised, truncated high-pass residuals
(SPAM, Pevny et al. 2010; rich models, Fridrich and Kodovsky 2012; for forgeries Cozzolino et al., ICIP 2014). As a
forgery covers a part of an image only, the co-occurrences are counted in the cells of a grid and their spread over it
is told as well as their mean. Host NumPy, no files: whoever fits a model keeps it (`Classical` can be pickled).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import fft
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from ffjax import metrics
from ffjax.data.codecs import to_float
from ffjax.detectors.adapters import Convention, from_scores
from ffjax.detectors.adapters.scores import BlackBox
from ffjax.errors import InputError
from ffjax.types import ImageSet

SMALLEST = 16
LUMA = (0.299, 0.587, 0.114)

BINS = 48
"""Radii of the spectrum, evenly from 0 to the corner, sqrt(1/2) cycles a pixel."""
FLOOR = 1.5e-7
"""Added to a power before its logarithm: an eighth of what rounding to 8 bits puts into every frequency (1/255²/12)."""

DEGREES = (1, 2)
"""Of the residuals: differences of neighbours, and differences of those."""
STEP = 3 / 255
"""A residual within half a step of 0 counts as 0, any other as -1 or 1: truncation at T = 1. In grey 8-bit images no
residual lies on the edge, at 1.5 levels, where rounding would decide."""
ORDER = 4
GRID = 4

TREES = 300
_CHUNK = 8
"""Images at once, so that their planes stay in the processor's cache."""


class Classical(NamedTuple):
    """name: 'svm' or 'forest'. model: what scikit-learn fitted to `features`; its classes are 0 (real) and 1 (fake)."""

    name: str
    model: Any


class Kind(NamedTuple):
    """make(setting, seed) -> an estimator to fit. settings: what validation chooses from; the middle one otherwise."""

    make: Callable[[float, int], Any]
    settings: tuple[float, float, float]


def _svm(c: float, seed: int) -> Any:
    # dual=False: Newton steps on the primal problem, which draw no lots (the seed changes nothing) and converge
    machine = LinearSVC(C=c, dual=False, class_weight="balanced", random_state=seed)  # pyright: ignore[reportArgumentType]
    return make_pipeline(StandardScaler(), machine)


def _forest(leaf: float, seed: int) -> Any:
    return RandomForestClassifier(
        TREES, min_samples_leaf=int(leaf), class_weight="balanced", random_state=seed, n_jobs=1
    )


KINDS = {"svm": Kind(_svm, (1e-3, 1e-2, 1e-1)), "forest": Kind(_forest, (1, 3, 10))}
"""Settings: the C of the SVM, the fewest training images in a leaf of the forest."""


def fit(name: str, train: ImageSet, validation: ImageSet | None = None, seed: int = 0) -> Classical:
    """The model of that name ('svm', 'forest') fitted to train, its setting chosen by AUC on validation if that is
    given; of equals the first. Both classes weigh alike. A function of its arguments.

    InputError: an unknown name, a set that holds one class only, and what `features` refuses.
    """
    if name not in KINDS:
        raise InputError(f"classical detector {name}: unknown; known: {', '.join(KINDS)}")
    for data in (train, validation):
        if data is not None and set(np.unique(data.labels)) != {0, 1}:
            raise InputError(f"classical detector {name}: needs images of both classes")
    make, settings = KINDS[name]
    x, tried = features(train.images), settings if validation is not None else settings[1:2]
    fitted = [Classical(name, make(setting, seed).fit(x, train.labels)) for setting in tried]
    if validation is None:
        return fitted[0]
    held = features(validation.images)
    return max(fitted, key=lambda one: _auc(_margins(one, held), validation.labels))


def margins(classical: Classical, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3), uint8 or float32 in [0, 1] -> (N,) float32, above 0 where the model calls them fake.

    SVM: its decision function. Forest: the log odds of the trees' mean share p of fakes, (300 p + 1) / (300 (1 - p) +
    1), which is finite (5.7 at most) where all agree.
    """
    return _margins(classical, features(images))


def as_detector(classical: Classical, shape: tuple[int, int, int], check: Any = True) -> BlackBox:
    """The model as (detector, variables, queries) for black-box attacks on float images of `shape` (H, W, 3); see
    `from_scores`. A gradient through it raises InputError."""
    says = Convention(bounds=(0, 1), output="logit", fake="high")
    return from_scores(functools.partial(margins, classical), shape, says, check=check)


def _margins(classical: Classical, x: np.ndarray) -> np.ndarray:
    if classical.name == "svm":
        return classical.model.decision_function(x).astype(np.float32)
    shares = TREES * classical.model.predict_proba(x)
    return (np.log(shares[:, 1] + 1) - np.log(shares[:, 0] + 1)).astype(np.float32)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.auc(metrics.roc(scores, labels, np.ones((len(labels), 1))))[0])


# --- features -----------------------------------------------------------------------------------------------------


def features(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3), uint8 or float32 in [0, 1] -> (N, 248) float32, of each image by itself, at any size.

    48 of the spectrum (natural logarithms), then for residuals of the first and of the second degree, 25 classes of
    co-occurrences each: mean, standard deviation, maximum and minimum over the grid of their shares of a cell. All of
    the luma alone. Floats are NOT rounded to 8 bits: the spectrum follows any change of a pixel smoothly; a
    co-occurrence changes only where a residual crosses the edge of a step, and then by a whole count.
    InputError: another shape or type, under 16 pixels, or values that are not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < SMALLEST or not len(images):
        raise InputError(f"features: need images (N, H, W, 3) of {SMALLEST} pixels or more, got {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(f"features: need images in uint8, or in float from 0 to 1, got {images.dtype}")
    return np.concatenate([_features(images[k : k + _CHUNK]) for k in range(0, len(images), _CHUNK)])


def _features(images: np.ndarray) -> np.ndarray:
    x = to_float(images) if images.dtype == np.uint8 else images.astype(np.float32)
    # term by term: a matrix product may round a row otherwise in a batch of another size
    grey = sum(np.float32(share) * x[..., c] for c, share in enumerate(LUMA))
    grey = np.ascontiguousarray(grey)
    if not np.isfinite(grey).all():
        raise InputError("features: the images hold values that are not finite")
    shares = [_cooccurrences(grey, degree) for degree in DEGREES]
    pooled = [f(cells, axis=1) for cells in shares for f in (np.mean, np.std, np.max, np.min)]
    return np.concatenate([_spectrum(grey), *pooled], axis=1, dtype=np.float32)


def _spectrum(grey: np.ndarray) -> np.ndarray:
    """(n, H, W) -> (n, BINS): log power under a Hann window, averaged around rings one frequency wide and interpolated
    between them. Scaled so that white noise has its variance at every radius and size."""
    window, order, starts, counts, radii = _rings(*grey.shape[1:])
    sizes = np.abs(np.asarray(fft.rfft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window)))
    log_power = np.log(sizes**2 + np.float32(FLOOR)).reshape(len(grey), -1)
    means = np.add.reduceat(log_power[:, order], starts, axis=1) / counts
    return np.stack([np.interp(np.linspace(0, np.sqrt(0.5), BINS), radii, row) for row in means])


@functools.lru_cache(maxsize=8)
def _rings(height: int, width: int) -> tuple[np.ndarray, ...]:
    """window (H, W), its squares' sum 1; then of the half-plane that rfft2 gives, without the mean: its frequencies
    sorted by ring, where each ring starts, how many it has, and its radius."""
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    window = (window / np.sqrt(np.sum(window**2))).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    ring = np.rint(radius * min(height, width)).astype(int)
    order = np.argsort(ring, kind="stable")[np.sum(ring == 0) :]
    numbers, starts, counts = np.unique(ring[order], return_index=True, return_counts=True)
    return window, order, starts, counts.astype(np.float32), numbers / min(height, width)


def _cooccurrences(grey: np.ndarray, degree: int) -> np.ndarray:
    """(n, H, W) -> (n, GRID², 25): shares of the classes of ORDER neighbouring residuals, of those along columns and
    those along rows together, in each cell of a grid."""
    found = []
    for axis in (1, 2):
        residuals = np.diff(grey, n=degree, axis=axis)
        levels = np.clip(np.rint(residuals * np.float32(1 / STEP)), -1, 1).astype(np.int16) + np.int16(1)
        count = levels.shape[axis] - ORDER + 1
        parts = [levels[(slice(None),) * axis + (slice(k, k + count),)] for k in range(ORDER)]
        codes = functools.reduce(lambda code, part: 3 * code + part, parts)
        found.append(_shares(CLASSES[codes]))
    return (found[0] + found[1]) / 2


def _shares(classes: np.ndarray) -> np.ndarray:
    """(n, h, w) numbers of classes -> (n, GRID², 25) float32, each class's share of each cell."""
    n, h, w = classes.shape
    rows, columns = (np.arange(side) * GRID // side for side in (h, w))
    cells, kinds = rows[:, None] * GRID + columns, int(CLASSES.max()) + 1
    places = cells + GRID**2 * np.arange(n)[:, None, None]
    counts = np.bincount((classes + kinds * places).ravel(), minlength=n * GRID**2 * kinds)
    sizes = np.bincount(cells.ravel()).astype(np.float32)
    return counts.reshape(n, GRID**2, kinds).astype(np.float32) / sizes[:, None]


def _classes() -> np.ndarray:
    """(81,) Number of the class of each code: what differs by sign or direction alone is one (as in SPAM), leaving
    25."""
    words = np.array(list(itertools.product((-1, 0, 1), repeat=ORDER)))
    alike = np.stack([words, -words, words[:, ::-1], -words[:, ::-1]])
    lowest = ((alike + 1) @ 3 ** np.arange(ORDER)[::-1]).min(axis=0)
    return np.unique(lowest, return_inverse=True)[1].astype(np.intp)


CLASSES = _classes()
