"""Training on normal and attacked images together. The attack meets the detector as it is deployed (`apply`, running
statistics); clean and attacked rows then go through one training forward, side by side."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from optax.losses import kl_divergence_with_log_targets

from ffjax import balls
from ffjax.defences.penalties import RowLoss
from ffjax.errors import InputError
from ffjax.objectives import cross_entropy
from ffjax.types import Array, Batch, Detector, Forward, LossFn, Outputs, Variables

Attacker = Callable[[Forward, Batch, Array], Array]
"""(forward, batch, key) -> images (B, H, W, 3) in [0, 1], of which nothing is differentiated."""
Start = Literal["clean", "uniform", "near"]

NEAR = 1e-3
"""Standard deviation of the start that TRADES takes: at the clean image its loss has no gradient."""
_BOUND, _START, _ATTACK = range(3)


def labels(forward: Forward, batch: Batch, mask: float = 1.0) -> RowLoss:
    """objectives.cross_entropy, the mask's part of this weight."""
    return partial(cross_entropy, mask=mask)


def climb(
    eps: Array | float,
    steps: int = 1,
    stride: float | None = None,
    start: Start = "clean",
    ranged: bool = False,
    up: Callable[[Forward, Batch], RowLoss] = labels,
) -> Attacker:
    """`steps` sign steps of `stride` eps up the labels' cross-entropy, or `up`; the last iterate. Inside eps in l_inf
    and inside [0, 1].

    stride: none for 1 of one step, 2.5 / steps of more. steps=1 is FGSM; with start='uniform' and stride=1.25 that of
    fast adversarial training (Wong et al., ICLR 2020); more steps are PGD (Madry et al., ICLR 2018).
    eps in [0,1] units, may be traced; ranged: each example's bound is drawn from U(0, eps). Draws are folded from key
    and ids.
    """

    def attack(forward: Forward, batch: Batch, key: Array) -> Array:
        clean = jnp.asarray(batch.images)
        keys = [jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, k)))(batch.ids) for k in (_BOUND, _START)]
        bound = jnp.broadcast_to(jnp.asarray(eps, clean.dtype), len(clean))
        if ranged:
            bound = bound * jax.vmap(partial(jax.random.uniform, dtype=clean.dtype))(keys[0])
        project = jax.vmap(lambda delta, e, low, high: balls.linf(e).project(delta, low, high))
        delta, wide = jnp.zeros_like(clean), bound[:, None, None, None]
        if start != "clean":
            draw = {"uniform": partial(jax.random.uniform, minval=-1.0, maxval=1.0), "near": jax.random.normal}[start]
            drawn = jax.vmap(lambda k: draw(k, clean.shape[1:], clean.dtype))(keys[1])
            delta = project(drawn * (wide if start == "uniform" else NEAR), bound, -clean, 1 - clean)
        climbed = up(forward, batch)
        for _ in range(steps):  # not a loop of XLA's, which on CPU convolves on one thread there
            slope = jax.grad(lambda d: jnp.sum(climbed(forward(clean + d), batch)))(delta)
            delta = project(delta + length(stride, steps) * wide * jnp.sign(slope), bound, -clean, 1 - clean)
        return jax.lax.stop_gradient(clean + delta)

    return attack


def shared(
    eps: Array | float,
    steps: int = 1,
    stride: float | None = None,
    heap: int = 8,
    up: Callable[[Forward, Batch], RowLoss] = labels,
) -> Attacker:
    """As `climb` from a uniform start, with one perturbation for each `heap` neighbouring rows: sign steps up the sum
    of their cross-entropies.

    Shared adversarial training (Mummadi et al., ICCV 2019), which they propose against universal perturbations; with
    steps=1 it costs one gradient. Every perturbation is inside eps in l_inf, every image shown inside [0, 1]. The draw
    is folded from key and the heap's first id. InputError unless the batch is a whole number of heaps.
    """

    def attack(forward: Forward, batch: Batch, key: Array) -> Array:
        clean = jnp.asarray(batch.images)
        if heap < 1 or len(clean) % heap:
            raise InputError(f"heap: a batch of {len(clean)} is no whole number of heaps of {heap}")
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, _START)))(batch.ids[::heap])
        draw = partial(jax.random.uniform, shape=clean.shape[1:], dtype=clean.dtype, minval=-1.0, maxval=1.0)
        delta = eps * jax.vmap(draw)(keys)

        def shown(delta: Array) -> Array:
            return jnp.clip(clean + jnp.repeat(delta, heap, axis=0), 0, 1)

        climbed = up(forward, batch)
        for _ in range(steps):
            slope = jax.grad(lambda x: jnp.sum(climbed(forward(x), batch)))(shown(delta))
            together = jnp.sum(slope.reshape(-1, heap, *clean.shape[1:]), axis=1)
            delta = jnp.clip(delta + length(stride, steps) * eps * jnp.sign(together), -eps, eps)
        return jax.lax.stop_gradient(shown(delta))

    return attack


