"""Baseline JPEG as a function one can differentiate: what libjpeg makes of an image, at a quality that may be drawn
inside a program.

The VALUE is a real file's, to the last of its 8 bits: the integer arithmetic of libjpeg's default encoder and decoder,
roundings included (ISO/IEC 10918-1 leaves those open; two conforming decoders differ by a level here and there). The
DERIVATIVE is that of the codec in real arithmetic, where rounding has the derivative 1 (straight through: Bengio et
al., arXiv 1308.3432) or what `rounding` says, and clipping to 0 .. 255 has 1 on the closed interval and 0 beyond.

Measured against ffjax.data.codecs.jpeg (Pillow 13.0, libjpeg-turbo 3.2) at every quality from 30 to 95 on the 4 colour
and 20 grey Kodak photographs and 25 of BSDS500 (481 x 321), and from 1 to 100 on uniform noise of sizes 1 x 1 to
64 x 48: mean and largest absolute difference 0 / 255; with 4:4:4 the same at five qualities. In REAL arithmetic, which
leaves out the roundings of samples and so tips a coefficient now and then: 0.71 / 255 and 37 / 255 at those five.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.types import Array

BLOCK = 8
HIGHEST = 255

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
"""Quantisation steps at quality 50 (ISO/IEC 10918-1, Annex K), by vertical and horizontal frequency; 99 where CHROMA
has none."""


class Arithmetic(NamedTuple):
    """In what numbers the codec computes.

    level, whole: to the nearest integer, halves to the even one and upwards. forward, backward: the DCT of every block
    of (rows of blocks, 8, columns of blocks, 8), and its inverse.
    """

    level: Callable[[Array], Array]
    whole: Callable[[Array], Array]
    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]


def coded(
    image: Array,
    quality: Array | int,
    *,
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0",
    rounding: Callable[[Array], Array] | None = None,
    arithmetic: Arithmetic | None = None,
) -> Array:
    """(H, W, C) in [0, 1], C = 3 (RGB) or 1 (grey), of any size -> the same, written as JPEG and read again.

    quality: whole, 1 .. 100 on libjpeg's scale (clipped to it); may be traced. subsampling: of the chroma; 4:2:0 is
    Pillow's default. rounding: of the quantised coefficients: `straight_through` by default, or `cubic`. arithmetic:
    INTEGER by default, whose result is what the file holds, n / 255; in REAL only the coefficients are rounded.
    """
    arithmetic = INTEGER if arithmetic is None else arithmetic
    rounding = straight_through if rounding is None else rounding
    luma, chroma = (table.astype(image.dtype) for table in tables(quality))
    levels = arithmetic.level(clamped(image * HIGHEST))

    def through(plane: Array, steps: Array) -> Array:
        there = _padded(plane, BLOCK, BLOCK)
        return _cut(_quantised(there, steps, rounding, arithmetic), plane.shape)

    def halved(plane: Array) -> Array:
        # beyond the border libjpeg repeats pixels along rows, but rows only once they are halved
        small = through(_halved(_padded(plane, 2, 2 * BLOCK), arithmetic.whole), chroma)
        return _cut(_doubled(_cut(small, tuple(-(-side // 2) for side in plane.shape)), arithmetic.whole), plane.shape)

    if image.shape[-1] == 1:
        return through(levels[..., 0], luma)[..., None] / HIGHEST
    y, colours = _to_ycc(levels, arithmetic.whole)
    ways = {"4:2:0": halved, "4:4:4": lambda plane: through(plane, chroma)}
    colours = jax.vmap(ways[subsampling])(colours)
    return _to_rgb(through(y, luma), colours, arithmetic.whole) / HIGHEST


def tables(quality: Array | int) -> tuple[Array, Array]:
    """quality () -> the luma's and the chroma's steps (8, 8) int32, 1 .. 255: the standard's, scaled as by libjpeg."""
    quality = jnp.clip(jnp.asarray(quality, jnp.int32), 1, 100)
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    chroma = np.full((BLOCK, BLOCK), 99, np.int32)
    chroma[:4, :4] = CHROMA
    luma, chroma = (jnp.clip((base * percent + 50) // 100, 1, 255) for base in (np.array(LUMA, np.int32), chroma))
    return luma, chroma


def clamped(x: Array, top: float = HIGHEST) -> Array:
    """x cut to [0, top], with derivative 1 on the closed interval: at a bound, where stored pixels often lie, jnp.clip
    has one half."""
    return jnp.where((x >= 0) & (x <= top), x, jax.lax.stop_gradient(jnp.clip(x, 0, top)))


def passed(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The value of `function`, exactly, with derivative 1."""
    through = jax.custom_jvp(function)
    through.defjvp(lambda x, dx: (function(*x), *dx))
    return through


def _half_even(x: Array) -> Array:
    return jnp.round(x)


def _half_up(x: Array) -> Array:
    return jnp.floor(x + 0.5)


def _half_away(x: Array) -> Array:
    # a coefficient is a multiple of 1/8, a step at most 255: a quotient that is not a half is 1/2040 from one, and one
    # that is goes outwards even if the compiler divides by multiplying with a rounded inverse
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + (0.5 + 2e-4))


straight_through = passed(_half_away)
"""To the nearest integer, halves away from zero; derivative 1."""


@jax.custom_jvp
def cubic(x: Array) -> Array:
    """The same value, with the derivative 3 (x - [x])^2 of [x] + (x - [x])^3 (Shin and Song, NIPS ML and Computer
    Security workshop 2017), who put that for the value as well. None where x is an integer: a flat block is stuck."""
    return _half_away(x)


@cubic.defjvp
def _(x: tuple[Array], dx: tuple[Array]) -> tuple[Array, Array]:
    nearest = _half_away(*x)
    return nearest, 3 * jnp.square(x[0] - nearest) * dx[0]


def _quantised(plane: Array, table: Array, rounding: Callable[[Array], Array], arithmetic: Arithmetic) -> Array:
    """(h, w) levels, sides multiples of 8 -> what a decoder finds there."""
    height, width = plane.shape
    steps = table[None, :, None, :]
    blocks = (plane - 128).reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    kept = rounding(arithmetic.forward(blocks) / steps) * steps
    return clamped(arithmetic.backward(kept).reshape(height, width) + 128)


def _padded(plane: Array, rows: int, columns: int) -> Array:
    """Its last row and column repeated up to the next multiple of `rows` and `columns`."""
    return jnp.pad(plane, ((0, -plane.shape[0] % rows), (0, -plane.shape[1] % columns)), mode="edge")


def _cut(plane: Array, size: tuple[int, ...]) -> Array:
    return plane[: size[0], : size[1]]


def _to_ycc(rgb: Array, whole: Callable[[Array], Array]) -> tuple[Array, Array]:
    """(H, W, 3) levels -> Y (H, W), and Cb and Cr (2, H, W), by JFIF in libjpeg's 16-bit fractions: float32 holds every
    sum exactly, so that only `whole` rounds. Y has halves up, the colours down."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = whole((19595 * r + 38470 * g + 7471 * b) / 65536)
    cb = (11059 * r + 21709 * g - 32768 * b) / 65536
    cr = (27439 * g + 5329 * b - 32768 * r) / 65536
    return y, -whole(jnp.stack([cb, cr]) - 128)


def _to_rgb(y: Array, colours: Array, whole: Callable[[Array], Array]) -> Array:
    cb, cr = colours - 128
    r = y + whole(91881 * cr / 65536)
    g = y + whole((-22554 * cb - 46802 * cr) / 65536)
    b = y + whole(116130 * cb / 65536)
    return clamped(jnp.stack([r, g, b], axis=-1))


def _halved(plane: Array, whole: Callable[[Array], Array]) -> Array:
    """Means of 2 x 2; halves go down and up in turns along a row."""
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    means = jnp.sum(plane.reshape(height, 2, width, 2), axis=(1, 3)) / 4
    return _alternating(means[:, 0::2], means[:, 1::2], lambda x: -whole(-x), whole)


def _doubled(plane: Array, whole: Callable[[Array], Array]) -> Array:
    """(h, w) -> (2h, 2w): 3/4 of the nearest and 1/4 of the next nearest sample along each axis, borders repeated;
    halves up and down in turns along a row. Up to two columns are repeated instead."""
    height, width = plane.shape
    if width <= 2:
        return jnp.repeat(jnp.repeat(plane, 2, axis=0), 2, axis=1)
    around = jnp.pad(plane, 1, mode="edge")
    near = 3 * around[1:-1]
    tall = jnp.stack([near + around[:-2], near + around[2:]], axis=1).reshape(2 * height, width + 2)
    near = 3 * tall[:, 1:-1]
    left, right = (near + tall[:, :-2]) / 16, (near + tall[:, 2:]) / 16
    return _alternating(left, right, whole, lambda x: -whole(-x))


def _alternating(even: Array, odd: Array, first: Callable[[Array], Array], second: Callable[[Array], Array]) -> Array:
    """Columns 0, 2, .. and 1, 3, .., each rounded in its way, in their places."""
    return jnp.stack([first(even), second(odd)], axis=-1).reshape(even.shape[0], -1)


def _cosines() -> np.ndarray:
    """(8, 8) float64, orthonormal: frequency by position."""
    frequency, position = np.mgrid[:BLOCK, :BLOCK]
    rows = np.cos(np.pi * frequency * (2 * position + 1) / (2 * BLOCK)) / 2
    rows[0] = np.sqrt(1 / BLOCK)
    return rows


def _fixed_point() -> np.ndarray:
    """(8, 8) int32: what libjpeg's accurate integer DCT multiplies by, sqrt(8) 2^13 times the orthonormal one up to 1:
    the algorithm of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) adds products of constants rounded one by one, and
    a matrix of those sums is the same map."""
    even = np.array([[8192, 8192], [10703, 4433], [8192, -8192], [4433, -10704]])
    odd = np.array(
        [
            [11363, 9633, 6437, 2260],
            [9633, -2259, -11362, -6436],
            [6437, -11362, 2261, 9633],
            [2260, -6436, 9633, -11363],
        ]
    )
    rows = np.empty((BLOCK, BLOCK), np.int32)
    rows[0::2, :4] = np.concatenate([even, even[:, ::-1] * [[1], [-1], [1], [-1]]], axis=1)
    rows[1::2, :4] = odd
    rows[0::2, 4:], rows[1::2, 4:] = rows[0::2, 3::-1], -rows[1::2, 3::-1]
    return rows


COSINES, FIXED_POINT = _cosines(), _fixed_point()
POINT = 13  # binary places of FIXED_POINT
BETWEEN = 2  # binary places kept between the two passes


def _real_forward(blocks: Array) -> Array:
    basis = COSINES.astype(blocks.dtype)
    return jnp.einsum("vy,aybx,ux->avbu", basis, blocks, basis, precision="highest")


def _real_backward(coefficients: Array) -> Array:
    basis = COSINES.astype(coefficients.dtype)
    return jnp.einsum("vy,avbu,ux->aybx", basis, coefficients, basis, precision="highest")


@jax.custom_jvp
def _integer_forward(blocks: Array) -> Array:
    """Along rows, then columns, each sum rounded, halves up; multiples of 1/8. int32, since float32 ends at 2^24."""
    x = _descaled(jnp.einsum("ux,aybx->aybu", FIXED_POINT, blocks.astype(jnp.int32)), POINT - BETWEEN)
    x = _descaled(jnp.einsum("vy,aybu->avbu", FIXED_POINT, x), POINT + BETWEEN)
    return x.astype(blocks.dtype) / 8


@jax.custom_jvp
def _integer_backward(coefficients: Array) -> Array:
    """Along columns, then rows."""
    x = _descaled(jnp.einsum("vy,avbu->aybu", FIXED_POINT, coefficients.astype(jnp.int32)), POINT - BETWEEN)
    x = _descaled(jnp.einsum("ux,aybu->aybx", FIXED_POINT, x), POINT + BETWEEN + 3)
    return x.astype(coefficients.dtype)


_integer_forward.defjvp(lambda x, dx: (_integer_forward(*x), _real_forward(*dx)))
_integer_backward.defjvp(lambda x, dx: (_integer_backward(*x), _real_backward(*dx)))


def _descaled(x: Array, places: int) -> Array:
    return (x + (1 << (places - 1))) >> places


def _same(x: Array) -> Array:
    return x


INTEGER = Arithmetic(passed(_half_even), passed(_half_up), _integer_forward, _integer_backward)
REAL = Arithmetic(_same, _same, _real_forward, _real_backward)
