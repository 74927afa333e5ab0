"""How much of a forensics task JPEG history alone gives away: a baseline to print beside every detector's figure.

Photographs are seldom free of an earlier compression. A detector that says "processed" because the 8x8 grid has gone
has learnt the data set, not the operation; where this baseline is above one half, so may the detector. An upper bound:
what blurs or sharpens moves the traces a little too, which the same figure on never-compressed photographs tells apart.
"""

from collections.abc import Callable

import numpy as np
from scipy.fft import dct
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ffjax.errors import InputError
from ffjax.metrics import Scores
from ffjax.types import ImageSet

PERIODS = (8, 4)
"""Of the grid as coded, and of one that was halved afterwards."""

LUMA = (0.299, 0.587, 0.114)
SMALLEST = 24
COEFFICIENTS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
STEPS = range(2, 25)
"""Quantisation steps whose comb is looked for."""


def history_scores(train: ImageSet, data: ImageSet, seed: int = 0) -> Scores:
    """The baseline fitted on train, as scores of data: any split of any set (`history_scorer`, for one set)."""
    return history_scorer(train, seed)(data)


def history_scorer(train: ImageSet, seed: int = 0) -> Callable[[ImageSet], Scores]:
    """A logistic regression on `jpeg_history`, fitted on train once -> what scores any set with it, colour or grey.

    clean = attacked = its log odds of "processed", so `metrics.summary(scores)["clean_balanced_accuracy"]` is the
    baseline's accuracy with its interval over photographs. InputError where train holds one class only.
    """
    if len(np.unique(train.labels)) < 2:
        raise InputError("the JPEG-history baseline needs both classes to be fitted")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))
    model.fit(jpeg_history(train.images), train.labels)

    def scores(data: ImageSet) -> Scores:
        margins = model.decision_function(jpeg_history(data.images))
        return Scores(data.labels, data.groups, margins, margins)

    return scores


def jpeg_history(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 -> (N, F) float64: traces of the 8x8 grid, each relative to the image's own detail.

    Per period: how far the strongest phase of the differences across pixel borders, summed along rows and columns,
    stands above the median phase (a grid at any offset, no matter how sharp the image is), and how evenly a period
    repeats. Per low coefficient of the DCT on that grid: how well the values away from zero stand on a comb, at the
    best step (Fan and de Queiroz 2003 use both traces). InputError below 24 pixels, which hold too few blocks.
    """
    if min(images.shape[1:3]) < SMALLEST:
        raise InputError(f"the JPEG-history baseline needs patches of at least {SMALLEST} pixels")
    luma = np.array(LUMA) if images.shape[-1] == 3 else np.ones(1)  # what JPEG quantises
    grey = images.astype(np.float64) @ luma
    return np.array([_traces(image) for image in grey])


def _traces(grey: np.ndarray) -> np.ndarray:
    found, offsets = [], []
    for axis in (0, 1):
        steps = _border_steps(np.moveaxis(grey, axis, 0))
        for period in PERIODS:
            phases = np.array([steps[k::period].mean() for k in range(period)])
            rest = np.median(phases) + 1e-3
            found += [phases.max() / rest - 1, phases.min() / rest - 1]
            if period == 8:
                offsets.append((int(phases.argmax()) + 2) % 8)  # step k lies between pixels k + 1 and k + 2
    return np.array(found + _combs(grey[offsets[0] :, offsets[1] :]))


def _border_steps(lines: np.ndarray) -> np.ndarray:
    """(n, m) -> (n - 3,): how far the step from line k + 1 to k + 2 differs from its neighbours' mean, on average."""
    step = np.diff(lines, axis=0)
    return np.abs(step[1:-1] - (step[:-2] + step[2:]) / 2).mean(axis=1)


def _combs(aligned: np.ndarray) -> list[float]:
    """For each of COEFFICIENTS the largest mean cosine over STEPS, of values at least half a step from zero."""
    rows, columns = (side // 8 for side in aligned.shape)
    blocks = aligned[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    spectrum = np.asarray(dct(dct(blocks, axis=1, norm="ortho"), axis=2, norm="ortho"))
    return [_comb(spectrum[:, i, j]) for i, j in COEFFICIENTS]


def _comb(values: np.ndarray) -> float:
    best = 0.0
    for step in STEPS:
        away = values[np.abs(values) > step / 2]
        if len(away) >= 4:
            best = max(best, float(np.cos(2 * np.pi * away / step).mean()))
    return best