def length(stride: float | None, steps: int) -> float:
    """Of a step, in bounds."""
    return stride if stride is not None else 2.5 / steps if steps > 1 else 1.0


def kl(forward: Forward, batch: Batch, mask: float = 1.0) -> RowLoss:
    """KL( f(x) || f(.) ) in nats, x the clean image: what TRADES' attack climbs. `mask`: as in `divergence`."""
    clean = forward(batch.images)
    return lambda outputs, batch: divergence(clean, outputs, batch, mask)


def divergence(first: Outputs, second: Outputs, batch: Batch, mask: float = 1.0) -> Array:
    """(B,) KL( first || second ) in nats, of the softmax over the logits (B, 2).

    Where network and batch have masks, as in objectives.cross_entropy, plus `mask` times the mean over pixels of the
    KL of each pixel's own verdict.
    """
    apart = kl_divergence_with_log_targets(jax.nn.log_softmax(second.logits), jax.nn.log_softmax(first.logits))
    if first.mask is not None and second.mask is not None and batch.masks is not None:
        pixels = kl_divergence_with_log_targets(_each_pixel(second.mask), _each_pixel(first.mask))
        apart += mask * pixels.mean(axis=(1, 2))
    return apart


def _each_pixel(mask: Array) -> Array:
    """(B, H, W) logits of 'forged' -> (B, H, W, 2) log-probabilities of both verdicts."""
    return jnp.stack([jax.nn.log_sigmoid(-mask), jax.nn.log_sigmoid(mask)], axis=-1)


def adversarial(loss: LossFn, detector: Detector, attacker: Attacker) -> LossFn:
    """l(x'_b), x' the attacked images alone: adversarial training proper (Madry et al., ICLR 2018); the outputs are of
    x'."""

    def attacked(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        return loss(variables, _attacked(detector, attacker, variables, batch, key), key)

    return attacked


def mixed(loss: LossFn, detector: Detector, attacker: Attacker, share: Array | float = 0.5) -> LossFn:
    """(1 - share) l(x_b) + share l(x'_b), x' the attacked images, made anew at every step: the third paper's
    fusion of normal and adversarial images (PAPERS.md 3.3). share: may be traced; at 1 the
    normal images only count in the batch statistics."""

    def both(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        losses, (outputs, variables) = loss(variables, _doubled(detector, attacker, variables, batch, key), key)
        clean, attacked = jnp.split(losses, 2)
        return (1 - share) * clean + share * attacked, (_halves(outputs)[0], variables)

    return both


def trades(
    loss: LossFn, detector: Detector, attacker: Attacker, weight: Array | float = 6.0, mask: float = 1.0
) -> LossFn:
    """l(x_b) + weight KL( f(x_b) || f(x'_b) ): TRADES (Zhang et al., ICML 2019), in training mode on both sides.
    attacker: theirs is climb(eps, 10, stride, 'near', up=kl). weight: its beta, 1 to 10; may be traced. mask: weight of
    the masks' divergence beside the verdicts', where there are masks; theirs knew none."""

    def both(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        losses, (outputs, variables) = loss(variables, _doubled(detector, attacker, variables, batch, key), key)
        clean, attacked = _halves(outputs)
        apart = divergence(clean, attacked, batch, mask)
        return losses[: len(apart)] + weight * apart, (clean, variables)

    return both


def _attacked(detector: Detector, attacker: Attacker, variables: Variables, batch: Batch, key: Array) -> Batch:
    forward = jax.tree_util.Partial(detector.apply, jax.lax.stop_gradient(variables))
    return batch._replace(images=attacker(forward, batch, jax.random.fold_in(key, _ATTACK)))


def _doubled(detector: Detector, attacker: Attacker, variables: Variables, batch: Batch, key: Array) -> Batch:
    """The batch and below it the same attacked."""
    return jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), batch, _attacked(detector, attacker, variables, batch, key)
    )


def _halves(outputs: Outputs) -> tuple[Outputs, Outputs]:
    """Those of the clean and of the attacked rows of `_doubled`."""
    count = len(outputs.logits) // 2
    return jax.tree.map(lambda a: a[:count], outputs), jax.tree.map(lambda a: a[count:], outputs)
