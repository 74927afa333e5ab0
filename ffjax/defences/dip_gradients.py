"""Gradients through Deep Image Prior, step by step from the host: what an attacker who knows of the purifier climbs.

    x -> theta_0 -> theta_1(x) -> ... -> theta_T(x) -> running mean of what was drawn -> detector

Every theta depends on x through Adam on ||f_theta(z) - x||^2, so a derivative is of second order. dip.unrolled is the
same as one program; but XLA:CPU runs what lies inside a loop on one thread, and here the cotangent can be looked at on
its way back (`Trace`). One step and its transpose are all that is compiled, whatever T.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import gradients
from ffjax.defences import skip_network
from ffjax.defences.dip import Drawing, Prior, advance, begin
from ffjax.gradients import Estimator, Slope
from ffjax.types import Array, Batch, Forward, Goal, Outputs


class Secret(NamedTuple):
    """The defender's key, the same for all images. code: seed of z and of the noise (in place of prior.code). start:
    seed of the networks' first parameters."""

    code: int = 0
    start: int = 0


class Trace(NamedTuple):
    """A gradient on its way back, at P steps, the last first. steps (P,): how many iterations lie before.

    params (P, B): 2-norm of the derivative by the parameters there. images (P, B): of what the later steps have
    contributed to the gradient by the image. cosine (P, B): of that with the gradient in the end.
    """

    steps: tuple[int, ...]
    params: Array
    images: Array
    cosine: Array


def walk(prior: Prior, secret: Secret, images: Array, every: int = 0) -> list[Drawing]:
    """Images (B, H, W, 3) -> where their networks stand after 0, every, 2 every, ... and prior.steps iterations; every:
    0 for sqrt(prior.steps). The last one's `average` is what the defender shows. InputError as dip.begin."""
    code, bounds = np.uint32(secret.code), _bounds(prior.steps, every)
    at = _begun(_alike(prior), np.uint32(secret.start), images)
    found = [at]
    for i in range(prior.steps):
        at = _step(_alike(prior), code, jnp.int32(i), at)
        if i + 1 in bounds:
            found.append(at)
    return found


def purified(prior: Prior, secret: Secret, images: Array) -> Array:
    """What the defender shows of images (B, H, W, 3). Not to be called inside a jit."""
    return walk(prior, secret, images, prior.steps)[-1].average


def defended(prior: Prior, secret: Secret, forward: Forward) -> Forward:
    """The detector behind the purifier, called from the host."""
    return lambda images: _said(forward, purified(prior, secret, images))


def pulled(
    prior: Prior, secret: Secret, states: Sequence[Drawing], slope: Array, last: int | None = None, every: int = 0
) -> tuple[Array, Trace]:
    """slope (B, H, W, 3), a derivative by what the defender shows -> the derivative by the images.

    states: of `walk` with the same `every`; the steps between are walked again on the way back, so memory is about
    2 sqrt(T) states. last: through this many last iterations only, what is before them being held constant (truncated
    back-propagation); all by default. The very last contributes nothing: what it shows was drawn before its update.
    """
    code, bounds = np.uint32(secret.code), _bounds(prior.steps, every)
    first = 0 if last is None else max(0, prior.steps - last)
    slopes = jax.tree.map(jnp.zeros_like, _floats(states[-1]))._replace(average=slope)
    seen: list[tuple[int, Array, Array]] = [(prior.steps, _norm(slopes.params), slopes.images)]
    for at, begins, ends in reversed(list(zip(states[:-1], bounds[:-1], bounds[1:], strict=True))):
        if ends <= first:
            break
        inside = [at]
        for i in range(begins, ends - 1):
            inside.append(_step(_alike(prior), code, jnp.int32(i), inside[-1]))
        for i in reversed(range(max(begins, first), ends)):
            slopes = _transposed(_alike(prior), code, jnp.int32(i), inside[i - begins], slopes)
        seen.append((max(begins, first), _norm(slopes.params), slopes.images))
    steps, params, gathered = zip(*seen, strict=True)
    norms = [_norm(one) for one in gathered]
    inner = [jnp.sum(one * gathered[-1], axis=(1, 2, 3)) for one in gathered]
    cosine = [a / jnp.maximum(b * norms[-1], 1e-30) for a, b in zip(inner, norms, strict=True)]
    return slopes.images, Trace(steps, jnp.stack(params), jnp.stack(norms), jnp.stack(cosine))


def through(
    goal: Goal,
    prior: Prior,
    secrets: Sequence[Secret],
    forward: Forward,
    last: int | None = None,
    straight: bool = False,
) -> Estimator:
    """Gradients of the goal through the purifier, the mean over `secrets` (expectation over keys); reached only if
    under every one. last: as of `pulled`. straight: the purifier's derivative is taken to be 1 (BPDA: Athalye,
    Carlini and Wagner, ICML 2018).

    forward: the bare detector; the one that an attack hands over is not looked at. For processes that are driven
    outside jit.
    """

    def at(keys: Array, images: Array, batch: Batch, eps: Array, defended: Forward) -> Slope:
        del keys, eps, defended
        found = [one(secret, images, batch) for secret in secrets]
        objective, gradient = (sum(jnp.asarray(s[k]) for s in found) / len(found) for k in (0, 2))
        return Slope(jnp.asarray(objective), jnp.all(jnp.stack([s.reached for s in found]), axis=0), gradient)

    def one(secret: Secret, images: Array, batch: Batch) -> Slope:
        states = walk(prior, secret, images)
        slope = sloped(goal, forward, states[-1].average, batch)
        if straight:
            return slope
        return slope._replace(gradient=pulled(prior, secret, states, slope.gradient, last)[0])

    return Estimator(at, gradients=len(secrets), queries=len(secrets))


@functools.partial(jax.jit, static_argnums=0)
def sloped(goal: Goal, forward: Forward, images: Array, batch: Batch) -> Slope:
    """The goal and its derivative at the images that the bare detector sees."""
    rows = len(batch.labels)
    return gradients.exact(goal).at(jnp.zeros(rows), images, batch, jnp.zeros(rows), forward)


def _bounds(steps: int, every: int) -> list[int]:
    every = every or max(1, math.isqrt(steps))
    return [*range(0, steps, every), steps]


def _alike(prior: Prior) -> Prior:
    """Without what a step does not depend on, or is told: one compilation for all keys and lengths."""
    return prior._replace(code=0, steps=0)


def _floats(at: Drawing) -> Any:
    """What has a derivative; None in place of whole numbers."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, at)


def _norm(tree: Any) -> Array:
    """(B,) over all that is an image's."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)))


@functools.partial(jax.jit, static_argnums=0)
def _begun(prior: Prior, start: Array, images: Array) -> Drawing:
    return begin(prior, images, jnp.broadcast_to(jax.random.key(start), (len(images),)))


def _advanced(prior: Prior, code: Array, i: Array, at: Drawing) -> Drawing:
    return advance(prior._replace(code=code), i, at, skip_network.columns)  # pyright: ignore[reportArgumentType]


_step = jax.jit(_advanced, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _transposed(prior: Prior, code: Array, i: Array, at: Drawing, slopes: Any) -> Any:
    """Derivatives by the state after step i -> by the state `at` before it."""

    def step(floats: Any) -> Any:
        whole = jax.tree.map(lambda f, x: x if f is None else f, floats, at, is_leaf=lambda x: x is None)
        return _floats(_advanced(prior, code, i, whole))

    return jax.vjp(step, _floats(at))[1](slopes)[0]


@jax.jit
def _said(forward: Forward, images: Array) -> Outputs:
    return forward(images)
