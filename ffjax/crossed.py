"""Means over images and over patterns at once, with intervals that know of both: identities, pattern seeds and noise
draws are resampled together."""

import numpy as np

from ffjax.metrics import Estimate, cluster_weights, gain, share

RESAMPLES = 1000


def mean(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """The mean of values (P, N) in [0, 1], of P patterns on N images of those groups (N,), with its 95 % bootstrap
    interval over patterns and groups; where all are alike, metrics.share's over groups. n: the images. Without two
    groups there is no interval."""
    if np.all(values == values[0, 0]):
        return share(values[0], groups)
    return _estimate(_resampled(values, groups, 0), groups)


def difference(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> Estimate:
    """mean(first) - mean(second), of (P, N) and (Q, N) on the same images: every resample draws the same images for
    both, and of each its own patterns. Where no resample differs, metrics.gain's interval: what few groups can tell."""
    found = _estimate(_resampled(first, groups, 0) - _resampled(second, groups, 1), groups)
    return gain(first.mean(axis=0) - second.mean(axis=0), groups) if found.low == found.high else found


def _resampled(values: np.ndarray, groups: np.ndarray, stream: int) -> np.ndarray:
    """(1 + RESAMPLES,): the mean itself, then that of every resample."""
    count = len(values)
    weights = np.insert(cluster_weights(groups, RESAMPLES, 0), 0, 1.0, axis=1)
    drawn = np.random.default_rng([2, stream]).integers(0, count, (count, 1 + RESAMPLES))
    drawn[:, 0] = np.arange(count)
    each = values @ weights / weights.sum(axis=0)
    return np.take_along_axis(each, drawn, axis=0).mean(axis=0)


def _estimate(means: np.ndarray, groups: np.ndarray) -> Estimate:
    several = len(np.unique(groups)) > 1
    low, high = np.percentile(means[1:], (2.5, 97.5)) if several else (np.nan, np.nan)
    return Estimate(float(means[0]), float(low), float(high), len(groups))
