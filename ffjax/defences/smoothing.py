"""Randomised smoothing: the verdict that a detector gives most often of an image under Gaussian noise.

Cohen, Rosenfeld and Kolter (ICML 2019); for masks, pixel by pixel, Fischer, Baader and Vechev (ICML 2021). Here are the
votes and a differentiable stand-in for them; what the votes prove is told by `ffjax.certificates`.

The noise is never cut to [0, 1]. Theorem 1 compares the detector's answers under two Gaussians of one covariance whose
centres lie apart by the perturbation, whatever the detector; cut noise is no Gaussian, and of it nothing is proved. A
detector that cuts, resizes or rounds its own input inside `apply` is certified as it is.

Nor does the theorem ask where a copy is called fake: it holds for every fixed function of the copy, so for a margin
above any threshold that was fixed before the votes were drawn. Noise shifts margins, and the threshold that suits the
bare detector may call nearly all copies alike (`ffjax.certified_thresholds` calibrates one under the noise).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import Array, Forward, Outputs

Defence = Callable[[Array, Forward], Forward]
"""(key, Forward) -> the defended Forward, deterministic and row-independent."""


class Thresholds(NamedTuple):
    """What a copy must exceed: its margin, to be called fake; a mask logit, for that pixel to be called forged."""

    margin: Array | float = 0.0
    mask: Array | float = 0.0


AS_TRAINED = Thresholds()
"""Both at 0."""


class Counts(NamedTuple):
    """Votes of noisy copies. fake: (B,) int32, how many were called fake. mask: (B, h, w) int32, in how many each pixel
    of the mask was called forged, or None if the network has no mask head."""

    fake: Array
    mask: Array | None


def noise(seed: Array | int, ids: Array, samples: Array, shape: tuple[int, ...]) -> Array:
    """(B, C, *shape) standard normal: draw k of image i is folded from seed, then i, then k, and from nothing else, so
    that copies may be cut into passes in any way. ids (B,), samples (C,) int32."""

    def one(i: Array, k: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), k), shape)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(ids, samples)


def answers(
    forward: Forward, images: Array, ids: Array, samples: Array, sigma: Array | float, seed: Array | int
) -> tuple[Array, Array | None]:
    """What the detector says of copies `samples` (C,) of each image (B, H, W, 3), by one forward pass of B x C rows:
    margins (B, C), and mask logits (B, C, h, w) or None. sigma: standard deviation, in [0,1] image units."""
    copies = images[:, None] + sigma * noise(seed, ids, samples, images.shape[1:])
    said = forward(copies.reshape(-1, *images.shape[1:]))

    def apart(x: Array) -> Array:
        return x.reshape(len(images), len(samples), *x.shape[1:])

    return apart(margin(said)), None if said.mask is None else apart(said.mask)


def begin(forward: Forward, images: Array) -> Counts:
    """No votes yet, of images (B, H, W, 3)."""
    mask = jax.eval_shape(forward, images).mask
    return Counts(jnp.zeros(len(images), jnp.int32), None if mask is None else jnp.zeros(mask.shape, jnp.int32))


def step(
    i: Array,
    counts: Counts,
    samples: Array,
    forward: Forward,
    images: Array,
    ids: Array,
    sigma: Array | float,
    seed: Array | int,
    stop: Array | int,
    thresholds: Thresholds = AS_TRAINED,
) -> tuple[Counts, None]:
    """One pass of `answers`, for engine.drive: the votes of copies `samples` (C,) of each image are added, but those of
    numbers from `stop` on, which only fill the pass."""
    del i
    margins, mask = answers(forward, images, ids, samples, sigma, seed)

    def added(before: Array, votes: Array) -> Array:
        valid = (samples < stop).reshape(1, -1, *(1,) * (before.ndim - 1))
        return before + jnp.sum(votes & valid, axis=1, dtype=jnp.int32)

    forged = None if counts.mask is None or mask is None else added(counts.mask, mask > thresholds.mask)
    return Counts(added(counts.fake, margins > thresholds.margin), forged), None


_step = jax.jit(step)


def count(
    forward: Forward,
    images: Array,
    ids: Array,
    sigma: float,
    seed: int,
    first: int,
    stop: int,
    copies: int = 8,
    thresholds: Thresholds = AS_TRAINED,
) -> Counts:
    """The votes of copies first .. stop - 1 of images (B, H, W, 3), `copies` of each image a pass.

    ids (B,) int32; sigma in [0,1] image units. An image's votes are a function of image, id, sigma, seed, thresholds
    and those numbers alone: neither of the others in the batch nor of how the numbers are cut into passes or calls, so
    that votes of neighbouring ranges add up. InputError: sigma not above 0, or no numbers.
    """
    check(sigma, stop - first)
    counts, offsets = begin(forward, images), jnp.arange(copies, dtype=jnp.int32)
    for start in range(first, stop, copies):
        counts, _ = _step(jnp.int32(0), counts, start + offsets, forward, images, ids, sigma, seed, stop, thresholds)
    return counts


def smoothed(sigma: float, samples: int) -> Defence:
    """What an attacker who knows of the smoothing differentiates: the mean over `samples` draws of the probability of
    fake, with one and the same draws for every image (Salman et al., NeurIPS 2019, attack and train on it).

    p = mean_k sigmoid(margin(x + sigma n_k)); logits (0, log(p / (1 - p))), where log p and log(1 - p) are summed each
    on its own, so that they and their gradients are finite however large the margins. A mask head is treated so pixel
    by pixel. acts: those of the first draw. Thresholds stay out of it: whoever attacks votes at another than 0 asks for
    a margin past that (`goals.verdict`). It is a stand-in: certificates are of the votes (`count`), which are no mean
    of probabilities and have no gradient. InputError: sigma not above 0, or samples below 1.
    """
    check(sigma, samples)

    def defence(key: Array, forward: Forward) -> Forward:
        seed = jax.random.bits(key, (), jnp.uint32)
        return jax.tree_util.Partial(_mean, forward, jnp.float32(sigma), seed, jnp.arange(samples))

    return defence


def check(sigma: float, samples: int) -> None:
    """InputError for what cannot be drawn."""
    if not sigma > 0:
        raise InputError(f"sigma: must be above 0, got {sigma:g}")
    if samples < 1:
        raise InputError(f"samples: must be at least 1, got {samples}")


def _mean(forward: Forward, sigma: Array, seed: Array, numbers: Array, images: Array) -> Outputs:
    """The draws go one after another and are drawn again for the gradient: memory does not grow with their number."""

    def draw(k: Array) -> tuple[tuple, Outputs]:
        n = jax.random.normal(jax.random.fold_in(jax.random.key(seed), k), images.shape[1:], images.dtype)
        said = forward(images + sigma.astype(images.dtype) * n[None])
        return jax.tree.map(_logs, (margin(said), said.mask)), said

    @jax.checkpoint
    def add(total: tuple, k: Array) -> tuple[tuple, None]:
        return jax.tree.map(jnp.logaddexp, total, draw(k)[0]), None

    first, said = draw(numbers[0])
    (verdict, mask), _ = jax.lax.scan(add, first, numbers[1:])
    fake = verdict[0] - verdict[1]
    logits = jnp.stack([jnp.zeros_like(fake), fake], axis=1)
    return Outputs(logits, None if mask is None else mask[0] - mask[1], OrderedDict(said.acts))


def _logs(logit: Array) -> tuple[Array, Array]:
    return jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
