"""The shapes everything else is written in: NamedTuples and aliases, no behaviour.

Conventions that hold everywhere: images are float32 NHWC in [0, 1]; label 1 = fake, 0 = real; logits are
(B, 2) with class 1 = fake, whatever the original network ended in; a one-logit network returns (0, z_fake).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Anywhere = Any
"""An array on a device, or the same as a NumPy array on the host."""
Variables = Any
"""A pytree of arrays: {'params': ..., 'batch_stats': ...}. Always an argument of the outer jit, never closed over."""


class Outputs(NamedTuple):
    """What a detector says of a batch.

    logits: (B, 2) float32, class 1 = fake.
    mask: (B, h, w) float32 logits of "this pixel is forged", or None if the network has no mask head.
    acts: name -> (B, h, w, c), in order of depth. An OrderedDict, because JAX sorts the keys of a plain dict at
        every jit boundary and the order of depth would be lost.
    """

    logits: Array
    mask: Array | None
    acts: OrderedDict[str, Array]


Forward = Callable[[Array], Outputs]
"""images (B, H, W, 3) in [0, 1] -> Outputs. Deterministic and row-independent. Across a jit boundary it travels as
`jax.tree_util.Partial(detector.apply, variables)`, whose weights are leaves."""


class Detector(NamedTuple):
    """A network as pure functions; its variables stay outside.

    init(key) -> variables.
    apply(variables, images) -> Outputs: inference; deterministic, row-independent, normalisation inside.
    train(variables, images, key) -> (Outputs, variables): the training forward (dropout, batch statistics), with the
        variables whose running statistics it updated.
    shape: (H, W, 3) of one input image.
    """

    init: Callable[[Array], Variables]
    apply: Callable[[Variables, Array], Outputs]
    train: Callable[[Variables, Array, Array], tuple[Outputs, Variables]]
    shape: tuple[int, int, int]


class Batch(NamedTuple):
    """Images on the device. images (B, H, W, 3) float32 in [0, 1]; labels (B,) int32; ids (B,) int32, the example's
    number in its data set (randomness is folded from it, never from the batch position); masks (B, H, W) float32 or
    None."""

    images: Anywhere
    labels: Anywhere
    ids: Anywhere
    masks: Anywhere = None
    wanted: Anywhere = None
    """What an attack on the mask shall make it show, (B, H, W) float32 in {0, 1}; None for every other attack."""


class AttackResult(NamedTuple):
    """What an attack made of B images, failures included.

    images: (B, H, W, C) float32 in [0, 1], inside the bound: the best iterate that reached the goal, else the best that
        did not (the clean image where none was better): never anything else.
    success: (B,) bool, the goal is reached on `images`. success_8bit: the same after rounding to n / 255.
    loss: (B,) the goal's objective on `images`, larger = closer. distance: (B,) norm of images - clean.
    gradients, queries: (B,) int32, input gradients and forward passes spent on each image (a gradient costs one
        forward as well, counted in queries).
    """

    images: Anywhere
    success: Anywhere
    success_8bit: Anywhere
    loss: Anywhere
    distance: Anywhere
    gradients: Anywhere
    queries: Anywhere


LossFn = Callable[[Variables, Batch, Array], tuple[Array, tuple["Outputs", Variables]]]
"""What a detector is trained on: (variables, batch, key) -> (losses (B,), (outputs of B rows, variables with new
running statistics)). Defences are functions of one to another."""


class Goal(NamedTuple):
    """What an attacker wants of each image.

    objective(outputs, batch) -> (B,), larger = closer. reached(outputs, batch) -> (B,) bool.
    """

    objective: Callable[["Outputs", "Batch"], Array]
    reached: Callable[["Outputs", "Batch"], Array]


class Process(NamedTuple):
    """Anything iterative that is done to each image on its own.

    init(forward, batch, eps (B,), seeds (B,) uint32) -> state, every leaf with the example axis first, so that rows may
        be cut out, padded, saved and put back by who does not know what they are. state.done (B,) bool: a row is
        frozen.
    step(i () int32, state, forward) -> state. finish(state, forward) -> AttackResult. steps: how many.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    finish: Callable[..., AttackResult]
    steps: int


class ImageSet(NamedTuple):
    """Images on the host, as stored.

    images: (N, H, W, 3) uint8. labels: (N,) int32. masks: (N, H, W) uint8 in {0, 255}, or None.
    groups: (N,) int32, the identity or photograph an image belongs to: the cluster that bootstraps resample.
    names: N strings, unique: file names, or keys of the data set.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]
    masks: np.ndarray | None = None


class UapState(NamedTuple):
    """S universal perturbations on their way; every leaf has the pattern axis first.

    delta: (S, H, W, 3) float32, or (S, k, k, 3) of a filter, inside the bound.
    optimiser: what the step rule remembers.
    best, best_score: the perturbation with the highest selection score so far, and the score.
    saturation: (S,) share of components at the bound at the last step. stale: (S,) int32 checks since the best score.
    done: (S,) bool, the stopping rule has spoken and delta is frozen.
    """

    delta: Array
    optimiser: Any
    best: Array
    best_score: Array
    saturation: Array
    stale: Array
    done: Array


class UapInfo(NamedTuple):
    """What is only for looking at, (S,) each: objective at the step, share of components at the bound after it, best
    selection score so far, and whether the pattern was rescaled."""

    objective: Array
    saturation: Array
    best_score: Array
    rescaled: Array


class Universal(NamedTuple):
    """Perturbations shared by all images, as pure functions of S patterns at once.

    init(keys (S,), eps (S,), size (H, W, 3)) -> UapState.
    step(i, state, batch, eps, weights, forwards, bank) -> (UapState, UapInfo): batch, a Batch of B images, is what the
        patterns ride on at this step (a blank image, noise, or data), with the labels and masks that say what is wanted
        of them; bank, another, what selection sees; weights a tuple, one (S, L) array per source, of the layers'
        shares; forwards the source detectors.
    """

    init: Callable[..., UapState]
    step: Callable[..., tuple[UapState, UapInfo]]
