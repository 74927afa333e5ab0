"""Attacks that see nothing of the detector but whether the goal is reached: the boundary attack and HopSkipJump.

Both walk along the boundary from a far image that reaches the goal towards the clean one. Every step asks one question
of each row, and what is asked next follows from the answer: a row is a small machine with a phase of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ffjax.attacks import nearest, trail
from ffjax.attacks.trail import State
from ffjax.balls import BALLS, TINY, l2
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Process

SEEK, HALVE, TURN, STEP = range(4)
"""Phases: images of nothing until one reaches the goal; halving between it and the clean one; then what each attack
does."""

FLAT = 3
"""First the image's mean colour everywhere, black, and white: detectors take what is smooth for one class."""

BLOCKS = 5
"""Then noise, which they take for the other: of single pixels, of blocks of 2, 4, 8 and 16, ..."""

FAINTER = 4
"""... and all that again with the image shining through by 1/2, 3/4 and 7/8."""

FINEST = 2.0**-20
"""Finer differences are lost in float32 images."""


class Asked(NamedTuple):
    """One image's question and its answer. draw: (H, W, C) uniform in (0, 1), for the next question. clean, image:
    (H, W, C). reached: () whether `image`, the question, reaches the goal."""

    draw: Array
    clean: Array
    image: Array
    reached: Array


class Between(NamedTuple):
    """What both attacks remember of one image. phase (), count () int32: questions answered in it. at (H, W, C): an
    image that reaches the goal. low, high: () shares of the way from the clean image to `at`, while that is halved; the
    goal is reached at `high` and not at `low`."""

    phase: Array
    count: Array
    at: Array
    low: Array
    high: Array


Turn = Callable[[Asked, Any], tuple[Array, Any, Array]]
"""(Asked, memory) -> (the next question, unclipped; memory; whether the image is done)."""


def boundary(
    goal: Goal,
    norm: str = "l2",
    *,
    steps: int = 5000,
    tries: int = 25,
    halvings: int = 10,
    spread: float = 0.1,
    stride: float = 0.03,
    pace: float = 1.1,
) -> Process:
    """The boundary attack: Brendel et al. (ICLR 2018). One query a step; norm: 'l2'.

    From the image x on the wrong side: a random step of `spread` of the distance along the sphere around the clean
    image; if the goal is still reached there, from there `stride` of the distance towards the clean image; if it is
    still reached, that is the next x. Both lengths follow their success, `pace` up and down, so that half of the steps
    along the sphere succeed and a quarter of those inwards (where the paper adapts them once in many steps).

    x comes from flat colours and noise: at most `tries` images, `halvings` of the way to the clean one. A row for which
    none of these reaches the goal fails, with the clean image; none ends farther than where it began.
    """

    def memory(clean: Array) -> tuple[Between, Array, Array]:
        return _nowhere(clean), jnp.float32(spread), jnp.float32(stride)

    def turn(asked: Asked, memory: tuple[Between, Array, Array]) -> tuple[Array, Any, Array]:
        way, spread, stride = memory
        around, inward = way.phase == TURN, way.phase == STEP
        spread = jnp.where(around, jnp.minimum(spread * jnp.where(asked.reached, pace, 1 / pace), 1.0), spread)
        grown = jnp.minimum(stride * jnp.where(asked.reached, pace, pace ** (-1 / 3)), 0.5)
        stride = jnp.where(inward, grown, stride)
        new, lost = _answered(asked, way, tries, lambda low, high, count: count >= halvings, straight)
        new = new._replace(
            at=jnp.where(inward & asked.reached, asked.image, new.at),
            phase=jnp.where(around & asked.reached, STEP, jnp.where(inward, TURN, new.phase)),
        )
        inwards = asked.image + stride * (asked.clean - asked.image)
        walk = jnp.where(new.phase == STEP, inwards, _along_sphere(asked, new.at, spread))
        return jnp.where(new.phase < TURN, _asking(asked, new, straight), walk), (new, spread, stride), lost

    return ask(goal, norm, turn, memory, steps)


class Hop(NamedTuple):
    """What HopSkipJump remembers of one image. way: see Between. round (): estimates begun. votes, total: (H, W, C),
    sums of the directions asked about, times the answer and as they are; ayes (): the sum of the answers. Once the
    estimate is made it takes the place of `votes`, and stride () is how far to go along it."""

    way: Between
    round: Array
    votes: Array
    total: Array
    ayes: Array
    stride: Array


