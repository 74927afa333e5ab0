"""Moosavi-Dezfooli et al. (CVPR 2017): image after image, the least step that turns it, added to what is there."""

import jax
import jax.numpy as jnp

from ffjax.balls import TINY
from ffjax.objectives import margin
from ffjax.types import Array, Batch, UapInfo, UapState, Universal
from ffjax.universal.ascent import Score, fresh, judged, over, step_key
from ffjax.universal.config import UapConfig
from ffjax.universal.shapes import Shape, Size
from ffjax.universal.slopes import Show

OVERSHOOT = 0.02
"""Of DeepFool, theirs."""


def one_by_one(config: UapConfig, shape: Shape, show: Show, score: Score) -> Universal:
    """For each image that v does not turn yet: r by DeepFool at x + v, v <- P_eps(v + (1 + overshoot) r).

    A step is one linearisation, r <- r + |f| / ||g||^2 g with f how far the image is from turning and g the gradient of
    the margin with respect to the pattern (sources averaged); a batch stays for config.inner of them, and v moves after
    the last. Of several carriers the mean of r is added over those not yet turned (ours: theirs takes one). f is
    measured to the verdict wanted of the image; theirs is to any other than the clean one, which for two classes and
    images called rightly is the same. What r has come to after the last linearisation is added, turned or not.
    """

    def init(keys: Array, eps: Array, size: Size) -> UapState:
        return fresh(shape, keys, eps, size, lambda v: jnp.zeros((v.shape[0], config.carriers, *v.shape[1:])))

    def short(rows: Array, batch: Batch, key: Array, forwards) -> tuple[Array, Array]:
        """(S, B) how far each pattern of its own, rows (S, B, ...), on each image is from the verdict wanted: <= 0 once
        it is there; their sum first, whose gradient holds each one's own."""

        def one(row: Array, image: Batch) -> Array:
            return show(key, row[None], jax.tree.map(lambda x: x[None], image))[0]

        images = jax.vmap(jax.vmap(one), (0, None))(rows, batch)
        flat = images.reshape(-1, *images.shape[2:])
        said = jnp.mean(jnp.stack([margin(f(flat)) for f in forwards]), axis=0).reshape(rows.shape[:2])
        left = jnp.where(batch.labels == 1, 1.0, -1.0)[None] * said
        return jnp.sum(left), left

    def step(i, state: UapState, batch: Batch, eps: Array, weights, forwards, bank: Batch) -> tuple[UapState, UapInfo]:
        first, last = i % config.inner == 0, i % config.inner == config.inner - 1
        added = jnp.where(first, 0.0, state.optimiser)
        rows = state.delta[:, None] + (1 + OVERSHOOT) * added
        slope, left = jax.grad(short, has_aux=True)(rows, batch, step_key(i), forwards)
        size = jnp.sum(jnp.square(slope), axis=tuple(range(2, slope.ndim)))
        length = jnp.where(left > 0, (left + 1e-4) / jnp.maximum(size, TINY), 0.0)
        added = added - length.reshape(length.shape + (1,) * (slope.ndim - 2)) * slope
        # an image that was turned at the block's start has added nothing
        active = jnp.maximum(jnp.sum(jnp.any(added != 0, axis=tuple(range(2, added.ndim))), axis=1), 1)
        mean = jnp.sum(added, axis=1) / over(active, state.delta)
        moved = jax.vmap(shape.project)(state.delta + (1 + OVERSHOOT) * mean, eps)
        delta = jnp.where(over(state.done, moved) | ~last, state.delta, moved)
        saturation = jax.vmap(shape.at_bound)(delta, eps)
        state = state._replace(delta=delta, optimiser=added, saturation=saturation)
        state = judged(config, score, i, state, bank, weights, forwards)
        return state, UapInfo(-jnp.mean(left, axis=1), saturation, state.best_score, jnp.zeros_like(state.done))

    return Universal(init, step)
