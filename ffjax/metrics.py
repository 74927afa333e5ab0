"""How well a binary detector tells fake from real before and after an attack, each figure with its uncertainty.

Host numpy, float64. A score is the logit margin z_fake - z_real; the detector says fake where score > 0. Label 1 =
fake, 0 = real. Everything is computed for many weightings of the images at once: weights (N, R), one column a
resample, so that a thousand bootstrap resamples cost one sort and a few weighted sums. (Images come first because
sums along the first axis of a NumPy array run several times faster than along the last.)

Intervals are 95 % percentile intervals of a cluster bootstrap (Davison and Hinkley 1997, section 3.8): images of one
person or photograph are not independent, so whole groups are drawn, with replacement.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ffjax.errors import InputError

LEVELS = (2.5, 97.5)
_CHUNK = 1 << 21
"""Weights held at once, so that memory does not grow with resamples x images."""

_ALONE = 1e-12
"""A variance below this, on scores of variance one, is rounding error: the correlation is undefined."""


class Scores(NamedTuple):
    """What a detector said of N images. labels (N,) in {0, 1}; groups (N,) integers, the identity or photograph of
    each; clean, attacked (N,) float: its scores on the image as it was and as it was attacked."""

    labels: np.ndarray
    groups: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray


class Estimate(NamedTuple):
    """value: on all images. low, high: its 95 % interval. n: the images it is a share or a mean of (the denominator).

    value is NaN where it is undefined (no image in a denominator); low and high are NaN if there are fewer than two
    groups, of which nothing can be said, or if no resample defines the value. Resamples that do not are left out.
    """

    value: float
    low: float
    high: float
    n: int


class Roc(NamedTuple):
    """The curves of R weightings: fpr, tpr (K + 1, R), from (0, 0) to (1, 1), one step per distinct score, and
    thresholds (K + 1,): at step k the detector says fake where score > thresholds[k]. Tied scores share a step."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


