"""What every attack keeps of every image: the clean image, the best iterate so far, and what it has cost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.balls import Ball
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Outputs, Process

EIGHT_BITS = 256


class Trail(NamedTuple):
    """Per example; every leaf (B, ...).

    batch: the clean images and all that the goal needs. eps (B,): the bound (inf for none). seeds (B,) uint32: from
    which, with the example's id, all its randomness is folded. best (B, H, W, C): the best iterate, the clean image at
    first. score (B,): what iterates are ranked by among those that reached the goal, or, before any has, among the
    others. reached (B,) bool: `best` reaches the goal. done (B,) bool: nothing of this row changes any more. gradients,
    queries (B,) int32: spent so far.
    """

    batch: Batch
    eps: Array
    seeds: Array
    best: Array
    score: Array
    reached: Array
    done: Array
    gradients: Array
    queries: Array


class State(NamedTuple):
    """An attack on its way: what all keep, and what is its own (a pytree of (B, ...) leaves)."""

    trail: Trail
    own: Any

    @property
    def done(self) -> Array:
        return self.trail.done


def begin(batch: Batch, eps: Array, seeds: Array) -> Trail:
    """Nothing tried yet: the best is the clean image, and any iterate is better."""
    rows = len(batch.labels)
    none, zero = jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32)
    return Trail(batch, eps, seeds, batch.images, jnp.full(rows, -jnp.inf, jnp.float32), none, none, zero, zero)


def keys(trail: Trail, i: Array | int) -> Array:
    """(B,) keys of step i: of the seed, the example's id and i alone, whatever batch the example travels in."""

    def key(seed: Array, number: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), i)

    return jax.vmap(key)(trail.seeds, trail.batch.ids)


def offered(trail: Trail, images: Array, reached: Array, score: Array) -> Trail:
    """The better of the best and `images`: reaching the goal first, then the score, larger = better. An iterate that is
    not finite is never better."""
    better = jnp.where(reached == trail.reached, score > trail.score, reached)
    better &= jnp.isfinite(score) | reached
    return trail._replace(
        best=jnp.where(wide(better, images), images, trail.best),
        score=jnp.where(better, score, trail.score),
        reached=trail.reached | reached,
    )


def asked(goal: Goal, trail: Trail, images: Array, forward: Forward) -> Trail:
    """`images` judged by a forward pass of their own, one query, and offered."""
    objective, reached = judged(goal, forward(images), trail.batch)
    return charged(offered(trail, images, reached, objective), queries=1)


def charged(trail: Trail, gradients: int = 0, queries: int = 0) -> Trail:
    return trail._replace(gradients=trail.gradients + gradients, queries=trail.queries + queries)


def kept(done: Array, old: State, new: State) -> State:
    """Rows that were done before the step stay as they were, costs included. What no step touches is handed on as it
    is: a choice between it and itself would be copied."""
    return jax.tree.map(lambda a, b: b if a is b else jnp.where(wide(done, b), a, b), old, new)


def wide(rows: Array, like: Array) -> Array:
    """(B,) -> (B, 1, ..., 1), to broadcast against `like`."""
    return rows.reshape(rows.shape + (1,) * (like.ndim - 1))


def finish(goal: Goal, ball: Ball) -> Any:
    """(state, forward) -> AttackResult: everything it claims is computed anew on the images it returns."""

    def result(state: State, forward: Forward) -> AttackResult:
        trail = state.trail
        outputs, stored = forward(trail.best), forward(rounded(trail.best))
        distance = jax.vmap(ball.norm)(trail.best - trail.batch.images)
        reached, after = goal.reached(outputs, trail.batch), goal.reached(stored, trail.batch)
        loss = goal.objective(outputs, trail.batch)
        return AttackResult(trail.best, reached, after, loss, distance, trail.gradients, trail.queries)

    return result


def rounded(images: Array, levels: int = EIGHT_BITS) -> Array:
    """To the nearest n / (levels - 1): for 256, bit for bit what an 8-bit file gives back."""
    return to_grid(jnp.round(images * (levels - 1)), levels)


def to_grid(numbers: Array, levels: int = EIGHT_BITS) -> Array:
    """Whole numbers 0 .. levels - 1, as floats -> images, bit for bit as codecs.to_float makes them; levels <= 256.

    Compiled, a division by a constant becomes a product with its reciprocal, which may be one bit off. So the
    reciprocal is split: its upper 16 bits times a number of 8 bits is exact, and what is left rounds once.
    """
    reciprocal = 1 / (levels - 1)
    upper = (np.float32(reciprocal).view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
    return numbers * upper + numbers * np.float32(reciprocal - float(upper))


def judged(goal: Goal, outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """(objective, reached), (B,) each."""
    return goal.objective(outputs, batch), goal.reached(outputs, batch)


def process(init: Any, move: Any, finish: Any, steps: int) -> Process:
    """A Process of `move`, whose rows are frozen once they are done."""

    def step(i: Array, state: State, forward: Forward) -> State:
        return kept(state.done, state, move(i, state, forward))

    return Process(init, step, finish, steps)
