"""Images well inside the box at chosen margins of the linear detector, and their distances to its boundary."""

import jax
import numpy as np
import toys

from ffjax.objectives import margin
from ffjax.types import Batch

VARIABLES = toys.LINEAR.init(jax.random.key(0))
FORWARD = toys.forward(0, toys.LINEAR)
W = np.asarray(VARIABLES["params"]["w"])
DUAL = {"linf": np.abs(W).sum(), "l2": np.linalg.norm(W), "l1": np.abs(W).max()}


def batch(margins: np.ndarray) -> Batch:
    """Row i at z_fake - z_real = margins[i], labelled as the detector has it."""
    count = len(margins)
    images = np.random.default_rng(0).uniform(0.35, 0.65, (count, *toys.SHAPE))
    now = np.asarray(margin(FORWARD(images.astype(np.float32))))
    images += ((margins - now) / np.sum(W**2))[:, None, None, None] * W
    labels, ids = (margins > 0).astype(np.int32), np.arange(count, dtype=np.int32)
    return Batch(images.astype(np.float32), labels, ids)


def alternating(least: float, most: float, count: int = 32) -> np.ndarray:
    """Margins of both signs, from `least` to `most` in size."""
    return np.linspace(least, most, count) * np.where(np.arange(count) % 2, 1, -1)


def distances(margins: np.ndarray, norm: str, confidence: float = 0.0) -> np.ndarray:
    """Least norm by which a row comes `confidence` past the boundary, while the box is out of reach."""
    return np.ones(len(margins)) if norm == "l0" else (np.abs(margins) + confidence) / DUAL[norm]
