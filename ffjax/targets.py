"""Masks that an attacker may want shown (reference/PAPERS.md 1.3), made on the host from the true ones.

Each is a Target: (masks (N, H, W), forged where > 0; groups (N,), the identities; seed) -> wanted (N, H, W) float32 in
{0, 1}, forged where 1. Most look at the masks alone, and there a row does not depend on the others.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ffjax.errors import InputError

Target = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def all_real(masks: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Nothing is forged."""
    del groups, seed
    return np.zeros(masks.shape, np.float32)


def all_fake(masks: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Everything is."""
    del groups, seed
    return np.ones(masks.shape, np.float32)


def inverted(masks: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Forged is called real and real forged; for a real image, everything forged."""
    del groups, seed
    return (masks <= 0).astype(np.float32)


def shifted(
    masks: np.ndarray, groups: np.ndarray, seed: int, *, down: float = 0.25, across: float = 0.25
) -> np.ndarray:
    """The true mask moved by shares of the side, to whole pixels. What leaves at one side comes in at the other, so
    that as much is forged as before: with nothing in its place, a mask near the border would become none."""
    del groups, seed
    moved = tuple(round(share * side) for share, side in zip((down, across), masks.shape[1:], strict=True))
    return np.roll(masks > 0, moved, axis=(1, 2)).astype(np.float32)


def another(masks: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The true mask of another identity: a permutation drawn from the seed, in which no image gets a mask of its own
    group. Give it the fakes alone: a real image's mask is empty.

    Raises InputError where one group has more than half of the images, since then there is no such permutation.
    """
    return (masks > 0)[_among_others(groups, seed)].astype(np.float32)


def drawn(masks: np.ndarray, groups: np.ndarray, seed: int, *, shape: str, size: float = 0.5) -> np.ndarray:
    """A shape of SHAPES in the middle, `size` times the shorter side across: the same whatever the image."""
    del groups, seed
    height, width = masks.shape[1:]
    y, x = np.mgrid[:height, :width]
    radius = size * min(height, width) / 2
    inside = SHAPES[shape]((y - (height - 1) / 2) / radius, (x - (width - 1) / 2) / radius)
    return np.broadcast_to(inside, masks.shape).astype(np.float32)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda y, x: x**2 + y**2 <= 1,
    "square": lambda y, x: np.maximum(abs(x), abs(y)) <= 1,
    "cross": lambda y, x: (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 1 / 3),
}
"""(y, x), 0 in the middle and 1 at the shape's edge -> inside or not."""

TARGETS: dict[str, Target] = {
    "all_real": all_real,
    "all_fake": all_fake,
    "inverted": inverted,
    "shifted": shifted,
    "another": another,
    **{shape: partial(drawn, shape=shape) for shape in SHAPES},
}


def _among_others(groups: np.ndarray, seed: int) -> np.ndarray:
    """(N,) which image's mask each gets.

    Images and groups are shuffled and laid in a row, group after group; each takes the one further on, round the end,
    by as many places as the largest group has: past its own group, and not yet round to it again.
    """
    rng = np.random.default_rng(seed)
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    largest = int(sizes.max(initial=0))
    if 2 * largest > len(groups):
        raise InputError(f"masks of another identity: one has {largest} of {len(groups)} images, more than half")
    shuffled = rng.permutation(len(groups))
    row = shuffled[np.argsort(rng.permutation(len(sizes))[members[shuffled]], kind="stable")]
    chosen = np.empty(len(groups), int)
    chosen[row] = np.roll(row, -largest)
    return chosen
