"""What may happen to an image between the attacker and the detector, drawn at random: for expectation over
transformation (`gradients.averaged`) and for varied inputs (`gradients.varied`).

Each function builds a Transform: (key, image (H, W, C) in [0, 1]) -> the same shape and range, a function of key and
image alone, of static shapes whatever is drawn, differentiable in the image (of `jpeg`: straight through). Ranges are
(low, high), drawn from uniformly, each bound included; equal bounds fix the value.
"""

import math

import jax
import jax.numpy as jnp

from ffjax.gradients import Transform
from ffjax.jpeg import clamped, coded, passed
from ffjax.types import Array

TINY = 1e-6
SPREAD = 4  # standard deviations to which a blur reaches: beyond lie 6e-5 of its weight


def chain(*transforms: Transform) -> Transform:
    """One after the other, each with draws of its own; of none, the image as it is."""

    def transform(key: Array, image: Array) -> Array:
        for i, one in enumerate(transforms):
            image = one(jax.random.fold_in(key, i), image)
        return image

    return transform


def one_of(*transforms: Transform) -> Transform:
    """One of them, each as likely. Rows that draw differently cost what all of them cost: under vmap every branch is
    computed."""

    def transform(key: Array, image: Array) -> Array:
        key_choice, key_draws = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(key_choice, (), 0, len(transforms)), transforms, key_draws, image)

    return transform


def noise(sd: float) -> Transform:
    """Gaussian, sd in image units ([0, 1]), independent in every pixel and channel; cut to [0, 1]."""

    def transform(key: Array, image: Array) -> Array:
        return clamped(image + sd * jax.random.normal(key, image.shape, image.dtype), 1)

    return transform


def blur(sigmas: tuple[float, float]) -> Transform:
    """Gaussian, standard deviation in pixels, cut at SPREAD times the largest; the image goes on mirrored about its
    border pixels, as in data.operations."""
    reach = math.ceil(SPREAD * sigmas[1])

    def weights(sigma: Array, side: int) -> Array:
        """(side, side + 2 reach): of an output pixel, over the pixels of the image gone on."""
        away = jnp.arange(side + 2 * reach)[None] - reach - jnp.arange(side)[:, None]
        heights = jnp.where(jnp.abs(away) <= reach, jnp.exp(-0.5 * jnp.square(away / sigma)), 0)
        return heights / jnp.sum(heights, axis=1, keepdims=True)

    def transform(key: Array, image: Array) -> Array:
        sigma = jnp.maximum(_uniform(key, sigmas), TINY)
        gone_on = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        return _separably(weights(sigma, image.shape[0]), weights(sigma, image.shape[1]), gone_on)

    return transform


def resize(scales: tuple[float, float]) -> Transform:
    """To round(scale * side) pixels a side, at least one, and back: linear, antialiased where it shrinks, as
    jax.image.resize and Pillow do."""

    def weights(scale: Array, side: int) -> Array:
        there = jnp.maximum(jnp.round(scale * side), 1)
        most = max(1, math.ceil(scales[1] * side))
        out, back = _linear(most, side, there, 0, side), _linear(side, most, side, 0, there)
        return jnp.matmul(back, out, precision="highest")

    def transform(key: Array, image: Array) -> Array:
        scale = _uniform(key, scales)
        return _separably(weights(scale, image.shape[0]), weights(scale, image.shape[1]), image)

    return transform


def crop(shares: tuple[float, float]) -> Transform:
    """A window of round(share * side) whole pixels a side, at least one, anywhere in the image, enlarged to the whole
    again, linear."""

    def transform(key: Array, image: Array) -> Array:
        key_share, key_down, key_across = jax.random.split(key, 3)
        share = _uniform(key_share, shares)

        def weights(key: Array, side: int) -> Array:
            kept = jnp.clip(jnp.round(share * side), 1, side)
            first = jax.random.randint(key, (), 0, side + 1 - kept.astype(jnp.int32))
            return _linear(side, side, side, first, kept)

        return _separably(weights(key_down, image.shape[0]), weights(key_across, image.shape[1]), image)

    return transform


def shift(pixels: int) -> Transform:
    """Moved by up to `pixels` whole pixels up or down and left or right, the border repeated, as in data.augment."""

    def transform(key: Array, image: Array) -> Array:
        down, across = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        gone_on = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(gone_on, (down, across, 0), image.shape)

    return transform


def jpeg(qualities: tuple[int, int], **options) -> Transform:
    """Written as JPEG at a whole quality and read again: to the level what libjpeg gives. options: of ffjax.jpeg.coded,
    where the derivative is explained."""
    low, high = qualities

    def transform(key: Array, image: Array) -> Array:
        return coded(image, jax.random.randint(key, (), low, high + 1), **options)

    return transform


def shrunk(smallest: float, probability: float) -> Transform:
    """With that probability shrunk to between `smallest` and 1 of its side and set down at random on black: the diverse
    input of Xie et al. (CVPR 2019), at the image's own size."""

    def transform(key: Array, image: Array) -> Array:
        coin, size, down, across = (jax.random.uniform(k) for k in jax.random.split(key, 4))
        scale = smallest + (1 - smallest) * size
        place = jnp.stack([down, across]) * (1 - scale) * jnp.array(image.shape[:2])
        moved = jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.stack([scale, scale]), place, "linear", antialias=False
        )
        return jnp.where(coin < probability, moved, image)

    return transform


NAMED: dict[str, Transform] = {
    "noise": noise(0.01),
    "blur": blur((0.3, 1.2)),
    "resize": resize((0.5, 1.0)),
    "crop": crop((0.8, 1.0)),
    "shift": shift(6),
    "jpeg": jpeg((50, 95)),
}
"""What happens to images that are passed on, in strengths that are usual there."""


def _uniform(key: Array, bounds: tuple[float, float]) -> Array:
    return jax.random.uniform(key, (), minval=bounds[0], maxval=bounds[1])


def _linear(rows: int, columns: int, to: Array | int, first: Array | int, of: Array | int) -> Array:
    """(rows, columns) that brings samples first .. first + of - 1 to `to` samples, any of which may be traced: each a
    mean under a triangle of half-width max(1, of / to), borders repeated. Rows from `to` on mean nothing."""
    pitch = jnp.asarray(of / to)
    centres = (jnp.arange(rows) + 0.5) * pitch - 0.5
    places = jnp.arange(columns) - first
    heights = 1 - jnp.abs(centres[:, None] - places[None]) / jnp.maximum(pitch, 1)
    heights = jnp.where((places >= 0)[None] & (places < of)[None], jnp.maximum(heights, 0), 0)
    return heights / jnp.maximum(jnp.sum(heights, axis=1, keepdims=True), TINY)


def _separably(down: Array, across: Array, image: Array) -> Array:
    """Rows weighted by `down` (H, h), columns by `across` (W, w): (h, w, C) -> (H, W, C)."""
    down, across = down.astype(image.dtype), across.astype(image.dtype)
    return _in_range(jnp.einsum("yv,vuc,xu->yxc", down, image, across, precision="highest"))


# a mean of pixels leaves [0, 1] by rounding alone, which must not cost white pixels their gradient
_in_range = passed(lambda x: jnp.clip(x, 0, 1))
