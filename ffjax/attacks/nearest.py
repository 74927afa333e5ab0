"""Attacks after the smallest perturbation that reaches the goal: what DeepFool, DDN, FMN and FAB have in common.

Each walks near the boundary objective = level, keeps the closest iterate that reached the goal, and differs from the
others only in where it goes next, which is written for one image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ffjax.attacks import trail
from ffjax.attacks.trail import State, Trail
from ffjax.balls import BALLS, Ball
from ffjax.gradients import Estimator, Slope, exact
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Process

STRETCHES = (1.01, 1.001)
"""By how much the closest iterate is pushed on where its success does not survive being computed anew."""

LEAST = 1e-3
"""Least shortfall that is worked on, as a share of what the perturbation has gained: smaller ones drown in rounding,
and an image would stand before the boundary for ever."""


class At(NamedTuple):
    """One image on its way. clean, image: (H, W, C). slope: objective (), reached () and gradient (H, W, C) at `image`.
    best: () distance of the closest iterate that reached the goal, `image` included; inf before any has."""

    clean: Array
    image: Array
    slope: Slope
    best: Array


Move = Callable[[Array, At, Any], tuple[Array, Any, Array]]
"""(step's number, At, memory) -> (next image, unclipped; memory; whether the image is done)."""


def walk(
    goal: Goal,
    norm: str,
    move: Move,
    steps: int,
    *,
    memory: Callable[[Array], Any] = lambda clean: (),
    start: Callable[[Trail], Array] | None = None,
    estimator: Estimator | None = None,
) -> Process:
    """From the clean image, or from start(trail) -> (B, H, W, C); memory(clean image) is what `move` knows at first.

    Guarantees: every iterate lies in [0, 1]; what is returned reached the goal, or is the clean image; an image that
    reaches the goal unperturbed is done at once; one gradient a step; eps bounds nothing.
    """
    estimator = exact(goal) if estimator is None else estimator
    ball = BALLS[norm](1.0)

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun, images = trail.begin(batch, eps, seeds), batch.images
        if start is not None:  # else the clean image is the first iterate anyway
            begun, images = offered(begun, ball, images, goal.reached(forward(images), batch)), start(begun)
            begun = trail.charged(begun._replace(done=begun.reached), queries=1)
        return State(begun, (images, jax.vmap(memory)(batch.images)))

    def step(i: Array, state: State, forward: Forward) -> State:
        kept, (images, remembered) = state
        slope = estimator.at(trail.keys(kept, i), images, kept.batch, kept.eps, forward)
        kept = trail.charged(kept, estimator.gradients, estimator.queries)
        kept = offered(kept, ball, images, slope.reached)
        best = jnp.where(kept.reached, -kept.score, jnp.inf)
        at = At(kept.batch.images, images, slope, best)
        images, remembered, done = jax.vmap(partial(move, i))(at, remembered)
        return State(kept._replace(done=kept.done | done | (best == 0)), (jnp.clip(images, 0, 1), remembered))

    def end(state: State, forward: Forward) -> AttackResult:
        kept, (images, _) = state
        last = offered(kept, ball, images, goal.reached(forward(images), kept.batch))
        last = State(trail.charged(last, queries=1), state.own)
        return finish(goal, ball)(trail.kept(kept.done, state, last), forward)

    return trail.process(init, step, end, steps)


def offered(kept: Trail, ball: Ball, images: Array, reached: Array) -> Trail:
    """The closer of the best and `images`, if these reached the goal; else nothing changes."""
    distance = jax.vmap(ball.norm)(images - kept.batch.images)
    return trail.offered(kept, images, reached, jnp.where(reached, -distance, -jnp.inf))


def finish(goal: Goal, ball: Ball) -> Callable[[State, Forward], AttackResult]:
    """As trail.finish, for iterates that end a hair past the boundary, where another program's rounding may take the
    success back: such an image is pushed on by a share of its perturbation, and is the clean one if that is in vain."""

    def result(state: State, forward: Forward) -> AttackResult:
        kept, images = state.trail, state.trail.batch.images
        delta = kept.best - images
        for candidate in (*(jnp.clip(kept.batch.images + s * delta, 0, 1) for s in STRETCHES), kept.best):
            holds = goal.reached(forward(candidate), kept.batch)
            images = jnp.where(trail.wide(holds, images), candidate, images)
        return trail.finish(goal, ball)(State(kept._replace(best=images), ()), forward)

    return result


def shortfall(at: At, level: float) -> Array:
    """() by how much the objective must still rise; positive."""
    gained = jnp.abs(jnp.sum(at.slope.gradient * (at.image - at.clean)))
    return jnp.maximum(jnp.maximum(level - at.slope.objective, LEAST * gained), 1e-6)


def cosine(first: float, last: float, i: Array, steps: int) -> Array:
    """From `first` at i = 0 to `last` at i = steps along half a cosine."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * i / steps)) / 2
