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
"""Relative tolerance of an l_2 norm in float32: within it a delta counts as inside, so `project` is idempotent. A sum
without squares and root rounds more: l_1 takes ten times as much."""

TINY = 1e-30


class Ball(NamedTuple):
    """project(delta, low=-1, high=1) -> delta: inside the ball and the box; idempotent.
    sample(key, shape) -> delta, uniform in the ball. norm(delta) -> (). at_bound(delta) -> () share of components stuck
    at a bound of their own. steepest(gradient) -> the direction of unit norm along which a linear function rises
    fastest (l1 and l0 say what they take instead); a zero gradient gives zero."""

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
        scale = jnp.where(size > eps * (1 + SLACK), eps / jnp.maximum(size, TINY), 1.0)
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
        at_bound=_at_box,
        steepest=lambda gradient: gradient / jnp.maximum(_norm2(gradient), TINY),
    )


def l1(eps: Array | float, share: float = 0.01) -> Ball:
    """sum |delta| <= eps over all pixels and channels, to a relative 1e-5. eps >= 0 in image units; may be traced.

    `project` gives the nearest point of ball and box together, clip(soft(delta, t), low, high) with the smallest t >= 0
    that is inside (Croce and Hein, ICML 2021): clipping after a projection onto the ball alone would fall short of it.
    `steepest` takes the signs of the `share` of components with the largest gradient, in equal parts (SLIDE: Tramer
    and Boneh, NeurIPS 2019), since the truly steepest direction moves one component; share = 0 is that one.
    """

    def project(delta: Array, low: Array | float = -1.0, high: Array | float = 1.0) -> Array:
        size, room = jnp.abs(delta), jnp.where(delta > 0, high, -jnp.asarray(low))

        def left(t: Array) -> Array:
            """|delta| once each component has lost t, and kept to its side of the box."""
            return jnp.minimum(jnp.maximum(size - t, 0), room)

        below, above = turning_point(lambda t: _total(left(t)) > eps, jnp.max(size))
        most, least = left(below), left(above)
        # the threshold lies between two neighbouring floats, and between them `left` is linear
        over = _total(least)
        part = jnp.clip((eps - over) / jnp.maximum(_total(most) - over, TINY), 0, 1)
        mixed = least + part * (most - least)
        mixed *= jnp.minimum(1, eps / jnp.maximum(_total(mixed), TINY))
        inside = left(jnp.float32(0))
        return jnp.sign(delta) * jnp.where(_total(inside) <= eps * (1 + 10 * SLACK), inside, mixed)

    def sample(key: Array, shape: tuple[int, ...]) -> Array:
        key_size, key_sign, key_rest = jax.random.split(key, 3)
        # d + 1 exponentials over their sum are uniform on the simplex: leaving one out fills the ball
        size = jax.random.exponential(key_size, shape)
        whole = jnp.sum(size) + jax.random.exponential(key_rest)
        return eps * jax.random.rademacher(key_sign, shape, jnp.float32) * size / whole

    return Ball(project, sample, lambda delta: _total(jnp.abs(delta)), _at_box, lambda g: top_signs(g, share))


def l0(eps: Array | float) -> Ball:
    """At most floor(eps) COMPONENTS other than zero: a pixel's channels count one each. eps >= 0; may be traced.

    `project` gives the nearest point of ball and box together: clipped to the box, all but those components are dropped
    whose loss would be felt most (in the box, the largest; ties: the first). `sample`: floor(eps) components anywhere,
    each uniform in [-1, 1]. No step is the steepest where the size of a change is free: `steepest` is the gradient
    scaled to a largest component of 1, so that a long step, projected, moves the components best for a linear function
    as far as the box lets them.
    """

    def project(delta: Array, low: Array | float = -1.0, high: Array | float = 1.0) -> Array:
        boxed = jnp.clip(delta, low, high)
        # dropped, a component is delta away from where it was, and kept, delta - boxed: this is the root of the
        # difference of their squares, rooted factor by factor so that it neither vanishes nor overflows
        felt = jnp.sqrt(jnp.abs(boxed)) * jnp.sqrt(jnp.abs(2 * delta - boxed))
        return jnp.where(_largest(felt, jnp.floor(eps)), boxed, 0.0)

    def sample(key: Array, shape: tuple[int, ...]) -> Array:
        key_place, key_value = jax.random.split(key)
        chosen = _largest(jax.random.uniform(key_place, shape, minval=0.5), jnp.floor(eps))
        return jnp.where(chosen, jax.random.uniform(key_value, shape, minval=-1.0, maxval=1.0), 0.0)

    return Ball(
        project=project,
        sample=sample,
        norm=lambda delta: jnp.sum(delta != 0).astype(jnp.float32),
        at_bound=_at_box,
        steepest=lambda gradient: gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), TINY),
    )