def hop_skip_jump(
    goal: Goal,
    norm: str = "l2",
    *,
    steps: int = 5000,
    tries: int = 25,
    samples: int = 100,
    gamma: float = 1.0,
    shortenings: int = 15,
) -> Process:
    """HopSkipJumpAttack: Chen, Jordan and Wainwright (IEEE S&P 2020). One query a step; norm: 'l2', 'linf'.

    Rounds t = 1, 2 ... from x on the boundary at distance r, d components:
      estimate: samples sqrt(t) questions at x + radius u, u of unit l_2 norm; the answers (1 or -1) less their mean,
        times u, averaged: v. radius = gamma r / d (0.1 in the first round, and never finer than float32 images are).
      stride: x + s v / ||v|| (sign(v) in l_inf), s = r / sqrt(t), halved until the goal is reached, `shortenings` times
        at most.
      back to the boundary: halvings towards the clean image to gamma / (d sqrt(d)) of the way (gamma / d^2 in l_inf).

    The first x comes from flat colours and noise, at most `tries` images. A row for which none of these reaches the
    goal fails, with the clean image; none ends farther than where it began.
    """
    size, blend = BALLS[norm](1.0).norm, {"l2": straight, "linf": boxed}[norm]

    def memory(clean: Array) -> Hop:
        return Hop(_nowhere(clean), jnp.float32(1), clean * 0, clean * 0, jnp.float32(0), jnp.float32(0))

    def tight(components: int) -> Callable[[Array, Array, Array], Array]:
        share = max(gamma / components ** (2 if norm == "linf" else 1.5), FINEST)
        return lambda low, high, count: high - low <= share

    def radius(clean: Array, at: Array, round: Array) -> Array:
        near = jnp.maximum(gamma * size(at - clean) / clean.size, clean.size**0.5 * FINEST)
        return jnp.where(round == 1, 0.1, near)

    def turn(asked: Asked, hop: Hop) -> tuple[Array, Hop, Array]:
        way = hop.way
        polled, strode = way.phase == TURN, way.phase == STEP
        way, lost = _answered(asked, way, tries, tight(asked.clean.size), blend)
        hop = _polled(asked, hop._replace(way=way), polled, radius(asked.clean, way.at, hop.round))
        full = polled & (hop.way.count >= samples * jnp.sqrt(hop.round))
        hop = _estimated(hop, full, norm, size(way.at - asked.clean))
        hop = _strode(asked, hop, strode, shortenings)
        poll = (hop.way.phase == TURN) & (hop.way.count == 0)
        hop = hop._replace(
            votes=jnp.where(poll, 0, hop.votes), total=jnp.where(poll, 0, hop.total), ayes=jnp.where(poll, 0, hop.ayes)
        )
        at, phase = hop.way.at, hop.way.phase
        u = l2(1.0).steepest(_normal(asked.draw) if norm == "l2" else 2 * asked.draw - 1)
        hopped = jnp.where(phase == STEP, hop.stride * hop.votes, radius(asked.clean, at, hop.round) * u)
        return jnp.where(phase < TURN, _asking(asked, hop.way, blend), at + hopped), hop, lost

    return ask(goal, norm, turn, memory, steps)


def _polled(asked: Asked, hop: Hop, polled: Array, radius: Array) -> Hop:
    """One more answer counted, for the direction that was really asked about: clipping may have bent it."""
    u = (asked.image - hop.way.at) / radius * polled
    sign = jnp.where(asked.reached, 1.0, -1.0) * polled
    return hop._replace(
        votes=hop.votes + sign * u,
        total=hop.total + u,
        ayes=hop.ayes + sign,
        way=hop.way._replace(count=hop.way.count + polled),
    )


def _estimated(hop: Hop, full: Array, norm: str, distance: Array) -> Hop:
    """The direction that the votes amount to, where they are `full`."""
    mean = hop.ayes / jnp.maximum(hop.way.count, 1)
    direction = jnp.where(jnp.abs(mean) == 1, mean * hop.total, hop.votes - mean * hop.total)
    direction = BALLS[norm](1.0).steepest(direction)
    way = hop.way._replace(phase=jnp.where(full, STEP, hop.way.phase), count=jnp.where(full, 0, hop.way.count))
    stride = jnp.where(full, distance / jnp.sqrt(hop.round), hop.stride)
    return hop._replace(votes=jnp.where(full, direction, hop.votes), stride=stride, way=way)


def _strode(asked: Asked, hop: Hop, strode: Array, shortenings: int) -> Hop:
    """There: on to the halving. Not there: half as far, or, at last, another estimate."""
    there = strode & asked.reached
    short = strode & ~asked.reached
    count = hop.way.count + short
    given_up = short & (count > shortenings)
    way = hop.way._replace(
        at=jnp.where(there, asked.image, hop.way.at),
        phase=jnp.where(there, HALVE, jnp.where(given_up, TURN, hop.way.phase)),
        count=jnp.where(there | given_up, 0, count),
        low=jnp.where(there, 0.0, hop.way.low),
        high=jnp.where(there, 1.0, hop.way.high),
    )
    stride = jnp.where(short, hop.stride / 2, hop.stride)
    return hop._replace(way=way, stride=stride, round=hop.round + (there | given_up))


