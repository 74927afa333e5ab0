"""Gradient estimators: how an attack learns which way its objective rises. Peers of one form, so that any attack that
follows gradients follows any of them.

An Estimator says of images (B, H, W, C), each with its key: the goal's objective and whether it is reached, (B,) each,
and a gradient per image. Rows never see one another: a detector is row-independent, so the gradient of the sum over the
batch holds each example's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ffjax.types import Array, Batch, Forward, Goal

Transform = Callable[[Array, Array], Array]
"""(key, image (H, W, C) in [0, 1]) -> an image of the same shape, differentiable in the image."""


class Slope(NamedTuple):
    """objective (B,), reached (B,) bool at the images asked about; gradient (B, H, W, C), or a pair (`neighbours`)."""

    objective: Array
    reached: Array
    gradient: Any


class Estimator(NamedTuple):
    """at(keys (B,), images, batch, eps (B,), forward) -> Slope; gradients, queries: what one call costs each image."""

    at: Callable[[Array, Array, Batch, Array, Forward], Slope]
    gradients: int
    queries: int


def exact(goal: Goal) -> Estimator:
    """By back-propagation."""

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        del keys, eps

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            outputs = forward(x)
            objective = goal.objective(outputs, batch)
            return jnp.sum(objective), (objective, goal.reached(outputs, batch))

        gradient, (objective, reached) = jax.grad(total, has_aux=True)(images)
        return Slope(objective, reached, gradient)

    return Estimator(at, gradients=1, queries=1)


def averaged(goal: Goal, transform: Transform, samples: int) -> Estimator:
    """Expectation over transformation (Athalye et al., ICML 2018): objective and gradient are the means over `samples`
    draws of `transform`; reached only if every draw reaches. The draws go one after another: memory does not grow."""

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        inner = exact(goal)

        def draw(k: Array) -> Slope:
            apply = jax.vmap(lambda key, x: transform(jax.random.fold_in(key, k), x))
            return inner.at(keys, images, batch, eps, lambda x: forward(apply(keys, x)))

        def add(total: Slope, k: Array) -> tuple[Slope, None]:
            one = draw(k)
            both = total.objective + one.objective, total.reached & one.reached, total.gradient + one.gradient
            return Slope(*both), None

        # one program for all draws: unrolled, twenty of a real network through JPEG compile for minutes
        total, _ = jax.lax.scan(add, draw(jnp.int32(0)), jnp.arange(1, samples))
        return Slope(total.objective / samples, total.reached, total.gradient / samples)

    return Estimator(at, gradients=samples, queries=samples)


def varied(goal: Goal, transform: Transform) -> Estimator:
    """One draw of `transform` for the gradient (diverse inputs: Xie et al., CVPR 2019), but objective and reached at
    the image as it is: a variation serves transfer, and success means the plain image."""
    inner = averaged(goal, transform, 1)

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        outputs = forward(images)
        gradient = inner.at(keys, images, batch, eps, forward).gradient
        return Slope(goal.objective(outputs, batch), goal.reached(outputs, batch), gradient)

    return Estimator(at, gradients=1, queries=2)


def scaled(goal: Goal, copies: int = 5) -> Estimator:
    """Mean gradient over x / 2^i, i = 0 .. copies - 1 (SI: Lin et al., ICLR 2020); objective and reached at i = 0."""
    inner = exact(goal)

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        first = inner.at(keys, images, batch, eps, forward)
        gradient = first.gradient
        for i in range(1, copies):
            gradient += inner.at(keys, images, batch, eps, lambda x, i=i: forward(x / 2**i)).gradient
        return first._replace(gradient=gradient / copies)

    return Estimator(at, gradients=copies, queries=copies)


def neighbours(goal: Goal, reach: float = 1.5, count: int = 20) -> Estimator:
    """The pair (own gradient, mean gradient of `count` points uniform in the l_inf box of reach * eps around the
    image), which rules.variance_tuned makes VMI of (Wang and He, CVPR 2021)."""
    inner = exact(goal)

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        own = inner.at(keys, images, batch, eps, forward)

        def near(j: int) -> Array:
            def one(key: Array, x: Array, e: Array) -> Array:
                return x + reach * e * jax.random.uniform(jax.random.fold_in(key, j), x.shape, minval=-1.0)

            return inner.at(keys, jax.vmap(one)(keys, images, eps), batch, eps, forward).gradient

        mean = sum((near(j) for j in range(count)), jnp.zeros_like(images)) / count
        return own._replace(gradient=(own.gradient, mean))

    return Estimator(at, gradients=count + 1, queries=count + 1)


def search(goal: Goal, sigma: float, pairs: int, draw: Callable[..., Array]) -> Estimator:
    """From scores alone, at 2 * pairs + 1 queries and no gradient:

        g = 1 / (2 n sigma) sum_j u_j (F(x + sigma u_j) - F(x - sigma u_j))

    NES (Ilyas et al., ICML 2018) draws u from a normal distribution, SPSA (Uesato et al., ICML 2018) from {-1, 1}.
    """

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        outputs = forward(images)

        def value(x: Array) -> Array:
            return goal.objective(forward(x), batch)

        def pair(j: Array, total: Array) -> Array:
            u = jax.vmap(lambda key: draw(jax.random.fold_in(key, j), images.shape[1:]))(keys)
            rise = value(images + sigma * u) - value(images - sigma * u)
            return total + rise[:, None, None, None] * u

        gradient = jax.lax.fori_loop(0, pairs, pair, jnp.zeros_like(images)) / (2 * pairs * sigma)
        return Slope(goal.objective(outputs, batch), goal.reached(outputs, batch), gradient)

    return Estimator(at, gradients=0, queries=2 * pairs + 1)


def nes(goal: Goal, sigma: float = 1e-3, pairs: int = 20) -> Estimator:
    """`search` along normal directions; sigma and pairs of Hussain et al. (WACV 2021)."""
    return search(goal, sigma, pairs, jax.random.normal)


def spsa(goal: Goal, sigma: float = 0.01, pairs: int = 64) -> Estimator:
    """`search` along random signs."""
    return search(goal, sigma, pairs, jax.random.rademacher)
