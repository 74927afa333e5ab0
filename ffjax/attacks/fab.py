"""Fast adaptive boundary: Croce and Hein (ICML 2020), for two classes, where targeted and untargeted are one."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from ffjax import balls
from ffjax.attacks import nearest
from ffjax.attacks.descent import random_start
from ffjax.attacks.nearest import At
from ffjax.attacks.trail import Trail
from ffjax.balls import TINY
from ffjax.gradients import Estimator
from ffjax.types import Array, Goal, Process


def fab(
    goal: Goal,
    norm: str = "linf",
    *,
    steps: int = 100,
    bias: float = 0.1,
    extrapolation: float = 1.05,
    backward: float = 0.9,
    start: Literal["clean", "random"] = "clean",
    level: float = 0.0,
    estimator: Estimator | None = None,
) -> Process:
    """Projections onto the linearised boundary inside the box, drawn towards the clean image.

        d(z) = least delta with z + delta on the plane F(x) + <grad F(x), . - x> = level and in [0, 1]
        a = min(bias, ||d(x)|| / (||d(x)|| + ||d(x_0)||))
        x <- (1 - a) (x + e d(x)) + a (x_0 + e d(x_0))     e: extrapolation
        x <- x_0 + backward (x - x_0)                      where x reached the goal, in a step of its own

    The published loop looks at each iterate once more without a gradient; here an iterate that reached the goal spends
    its gradient on being seen, so that N published iterations are N steps plus one for each success. start: 'random' is
    uniform in the ball of half of eps, for restarts, which are the caller's (attempts.restarts). Assumes an objective
    like a margin: `level` is its value where the goal is reached (the confidence of goals.verdict). norm: 'linf', 'l2',
    'l1'.
    """
    size = balls.BALLS[norm](1.0).norm

    def move(i: Array, at: At, memory: tuple) -> tuple[Array, tuple, Array]:
        del i
        slope, away = at.slope.gradient, at.image - at.clean
        gap = nearest.shortfall(at, level)
        here = to_plane(at.image, slope, gap, norm)
        there = to_plane(at.clean, slope, gap + jnp.sum(slope * away), norm)
        near, far = size(here), size(there)
        share = jnp.minimum(near / jnp.maximum(near + far, TINY), bias)
        ahead = (1 - share) * (at.image + extrapolation * here) + share * (at.clean + extrapolation * there)
        image = jnp.where(at.slope.reached, at.clean + backward * away, ahead)
        return image, memory, jnp.bool_(False)

    def draw(kept: Trail) -> Array:
        widest = jax.vmap(lambda x: size(jnp.maximum(x, 1 - x)))(kept.batch.images)
        return random_start(balls.BALLS[norm], kept._replace(eps=jnp.minimum(kept.eps, widest) / 2))

    return nearest.walk(goal, norm, move, steps, start=draw if start == "random" else None, estimator=estimator)


def to_plane(x: Array, slope: Array, gap: Array, norm: str) -> Array:
    """The delta, smallest in `norm` and shaped like x, with <slope, delta> = gap and x + delta in [0, 1]; where the box
    does not get that far, the delta that gets furthest."""
    top = jnp.maximum(jnp.max(jnp.abs(slope)), TINY)  # squares of small slopes would vanish in float32
    weight, need = jnp.abs(slope) / top, jnp.abs(gap) / top
    way = jnp.sign(slope) * jnp.sign(gap)
    room = jnp.where(way > 0, 1 - x, jnp.where(way < 0, x, 0))
    return way * _LENGTHS[norm](weight, room, need)


def _together(weight: Array, room: Array, need: Array, pace: Array) -> Array:
    """Component j goes min(t pace_j, room_j), for the least t that gains enough."""
    total = balls.l1(1.0).norm  # of values >= 0, and faster than jnp.sum on a CPU
    farthest = jnp.max(jnp.where(pace > 0, room / jnp.maximum(pace, TINY), 0))
    _, t = balls.turning_point(lambda t: total(weight * jnp.minimum(t * pace, room)) < need, farthest)
    return jnp.minimum(t * pace, room)


def _heaviest_first(weight: Array, room: Array, need: Array) -> Array:
    """Components are used up one after another; those as heavy as the last one share what is left."""
    total, gains = balls.l1(1.0).norm, weight * room
    last, _ = balls.turning_point(lambda t: total(jnp.where(weight >= t, gains, 0)) >= need, jnp.max(weight))
    left = need - jnp.sum(jnp.where(weight > last, gains, 0))
    part = jnp.clip(left / jnp.maximum(jnp.sum(jnp.where(weight == last, gains, 0)), TINY), 0, 1)
    return jnp.where(weight > last, room, jnp.where(weight == last, part * room, 0))


_LENGTHS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "linf": lambda weight, room, need: _together(weight, room, need, jnp.sign(weight)),
    "l2": lambda weight, room, need: _together(weight, room, need, weight),
    "l1": _heaviest_first,
}
"""What each norm makes of weights, room to the box's wall and the gain that is needed: how far each component goes."""
