"""The l_2 attack of Carlini and Wagner (S&P 2017), each image with a position, a constant and an optimiser of its own.

    minimise over w  ||x(w) - x||_2^2 + c max(kappa - F(x(w)), 0)

by Adam, x(w) inside the box by a tanh, for several constants c, which bracket the least that succeeds.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ffjax.attacks import nearest, rules, trail
from ffjax.attacks.descent import START
from ffjax.attacks.rules import Rule
from ffjax.attacks.trail import State, Trail
from ffjax.balls import TINY, l2
from ffjax.gradients import Estimator, Slope, exact
from ffjax.types import Array, Batch, Forward, Goal, Process

SHRINK = 1 - 1 / 256
"""The box takes up this share of the tanh's range, so that its slope at black and white is 1/128 of that at grey."""


class Search(NamedTuple):
    """How constants are tried. initial: the first. ceiling: taken for the upper end until a success lowers it; within
    its tenth the bracket is halved, before that failures multiply by 10. searches: how many constants. carried: w and
    Adam's memory go on from one constant to the next; else each starts anew. noise: sd of the start in w. resort: the
    last of several constants is the ceiling if none before has succeeded (after a success that would only repeat it: a
    start anew runs the same again). scaled: no step is longer than the clean image's distance to the boundary, as its
    gradient has it."""

    initial: float
    ceiling: float
    searches: int
    carried: bool
    noise: float
    resort: bool
    scaled: bool


SEARCHES = {
    "original": Search(1e-3, 1e10, 9, carried=False, noise=0.0, resort=True, scaled=True),
    "gandhi": Search(100.0, 1e4, 5, carried=True, noise=1e-3, resort=False, scaled=False),
}
"""Carlini and Wagner's own, but for `scaled`; Gandhi and Jain's (arXiv 2003.10596), as their code has it."""


class Position(NamedTuple):
    """Where one image stands; every leaf (B, ...). w: the image in tanh space. adam: its memory. c, lower, upper: the
    constant and its bracket. tried: constants done with. inner: steps made with this one. found: it has succeeded.
    last: the loss when it was last looked at for progress. rate: of Adam's steps."""

    w: Array
    adam: Any
    c: Array
    lower: Array
    upper: Array
    tried: Array
    inner: Array
    found: Array
    last: Array
    rate: Array


def cw(
    goal: Goal,
    norm: str = "l2",
    *,
    search: Literal["original", "gandhi"] = "original",
    searches: int | None = None,
    initial: float | None = None,
    ceiling: float | None = None,
    inner: int = 1000,
    kappa: float = 0.0,
    rate: float = 0.01,
    scaled: bool | None = None,
    abort: float = 1e-4,
    patience: int = 20,
    keep: Literal["margin", "misclassified"] = "margin",
    estimator: Estimator | None = None,
) -> Process:
    """searches, initial, ceiling, scaled: None = the search's own. inner: Adam steps a constant, of length `rate` in
    tanh space; scaled, of at most the distance to the boundary in the image (at 128 px a first step at 0.01 is 1.1
    long, and Adam's memory of what it met there keeps it from a boundary at 0.1). abort: a constant is given up unless
    the loss drops by this share in every `patience` steps (published: in every tenth of `inner`). kappa: a success in
    full is an iterate that reached the goal with an objective of at least this (logit units for goals.verdict); the
    search wants that, and pushes until it is there.

    keep: 'margin' ranks full successes, by distance, before those that merely reached the goal; 'misclassified' ranks
    all that reached the goal by distance. Of Gandhi and Jain's two counts one run with 'margin' gives both: `success`,
    and `success` with loss >= kappa (to rounding). Their published rule, which takes back whatever misses kappa, is a
    goal with confidence = kappa.

    An image that gives a constant up goes on to its next at once, and is done when its constants are through or when
    its clean image is a full success; so images finish at steps of their own, searches * inner at the latest. The clean
    image costs one query, each step one gradient. norm: 'l2'.
    """
    if norm != "l2":
        raise ValueError(f"cw knows l2 only, not {norm}")
    estimator = exact(goal) if estimator is None else estimator
    given = {"searches": searches, "initial": initial, "ceiling": ceiling, "scaled": scaled}
    plan = SEARCHES[search]._replace(**{name: value for name, value in given.items() if value is not None})
    ball, rule = l2(1.0), rules.adam()

    def judged(kept: Trail, images: Array, objective: Array, reached: Array) -> tuple[Trail, Array]:
        """The trail with `images` offered, and which of them are full successes."""
        full, distance = reached & (objective >= kappa), jax.vmap(ball.norm)(images - kept.batch.images)
        # any full success before any other
        score = jnp.where(full & (keep == "margin"), 1 / (distance + TINY), -distance)
        return trail.offered(kept, images, reached, jnp.where(reached, score, -jnp.inf)), full

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> State:
        begun = trail.charged(trail.begin(batch, eps, seeds), queries=1)
        begun, full = judged(begun, batch.images, *trail.judged(goal, forward(batch.images), batch))
        draw = jax.vmap(lambda key: jax.random.normal(key, batch.images.shape[1:]))
        w = boxed(batch.images)
        if plan.noise:
            w = within(w + plan.noise * draw(trail.keys(begun, START)))
        return State(begun._replace(done=full), first(w, plan, rule, rate))

    def move(i: Array, state: State, forward: Forward) -> State:
        kept, at = state
        images = unboxed(at.w)
        slope = estimator.at(trail.keys(kept, i), images, kept.batch, kept.eps, forward)
        kept = trail.charged(kept, estimator.gradients, estimator.queries)
        kept, full = judged(kept, images, slope.objective, slope.reached)
        pull, delta = jnp.where(full, 0, at.c), images - kept.batch.images
        loss = jnp.sum(jnp.square(delta), axis=(1, 2, 3)) + pull * (kappa - slope.objective)
        gradient = (2 * delta - trail.wide(pull, delta) * slope.gradient) * widening(images)
        direction, adam = jax.vmap(rule.update)(gradient, at.adam)
        if plan.scaled:  # at the first step every row stands at its clean image
            found = jax.lax.cond(i == 0, lambda: longest(images, slope, kappa, rate), lambda: at.rate)
            at = at._replace(rate=found)
        w = within(at.w - trail.wide(at.rate, at.w) * jnp.asarray(direction))
        at = at._replace(w=w, adam=adam, found=at.found | full)
        at, over = counted(at, loss, inner, abort, patience)
        anew = following(at, plan, rule, boxed(kept.batch.images))
        at = jax.tree.map(lambda new, old: jnp.where(trail.wide(over, new), new, old), anew, at)
        return State(kept._replace(done=at.tried == plan.searches), at)

    # every step's iterate was looked at, and all rows are done: no last one to evaluate
    return trail.process(init, move, nearest.finish(goal, ball), plan.searches * inner)