def top_signs(gradient: Array, share: Array | float) -> Array:
    """Signs of the `share` of components (one at least) with the largest |gradient|, scaled to unit l_1 norm; share in
    [0, 1], may be traced. Components as large as the smallest chosen one come along; zeros never do."""
    size = jnp.abs(gradient)
    chosen = (size >= kth_largest(size, jnp.maximum(1.0, jnp.round(share * gradient.size)))) & (size > 0)
    return jnp.sign(gradient) * chosen / jnp.maximum(jnp.sum(chosen), 1)


def _largest(size: Array, count: Array) -> Array:
    """Which are the `count` largest of values >= 0; of equal ones the first."""
    bound = kth_largest(size, count)
    above = size > bound
    tied = (size == bound) & (count > 0)
    place = jnp.cumsum(tied.ravel()).reshape(size.shape)
    return (above & (count > 0)) | (tied & (place <= count - jnp.sum(above)))


def kth_largest(size: Array, k: Array) -> Array:
    """The k-th largest of values >= 0 (the last for a larger k). By bisection, since k is traced and sorting slow."""
    k = jnp.minimum(k, size.size)
    return turning_point(lambda t: jnp.sum(size >= t) >= k, jnp.max(size))[0]


def turning_point(holds: Callable[[Array], Array], top: Array) -> tuple[Array, Array]:
    """Neighbouring floats t < u in [0, the float after top]: the last where `holds` (0 if it never does) and the next.

    Bisects the bits, in whose order floats >= 0 are: 31 halvings end between neighbours whatever the scale.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        below = holds(jax.lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bits = jax.lax.bitcast_convert_type(jnp.asarray(top, jnp.float32), jnp.int32)
    low, high = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(bits), bits + 1))
    return jax.lax.bitcast_convert_type(low, jnp.float32), jax.lax.bitcast_convert_type(high, jnp.float32)


def _total(x: Array) -> Array:
    """Sum of all components, folded five times first: XLA:CPU then adds them in vectors, ten times as fast, and rounds
    less; every row of a batch is still summed alike."""
    folded = jnp.pad(x.ravel(), (0, -x.size % 32))
    for _ in range(5):
        folded = folded[: folded.size // 2] + folded[folded.size // 2 :]
    return jnp.sum(folded)


def _at_box(delta: Array) -> Array:
    return jnp.mean(jnp.abs(delta) >= 1.0)


def _norm2(x: Array) -> Array:
    """||x||_2, scaled by the largest entry so that tiny and huge values neither vanish nor overflow. As a vector:
    XLA:CPU sums an image, whose last axis is 3 long, four times as slowly."""
    x = x.ravel()
    top = jnp.maximum(jnp.max(jnp.abs(x)), TINY)
    return top * jnp.sqrt(jnp.sum(jnp.square(x / top)))


BALLS: dict[str, Callable[[Array | float], Ball]] = {"linf": linf, "l2": l2, "l1": l1, "l0": l0}


def apply(images: Array, delta: Array) -> Array:
    """clip(x + delta, 0, 1): what a viewer or a detector is shown. Shapes broadcast by explicit leading axes."""
    return jnp.clip(images + delta, 0.0, 1.0)
