"""Detectors x conditions x images -> scores: what each network says of the same images, clean, noisy and attacked."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import devices, masks, metrics
from ffjax.data.codecs import STORAGE, to_float, to_uint8
from ffjax.engine import Compute
from ffjax.metrics import Estimate
from ffjax.objectives import margin
from ffjax.types import Array, Forward, ImageSet
from ffjax.universal import shapes


class Condition(NamedTuple):
    """Images as a detector meets them: every image under one pattern, or as it is (None), then stored.

    kind: clean, noise, fixed or uap. group: the layer choice and bound it belongs to. storage: a key of STORAGE. shape:
    additive, a pattern (H, W, 3) that is added, or filter, a kernel (k, k, 3) (universal.shapes).
    """

    name: str
    kind: str
    group: str
    pattern: np.ndarray | None
    storage: str = "float"
    shape: str = "additive"


def shown(images: np.ndarray, condition: Condition) -> np.ndarray:
    """(N, H, W, 3) uint8 -> float32 in [0, 1] as the condition has it: clip(x + v, 0, 1), through its real codec."""
    x = to_float(images)
    if condition.pattern is not None:
        x = np.asarray(shapes.shown(condition.shape, jnp.asarray(condition.pattern), jnp.asarray(x)))
    return STORAGE[condition.storage](x)


def margins(
    forward: Forward,
    images: np.ndarray,
    compute: Compute,
    pattern: np.ndarray | None = None,
    shape: str = "additive",
) -> np.ndarray:
    """(N,) float32 z_fake - z_real of images (N, H, W, 3), in batches of compute.batch, the last one padded.

    images: float32 in [0, 1], or uint8, which stand for x / 255; pattern, if given, is shown on them on the device, as
    a Condition of that shape. forward: a `jax.tree_util.Partial`, so that one compilation serves every set of weights
    of a network.
    """
    delta = np.zeros(images.shape[1:], np.float32) if pattern is None else pattern
    each = [np.asarray(_margin(forward, x, delta, shape))[:kept] for x, kept in batches(images, compute)]
    return np.concatenate(each)


def clean_scores(forward: Forward, data: ImageSet, compute: Compute) -> dict[str, Estimate]:
    """clean_accuracy, clean_balanced_accuracy, clean_auc and clean_eer (metrics.summary); and, where network and data
    have masks, clean_mask_iou: the mean of `mask_overlap` over the fakes."""
    said, fakes = margins(forward, data.images, compute), data.labels == 1
    every = metrics.summary(metrics.Scores(data.labels, data.groups, said, said))
    found = {name: every[name] for name in ("clean_accuracy", "clean_balanced_accuracy", "clean_auc", "clean_eer")}
    if data.masks is None or not has_mask(forward, data.images.shape[1]):
        return found
    overlap = mask_overlap(forward, data.images[fakes], data.masks[fakes], compute)
    return found | {"clean_mask_iou": metrics.average(overlap, data.groups[fakes])}


def has_mask(forward: Forward, size: int) -> bool:
    """Whether a network fed size x size images shows a mask."""
    return mask_pixels(forward, size) > 0


def mask_pixels(forward: Forward, size: int) -> int:
    """Of the mask that a network fed size x size images shows; 0 without one."""
    mask = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, size, size, 3), np.float32)).mask
    return 0 if mask is None else mask.size


def mask_overlap(forward: Forward, images: np.ndarray, true: np.ndarray, compute: Compute) -> np.ndarray:
    """(N,) intersection over union of what the network's mask calls forged and the true masks (N, H, W) uint8 in
    {0, 255}; 1 where both are empty."""
    return masks.iou(forged(forward, images, compute), true > 0)


def forged(forward: Forward, images: np.ndarray, compute: Compute) -> np.ndarray:
    """(N, H, W) bool: what the network's mask calls forged (logit > 0) of images (N, H, W, 3), float32 in [0, 1], or
    uint8, which stand for x / 255. A mask of another size is brought to the image's (bilinear)."""
    return np.concatenate([np.asarray(_forged(forward, x))[:kept] for x, kept in batches(images, compute)])


def activations(forward: Forward, images: np.ndarray, compute: Compute) -> dict[str, dict[str, float]]:
    """Layer -> {mean_abs, active}: mean |a| and share of a > 0 over images, positions and channels."""
    sums, count = {}, 0
    for x, kept in batches(images, compute):
        for name, (size, active) in _firing(forward, x).items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + float(np.sum(size[:kept])), old[1] + float(np.sum(active[:kept])))
        count += kept
    return {name: {"mean_abs": size / count, "active": active / count} for name, (size, active) in sums.items()}


def score(
    data: ImageSet,
    conditions: Sequence[Condition],
    forwards: dict[str, Forward],
    compute: Compute,
    known: Callable[[str], dict[str, np.ndarray]],
    save: Callable[[str, dict[str, np.ndarray]], None],
) -> Iterable[tuple[Condition, dict[str, np.ndarray]]]:
    """For each condition, detector -> (N,) margins; yields as it goes.

    known(condition name) -> what an earlier, interrupted run saved; save(condition name, scores) keeps them.
    """
    for condition in conditions:
        scores = {name: s for name, s in known(condition.name).items() if name in forwards}
        if len(scores) < len(forwards):
            images, pattern = _files(data.images, condition)
            shape = condition.shape
            scores |= {n: margins(f, images, compute, pattern, shape) for n, f in forwards.items() if n not in scores}
            save(condition.name, scores)
        yield condition, scores


def batches(images: np.ndarray, compute: Compute) -> Iterable[tuple[Array, int]]:
    """Static shapes: the last batch repeats its last image, and a batch is as many images as the devices can share
    evenly. Yields (images on the mesh, how many count)."""
    on = devices.mesh(compute.devices)
    size = -(-compute.batch // on.size) * on.size
    for start in range(0, len(images), size):
        part = images[start : start + size]
        rows = np.minimum(np.arange(size), len(part) - 1)
        yield devices.split(part[rows], on), len(part)


def _files(images: np.ndarray, condition: Condition) -> tuple[np.ndarray, np.ndarray | None]:
    """What the device is given: the stored bytes, or, unstored, the originals and the pattern to add to them."""
    if condition.storage == "float":
        return images, condition.pattern
    return to_uint8(shown(images, condition)), None


@functools.partial(jax.jit, static_argnums=3)
def _margin(forward: Forward, images: Array, delta: Array, shape: str) -> Array:
    return margin(forward(shapes.shown(shape, delta, _unit(images))))


def _unit(images: Array) -> Array:
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


@jax.jit
def _forged(forward: Forward, images: Array) -> Array:
    mask = forward(_unit(images)).mask
    assert mask is not None, "the network has no mask"
    return jax.image.resize(mask, images.shape[:3], "bilinear") > 0


@jax.jit
def _firing(forward: Forward, images: Array) -> dict[str, tuple[Array, Array]]:
    return OrderedDict(
        (name, (jnp.mean(jnp.abs(act), (1, 2, 3)), jnp.mean(act > 0, (1, 2, 3))))
        for name, act in forward(images).acts.items()
    )
