"""Where a detector under noise says fake, and its mask forged: thresholds calibrated on clean validation images under
noise of the sigma that they are for, before any vote is drawn.

An image's score is the median over an odd number of noisy copies of its margin: it is above a threshold just where most
copies are, so that it is the vote's own score; a pixel's the median of its mask logits. The threshold is that of best
balanced accuracy, over images and over the pixels of all images. Noise shifts margins, and what that alone costs at a
threshold that was made for clean images is no loss of the trace.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ffjax import evaluate, metrics, run
from ffjax.data import codecs
from ffjax.defences import smoothing
from ffjax.defences.smoothing import Thresholds
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.types import Forward, ImageSet

BARE = 0.0
"""The sigma of the detector as it is, which has a threshold of its own."""

APART = 1 << 31
"""Added to the seed, modulo 2^32, for the noise that calibrates: that of certificates is of the seed itself. Ids are
places in a set, of which two sets have the same, so that they alone would not keep it apart."""


class Fitted(NamedTuple):
    """A threshold. calibrated: that of best balanced accuracy; None where none parts the validation images better than
    chance, or they are of one class: then 0 is used. balanced_accuracy: of the one used, on the images that it was
    chosen on; None of one class."""

    calibrated: float | None
    balanced_accuracy: float | None


class Level(NamedTuple):
    """Thresholds of margins and, of networks and data with masks, of mask logits."""

    verdict: Fitted
    mask: Fitted | None = None


Levels = Mapping[float, Level]
"""BARE and every sigma, in the order asked."""


def check(images: int, copies: int) -> None:
    """InputError for what cannot be calibrated on."""
    if images < 1:
        raise InputError(f"calibrate: must be at least 1, got {images}")
    if copies < 1 or copies % 2 == 0:
        raise InputError(f"copies: must be odd, so that most say one thing, and at least 1, got {copies}")


def used(level: Level) -> Thresholds:
    """What votes are counted at."""
    return Thresholds(level.verdict.calibrated or 0.0, 0.0 if level.mask is None else level.mask.calibrated or 0.0)


def calibrate(
    path: Path,
    held: ImageSet,
    forward: Forward,
    sigmas: Sequence[float],
    copies: int,
    seed: int,
    compute: Compute,
    tell: Callable[[int, str], None] = lambda done, note: None,
) -> Levels:
    """The levels that the file at `path` holds, and the others, each written there as soon as it is known, so that a
    run that was cut goes on with the same. A level is a function of validation images, network, sigma, copies and seed
    alone; the bare detector's, of one copy without noise. tell(levels done, note)."""
    known = json.loads(path.read_text()) if path.exists() else {}
    levels = {}
    for sigma in (BARE, *sigmas):
        if str(sigma) not in known:
            level = _level(held, *medians(held.images, forward, sigma, copies if sigma else 1, seed, compute))
            known[str(sigma)] = {name: None if one is None else one._asdict() for name, one in level._asdict().items()}
            run.write_json(path, known)
        levels[sigma] = _read(known[str(sigma)])
        tell(len(levels), f"sigma {sigma:g}" if sigma else "undefended")
    return levels


def medians(
    images: np.ndarray, forward: Forward, sigma: float, copies: int, seed: int, compute: Compute
) -> tuple[np.ndarray, np.ndarray | None]:
    """Of images (N, H, W, 3) uint8, over copies 0 .. copies - 1 (odd) of each, its place here being its id, by noise of
    the seed APART: median margins (N,), and median mask logits (N, h, w) or None. Passes of compute.batch rows."""
    shown, ids = codecs.to_float(images), np.arange(len(images), dtype=np.int32)
    draws, noise = np.arange(copies, dtype=np.int32), (np.float32(sigma), np.uint32((seed + APART) % (1 << 32)))
    parts = []
    both = zip(evaluate.batches(shown, compute), evaluate.batches(ids, compute), strict=True)
    for (x, kept), (numbers, _) in both:
        said = [jax.device_get(_answers(forward, x, numbers, draws[k : k + 1], *noise)) for k in range(copies)]
        parts.append(_middle(said, kept))
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)


def forged(masks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """True masks (N, H, W) uint8 brought to the size of a network's, `shape` (N, h, w), bilinear and antialiased: where
    more than half is forged."""
    return np.asarray(jax.image.resize(codecs.to_float(masks), shape, "bilinear", antialias=True)) > 0.5


def fitted(said: np.ndarray, fake: np.ndarray) -> Fitted:
    """Of scores (N,) float32 of what is fake (N,) bool and what is not."""
    best = metrics.calibrated(said, fake.astype(int))
    found = _single(best) if np.isfinite(best) else None
    called = said > (found or 0.0)
    right = [np.mean(called[fake]), np.mean(~called[~fake])] if 0 < fake.sum() < len(fake) else None
    return Fitted(found, None if right is None else float(np.mean(right)))


def _level(held: ImageSet, margins: np.ndarray, mask: np.ndarray | None) -> Level:
    verdict = fitted(margins, held.labels == 1)
    if mask is None or held.masks is None:
        return Level(verdict)
    return Level(verdict, fitted(mask.ravel(), forged(held.masks, mask.shape).ravel()))


def _read(one: dict[str, Any]) -> Level:
    return Level(Fitted(**one["verdict"]), None if one["mask"] is None else Fitted(**one["mask"]))


def _middle(said: Sequence[tuple], kept: int) -> tuple:
    return jax.tree.map(lambda *each: np.median(np.concatenate(each, axis=1), axis=1)[:kept], *said)


def _single(value: float) -> float:
    """The next float32 at or below: scores are float32, and those above a threshold half-way between two are above this
    one, so that a device that compares in float32 calls the same ones fake."""
    near = np.float32(value)
    return float(near if float(near) <= value else np.nextafter(near, np.float32(-np.inf)))


_answers = jax.jit(smoothing.answers)
