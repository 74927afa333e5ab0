"""What a bound is worth on a linear detector where the box [0, 1] may cut in, and what a rise costs: by formulas that
share nothing with the attacks."""

import interior
import numpy as np

from ffjax.objectives import margin
from ffjax.types import Batch


def most(x: np.ndarray, slope: np.ndarray, eps: float, norm: str) -> float:
    """The largest <slope, delta> with ||delta|| <= eps and x + delta in [0, 1]. All in float64."""
    x, slope = np.ravel(x).astype(float), np.ravel(slope).astype(float)
    size, room = np.abs(slope), np.where(slope > 0, 1 - x, x)
    if norm == "linf":
        return float(size @ np.minimum(eps, room))
    if norm == "l0":
        return float(np.sort(size * room)[::-1][: int(eps)].sum())
    if norm == "l1":  # the steepest first, each as far as the box lets it
        order = np.argsort(-size)
        left = np.clip(eps - np.r_[0, np.cumsum(room[order])[:-1]], 0, None)
        return float(size[order] @ np.minimum(room[order], left))
    low, high = 0.0, 1e9  # l2, by its multiplier: each component goes in proportion, until its wall
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(np.minimum(middle * size, room)) < eps else (low, middle)
    return float(size @ np.minimum(low * size, room))


def cheapest(x: np.ndarray, slope: np.ndarray, gap: float, norm: str) -> float:
    """The least ||delta|| with <slope, delta> >= gap > 0 and x + delta in [0, 1]."""
    if norm == "l0":
        return next(float(k) for k in range(np.size(x) + 1) if most(x, slope, k, norm) >= gap)
    low, high = 0.0, float(np.size(x))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if most(x, slope, middle, norm) < gap else (low, middle)
    return high


def cornered(count: int = 16) -> Batch:
    """Pictures a third of whose components are black or white, labelled as the linear detector has them."""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(0, 1, (count, *interior.W.shape))
    pictures = np.where(rng.integers(0, 3, pictures.shape) == 0, np.round(pictures), pictures).astype(np.float32)
    labels = (np.asarray(margin(interior.FORWARD(pictures))) > 0).astype(np.int32)  # type: ignore[arg-type]
    return Batch(pictures, labels, np.arange(count, dtype=np.int32))


def toward(batch: Batch) -> np.ndarray:
    """(B, H, W, C): the direction in which each row's objective rises."""
    return np.where(batch.labels == 1, -1, 1)[:, None, None, None] * interior.W
