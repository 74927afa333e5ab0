"""Auto-PGD: projected ascent that sets its own step, so that there is nothing to tune but the number of steps.

Each image halves its own step, and goes back to its own best point, at checkpoints at which it has risen too seldom.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import balls
from ffjax.attacks import descent, trail
from ffjax.attacks.trail import State, Trail
from ffjax.gradients import Estimator, exact
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Process


class Climb(NamedTuple):
    """Per example; every leaf (B, ...).

    at, before: this iterate and the one before it. top: the iterate with the largest objective so far, height (B,) its
    objective, slope its gradient. last (B,): the objective one iterate ago. length (B,): of a step, in units of eps.
    rises (B,) int32: steps that rose since the last checkpoint. then (B,): the height at the last checkpoint. kept (B,)
    bool: the length was not changed there. width (B,): share of components that a step moves (l_1), and used (B,): how
    many `top` differed in from the clean image at the last checkpoint.
    """

    at: Array
    before: Array
    top: Array
    slope: Array
    height: Array
    last: Array
    length: Array
    rises: Array
    then: Array
    kept: Array
    width: Array
    used: Array


def apgd(
    goal: Goal,
    norm: str = "linf",
    *,
    steps: int = 100,
    momentum: float = 0.75,
    rho: float = 0.75,
    start: Literal["zero", "random"] = "random",
    estimator: Estimator | None = None,
    stop: bool = True,
) -> Process:
    """APGD: Croce and Hein (ICML 2020), algorithm 1; the goal's loss decides whether it is APGD-CE.

        z = P(x_k + a s(g_k)),   x_{k+1} = P(x_k + m (z - x_k) + (1 - m) (x_k - x_{k-1})),   a = 2 eps at first

    At the checkpoints a row halves `a` and goes back to its best point if fewer than `rho` of the steps since the last
    one rose, or if neither `a` nor the best objective has changed. In l_1 (Croce and Hein, ICML 2021): no momentum, a
    step of `a` = eps along the signs of the largest gradients, as many as the best point has come to use, over 1.5.
    start, stop, guarantees: as of `descent`. One gradient a step.
    """
    estimator = exact(goal) if estimator is None else estimator
    ball, sparse = balls.BALLS[norm], norm == "l1"
    windows = every_25th(steps) if sparse else checkpoints(steps)

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun, images = trail.begin(batch, eps, seeds), batch.images
        if start == "random":  # else the clean image is the first iterate anyway
            begun = trail.asked(goal, begun, images, forward)
            images = descent.random_start(ball, begun)
        return State(begun, _at_foot(images, length=1.0 if sparse else 2.0))

    def move(i: Array, state: State, forward: Forward) -> State:
        kept, climb = state
        slope = estimator.at(trail.keys(kept, i), climb.at, kept.batch, kept.eps, forward)
        kept = trail.charged(kept, estimator.gradients, estimator.queries)
        kept = trail.offered(kept, climb.at, slope.reached, slope.objective)
        climb = _seen(climb, slope.objective, slope.gradient)
        window = jnp.asarray(windows)[i]
        back, climb = _sparser(window, climb, kept) if sparse else _halved(window, climb, rho)
        at, gradient = _chosen(back, climb.top, climb.at), _chosen(back, climb.slope, slope.gradient)
        ahead = jax.vmap(balls.top_signs)(gradient, climb.width) if sparse else jax.vmap(ball(1.0).steepest)(gradient)
        images = descent.projected(ball, kept, at + trail.wide(climb.length * kept.eps, at) * ahead)
        if not sparse:
            share = jnp.where(i == 0, 1.0, momentum)
            carried = at + share * (images - at) + (1 - share) * (at - climb.before)
            images = descent.projected(ball, kept, carried)
        done = kept.done | (slope.reached & stop)
        return State(kept._replace(done=done), climb._replace(at=images, before=climb.at))

    def finish(state: State, forward: Forward) -> AttackResult:
        kept, climb = state
        last = State(trail.asked(goal, kept, climb.at, forward), climb)
        return trail.finish(goal, ball(1.0))(trail.kept(kept.done, state, last), forward)

    return trail.process(init, move, finish, steps)


def checkpoints(steps: int) -> np.ndarray:
    """(steps,) int: at a checkpoint the number of steps since the last one, elsewhere 0. The first comes after 0.22 of
    the steps, and each window is 0.03 of them shorter than the one before it, down to 0.06."""
    found, place, width = [0], 0.22, 0.22
    while place < 1:
        found.append(int(np.ceil(place * steps - 1e-6)))
        width = max(width - 0.03, 0.06)
        place += width
    return _windows(found, steps)


def every_25th(steps: int) -> np.ndarray:
    """As `checkpoints`, one after each 0.04 of the steps."""
    return _windows([*range(0, steps, max(1, int(0.04 * steps)))], steps)


def _windows(places: list[int], steps: int) -> np.ndarray:
    different = np.unique([place for place in places if place < steps])
    windows = np.zeros(steps, np.int32)
    windows[different[1:]] = np.diff(different)
    return windows


def _at_foot(images: Array, length: float) -> Climb:
    """Nothing seen yet: any objective is higher, and none has risen."""

    def all_rows(value: float) -> Array:
        return jnp.full(len(images), value, jnp.float32)

    low, zero, size = all_rows(-jnp.inf), jnp.zeros(len(images), jnp.int32), images[0].size
    return Climb(
        at=images, before=images, top=images, slope=jnp.zeros_like(images), height=low, last=-low,
        length=all_rows(length), rises=zero, then=low, kept=zero > 0, width=all_rows(0.2), used=all_rows(size),
    )  # fmt: skip


def _seen(climb: Climb, objective: Array, gradient: Array) -> Climb:
    higher = objective > climb.height
    return climb._replace(
        top=_chosen(higher, climb.at, climb.top),
        slope=_chosen(higher, gradient, climb.slope),
        height=jnp.where(higher, objective, climb.height),
        rises=climb.rises + (objective > climb.last),
        last=objective,
    )


def _halved(window: Array, climb: Climb, rho: float) -> tuple[Array, Climb]:
    """(rows that go back to their best point, the climb after the checkpoint)."""
    stuck = climb.kept & (climb.height <= climb.then)
    back = (window > 0) & ((climb.rises < rho * window) | stuck)
    return back, climb._replace(
        length=jnp.where(back, climb.length / 2, climb.length),
        rises=jnp.where(window > 0, 0, climb.rises),
        then=jnp.where(window > 0, climb.height, climb.then),
        kept=jnp.where(window > 0, ~back, climb.kept),
    )


def _sparser(window: Array, climb: Climb, kept: Trail) -> tuple[Array, Climb]:
    """As `_halved`, in l_1: a best point that has come to use fewer components (by a twentieth) calls for sparser steps
    at full length again; otherwise the step shrinks by 1.5, to a tenth of eps at least."""
    used = jax.vmap(balls.l0(0).norm)(climb.top - kept.batch.images)
    fewer = used < 0.95 * climb.used
    length = jnp.where(fewer, 1.0, jnp.maximum(climb.length / 1.5, 0.1))
    return (window > 0) & fewer, climb._replace(
        length=jnp.where(window > 0, length, climb.length),
        width=jnp.where(window > 0, used / climb.top[0].size / 1.5, climb.width),
        used=jnp.where(window > 0, used, climb.used),
    )


def _chosen(rows: Array, yes: Array, no: Array) -> Array:
    return jnp.where(trail.wide(rows, yes), yes, no)
