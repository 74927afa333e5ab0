"""Attacks that follow a gradient inside a bound: FGSM, BIM, PGD and their kin are settings of one process.

    x_0 = P(start),   x_{i+1} = P( x_i + a s( rule( grad objective(x_i) ) ) )

P projects into ball and [0, 1], s takes the direction of steepest rise in the ball's norm, a = step * eps.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ffjax import balls
from ffjax.attacks import rules, trail
from ffjax.attacks.rules import Rule
from ffjax.attacks.trail import State, Trail
from ffjax.gradients import Estimator, exact
from ffjax.types import Array, Batch, Forward, Goal, Process

START = 1 << 20
"""Folded into the key of a random start, past any number of steps."""


def descent(
    goal: Goal,
    norm: str = "linf",
    *,
    steps: int = 40,
    step: float = 0.1,
    start: Literal["zero", "random"] = "random",
    rule: Rule | None = None,
    estimator: Estimator | None = None,
    lookahead: float = 0.0,
    follow: Callable[[Array], Array] | None = None,
    stop: bool = True,
) -> Process:
    """Projected ascent of the goal's objective from one start.

    step: length of a step as a share of eps. rule: what the gradient is turned into (attacks.rules). lookahead: the
    gradient is taken at x + lookahead * a * momentum (Nesterov; the rule must end in a trace). follow: (H, W, C)
    direction -> the step of length one; the ball's steepest by default. stop: a row that has reached the goal is done;
    False follows the objective to the end, for transfer. Guarantees: every iterate lies in the ball (to 1e-6 of
    rounding) and in [0, 1]; eps = 0 returns the clean image; a row depends on its image, label, id, eps and seed alone.
    """
    rule = rules.plain() if rule is None else rule
    estimator = exact(goal) if estimator is None else estimator
    ball = balls.BALLS[norm]
    follow = ball(1.0).steepest if follow is None else follow

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun = trail.begin(batch, eps, seeds)
        images = batch.images
        if start == "random":  # else the clean image is the first iterate anyway
            begun = trail.asked(goal, begun, images, forward)
            images = random_start(ball, begun)
        return State(begun, (images, jax.vmap(rule.init)(jnp.zeros_like(images))))

    def move(i: Array, state: State, forward: Forward) -> State:
        kept, (images, memory) = state
        at = images
        if lookahead:
            at += trail.wide(lookahead * step * kept.eps, images) * optax.tree.get(memory, "trace")
        slope = estimator.at(trail.keys(kept, i), at, kept.batch, kept.eps, forward)
        kept = trail.charged(kept, estimator.gradients, estimator.queries)
        objective, reached = slope.objective, slope.reached
        if lookahead:  # those two are of the point ahead
            objective, reached = trail.judged(goal, forward(images), kept.batch)
            kept = trail.charged(kept, queries=1)
        kept = trail.offered(kept, images, reached, objective)
        direction, memory = jax.vmap(rule.update)(slope.gradient, memory)
        stride = jax.vmap(follow)(jnp.asarray(direction))
        images = projected(ball, kept, images + trail.wide(step * kept.eps, images) * stride)
        return State(kept._replace(done=kept.done | (reached & stop)), (images, memory))

    def finish(state: State, forward: Forward) -> Any:
        kept, (images, _) = state
        last = trail.asked(goal, kept, images, forward)
        return trail.finish(goal, ball(1.0))(trail.kept(kept.done, state, State(last, state.own)), forward)

    return trail.process(init, move, finish, steps)


def projected(ball: Callable[[Array], balls.Ball], kept: Trail, images: Array) -> Array:
    """Each image to the nearest of its ball and of [0, 1]."""

    def one(eps: Array, x: Array, clean: Array) -> Array:
        return jnp.clip(clean + ball(eps).project(x - clean, -clean, 1 - clean), 0, 1)

    return jax.vmap(one)(kept.eps, images, kept.batch.images)


def random_start(ball: Callable[[Array], balls.Ball], kept: Trail) -> Array:
    """Uniform in each image's ball, then clipped to [0, 1]."""
    clean = kept.batch.images
    draws = jax.vmap(lambda key, eps: ball(eps).sample(key, clean.shape[1:]))(trail.keys(kept, START), kept.eps)
    return projected(ball, kept, clean + draws)
