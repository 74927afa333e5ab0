"""Batches as a pure function of (seed, step): a run that stopped at step k goes on with the very batch it missed."""

from functools import lru_cache
from typing import Any

import numpy as np

from ffjax.data.codecs import to_float
from ffjax.errors import InputError
from ffjax.types import Batch, ImageSet


def batch_at(data: ImageSet, size: int, seed: int, step: int) -> Batch:
    """The batch of a training step, in host memory.

    Examples stand in one endless line, epoch after epoch, each epoch a permutation of the whole set drawn from
    (seed, epoch); step k takes positions k*size .. (k+1)*size - 1. So every example comes exactly once an epoch, no
    tail is dropped (a batch may hold the end of one epoch and the start of the next), and nothing depends on what was
    asked before.

    Returns a Batch of numpy arrays with `size` rows: images (B, H, W, 3) float32 in [0, 1], labels and ids (B,) int32,
    masks (B, H, W) float32 in {0, 1} or None. Raises InputError on an empty set, size < 1, or a negative seed or step.
    """
    _check(data, size)
    if seed < 0 or step < 0:
        raise InputError(f"seed and step must not be negative: {seed}, {step}")
    count = len(data.labels)
    positions = [step * size + j for j in range(size)]  # Python integers: steps may be large
    return _rows(data, np.array([_order(count, seed, p // count)[p % count] for p in positions]))


def _check(data: ImageSet, size: int) -> None:
    if len(data.labels) == 0:
        raise InputError("the image set is empty")
    if size < 1:
        raise InputError(f"batch size {size} is less than 1")


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of 0..count-1, int64, read-only.

    By sorting the raw Philox stream: NumPy promises that a bit generator's stream never changes between releases, and
    does not promise it of Generator.permutation.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(raw, kind="stable")
    order.flags.writeable = False
    return order


def _rows(data: ImageSet, ids: np.ndarray) -> Batch:
    masks = None if data.masks is None else to_float(data.masks[ids])
    fields: tuple[Any, ...] = (to_float(data.images[ids]), data.labels[ids].astype(np.int32), ids.astype(np.int32))
    return Batch(*fields, masks=masks)  # pyright: ignore[reportArgumentType]  (host arrays until they are put on a device)