def ask(goal: Goal, norm: str, turn: Turn, memory: Callable[[Array], Any], steps: int) -> Process:
    """A Process of one question a step, the first about the clean image; memory(clean image) is what `turn` knows then.

    Guarantees: of the detector only goal.reached is seen (and goal.objective for the result's `loss`); every question
    lies in [0, 1]; what is returned reached the goal, or is the clean image; an image that reaches the goal unperturbed
    is done at once; one query a step; eps bounds nothing.
    """
    ball = BALLS[norm](1.0)

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        return State(trail.begin(batch, eps, seeds), (batch.images, jax.vmap(memory)(batch.images)))

    def answer(state: State, forward: Forward) -> tuple[trail.Trail, Array]:
        kept, (question, _) = state
        reached = goal.reached(forward(question), kept.batch)
        return trail.charged(nearest.offered(kept, ball, question, reached), queries=1), reached

    def move(i: Array, state: State, forward: Forward) -> State:
        kept, reached = answer(state, forward)
        question, known = state.own
        keys = trail.keys(kept, i)
        draws = jax.vmap(partial(jax.random.uniform, shape=question.shape[1:], minval=1e-6, maxval=1 - 1e-6))(keys)
        asked = Asked(draws, kept.batch.images, question, reached)
        question, known, lost = jax.vmap(turn)(asked, known)
        done = kept.done | lost | (kept.reached & (kept.score == 0))
        return State(kept._replace(done=done), (jnp.clip(question, 0, 1), known))

    def finish(state: State, forward: Forward) -> AttackResult:
        last, _ = answer(state, forward)
        return nearest.finish(goal, ball)(trail.kept(state.done, state, State(last, state.own)), forward)

    return trail.process(init, move, finish, steps)


def straight(clean: Array, at: Array, share: Array) -> Array:
    """`share` of the way from `clean` to `at`."""
    return clean + share * (at - clean)


def boxed(clean: Array, at: Array, share: Array) -> Array:
    """The nearest to `at` within `share` of its l_inf distance from `clean`."""
    bound = share * jnp.max(jnp.abs(at - clean))
    return clean + jnp.clip(at - clean, -bound, bound)


def _nowhere(clean: Array) -> Between:
    return Between(jnp.int32(SEEK), jnp.int32(0), clean, jnp.float32(0), jnp.float32(1))


def _answered(
    asked: Asked,
    way: Between,
    tries: int,
    ended: Callable[[Array, Array, Array], Array],
    blend: Callable[[Array, Array, Array], Array],
) -> tuple[Between, Array]:
    """What follows from an answer while seeking or halving, (way, whether to give up); in other phases nothing."""
    seek, halve = way.phase == SEEK, way.phase == HALVE
    found = seek & asked.reached
    middle, count = (way.low + way.high) / 2, way.count + (seek | halve)
    low = jnp.where(halve & ~asked.reached, middle, way.low)
    high = jnp.where(halve & asked.reached, middle, way.high)
    end = halve & ended(low, high, count)
    at = jnp.where(found, asked.image, jnp.where(end, blend(asked.clean, way.at, high), way.at))
    phase = jnp.where(found, HALVE, jnp.where(end, TURN, way.phase))
    # the first question of all was the clean image
    return Between(phase, jnp.where(found | end, 0, count), at, low, high), seek & ~found & (count > tries)


def _asking(asked: Asked, way: Between, blend: Callable[[Array, Array, Array], Array]) -> Array:
    """The next question while seeking or halving."""
    between = blend(asked.clean, way.at, (way.low + way.high) / 2)
    return jnp.where(way.phase == SEEK, _far(asked, jnp.maximum(way.count - 1, 0)), between)


def _far(asked: Asked, k: Array) -> Array:
    """The k-th image to begin at."""
    mean = jnp.mean(asked.clean, axis=(0, 1), keepdims=True)
    flat = jnp.select([k == 0, k == 1], [mean, jnp.zeros_like(mean)], jnp.ones_like(mean))
    n = jnp.maximum(k - FLAT, 0)
    block, share = 2 ** (n % BLOCKS), 2.0 ** -(n // BLOCKS % FAINTER)
    rows, columns = (jnp.arange(side) // block for side in asked.clean.shape[:2])
    noise = straight(asked.clean, asked.draw[rows][:, columns], share)
    return jnp.where(k < FLAT, flat, noise)


def _along_sphere(asked: Asked, at: Array, spread: Array) -> Array:
    """A random step of `spread` of the distance, at right angles to the way, then back to the same distance."""
    away = at - asked.clean
    distance = l2(1.0).norm(away)
    direction, draw = away / jnp.maximum(distance, TINY), _normal(asked.draw)
    across = l2(1.0).steepest(draw - jnp.sum(draw * direction) * direction)
    return asked.clean + (away + spread * distance * across) / jnp.sqrt(1 + spread**2)


def _normal(uniform: Array) -> Array:
    """What is uniform in (0, 1) as standard normal; in a third of the time of jax.scipy.special.ndtri on CPU."""
    return 2**0.5 * jax.lax.erf_inv(2 * uniform - 1)
