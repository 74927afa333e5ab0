"""What no attack: noise of the same size, the figure that every attack has to beat."""

import jax
import jax.numpy as jnp

from ffjax import balls
from ffjax.attacks import trail
from ffjax.attacks.descent import projected
from ffjax.attacks.trail import State
from ffjax.types import Array, Batch, Forward, Goal, Process


def noise(goal: Goal, norm: str = "linf", *, draws: int = 1) -> Process:
    """`draws` draws at the bound, nothing learnt from one for the next: random signs of size eps in l_inf, otherwise a
    draw of the ball's own brought to its bound. One query a draw; the first that reaches the goal counts."""
    ball = balls.BALLS[norm]

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun = trail.begin(batch, eps, seeds)
        return State(trail.asked(goal, begun, batch.images, forward), ())

    def move(i: Array, state: State, forward: Forward) -> State:
        kept = state.trail
        draw = jax.vmap(lambda key, e: _at_bound(key, ball(e), norm, e, kept.batch.images.shape[1:]))
        images = projected(ball, kept, kept.batch.images + draw(trail.keys(kept, i), kept.eps))
        objective, reached = trail.judged(goal, forward(images), kept.batch)
        kept = trail.charged(trail.offered(kept, images, reached, objective), queries=1)
        return State(kept._replace(done=kept.done | reached), ())

    return trail.process(init, move, trail.finish(goal, ball(1.0)), draws)


def _at_bound(key: Array, ball: balls.Ball, norm: str, eps: Array, shape: tuple[int, ...]) -> Array:
    if norm == "linf":
        return eps * jax.random.rademacher(key, shape, jnp.float32)
    draw = ball.sample(key, shape)
    if norm == "l0":  # which counts components, whatever their size
        return draw
    return draw * eps / jnp.maximum(ball.norm(draw), 1e-30)