def first(w: Array, plan: Search, rule: Rule, rate: float) -> Position:
    rows = len(w)
    zero, none = jnp.zeros(rows), jnp.zeros(rows, jnp.int32)
    adam = jax.vmap(rule.init)(jnp.zeros_like(w))
    c, upper = zero + plan.initial, zero + plan.ceiling
    return Position(w, adam, c, zero, upper, none, none, none > 0, zero, zero + rate)


def longest(images: Array, slope: Slope, kappa: float, rate: float) -> Array:
    """(B,): the rate of steps as long as the way to the objective's kappa where it rises most; at most rate, and at
    least a thousandth of it, for what lies on the boundary. A step of Adam moves every component by up to its slope
    times the rate."""
    rise = jnp.sqrt(jnp.sum(jnp.square(slope.gradient), axis=(1, 2, 3)))
    reach = jnp.sqrt(jnp.sum(jnp.square(widening(images)), axis=(1, 2, 3)))
    return jnp.clip(jnp.abs(kappa - slope.objective) / jnp.maximum(rise * reach, TINY), rate / 1000, rate)


def counted(at: Position, loss: Array, inner: int, abort: float, patience: int) -> tuple[Position, Array]:
    """One step more, and which constants are over: after `inner` steps, or given up."""
    due = at.inner % patience == 0
    given_up = due & (at.inner > 0) & (loss > at.last - abort * jnp.abs(at.last))
    at = at._replace(inner=at.inner + 1, last=jnp.where(due, loss, at.last))
    return at, given_up | (at.inner == inner)


def following(at: Position, plan: Search, rule: Rule, start: Array) -> Position:
    """The position at the beginning of the next constant; start: the clean images in tanh space."""
    c, lower, upper = narrowed(at.c, at.lower, at.upper, at.found, plan.ceiling)
    tried = at.tried + 1
    if plan.resort:
        c = jnp.where((tried == plan.searches - 1) & (upper >= plan.ceiling), plan.ceiling, c)
    w, adam = (at.w, at.adam) if plan.carried else (start, jax.vmap(rule.init)(jnp.zeros_like(start)))
    none = jnp.zeros_like(at.inner)
    return Position(w, adam, c, lower, upper, tried, none, none > 0, at.last, at.rate)


def narrowed(c: Array, lower: Array, upper: Array, found: Array, ceiling: float) -> tuple[Array, Array, Array]:
    """(next c, lower, upper): `upper` has succeeded unless it is the ceiling, `lower` has failed unless it is 0."""
    lower = jnp.where(found, lower, jnp.maximum(lower, c))
    upper = jnp.where(found, jnp.minimum(upper, c), upper)
    return jnp.where(upper < 0.1 * ceiling, (lower + upper) / 2, jnp.where(found, c, 10 * c)), lower, upper


def boxed(images: Array) -> Array:
    """[0, 1] -> tanh space."""
    return jnp.arctanh(SHRINK * (2 * images - 1))


def unboxed(w: Array) -> Array:
    """Tanh space -> [0, 1]; undoes `boxed`."""
    return jnp.clip(0.5 + jnp.tanh(w) / (2 * SHRINK), 0, 1)


def widening(images: Array) -> Array:
    """d unboxed / d w, at the w of `images`."""
    return (1 - jnp.square(SHRINK * (2 * images - 1))) / (2 * SHRINK)


def within(w: Array) -> Array:
    """Where `unboxed` has reached black or white it stays, and turns back as readily as it came."""
    return jnp.clip(w, -jnp.arctanh(SHRINK), jnp.arctanh(SHRINK))
