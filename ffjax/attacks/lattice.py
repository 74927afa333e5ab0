"""Results that survive storage: images of the values n / 255 that a PNG can hold, inside the bound, judged as such.

Rounding a finished image to the nearest level often takes it back over the boundary. What is rounded away can instead
be rounded in the attack's favour, and as little of it as it takes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ffjax import balls
from ffjax.attacks import trail
from ffjax.balls import TINY
from ffjax.gradients import exact
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, Process

LEAN = 0.499
"""How far, in levels, rounding is pulled: an image already on a level stays there, past what float32 may add to it."""


class Tried(NamedTuple):
    """images (B, H, W, C) with objective (B,) and reached (B,) bool."""

    images: Array
    objective: Array
    reached: Array


class OnGrid(NamedTuple):
    """The wrapped process's state, and what its result will be rounded by."""

    inner: Any
    batch: Batch
    eps: Array

    @property
    def done(self) -> Array:
        return self.inner.done


def on_grid(
    process: Process,
    goal: Goal,
    norm: str = "linf",
    *,
    bound: Literal["fixed", "minimal"] = "fixed",
    tries: int = 8,
    guide: Literal["gradient", "displacement"] = "gradient",
) -> Process:
    """`process`, whose images are then rounded to n / 255, n = 0 .. 255, so that the goal is still reached.

    In turn: the nearest levels; every component to the next level on the side where the objective rises (Gandhi and
    Jain, IJCNN 2020: round(255 x + 0.5 sign(gradient))); only the share of components with the largest gradient so, the
    others to their nearest, and this share halved `tries` times between what fails and what succeeds. Of what reaches
    the goal, what took the smallest share; if nothing does, what had the largest objective, the clean image included
    (bound 'minimal': the clean image).

    bound: as attacks.Attack names it. 'fixed' keeps within eps: in l_inf floor(255 eps) levels from the clean image,
    exactly (less than a level is none); in other norms components go back towards the clean image, the smallest
    gradient first, until the rest fits. 'minimal' has no bound to keep.
    guide: 'gradient' costs one; 'displacement' takes the attack's own perturbation in its place, for attacks that see
    no gradient. With it, each row is charged tries + 3 queries, with the gradient one more.

    Guarantees: images are bit for bit what their 8-bit file gives back (data.codecs), and success and success_8bit one
    and the same, judged on them. A clean image that is not on the grid is first brought to its nearest levels, and the
    perturbation carried over: the bound is then kept around the 8-bit image, while `distance` is from the given one.
    """
    ball, guided = balls.BALLS[norm](1.0), guide == "gradient"

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> OnGrid:
        return OnGrid(process.init(forward, batch, eps, seeds), batch, eps)

    def step(i: Array, state: OnGrid, forward: Forward) -> OnGrid:
        return state._replace(inner=process.step(i, state.inner, forward))

    def finish(state: OnGrid, forward: Forward) -> AttackResult:
        found, batch, eps = process.finish(state.inner, forward), state.batch, state.eps
        delta = found.images - batch.images
        favour = exact(goal).at(eps, found.images, batch, eps, forward).gradient if guided else delta
        fit = jax.vmap(partial(rounded, norm=norm, bound=bound))

        def judged(images: Array) -> Tried:
            return Tried(images, *trail.judged(goal, forward(images), batch))

        def at(share: Array) -> Tried:
            return judged(fit(share, batch.images, delta, favour, eps))

        clean = judged(trail.to_grid(jnp.round(255 * batch.images)))
        best = _searched(at, clean, tries, failures=bound == "fixed")
        last = judged(best.images)
        if bound == "minimal":  # another program's rounding may have taken back what only just reached
            last = _either(last.reached, last, clean)
        distance = jax.vmap(ball.norm)(last.images - batch.images)
        gradients, queries = found.gradients + guided, found.queries + tries + 3 + guided
        return AttackResult(last.images, last.reached, last.reached, last.objective, distance, gradients, queries)

    return Process(init, step, finish, process.steps)


def _searched(at: Callable[[Array], Tried], clean: Tried, tries: int, failures: bool) -> Tried:
    """What reaches the goal at the smallest share tried: 0, 1, then `tries` halvings. If nothing does, what had the
    largest objective, or, without `failures`, the clean image. A loop, so that the detector is compiled once for all.
    """

    def attempt(i: Array, ends: tuple[Array, Array, Tried]) -> tuple[Array, Array, Tried]:
        low, high, best = ends
        share = jnp.where(i < 2, jnp.float32(i), (low + high) / 2)
        tried = at(share)
        instead = tried.reached | (failures & (tried.objective > best.objective))
        best = _either(jnp.where(best.reached, tried.reached & (share < high), instead), tried, best)
        high = jnp.where(tried.reached, jnp.minimum(high, share), high)
        return jnp.where(tried.reached | (i == 1), low, share), high, best

    high = jnp.where(clean.reached, 0.0, 1.0)
    return jax.lax.fori_loop(0, tries + 2, attempt, (jnp.zeros_like(high), high, clean))[2]


def _either(rows: Array, yes: Tried, no: Tried) -> Tried:
    return jax.tree.map(lambda a, b: jnp.where(trail.wide(rows, a), a, b), yes, no)


def rounded(
    share: Array, clean: Array, delta: Array, favour: Array, eps: Array, norm: str, bound: str = "fixed"
) -> Array:
    """One image (H, W, C) on the grid: the `share` of components with the largest |favour| rounded the way it points,
    the others to the nearest level, all within the bound. clean + delta is the image; eps, norm, bound: see `on_grid`.
    """
    base = jnp.round(255 * clean)
    moved = jnp.clip(base + 255 * delta, 0, 255)
    weight = jnp.maximum(jnp.abs(favour), TINY)
    count = jnp.round(share * weight.size)
    leads = (weight >= balls.kth_largest(weight, count)) & (count > 0)
    target = jnp.clip(jnp.round(moved + jnp.where(leads, LEAN * jnp.sign(favour), 0)), 0, 255)
    if bound == "minimal":
        return trail.to_grid(target)
    if norm == "linf":
        radius = jnp.floor(255 * eps * (1 + balls.SLACK))
        return trail.to_grid(jnp.clip(target, base - radius, base + radius))
    inward = base + jnp.trunc(moved - base)
    size = balls.BALLS[norm](1.0).norm

    def outside(least: Array) -> Array:
        return size((jnp.where(weight >= least, target, inward) - base) / 255) > eps * (1 + balls.SLACK)

    _, least = balls.turning_point(outside, jnp.max(weight))
    return trail.to_grid(jnp.where(weight >= least, target, inward))
