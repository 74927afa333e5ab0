"""How close a mask is to the true one and to the one an attacker wanted, and whether it contradicts the verdict. Host
numpy.

A mask is (N, H, W) bool, True where forged. Everything returns one number an image, (N,), so that shares and intervals
are left to `metrics`.
"""

import numpy as np

from ffjax.errors import InputError

MEASURES = ("iou_true", "pixels_true", "area")
TOWARDS = ("iou_wanted", "pixels_wanted", "shown")
"""The names that `scores` gives, always and where there is a wanted mask."""


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) float64 intersection over union; 1 where both masks are empty."""
    both, either = ((found).sum(axis=(1, 2)) for found in (first & second, first | second))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def pixel_accuracy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) share of pixels on which two masks agree: ClassNSeg's own measure (Nguyen et al., BTAS 2019)."""
    return np.mean(first == second, axis=(1, 2))


def shown(said: np.ndarray, wanted: np.ndarray, share: float = 0.9) -> np.ndarray:
    """(N,) bool, success on a mask as `goals.mask` has it: at least `share` of the pixels that shall be forged are said
    to be, and at least `share` of those that shall be real; of none, always."""
    parts = []
    for inside, right in ((wanted, said & wanted), (~wanted, ~said & ~wanted)):
        total = inside.sum(axis=(1, 2))
        parts.append(right.sum(axis=(1, 2)) >= share * (1 - 1e-6) * total)
    return parts[0] & parts[1]


def scores(
    said: np.ndarray, true: np.ndarray, wanted: np.ndarray | None = None, share: float = 0.9
) -> dict[str, np.ndarray]:
    """Measure -> (N,) of what a detector's mask `said`: iou_true, pixels_true and area (the share of the image it calls
    forged); and, with a wanted mask, iou_wanted, pixels_wanted and shown. InputError unless all are of one shape."""
    shapes = [np.shape(mask) for mask in (said, true, *(() if wanted is None else (wanted,)))]
    if len(set(shapes)) != 1 or len(shapes[0]) != 3:
        raise InputError(f"masks (N, H, W) of one shape are needed, not {shapes}")
    found = {
        "iou_true": iou(said, true),
        "pixels_true": pixel_accuracy(said, true),
        "area": np.mean(said, axis=(1, 2)),
    }
    if wanted is None:
        return found
    towards = (iou(said, wanted), pixel_accuracy(said, wanted), shown(said, wanted, share).astype(float))
    return found | dict(zip(TOWARDS, towards, strict=True))


def disagree(margins: np.ndarray, areas: np.ndarray, threshold: float, least: float) -> np.ndarray:
    """(N,) bool: the verdict says fake (margin > threshold) and the mask shows nothing (area <= least), or the verdict
    says real and the mask shows something: a detector of attacks that costs nothing (PAPERS.md 1.3, our inference)."""
    return (np.asarray(margins) > threshold) != (np.asarray(areas) > least)


def front(points: np.ndarray) -> np.ndarray:
    """points (N, K), larger = better in each column -> (N,) bool, the Pareto front: no other point is at least as good
    everywhere and better somewhere. Of equal points all are on it, or none."""
    points = np.asarray(points, float)
    as_good = np.all(points[None] >= points[:, None], axis=2)
    better = np.any(points[None] > points[:, None], axis=2)
    return ~np.any(as_good & better, axis=1)
