"""Square: random search from scores alone, one square of the image at a time (Andriushchenko et al., ECCV 2020)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from ffjax import balls
from ffjax.attacks import descent, trail
from ffjax.attacks.trail import State
from ffjax.balls import TINY
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Process

SHRINKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the budget after each of which a square has half the area (of 10,000 queries: after 10, 50, 200 ...)."""

LEAST_2 = 3
"""Smallest side of a square in l_2, where a smaller one has no shape."""


Moves = Literal["all", "channel"]


def square(
    goal: Goal,
    norm: str = "linf",
    *,
    steps: int = 1000,
    share: float = 0.8,
    moves: Moves = "all",
    stop: bool = True,
) -> Process:
    """Each step asks about one candidate, and keeps it if its objective is higher: one query a step and no gradient.

    l_inf: from stripes of eps or -eps, one per column and channel; a candidate sets a square to eps or -eps, one sign
    per channel. l_2: from a grid of 5 x 5 pyramids; a candidate moves what one square holds, and what the bound leaves
    over, into another as a pyramid. In both every candidate touches the bound, but for what the box [0, 1] cuts off.

    share: of the image's area that the first squares cover; it halves at SHRINKS of `steps`. moves: in l_2, what goes
    into each channel of a square: what all channels held, as in AutoAttack's code, or its own share, as in the paper's.
    At 1,000 queries the first broke 42 and 52 % of 64 images of meso4-a0 at eps 1 (two seeds), the second 39 and 41 %;
    on a small linear detector, at 2,000 queries, the second comes nearer. stop: a row that has
    reached the goal is done. norm: 'linf', 'l2'.
    Guarantees: every candidate lies in the ball and in [0, 1]; eps = 0 returns the clean image; of the detector only
    goal.objective and goal.reached are seen; a row depends on its image, label, id, eps and seed alone.
    """
    ball = balls.BALLS[norm]
    start, move = {"linf": (_stripes, _recoloured), "l2": (_grid, functools.partial(_gathered, moves=moves))}[norm]

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun = trail.begin(batch, eps, seeds)
        begun = trail.asked(goal, begun, batch.images, forward)
        shape = batch.images.shape[1:]
        deltas = jax.vmap(lambda key, e: e * start(key, shape))(trail.keys(begun, descent.START), eps)
        first = descent.projected(ball, begun, batch.images + deltas)
        return State(begun, (first, first, jnp.full(len(eps), -jnp.inf)))

    def asked(state: State, forward: Forward) -> tuple[State, Array]:
        """The candidate judged, and kept if it is the best of this walk, which the clean image is no part of."""
        seen, (candidate, current, height) = state
        objective, reached = trail.judged(goal, forward(candidate), seen.batch)
        seen = trail.charged(trail.offered(seen, candidate, reached, objective), queries=1)
        higher = objective > height
        current = jnp.where(trail.wide(higher, current), candidate, current)
        return State(seen, (candidate, current, jnp.where(higher, objective, height))), reached

    def step(i: Array, state: State, forward: Forward) -> State:
        state, reached = asked(state, forward)
        seen, (_, current, height) = state
        side = _side(i, steps, share, current.shape[1:3])
        deltas = current - seen.batch.images
        deltas = jax.vmap(lambda key, delta, e: move(key, delta, e, side))(trail.keys(seen, i), deltas, seen.eps)
        candidate = descent.projected(ball, seen, seen.batch.images + deltas)
        return State(seen._replace(done=seen.done | (reached & stop)), (candidate, current, height))

    def finish(state: State, forward: Forward) -> AttackResult:
        last, _ = asked(state, forward)
        return trail.finish(goal, ball(1.0))(trail.kept(state.done, state, last), forward)

    return trail.process(init, step, finish, steps)


def _side(i: Array, steps: int, share: float, area: tuple[int, int]) -> Array:
    """() int32 side of the square of step i, 1 to the image's shorter side less 1."""
    halvings = jnp.sum(i > jnp.asarray(SHRINKS) * steps)
    side = jnp.round(jnp.sqrt(share / 2.0**halvings * area[0] * area[1]))
    return jnp.clip(side, 1, max(1, min(area) - 1)).astype(jnp.int32)


def _stripes(key: Array, shape: tuple[int, ...]) -> Array:
    """(H, W, C) of 1 and -1, one for each column and channel."""
    return jnp.broadcast_to(jax.random.rademacher(key, (1, *shape[1:]), jnp.float32), shape)


