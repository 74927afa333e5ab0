"""Pooling with gradients that are fast on CPU."""

import functools

import jax
import jax.numpy as jnp

from ffjax.types import Array


def max_pool(x: Array, window: int, stride: int | None = None, padding: int = 0) -> Array:
    """Maximum over window x window squares, `stride` apart (side by side if not given), with `padding` pixels of minus
    infinity around the image: (B, H, W, C) -> (B, H', W', C), H' = (H + 2 padding - window) // stride + 1.

    Guarantees: the values of lax.reduce_window(max), NaN included; the gradient goes to the first maximum of a tie in
    row-major order, as in XLA and PyTorch; differentiable any number of times, forwards and backwards. On CPU the
    gradient is some ten times faster than XLA's select-and-scatter. Raises ValueError for a window or stride below 1
    and for a padding that could fill a window.
    """
    stride = window if stride is None else stride
    if window < 1 or stride < 1 or not 0 <= padding < max(window, 1):
        raise ValueError(f"max_pool: window {window}, stride {stride}, padding {padding}")
    # All columns before the rows: the first maximum of each row, then the first row. That is row-major order.
    for axis in (2, 1):
        x = _first_of(_taps(x, axis, window, stride, padding))
    return x


def _taps(x: Array, axis: int, window: int, stride: int, padding: int) -> list[Array]:
    """What the window's 1st, 2nd, ... pixel sees at all its places along the axis.

    The axis is cut into `stride` phases by `split`, whose transpose is a concatenation; a strided slice's would spread
    its gradient over a full-size array of zeros, one for every tap.
    """
    count = (x.shape[axis] + 2 * padding - window) // stride + 1
    length = count + (window - 1) // stride
    pads = [(0, 0, 0)] * 4
    pads[axis] = (padding, length * stride - padding - x.shape[axis], 0)
    padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads)
    cut = padded.reshape(*x.shape[:axis], length, stride, *x.shape[axis + 1 :])
    phases = [phase.squeeze(axis + 1) for phase in jax.lax.split(cut, (1,) * stride, axis + 1)]
    return [jax.lax.slice_in_dim(phases[i % stride], i // stride, i // stride + count, 1, axis) for i in range(window)]


def _first_of(candidates: list[Array]) -> Array:
    best = candidates[0]
    for other in candidates[1:]:
        best = jnp.where((best >= other) | (best != best), best, other)  # the second test lets a NaN through
    return best


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def first_maximum(x: Array, axis: int) -> Array:
    """The maximum over an axis of at most 127, whose gradient goes to the first of a tie; of any order, in both modes.

    One reduction finds the maximum and its place. XLA:CPU cannot merge such a reduction into its consumers, so the
    place, a byte for each maximum, is kept for the gradient, and not found again for every input.
    """
    return _maximum_and_place(x, axis)[0]


@first_maximum.defjvp
def _first_maximum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    # a place is no number to differentiate; XLA computes maximum and place once for both lines
    place = _maximum_and_place(jax.lax.stop_gradient(x), axis)[1]
    chosen = jnp.expand_dims(place, axis) == jax.lax.broadcasted_iota(jnp.int8, x.shape, axis)
    return first_maximum(x, axis), jnp.where(chosen, tangents[0], 0).sum(axis)


def _maximum_and_place(x: Array, axis: int) -> tuple[Array, Array]:
    def larger(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, i), (b, j) = first, second
        kept = (a > b) | ((a == b) & (i < j)) | (a != a)
        return jnp.where(kept, a, b), jnp.where(kept, i, j)

    places = jax.lax.broadcasted_iota(jnp.int8, x.shape, axis)
    least = (jnp.array(-jnp.inf, x.dtype), jnp.array(127, jnp.int8))
    return jax.lax.reduce((x, places), least, larger, (axis,))


def mean_pool(x: Array) -> Array:
    """Mean over the image: (B, H, W, C) -> (B, C)."""
    return jnp.mean(x, axis=(1, 2))


def adaptive_mean_pool(x: Array, size: int) -> Array:
    """Means over size x size bins: (B, H, W, C) -> (B, size, size, C).

    Bin i of n over h pixels runs from floor(i h / n) to ceil((i + 1) h / n), so that bins overlap where n does not
    divide h, and repeat where h < n: PyTorch's AdaptiveAvgPool2d.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length != size:
            ends = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = jnp.stack([jax.lax.slice_in_dim(x, *end, 1, axis).mean(axis) for end in ends], axis)
    return x
