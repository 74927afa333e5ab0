"""Decoupled direction and norm: Rony et al. (CVPR 2019)."""

import jax.numpy as jnp

from ffjax.attacks import nearest, trail
from ffjax.attacks.nearest import At, cosine
from ffjax.balls import TINY, l2
from ffjax.gradients import Estimator
from ffjax.types import Array, Goal, Process


def ddn(
    goal: Goal,
    norm: str = "l2",
    *,
    steps: int = 100,
    initial: float = 1.0,
    gamma: float = 0.05,
    rate: float = 1.0,
    levels: int | None = None,
    estimator: Estimator | None = None,
) -> Process:
    """The direction follows unit gradients, the norm shrinks by gamma after a success and grows by it after a failure.

        d <- delta + a_i grad / ||grad||,  eps <- (1 -+ gamma) eps,  delta <- eps d / ||d||

    initial: the first norm, image units. rate: a_0; a_i falls to a hundredth of it along a cosine. levels: iterates are
    rounded to n / (levels - 1), so that 256 makes images that survive 8-bit storage as they are (of a clean image that
    lies on that grid). Published on cross-entropy, whose unit gradient for two classes is the margin's. Assumes only
    that the objective rises towards the goal: where the boundary lies it learns from `reached`. norm: 'l2'.
    """
    if norm != "l2":
        raise ValueError(f"ddn knows l2 only, not {norm}")
    ball = l2(1.0)

    def move(i: Array, at: At, size: Array) -> tuple[Array, Array, Array]:
        size = size * jnp.where(at.slope.reached, 1 - gamma, 1 + gamma)
        size = jnp.minimum(size, ball.norm(jnp.maximum(at.clean, 1 - at.clean)))
        way = at.image - at.clean + cosine(rate, rate / 100, i, steps) * ball.steepest(at.slope.gradient)
        image = jnp.clip(at.clean + size / jnp.maximum(ball.norm(way), TINY) * way, 0, 1)
        if levels is not None:
            image = trail.rounded(image, levels)
        return image, size, jnp.bool_(False)

    return nearest.walk(goal, norm, move, steps, memory=lambda clean: jnp.float32(initial), estimator=estimator)
