"""Defences at test time: the image is cleaned before the detector sees it.

A purifier is a gradients.Transform: (key, image (H, W, C) in [0, 1]) -> the same shape and range. None of them is a
defence by itself against who knows of it: Athalye, Carlini and Wagner (ICML 2018) broke most of those named here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax import transforms
from ffjax.errors import InputError
from ffjax.gradients import Transform
from ffjax.jpeg import cubic, passed
from ffjax.types import Array, Forward, Outputs

STRIDE = 1 / 8
"""Of the dual projection: the largest at which Chambolle proves that it converges (theorem 3.1)."""


class Purifier(NamedTuple):
    """transform: what is done. random: the key counts. exact: its derivative is that of its value, almost everywhere;
    otherwise roundings are passed straight through. published: by whom. soft: the same value with a derivative that an
    attacker climbs better by, where one is known."""

    transform: Transform
    random: bool
    exact: bool
    published: str
    soft: Transform | None = None


def unchanged() -> Transform:
    """The image as it is."""
    return transforms.chain()


def median(window: int) -> Transform:
    """Of the window x window pixels around each, channel by channel; the image goes on mirrored about its border
    pixels. The derivative is shared evenly by the pixels that hold the median's value. InputError unless window is odd
    and at least 1; ValueError on an image whose shorter side is at most half the window."""
    if window < 1 or window % 2 == 0:
        raise InputError(f"median: the window must be odd and at least 1, got {window}")
    half = window // 2

    def transform(key: Array, image: Array) -> Array:
        del key
        if min(image.shape[:2]) <= half:
            raise ValueError(f"a window of {window} needs more than {half} pixels a side, got {image.shape[:2]}")
        height, width = image.shape[:2]
        gone_on = jnp.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
        places = [(y, x) for y in range(window) for x in range(window)]
        return _middle([gone_on[y : y + height, x : x + width] for y, x in places])

    return transform


def bit_depth(bits: int) -> Transform:
    """Rounded to 2^bits levels: feature squeezing (Xu et al., NDSS 2018). The derivative is straight through: 1, where
    that of the value is 0 almost everywhere. InputError unless bits is 1 to 8."""
    if not 1 <= bits <= 8:
        raise InputError(f"bit_depth: bits must be from 1 to 8, got {bits}")
    levels = 2**bits - 1
    rounded = passed(lambda x: jnp.round(x * levels) / levels)
    return lambda key, image: rounded(image)


def total_variation(weight: float, steps: int) -> Transform:
    """Towards the u that minimises TV(u) + |u - image|^2 / (2 weight), isotropic, channel by channel (Rudin, Osher and
    Fatemi 1992): `steps` steps of Chambolle's dual projection (J. Math. Imaging Vis. 2004, equation 9), each of them
    differentiated. A constant image stays as it is.

    Guo et al. (ICLR 2018) defend by total variation too, of images of which they drop pixels at random first; none is
    dropped here. InputError unless weight > 0 and steps >= 0.
    """
    if not weight > 0 or steps < 0:
        raise InputError(f"total_variation: weight must be above 0 and steps at least 0, got {weight:g} and {steps}")

    def transform(key: Array, image: Array) -> Array:
        del key

        def move(dual: Array, nothing: None) -> tuple[Array, None]:
            slope = _rise(_divergence(dual) - image / weight)
            return (dual + STRIDE * slope) / (1 + STRIDE * _length(slope)[None]), nothing

        dual, _ = jax.lax.scan(move, jnp.zeros((2, *image.shape), image.dtype), length=steps)
        return _in_range(image - weight * _divergence(dual))

    return transform


def centre_crop(share: float) -> Transform:
    """The middle round(share * side) pixels a side, at least one, enlarged to the whole again, linear: transforms.crop
    without its draw (Guo et al., ICLR 2018, crop at random)."""

    def transform(key: Array, image: Array) -> Array:
        del key
        sides = [max(1, round(share * side)) for side in image.shape[:2]]
        first = [(whole - side) // 2 for whole, side in zip(image.shape, sides, strict=False)]
        kept = jax.lax.dynamic_slice(image, (*first, 0), (*sides, image.shape[2]))
        return _in_range(jax.image.resize(kept, image.shape, "linear", precision=jax.lax.Precision.HIGHEST))

    return transform


def resize_pad(smallest: float) -> Transform:
    """Shrunk to between `smallest` and 1 of its side and set down at random on black: Xie et al. (ICLR 2018), at the
    image's own size, where they enlarge it from 299 to at most 331 pixels."""
    shrunk = transforms.shrunk(smallest, 1.0)
    return lambda key, image: _in_range(shrunk(key, image))


def _jpeg(low: int, high: int, published: str) -> Purifier:
    soft = transforms.jpeg((low, high), rounding=cubic)
    return Purifier(transforms.jpeg((low, high)), low < high, False, published, soft)


