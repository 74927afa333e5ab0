"""Depthwise convolution: every channel with its own k x k kernel.

XLA:CPU computes it as C separate convolutions of one channel, some ten times slower than k*k shifted copies of the
images, each times its tap, added up. That form is used on CPU, in the forward pass and in both gradients; elsewhere
the compiler's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ffjax.detectors.layers import on_cpu
from ffjax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros ((above, below), (left, right)); negative ones crop."""


def depthwise(
    channels: int, window: int, name: str, stride: int = 1, padding: int | None = None, **kwargs: Any
) -> nn.Conv:
    """A depthwise window x window nn.Conv of `channels` channels; its kernel is (window, window, 1, channels).

    padding: zeros on every side; window // 2 (the same size at stride 1) if not given. kwargs: nn.Conv's use_bias and
    kernel_init, say.
    """
    pad = window // 2 if padding is None else padding
    form: dict[str, Any] = {"strides": stride, "padding": pad, "feature_group_count": channels, "name": name}
    return nn.Conv(channels, (window, window), conv_general_dilated=depthwise_conv, **form, **kwargs)


def depthwise_conv(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[Any], **_: Any) -> Array:
    """x (B, H, W, C) and kernel (n, m, 1, C) -> (B, H', W', C); the signature is lax.conv_general_dilated's, for
    nn.Conv. The form is chosen by backend when the function is traced."""
    (above, below), (left, right) = padding
    form = shifted if on_cpu() else textbook
    return form(x, kernel, (strides[0], strides[1]), ((above, below), (left, right)))


def textbook(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """The compiler's own depthwise convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, None, None, layout, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """`textbook` as shifted multiply-adds.

    Guarantees: equal up to rounding; differentiable backwards any number of times (it is linear in each argument, and
    the three maps below are each other's derivatives), and forwards through a gradient.
    """
    n, m = kernel.shape[:2]
    # The barrier keeps whatever made x from being computed again for every tap.
    padded = jax.lax.optimization_barrier(jax.lax.pad(x, jnp.zeros((), x.dtype), _config(pads)))
    height, width = (_steps(padded.shape[i], kernel.shape[i - 1], strides[i - 1]) for i in (1, 2))
    taps = (
        _tap(padded, i, j, strides, (height, width)) * kernel[i : i + 1, j : j + 1] for i in range(n) for j in range(m)
    )
    return functools.reduce(jnp.add, taps)


def _shifted_forward(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads):
    return shifted(x, kernel, strides, pads), (x, kernel)


def _shifted_backward(strides: tuple[int, int], pads: Pads, saved: tuple[Array, Array], g: Array):
    x, kernel = saved
    return _spread(g, kernel, strides, pads, _pixels(x)), _products(x, g, strides, pads, kernel.shape[:2])


def _spread(g: Array, kernel: Array, strides: tuple[int, int], pads: Pads, size: tuple[int, int]) -> Array:
    """The transpose in x: what each pixel of a `size` image gave to g, one stride phase of pixels at a time."""
    (sy, sx), ((above, _), (left, _)) = strides, pads
    height, width = -(-size[0] // sy), -(-size[1] // sx)
    rows = [_phase(kernel.shape[0], a + above, sy, height, g.shape[1]) for a in range(sy)]
    columns = [_phase(kernel.shape[1], b + left, sx, width, g.shape[2]) for b in range(sx)]
    phases = [[_reached(g, kernel, row, column, (height, width)) for column in columns] for row in rows]
    if strides == (1, 1):
        return phases[0][0]
    wide = [jnp.stack(row, 3).reshape(g.shape[0], height, width * sx, g.shape[3]) for row in phases]
    tall = jnp.stack(wide, 2).reshape(g.shape[0], height * sy, width * sx, g.shape[3])
    return tall[:, : size[0], : size[1]]


def _phase(window: int, offset: int, stride: int, count: int, given: int) -> tuple[slice, tuple[int, int]]:
    """Pixels `offset` (padding counted), offset + stride, ...: the taps that reach them, and the zeros to put around
    the `given` pixels of g for a correlation with those taps, last first, to be `count` pixels long."""
    first = offset % stride
    taps = len(range(first, window, stride))
    before = taps - 1 - offset // stride
    return slice(first, window, stride), (before, count + taps - 1 - before - given)


def _reached(
    g: Array, kernel: Array, row: tuple[slice, Any], column: tuple[slice, Any], size: tuple[int, int]
) -> Array:
    part = kernel[row[0], column[0]][::-1, ::-1]
    if part.size == 0:  # the stride is longer than the window: no tap reaches these pixels
        return jnp.zeros((g.shape[0], *size, g.shape[3]), g.dtype)
    return shifted(g, part, (1, 1), (row[1], column[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _products(x: Array, g: Array, strides: tuple[int, int], pads: Pads, window: tuple[int, int]) -> Array:
    """The transpose in the kernel: (n, m, 1, C) sums of x at each shift times g. All taps in one reduction: XLA:CPU
    takes ten times as long over one reduction a tap."""
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), _config(pads))
    taps = tuple(_tap(padded, i, j, strides, _pixels(g)) * g for i in range(window[0]) for j in range(window[1]))
    zeros = (jnp.zeros((), x.dtype),) * len(taps)
    sums = jax.lax.reduce(taps, zeros, lambda some, more: tuple(map(jnp.add, some, more)), (0, 1, 2))
    return jnp.stack(sums).reshape(*window, 1, -1)


def _products_forward(x: Array, g: Array, strides: tuple[int, int], pads: Pads, window: tuple[int, int]):
    return _products(x, g, strides, pads, window), (x, g)


def _products_backward(
    strides: tuple[int, int], pads: Pads, window: tuple[int, int], saved: tuple[Array, Array], kernel: Array
):
    x, g = saved
    return _spread(g, kernel, strides, pads, _pixels(x)), shifted(x, kernel, strides, pads)


shifted.defvjp(_shifted_forward, _shifted_backward)
_products.defvjp(_products_forward, _products_backward)


def _config(pads: Pads) -> tuple[tuple[int, int, int], ...]:
    return ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))


def _pixels(x: Array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _steps(size: int, window: int, stride: int) -> int:
    return (size - window) // stride + 1


def _tap(padded: Array, i: int, j: int, strides: tuple[int, int], size: tuple[int, int]) -> Array:
    """What tap (i, j) sees: every stride-th pixel from there, `size` of them."""
    ends = (i + (size[0] - 1) * strides[0] + 1, j + (size[1] - 1) * strides[1] + 1)
    return padded[:, i : ends[0] : strides[0], j : ends[1] : strides[1]]
