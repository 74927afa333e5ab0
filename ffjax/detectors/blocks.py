"""Convolutions of few features, four neighbouring outputs at a time.

XLA:CPU computes a convolution of 8 features in the time of one of 32. So the four outputs of each 2 x 2 block become
features of one convolution of stride 2, whose kernel holds the original four times, each a row or a column further on.
A 2 x 2 max pool is then a maximum over an axis.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ffjax.types import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")


def into_blocks(x: Array) -> Array:
    """(B, H, W, C), H and W even -> (B, H / 2, W / 2, 4, C): the pixels of each 2 x 2 block in row-major order."""
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, height // 2, width // 2, 4, channels)


def out_of_blocks(x: Array) -> Array:
    """The inverse of `into_blocks`."""
    batch, height, width, _, channels = x.shape
    cut = x.reshape(batch, height, width, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, 2 * height, 2 * width, channels)


def conv_in_blocks(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """x (B, H, W, C), kernel (n, n, C, F), n odd -> the same-size convolution of stride 1, in blocks:
    (B, H / 2, W / 2, 4, F).

    Equal to `into_blocks` of the textbook form up to rounding. Every output adds its products in the same order, so
    that outputs which see the same pixels are equal to the last bit, and a pool finds their tie. The signature is
    lax.conv_general_dilated's, for nn.Conv, with its strides, padding and dilation taken for granted.
    """
    return _conv_in_blocks(x, kernel)


@jax.custom_jvp
def _conv_in_blocks(x: Array, kernel: Array) -> Array:
    n, _, channels, features = kernel.shape
    wide, half, (batch, height, width, _) = _four_times(kernel), n // 2, x.shape
    if channels <= 4:  # two columns become one of twice the channels: three are too few for the compiler's own form
        x = jnp.pad(x, ((0, 0), (0, 0), (half, half), (0, 0))).reshape(batch, height, width // 2 + half, 2 * channels)
        wide = wide.reshape(n + 1, (n + 1) // 2, 2 * channels, 4 * features)
        y = jax.lax.conv_general_dilated(x, wide, (2, 1), ((half, half), (0, 0)), None, None, LAYOUT)
    else:
        y = jax.lax.conv_general_dilated(x, wide, (2, 2), [(half, half)] * 2, None, None, LAYOUT)
    return y.reshape(batch, height // 2, width // 2, 4, features)


@_conv_in_blocks.defjvp
def _conv_in_blocks_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The derivative takes another form, whose transpose has no stride: the block's four inputs are channels too."""
    (x, kernel), (dx, dkernel) = primals, tangents
    return _conv_in_blocks(x, kernel), _conv_of_blocks(dx, kernel) + _conv_of_blocks(x, dkernel)


def _four_times(kernel: Array) -> Array:
    """(n, n, C, F) -> (n + 1, n + 1, C, 4 F): output (a, b) of a block sees the kernel a rows down and b columns on."""
    shifted = [jnp.pad(kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0))) for a in (0, 1) for b in (0, 1)]
    return jnp.concatenate(shifted, axis=3)


def _conv_of_blocks(x: Array, kernel: Array) -> Array:
    """The same as a convolution of stride 1 over blocks, (m, m, 4 C, 4 F)."""
    blocks, wide, n = into_blocks(x), _four_times(kernel), kernel.shape[0]
    before = -(-(n // 2) // 2)
    front = 2 * before - n // 2  # rows of the first block above those that its outputs see
    taps = -(-(front + n + 1) // 2)
    ends = (front, 2 * taps - front - n - 1)
    cut = jnp.pad(wide, (ends, ends, (0, 0), (0, 0))).reshape(taps, 2, taps, 2, -1, wide.shape[3])
    cut = cut.transpose(0, 2, 1, 3, 4, 5).reshape(taps, taps, -1, wide.shape[3])
    pad = (before, taps - 1 - before)
    y = jax.lax.conv_general_dilated(blocks.reshape(*blocks.shape[:3], -1), cut, (1, 1), (pad, pad), None, None, LAYOUT)
    return y.reshape(*blocks.shape[:4], -1)
