"""DeepFool: Moosavi-Dezfooli, Fawzi and Frossard (CVPR 2016), for two classes."""

import jax.numpy as jnp

from ffjax.attacks import nearest
from ffjax.attacks.nearest import At
from ffjax.balls import BALLS, TINY
from ffjax.gradients import Estimator
from ffjax.types import Array, Goal, Process


def deepfool(
    goal: Goal,
    norm: str = "l2",
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    level: float = 0.0,
    estimator: Estimator | None = None,
) -> Process:
    """Steps to where the objective, were it linear, would be at `level`; an image is done once it reaches the goal.

        x <- x + (1 + overshoot) (level - F(x)) s / <grad F, s>,  s the ball's steepest direction

    which is the published x_0 + (1 + overshoot) sum_i r_i, summed in place. On a linear detector the first step ends
    at (1 + overshoot) times the least distance. Assumes an objective like a margin, which is about linear around the
    boundary: `level` is its value where the goal is reached (the confidence of goals.verdict). Of one that bends, such
    as 'ce', it stops further out. norm: 'l2' or 'linf'.
    """
    steepest = BALLS[norm](1.0).steepest

    def move(i: Array, at: At, memory: tuple) -> tuple[Array, tuple, Array]:
        del i
        way = steepest(at.slope.gradient)
        rise = jnp.maximum(jnp.sum(at.slope.gradient * way), TINY)
        image = at.image + (1 + overshoot) * nearest.shortfall(at, level) / rise * way
        stuck = jnp.all(jnp.clip(image, 0, 1) == at.image)
        return image, memory, at.slope.reached | stuck

    return nearest.walk(goal, norm, move, steps, estimator=estimator)