def _recoloured(key: Array, delta: Array, eps: Array, side: Array) -> Array:
    """A square anywhere set to eps or -eps, one sign a channel; the opposite ones where that would change nothing."""
    key_place, key_sign = jax.random.split(key)
    _, _, hit = _window(key_place, delta.shape, side)
    signs = jax.random.rademacher(key_sign, (1, 1, delta.shape[2]), jnp.float32)
    signs = jnp.where(jnp.all(~hit | (jnp.sign(delta) == signs)), -signs, signs)
    return jnp.where(hit, eps * signs, delta)


def _grid(key: Array, shape: tuple[int, ...]) -> Array:
    """(H, W, C) of unit l_2 norm: pyramids side by side, each a fifth of the image's shorter side, of random signs."""
    key_sign, key_turn = jax.random.split(key)
    side = max(1, min(shape[:2]) // 5)
    tiles = (shape[0] // side, shape[1] // side)
    rows, columns = jnp.indices((side, side))
    one = pyramids(rows, columns, jnp.int32(side), jax.random.bernoulli(key_turn))
    signs = jax.random.rademacher(key_sign, (tiles[0], 1, tiles[1], 1, shape[2]), jnp.float32)
    laid = (signs * one[None, :, None, :, None]).reshape(tiles[0] * side, tiles[1] * side, shape[2])
    spare = [(left // 2, left - left // 2) for left in (shape[0] - laid.shape[0], shape[1] - laid.shape[1])]
    return _unit(jnp.pad(laid, (*spare, (0, 0))), axis=None)


def _gathered(key: Array, delta: Array, eps: Array, side: Array, moves: Moves) -> Array:
    """One square emptied, and what it and another held, and what was left of eps, laid into the other: what was there
    already plus a pyramid, channel by channel. Brought to norm eps. moves: see `square`."""
    key_to, key_from, key_sign, key_turn = jax.random.split(key, 4)
    side = jnp.minimum(jnp.maximum(side, LEAST_2) // 2 * 2 + 1, min(delta.shape[:2]))
    rows, columns, into = _window(key_to, delta.shape, side)
    _, _, out_of = _window(key_from, delta.shape, side)
    signs = jax.random.rademacher(key_sign, (1, 1, delta.shape[2]), jnp.float32)
    pyramid = pyramids(rows, columns, side, jax.random.bernoulli(key_turn))[:, :, None] * signs
    shape = _unit(pyramid + _unit(jnp.where(into, delta, 0)))
    held = jnp.sum(jnp.square(jnp.where(into | out_of, delta, 0)), axis=(0, 1), keepdims=True)
    held = jnp.sum(held, axis=2, keepdims=True) if moves == "all" else held
    spare = jnp.maximum(eps**2 - jnp.sum(jnp.square(delta)), 0) / delta.shape[2]
    moved = jnp.where(into, shape * jnp.sqrt(held + spare), jnp.where(out_of, 0, delta))
    return eps * _unit(moved, axis=None)


def pyramids(rows: Array, columns: Array, side: Array, turned: Array) -> Array:
    """A square of `side` pixels whose upper half is a pyramid and whose lower half is one upside down (left and right
    where `turned`); unit l_2 norm, 0 outside. rows, columns: (H, W) int32, counted from the square's corner.

    A pyramid's height at distance r (l_inf) of its middle is the sum of 1 / m^2 from m = r + 1 to side / 2 + 1.
    """
    down, across = jnp.where(turned, columns, rows), jnp.where(turned, rows, columns)
    half, layers = side // 2, side // 2 + 1
    upper = down < half
    middle = jnp.where(upper, half // 2, half + (side - half) // 2)
    distance = jnp.maximum(jnp.abs(down - middle), jnp.abs(across - half))
    sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(1 / jnp.arange(1.0, max(rows.shape) // 2 + 2) ** 2)])
    height = sums[layers] - sums[jnp.minimum(distance, layers)]
    height = jnp.where((down >= 0) & (down < side) & (across >= 0) & (across < side), height, 0)
    halves = _unit(jnp.where(upper, height, 0)), _unit(jnp.where(upper, 0, height))
    return _unit(halves[0] - halves[1])


def _window(key: Array, shape: tuple[int, ...], side: Array) -> tuple[Array, Array, Array]:
    """A square anywhere inside (H, W): (rows, columns) counted from its corner, (H, W) each, and (H, W, 1) whether
    inside. A mask, since the side is traced."""
    corner = jax.random.randint(key, (2,), 0, jnp.array(shape[:2]) - side + 1)
    rows, columns = jnp.indices(shape[:2])
    rows, columns = rows - corner[0], columns - corner[1]
    return rows, columns, ((rows >= 0) & (rows < side) & (columns >= 0) & (columns < side))[:, :, None]


def _unit(x: Array, axis: tuple[int, int] | None = (0, 1)) -> Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True)), TINY)