def summary(
    scores: Scores, validation: Scores | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric of one detector under one attack, by name.

    For clean_ and attacked_, each over the images stated:
        accuracy            share of all images called rightly
        balanced_accuracy   mean of the share of reals and the share of fakes called rightly
        fake_called_real    share of the fakes
        real_called_fake    share of the reals
        auc                 P(fake scores above real) + P(equal) / 2
        eer                 equal error rate, see `equal_error_rate`
        tpr_at_1fpr         see `tpr_at_fpr`
    fooling_rate            share of all images whose verdict the attack changed
    fooled_of_correct       share of the images called rightly when clean whose verdict it changed (attack success)
    logit_correlation       Pearson correlation of clean and attacked scores, over all images
    mean_shift              mean of attacked - clean score, over all images: negative is towards real
    refit_balanced_accuracy (only with validation) attacked balanced accuracy, the threshold moved to where it is best
                            on the attacked validation scores; that threshold is fitted anew in every resample, of the
                            validation groups too, so the interval includes its uncertainty

    The same groups, resamples and seed give the same resamples whatever the scores. Raises InputError on empty or
    unequal arrays, labels other than 0 and 1, and scores that are not finite.
    """
    _check(scores)
    rows = len(scores.labels)
    if validation is None:
        draws = _chunks(resamples, rows, (scores.groups, seed, 0))
        parts = [_values(scores, weights) for (weights,) in draws]
    else:
        _check(validation)
        # Another stream: the validation groups are resampled independently of the test groups.
        draws = _chunks(
            resamples, rows + len(validation.labels), (scores.groups, seed, 0), (validation.groups, seed, 1)
        )
        parts = [_values(scores, weights) | _refit(scores, weights, validation, held) for weights, held in draws]
    counts = _denominators(scores)
    several = len(np.unique(scores.groups)) > 1
    return {
        name: _estimate(np.concatenate([part[name] for part in parts]), counts.get(name, rows), several)
        for name in parts[0]
    }


def average(values: np.ndarray, groups: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The mean of values (N,) over images of those groups (N,), by the same bootstrap."""
    weights = [weights for (weights,) in _chunks(resamples, len(values), (groups, seed, 0))]
    means = np.concatenate([_mean(values, part) for part in weights])
    return _estimate(means, len(values), len(np.unique(groups)) > 1)


def share(values: np.ndarray, groups: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The average of values (N,) in [0, 1]. Where all are alike no resample differs; then the interval is of what the
    rest of a population may be like (0 or 1) of which G groups showed one value: they do, exactly, with probability
    0.025 if its share is 0.025^(1/G) (Clopper and Pearson)."""
    return _exact_where_alike(values, groups, 0.0, average(values, groups, resamples, seed))


def gain(values: np.ndarray, groups: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The average of differences (N,) between two values in [0, 1], image by image; where all are alike as `share`,
    and the rest may be -1 or 1."""
    return _exact_where_alike(values, groups, -1.0, average(values, groups, resamples, seed))


def _exact_where_alike(values: np.ndarray, groups: np.ndarray, least: float, found: Estimate) -> Estimate:
    several = len(np.unique(groups))
    if several < 2 or np.any(values != values[0]):
        return found
    sure = (LEVELS[0] / 100) ** (1 / several)
    low, high = (sure * found.value + (1 - sure) * rest for rest in (least, 1.0))
    return found._replace(low=low, high=high)


def plain(value: Any) -> Any:
    """For JSON, which has no NaN and no arrays: estimates wherever they stand in dicts, lists and tuples, what is
    undefined of them null."""
    if isinstance(value, Estimate):
        return {k: None if v != v else v for k, v in value._asdict().items()}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def percent(e: Estimate) -> str:
    """As people read it: '81 [62, 100]', in per cent; without an interval where there is none."""
    share = f"{100 * e.value:.0f}"
    return share if np.isnan(e.low) else f"{share} [{100 * e.low:.0f}, {100 * e.high:.0f}]"


def quartiles(values: Iterable[float | None]) -> list[float] | None:
    """Of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return [float(q) for q in np.percentile(known, (25, 50, 75))] if known else None


def merge(*parts: Scores) -> Scores:
    """Scores of several batches as one; nothing depends on how the images were cut into batches, or on their order."""
    return Scores(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def cluster_weights(groups: np.ndarray, resamples: int, seed: int, stream: int = 0) -> np.ndarray:
    """groups (N,) -> (N, resamples) float64: how often each image was drawn when as many groups as there are were drawn
    with replacement. Images of one group share their weight. A function of the arguments alone."""
    members, counts = _drawn(groups, resamples, seed, stream)
    return counts[members].astype(float)


def roc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Roc:
    """scores, labels (N,), weights (N, R) -> the R weighted ROC curves. A rate whose class has no weight is NaN.

    Thresholds lie half-way between neighbouring scores; the first is +inf (nothing is fake), the last -inf.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(float)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    above, below = ranked[ends[:-1]], ranked[ends[:-1] + 1]
    between = np.where(above / 2 + below / 2 < above, above / 2 + below / 2, below)  # next to each other: no half-way
    return Roc(
        fpr=_cumulative_share(weights, order, labels == 0, ends),
        tpr=_cumulative_share(weights, order, labels == 1, ends),
        thresholds=np.concatenate([[np.inf], between, [-np.inf]]),
    )


def auc(curve: Roc) -> np.ndarray:
    """The area under each curve (R,): P(fake scores above real) + P(equal) / 2."""
    return np.einsum("kr,kr->r", np.diff(curve.fpr, axis=0), curve.tpr[1:] + curve.tpr[:-1]) / 2


def equal_error_rate(curve: Roc) -> np.ndarray:
    """Where each curve, its points joined by straight lines, has false positive rate = 1 - true positive rate: (R,)."""
    excess = curve.fpr + curve.tpr - 1  # rises from -1 to 1
    after = np.argmax(excess >= 0, axis=0)
    before = np.maximum(after - 1, 0)  # they coincide only where the curve is NaN
    columns = np.arange(len(after))
    low, high = excess[before, columns], excess[after, columns]
    left, right = curve.fpr[before, columns], curve.fpr[after, columns]
    return left + (right - left) * _share(-low, high - low)


def tpr_at_fpr(curve: Roc, most: float = 0.01) -> np.ndarray:
    """The largest true positive rate at a false positive rate of at most `most`, by thresholds alone, without
    interpolation: (R,). With fewer than 1 / most real images this is the share of fakes above every real one."""
    # Both rates rise together, so it is the last step that is still allowed. NaN is never allowed.
    last = np.maximum(np.sum(curve.fpr <= most, axis=0) - 1, 0)
    best = curve.tpr[last, np.arange(len(last))]
    return np.where(np.isnan(curve.fpr[-1]), np.nan, best)


def best_threshold(curve: Roc) -> np.ndarray:
    """The threshold of highest balanced accuracy on each curve (R,); of several, the highest. NaN without a class."""
    balanced = curve.tpr - curve.fpr
    found = curve.thresholds[np.argmax(balanced, axis=0)]
    return np.where(np.isnan(balanced[-1]), np.nan, found)


def calibrated(said: np.ndarray, labels: np.ndarray) -> float:
    """best_threshold of scores (N,), images counting alike; infinite or NaN where none parts the classes."""
    return float(best_threshold(roc(said, labels, np.ones((len(said), 1))))[0])


def _check(scores: Scores) -> None:
    shapes = [np.shape(field) for field in scores]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        raise InputError(f"scores need equally many labels, groups, clean and attacked, not of shapes {shapes}")
    if not np.isin(scores.labels, (0, 1)).all():
        raise InputError("labels other than 0 (real) and 1 (fake)")
    for name in ("clean", "attacked"):
        wrong = np.flatnonzero(~np.isfinite(getattr(scores, name)))
        if len(wrong):
            raise InputError(f"{name} scores are not finite at {len(wrong)} images, first number {wrong[0]}")


def _drawn(groups: np.ndarray, resamples: int, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """-> the group number of each image (N,), and how often each group was drawn (G, resamples)."""
    members = np.unique(groups, return_inverse=True)[1]
    count = int(members.max()) + 1
    drawn = np.random.default_rng([seed, stream]).integers(0, count, (resamples, count))
    cells = drawn * resamples + np.arange(resamples)[:, None]
    return members, np.bincount(cells.ravel(), minlength=count * resamples).reshape(count, resamples)


def _chunks(resamples: int, rows: int, *samples: tuple[np.ndarray, int, int]) -> Iterator[list[np.ndarray]]:
    """For each chunk of columns, the weights (N, r) of every sample (groups, seed, stream). The very first column is
    the sample itself, every weight 1."""
    drawn = [_drawn(groups, resamples, seed, stream) for groups, seed, stream in samples]
    drawn = [(members, np.insert(counts, 0, 1, axis=1)) for members, counts in drawn]
    width = max(1, _CHUNK // rows)
    for start in range(0, 1 + resamples, width):
        yield [counts[:, start : start + width].astype(float)[members] for members, counts in drawn]


def _values(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric but the refitted one, name -> (R,)."""
    fake = scores.labels == 1
    says, said = scores.attacked > 0, scores.clean > 0
    values = _verdicts("clean_", fake, said, weights) | _ranking("clean_", scores.clean, scores.labels, weights)
    values |= _verdicts("attacked_", fake, says, weights) | _ranking(
        "attacked_", scores.attacked, scores.labels, weights
    )
    right, changed = said == fake, says != said
    values["fooling_rate"] = _mean(changed, weights)
    values["fooled_of_correct"] = _mean(changed, weights, among=right)
    values["logit_correlation"] = _correlation(scores.clean, scores.attacked, weights)
    values["mean_shift"] = _mean(np.subtract(scores.attacked, scores.clean, dtype=float), weights)
    return values


def _verdicts(prefix: str, fake: np.ndarray, says: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    missed, accused = _mean(~says, weights, among=fake), _mean(says, weights, among=~fake)
    return {
        f"{prefix}accuracy": _mean(says == fake, weights),
        f"{prefix}balanced_accuracy": 1 - (missed + accused) / 2,
        f"{prefix}fake_called_real": missed,
        f"{prefix}real_called_fake": accused,
    }


def _ranking(prefix: str, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    curve = roc(scores, labels, weights)
    return {
        f"{prefix}auc": auc(curve),
        f"{prefix}eer": equal_error_rate(curve),
        f"{prefix}tpr_at_1fpr": tpr_at_fpr(curve, 0.01),
    }


def _refit(scores: Scores, weights: np.ndarray, validation: Scores, held: np.ndarray) -> dict[str, np.ndarray]:
    thresholds = best_threshold(roc(validation.attacked, validation.labels, held))
    fake = scores.labels == 1
    right = (scores.attacked[:, None] > thresholds) == fake[:, None]
    rates = [_share(np.einsum("nr,nr->r", weights[of], right[of]), weights[of].sum(axis=0)) for of in (fake, ~fake)]
    balanced = (rates[0] + rates[1]) / 2
    return {"refit_balanced_accuracy": np.where(np.isnan(thresholds), np.nan, balanced)}


def _denominators(scores: Scores) -> dict[str, int]:
    """Where it is not all images."""
    fake = scores.labels == 1
    fakes, reals = int(np.sum(fake)), int(np.sum(~fake))
    counts = {"fooled_of_correct": int(np.sum((scores.clean > 0) == fake))}
    for prefix in ("clean_", "attacked_"):
        counts |= {f"{prefix}fake_called_real": fakes, f"{prefix}real_called_fake": reals}
    return counts


def _estimate(values: np.ndarray, n: int, several: bool) -> Estimate:
    """values (1 + R,): the sample's, then the resamples'."""
    resampled = values[1:][~np.isnan(values[1:])]
    defined = several and len(resampled) > 0 and not np.isnan(values[0])
    low, high = np.percentile(resampled, LEVELS) if defined else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high), n)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part (..., R) / whole (R,), NaN where whole is 0."""
    return part / np.where(whole == 0, np.nan, whole)


def _mean(values: np.ndarray, weights: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean (R,) of values (N,), over the images `among` (N,) bool."""
    if among is not None:
        values, weights = values[among], weights[among]
    # Not `values @ weights`: BLAS would start threads for this thin product, which costs more than it takes.
    return _share(np.einsum("n,nr->r", values.astype(float), weights), weights.sum(axis=0))


def _cumulative_share(weights: np.ndarray, order: np.ndarray, among: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(N, R) -> (K + 1, R): from 0 down the order, the share of the column's weight `among` (N,) up to each end."""
    among = among[order]
    sums = np.zeros((int(among.sum()) + 1, weights.shape[1]))
    np.cumsum(weights[order[among]], axis=0, out=sums[1:])
    passed = np.append(0, np.cumsum(among)[ends])
    return _share(sums[passed], sums[-1])


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (R,); NaN where either does not vary."""
    a, b = _standard(first), _standard(second)
    mean_a, mean_b, aa, bb, ab = (_mean(values, weights) for values in (a, b, a * a, b * b, a * b))
    spread = (aa - mean_a**2) * (bb - mean_b**2)
    vary = (aa - mean_a**2 > _ALONE) & (bb - mean_b**2 > _ALONE)
    return np.clip(_share(ab - mean_a * mean_b, np.sqrt(np.where(vary, spread, 0))), -1, 1)


def _standard(values: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1: sums of squares lose nothing to a large offset. All 0 where the values do not vary."""
    centred = values.astype(float) - values.mean(dtype=float)
    spread = centred.std()
    return centred / spread if spread > 1e-12 * np.abs(values).max() else np.zeros_like(centred)