PURIFIERS: dict[str, Purifier] = {
    "jpeg75": _jpeg(75, 75, "Dziugaite et al., arXiv 1608.00853"),
    "jpeg50": _jpeg(50, 50, "Dziugaite et al., arXiv 1608.00853"),
    "median3": Purifier(median(3), False, True, "Xu et al., NDSS 2018"),
    "bits5": Purifier(bit_depth(5), False, False, "Xu et al., NDSS 2018"),
    "tv": Purifier(total_variation(0.03, 10), False, True, "Guo et al., ICLR 2018; Chambolle 2004"),
    "resize": Purifier(transforms.resize((0.5, 0.5)), False, True, "Guo et al., ICLR 2018 (rescaling)"),
    "crop": Purifier(centre_crop(0.9), False, True, "Guo et al., ICLR 2018 (cropping)"),
    "noise1": Purifier(transforms.noise(0.01), True, True, "Cohen et al., ICML 2019 (theirs is not cut to [0, 1])"),
    "noise3": Purifier(transforms.noise(0.03), True, True, "Cohen et al., ICML 2019 (theirs is not cut to [0, 1])"),
    "random_pad": Purifier(resize_pad(0.9), True, True, "Xie et al., ICLR 2018"),
    "random_jpeg": _jpeg(50, 90, "Das et al., KDD 2018 (theirs draws per block)"),
}


def purified(transform: Transform, key: Array, forward: Forward) -> Forward:
    """The defence: forward of the cleaned images, every row with the draw of `key`. Deterministic and row-independent
    as forward is. A jax.tree_util.Partial of which key and forward are leaves: new ones do not retrace."""
    return jax.tree_util.Partial(_one(transform), key, forward)


def pooled(transform: Transform, keys: Array, forward: Forward) -> Forward:
    """As `purified`, what it says being the mean over the draws of `keys` (K,), one after another: memory does not grow
    with K. keys and forward are leaves."""
    return jax.tree_util.Partial(_several(transform), keys, forward)


@functools.cache
def around(transform: Transform) -> Transform:
    """The transform with the derivative of the identity in the image: backward pass differentiable approximation
    (BPDA: Athalye, Carlini and Wagner, ICML 2018). The value is the same to the bit."""
    through = jax.custom_jvp(transform)
    through.defjvp(lambda at, moved: (transform(*at), moved[1]))
    return through


@functools.cache
def _one(transform: Transform) -> Callable[[Array, Forward, Array], Outputs]:
    """One object a transform, so that it is compiled once."""

    def shown(key: Array, forward: Forward, images: Array) -> Outputs:
        return forward(jax.vmap(lambda image: transform(key, image))(images))

    return shown


@functools.cache
def _several(transform: Transform) -> Callable[[Array, Forward, Array], Outputs]:
    def shown(keys: Array, forward: Forward, images: Array) -> Outputs:
        each = jax.lax.map(lambda key: _one(transform)(key, forward, images), keys)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)

    return shown


@jax.custom_jvp
def _middle(values: list[Array]) -> Array:
    """The median of an odd number of arrays of one shape, element by element.

    Of n // 2 + 2 values the smallest and the largest cannot be it: they are dropped, and the next is looked at. By
    minima and maxima alone, since XLA:CPU sorts slowly.
    """
    held, rest = values[: len(values) // 2 + 2], values[len(values) // 2 + 2 :]
    while len(held) > 2:
        held, rest = _inner(held) + rest[:1], rest[1:]
    return jax.lax.optimization_barrier(held[0])  # else every user of it would compute it again


@_middle.defjvp
def _(values: tuple[list[Array]], moved: tuple[list[Array]]) -> tuple[Array, Array]:
    middle = _middle(*values)
    holds = [(x == middle).astype(x.dtype) for x in values[0]]
    total = sum((h * dx for h, dx in zip(holds, moved[0], strict=True)), jnp.zeros_like(middle))
    return middle, total / sum(holds, jnp.zeros_like(middle))


def _inner(held: list[Array]) -> list[Array]:
    """All but the smallest and the largest, of three or more."""
    least, *others = held
    middling = []
    for x in others:  # the smallest so far is carried along
        least, larger = jnp.minimum(least, x), jnp.maximum(least, x)
        middling.append(larger)
    most, *others = middling
    kept = []
    for x in others:
        kept.append(jnp.minimum(most, x))
        most = jnp.maximum(most, x)
    return kept


def _rise(image: Array) -> Array:
    """(H, W, C) -> (2, H, W, C): differences to the next pixel down and across, 0 at the last."""
    return jnp.stack([jnp.diff(image, axis=0, append=image[-1:]), jnp.diff(image, axis=1, append=image[:, -1:])])


def _divergence(dual: Array) -> Array:
    """(2, H, W, C) -> (H, W, C): minus the adjoint of `_rise`, of a dual that is 0 where `_rise` is."""
    down, across = dual
    return jnp.diff(down, axis=0, prepend=0 * down[:1]) + jnp.diff(across, axis=1, prepend=0 * across[:, :1])


def _length(slope: Array) -> Array:
    """(2, ...) -> (...) Euclidean; derivative 0 at 0."""
    square = jnp.sum(jnp.square(slope), axis=0)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


# past [0, 1] lead rounding and steps that are too few: neither must cost white pixels their gradient
_in_range = passed(lambda x: jnp.clip(x, 0, 1))
