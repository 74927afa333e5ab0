"""What no attack: noise of the same size, the figure that every attack has to beat."""

import jax
import jax.numpy as jnp

from ffjax import balls
from ffjax.attacks import trail
from ffjax.attacks.descent import projected
from ffjax.attacks.trail import State
from ffjax.types import Array, Batch, Forward, Goal, Process

FILLS = 8
"""How often a draw that the box has cut is scaled up again: each time the components inside take over."""


def noise(goal: Goal, norm: str = "linf", *, draws: int = 1) -> Process:
    """`draws` draws at the bound, nothing learnt from one for the next: random signs of size eps in l_inf, otherwise a
    draw of the ball's own brought to its bound inside the box. One query a draw, one for the clean image; the first
    that reaches the goal counts, or else the one of the highest objective. The clean image is returned only where it
    reaches the goal as it is, or eps is 0."""
    ball = balls.BALLS[norm]

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun = trail.asked(goal, trail.begin(batch, eps, seeds), batch.images, forward)
        # any draw is better than a clean image that does not reach the goal: what is shown as noise has its size
        return State(begun._replace(score=jnp.where(begun.reached, begun.score, -jnp.inf), done=begun.reached), ())

    def move(i: Array, state: State, forward: Forward) -> State:
        kept = state.trail
        clean = kept.batch.images
        draw = jax.vmap(lambda key, e, x: _at_bound(key, ball(e), norm, e, x))(trail.keys(kept, i), kept.eps, clean)
        images = projected(ball, kept, clean + draw)
        objective, reached = trail.judged(goal, forward(images), kept.batch)
        kept = trail.charged(trail.offered(kept, images, reached, objective), queries=1)
        return State(kept._replace(done=kept.done | reached), ())

    return trail.process(init, move, trail.finish(goal, ball(1.0)), draws)


def _at_bound(key: Array, ball: balls.Ball, norm: str, eps: Array, clean: Array) -> Array:
    if norm == "linf":
        return eps * jax.random.rademacher(key, clean.shape, jnp.float32)
    draw = ball.sample(key, clean.shape)
    if norm == "l0":  # which counts components, whatever their size: only the way out of the box is barred
        return jnp.where(jnp.clip(clean + draw, 0, 1) == clean, -draw, draw)
    for _ in range(FILLS):
        draw = jnp.clip(draw * eps / jnp.maximum(ball.norm(draw), 1e-30), -clean, 1 - clean)
    return draw
