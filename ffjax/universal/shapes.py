"""What a universal perturbation may look like: added to the whole picture, to a part of it, from a band of frequencies,
or a filter. Written for one pattern and vmapped, `show` for S patterns on B images."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import balls
from ffjax.types import Array
from ffjax.universal.config import UapConfig
from ffjax.universal.fixed import sign_noise

Size = tuple[int, int, int]
"""(H, W, 3)."""


class Shape(NamedTuple):
    """start(key, eps, size) -> parameters of a pattern, random, inside. noise(key, eps, size) -> parameters nobody
    optimised, of the same bound. project(parameters, eps) -> the nearest, or (band, filter) a near point inside;
    idempotent. at_bound(parameters, eps) -> () share of them that is stuck. show(parameters (S, ...), images
    (B, H, W, 3)) -> (B, S, H, W, 3): not yet clipped to [0, 1]."""

    start: Callable[[Array, Array, Size], Array]
    noise: Callable[[Array, Array, Size], Array]
    project: Callable[[Array, Array], Array]
    at_bound: Callable[[Array, Array], Array]
    show: Callable[[Array, Array], Array]


def shape(config: UapConfig) -> Shape:
    """The shape of a config."""
    if config.shape == "filter":
        return filtered(config.kernel)
    if config.shape == "band":
        return banded(config.norm, config.band)
    if config.shape == "additive":
        return additive(config.norm)
    return regional(config.norm, inside=config.shape == "face")


def additive(norm: str) -> Shape:
    """x + v, v (H, W, 3) in the ball of `norm`."""
    ball = balls.BALLS[norm]
    return Shape(
        start=lambda key, eps, size: ball(eps).sample(key, size),
        noise=lambda key, eps, size: sign_noise(key, size, eps, norm),
        project=lambda v, eps: ball(eps).project(v),
        at_bound=lambda v, eps: ball(eps).at_bound(v),
        show=_added,
    )


def regional(norm: str, *, inside: bool) -> Shape:
    """x + R v: R is 1 in the face's ellipse (`face`), or outside it, and 0 elsewhere. noise keeps the bound: in l_2 all
    of it lies in the region."""
    ball = balls.BALLS[norm]

    def region(v: Array) -> np.ndarray:
        where = face(v.shape[0], v.shape[1])
        return where if inside else ~where

    def cut(v: Array) -> Array:
        return v * jnp.asarray(region(v))[:, :, None]

    def noise(key: Array, eps: Array, size: Size) -> Array:
        return _grown(cut(sign_noise(key, size, eps, norm)), eps, norm)

    return Shape(
        start=lambda key, eps, size: cut(ball(eps).sample(key, size)),
        noise=noise,
        project=lambda v, eps: ball(eps).project(cut(v)),
        # of the region's components: the others never are
        at_bound=lambda v, eps: ball(eps).at_bound(v) / float(region(v).mean()),
        show=_added,
    )


def banded(norm: str, band: int) -> Shape:
    """x + v, v of the `band` x `band` lowest cosines of each channel. `project` drops the others and shrinks the whole
    into the ball, since clipping would bring other frequencies back: so the l_2 projection is exact and the l_inf one
    is not the nearest point."""
    ball = balls.BALLS[norm]

    def low(v: Array) -> Array:
        down, across = (jnp.asarray(cosines(side, min(band, side))) for side in v.shape[:2])
        coefficients = jnp.einsum("ky,yxc,lx->klc", down, v, across, precision="highest")
        return jnp.einsum("ky,klc,lx->yxc", down, coefficients, across, precision="highest")

    def project(v: Array, eps: Array) -> Array:
        kept = low(v)
        size = ball(eps).norm(kept)
        return kept * jnp.where(size > eps * (1 + balls.SLACK), eps / jnp.maximum(size, balls.TINY), 1.0)

    return Shape(
        start=lambda key, eps, size: project(ball(eps).sample(key, size), eps),
        noise=lambda key, eps, size: _grown(low(sign_noise(key, size, eps, norm)), eps, norm),
        project=project,
        # shrunk as a whole, no component is stuck on its own
        at_bound=lambda v, eps: jnp.float32(0),
        show=_added,
    )


def filtered(side: int) -> Shape:
    """x + k * x: k (side, side, 3) correlates each channel, the border repeated. With ||k||_1 <= eps in each channel no
    pixel of an image in [0, 1] moves by more than eps, so the bound is that of l_inf (one universal filter: 2D-Malafide
    of 2024, which bounds nothing)."""

    def each(v: Array, function: Callable[[Array], Array]) -> Array:
        return jax.vmap(function, in_axes=2, out_axes=2)(v)

    def start(key: Array, eps: Array, size: Size) -> Array:
        keys = jax.random.split(key, 3)
        return jax.vmap(lambda k: balls.l1(eps).sample(k, (side, side)), out_axes=2)(keys)

    def show(k: Array, images: Array) -> Array:
        reach, (height, width) = side // 2, images.shape[1:3]
        wide = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        moved = [
            wide[:, None, y : y + height, x : x + width] * k[None, :, y, x, None, None]
            for y in range(side)
            for x in range(side)
        ]
        return images[:, None] + sum(moved)

    return Shape(
        start=start,
        noise=lambda key, eps, size: eps / side**2 * jax.random.rademacher(key, (side, side, 3), jnp.float32),
        project=lambda v, eps: each(v, balls.l1(eps).project),
        at_bound=lambda v, eps: jnp.float32(0),
        show=show,
    )


def kind(config: UapConfig) -> str:
    """What `shown` calls a config's shape."""
    return "filter" if config.shape == "filter" else "additive"


def shown(kind: str, parameters: Array, images: Array) -> Array:
    """(B, H, W, 3) in [0, 1]: images under one pattern; kind: `filter`, or any other, which is added."""
    show = filtered(parameters.shape[0]).show if kind == "filter" else _added
    return jnp.clip(show(parameters[None], images)[:, 0], 0.0, 1.0)


def resized(kind: str, parameters: Array, height: int, width: int) -> Array:
    """The pattern for images of another size: bilinear, antialiased where it shrinks, so no component leaves the l_inf
    bound (in l_2 the norm changes with the number of pixels); a filter stays what it is."""
    if kind == "filter" or parameters.shape[:2] == (height, width):
        return parameters
    largest = jnp.max(jnp.abs(parameters))
    scaled = jax.image.resize(parameters, (height, width, parameters.shape[2]), "linear")
    return jnp.clip(scaled, -largest, largest)


def face(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the ellipse in which an aligned face lies, centred, 0.72 of the width and 0.84 of the height."""
    y, x = np.mgrid[0:height, 0:width]
    down, across = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    return (down / 0.42) ** 2 + (across / 0.36) ** 2 <= 1


@functools.cache
def cosines(side: int, count: int) -> np.ndarray:
    """(count, side): the lowest rows of the orthonormal DCT-II."""
    k, n = np.mgrid[0:count, 0:side]
    rows = np.sqrt(2 / side) * np.cos(np.pi * k * (2 * n + 1) / (2 * side))
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _added(v: Array, images: Array) -> Array:
    # not v[None]: the derivative of a product is a product, which XLA sums over images ten times as fast on CPU
    spread = jnp.einsum("b,s...->bs...", jnp.ones(len(images)), v, precision="highest")
    return images[:, None] + spread


def _grown(v: Array, eps: Array, norm: str) -> Array:
    """Scaled to the bound; nothing stays nothing."""
    return v * eps / jnp.maximum(balls.BALLS[norm](eps).norm(v), balls.TINY)
