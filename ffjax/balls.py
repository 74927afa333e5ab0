"""Threat models: the set a perturbation of ONE image may lie in, written for (H, W, C) and vmapped by the caller.

`project(delta, low, high)` lands in the ball and in the box [low, high]: for a perturbation of image x the box is
[-x, 1 - x], so that x + delta is an image; a universal perturbation has no image yet and takes [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax.types import Array

SLACK = 1e-6
"""Relative tolerance of an l_2 norm in float32: within it a delta counts as inside, so `project` is idempotent."""


class Ball(NamedTuple):
    """project(delta, low=-1, high=1) -> delta: inside the ball and the box; idempotent.
    sample(key, shape) -> delta, uniform in the ball. norm(delta) -> (). at_bound(delta) -> () share of components stuck
    at a bound of their own. steepest(gradient) -> the direction of unit norm along which a linear function rises
    fastest."""

    project: Callable[..., Array]
    sample: Callable[[Array, tuple[int, ...]], Array]
    norm: Callable[[Array], Array]
    at_bound: Callable[[Array], Array]
    steepest: Callable[[Array], Array]


def linf(eps: Array | float) -> Ball:
    """max |delta| <= eps, exactly (clipping does not round). eps in [0, 1] image units; may be traced."""

    def at_bound(delta: Array) -> Array:
        return jnp.mean(jnp.abs(delta) >= eps)

    return Ball(
        project=lambda delta, low=-1.0, high=1.0: jnp.clip(delta, jnp.maximum(-eps, low), jnp.minimum(eps, high)),
        sample=lambda key, shape: eps * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
        norm=lambda delta: jnp.max(jnp.abs(delta)),
        at_bound=at_bound,
        steepest=jnp.sign,
    )


def l2(eps: Array | float) -> Ball:
    """||delta||_2 <= eps over all pixels and channels, to a relative 1e-6. eps >= 0 in image units; may be traced.

    Clipping to the box after scaling only shrinks components (the box holds 0), so both constraints hold at once.
    """

    def project(delta: Array, low: Array | float = -1.0, high: Array | float = 1.0) -> Array:
        size = _norm2(delta)
        scale = jnp.where(size > eps * (1 + SLACK), eps / jnp.maximum(size, 1e-30), 1.0)
        return jnp.clip(delta * scale, low, high)

    def sample(key: Array, shape: tuple[int, ...]) -> Array:
        key_direction, key_radius = jax.random.split(key)
        direction = jax.random.normal(key_direction, shape)
        # the share of volume within radius r is r^d: inverting it makes the draw uniform in the ball
        d = float(jnp.size(direction))
        return eps * jax.random.uniform(key_radius) ** (1 / d) * direction / _norm2(direction)

    return Ball(
        project=project,
        sample=sample,
        norm=_norm2,
        # on the sphere a component still grows at the others' expense: only the box holds one fast
        at_bound=lambda delta: jnp.mean(jnp.abs(delta) >= 1.0),
        steepest=lambda gradient: gradient / jnp.maximum(_norm2(gradient), 1e-30),
    )


def _norm2(x: Array) -> Array:
    """||x||_2, scaled by the largest entry so that tiny and huge values neither vanish nor overflow."""
    top = jnp.maximum(jnp.max(jnp.abs(x)), 1e-30)
    return top * jnp.sqrt(jnp.sum(jnp.square(x / top)))


BALLS: dict[str, Callable[[Array | float], Ball]] = {"linf": linf, "l2": l2}


def apply(images: Array, delta: Array) -> Array:
    """clip(x + delta, 0, 1): what a viewer or a detector is shown. Shapes broadcast by explicit leading axes."""
    return jnp.clip(images + delta, 0.0, 1.0)
