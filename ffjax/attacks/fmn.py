"""Fast minimum-norm: Pintor et al. (NeurIPS 2021)."""

import jax.numpy as jnp

from ffjax.attacks import nearest
from ffjax.attacks.nearest import At, cosine
from ffjax.balls import BALLS, TINY, l1, l2, linf
from ffjax.gradients import Estimator
from ffjax.types import Array, Goal, Process

DUALS = {"linf": l1, "l2": l2, "l1": linf}
"""Norm of a perturbation -> the one of the gradient: ||grad||_dual is the rise of a step of length one."""


def fmn(
    goal: Goal,
    norm: str = "linf",
    *,
    steps: int = 100,
    rate: float = 1.0,
    gamma: float = 0.05,
    level: float = 0.0,
    estimator: Estimator | None = None,
) -> Process:
    """Ascent of the objective inside a ball that shrinks after a success and grows after a failure.

        eps <- max(eps, ||delta||) + |level - F| / ||grad F||_dual   before any success (published: ||delta|| alone)
        eps <- (1 - g_i) eps, at most the best norm        after a success
        eps <- (1 + g_i) eps                               after a failure
        delta <- clip(P_eps(delta + a_i grad / ||grad||_2))   in l_0: / ||grad||_inf

    rate: a_0, in image units of l_2 (for large images in l_inf the paper takes up to 10); a_i falls to a hundredth of
    it, g_i from gamma to gamma / 50, both along a cosine. In l_0 eps is a whole number, starts at 1 and changes by at
    least 1, and rate is what the largest component moves (published: l_2 there too, where a new component gains too
    little to take the place of one that is kept). Assumes an objective like a margin: `level` is its value where the
    goal is reached (the confidence of goals.verdict); it enters the first estimate alone. norm: 'linf', 'l2', 'l1',
    'l0'.
    """
    ball = BALLS[norm]
    resized, ascent = (_by_counting, ball(1.0)) if norm == "l0" else (_by_distance, l2(1.0))

    def move(i: Array, at: At, eps: Array) -> tuple[Array, Array, Array]:
        share = cosine(gamma, gamma / 50, i, steps)
        eps = resized(norm, at, eps, share, level)
        eps = jnp.minimum(eps, ball(1.0).norm(jnp.maximum(at.clean, 1 - at.clean)))
        delta = at.image - at.clean + cosine(rate, rate / 100, i, steps) * ascent.steepest(at.slope.gradient)
        return at.clean + ball(eps).project(delta, -at.clean, 1 - at.clean), eps, jnp.bool_(False)

    return nearest.walk(goal, norm, move, steps, memory=lambda clean: jnp.float32(norm == "l0"), estimator=estimator)


def _by_distance(norm: str, at: At, eps: Array, share: Array, level: float) -> Array:
    rise = jnp.maximum(DUALS[norm](1.0).norm(at.slope.gradient), TINY)
    # the box may have cut the last ball short: measured from what it left, eps would stand still before the goal
    reach = jnp.maximum(eps, BALLS[norm](1.0).norm(at.image - at.clean))
    boundary = reach + nearest.shortfall(at, level) / rise
    after_failure = jnp.where(jnp.isfinite(at.best), eps * (1 + share), boundary)
    return jnp.where(at.slope.reached, jnp.minimum(eps * (1 - share), at.best), after_failure)


def _by_counting(norm: str, at: At, eps: Array, share: Array, level: float) -> Array:
    del norm, level
    fewer = jnp.minimum(jnp.minimum(eps - 1, jnp.floor(eps * (1 - share))), at.best)
    more = jnp.maximum(eps + 1, jnp.floor(eps * (1 + share)))
    return jnp.maximum(jnp.where(at.slope.reached, fewer, more), 0)
