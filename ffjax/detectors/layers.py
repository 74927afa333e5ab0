"""What networks share: convolution and max-pooling forms that are fast on CPU, and the step from Flax to Detector."""

from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ffjax.errors import InputError
from ffjax.types import Array, Detector, Outputs, Variables


def max_pool(x: Array, window: int) -> Array:
    """Maximum over `window` x `window` squares that do not overlap: (B, H, W, C) -> (B, H // window, W // window, C).

    Guarantees: the values of lax.reduce_window(max, VALID), NaN included; the gradient goes to the first maximum of a
    tie in row-major order, as in XLA and PyTorch; differentiable any number of times, forwards and backwards. On CPU
    the gradient is some ten times faster than XLA's select-and-scatter. Raises ValueError unless window is 1, 2, 4, ...
    """
    if window < 1 or window & (window - 1):
        raise ValueError(f"max_pool: window must be a power of two, got {window}")
    x = x[:, : x.shape[1] // window * window, : x.shape[2] // window * window]
    # Columns to the end before rows: the first maximum of each row, then the first row. Alternating the two (a 2x2
    # pool twice) would settle ties block by block, which is not row-major order.
    for axis in (2, 1):
        for _ in range(window.bit_length() - 1):
            x = _max_of_pairs(x, axis)
    return x


def _max_of_pairs(x: Array, axis: int) -> Array:
    first = jax.lax.slice_in_dim(x, 0, None, 2, axis)
    second = jax.lax.slice_in_dim(x, 1, None, 2, axis)
    return jnp.where((first >= second) | (first != first), first, second)  # the second test lets a NaN through


def conv(
    features: int, window: int, name: str, narrow: bool, stride: int = 1, dilation: int = 1, **kwargs: Any
) -> nn.Conv:
    """A window x window nn.Conv (odd window) padded by dilation * (window // 2) on every side.

    narrow: computed by `conv_by_rows`, which pays on CPU where at most four channels come in; stride 1 only.
    """
    form: dict[str, Any] = {"conv_general_dilated": conv_by_rows} if narrow and window > 1 else {}
    pad = dilation * (window // 2)
    form |= {"strides": stride, "padding": pad, "kernel_dilation": dilation, "name": name}
    return nn.Conv(features, (window, window), **form, **kwargs)


def conv_by_rows(x: Array, kernel: Array, strides: Any, padding: Any, *, rhs_dilation: Any, **_: Any) -> Array:
    """The stride-1 same-size convolution, with the kernel's n rows moved into channels: n x n x c -> 1 x n x nc.

    x (B, H, W, C), kernel (n, n, C, F) -> (B, H, W, F); the signature is lax.conv_general_dilated's, for nn.Conv.
    Equal to the textbook form up to rounding. With three or four channels in, XLA:CPU's own input gradient is starved
    of channels; this takes a fifth to a third off the gradient of the whole network.
    """
    (n, c, features), height, step = kernel.shape[1:], x.shape[1], rhs_dilation[0]
    tall = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0)))
    rows = jnp.concatenate([tall[:, i * step : i * step + height] for i in range(n)], axis=-1)
    wide = kernel.transpose(1, 0, 2, 3).reshape(1, n, n * c, features)
    pads, layout = ((0, 0), padding[1]), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(rows, wide, (1, 1), pads, None, (1, step), layout)


def dot_to_one(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """x (B, K) times a kernel (K, 1) -> (B, 1), row by row; the signature is lax.dot_general's, for nn.Dense.

    XLA:CPU rounds a matrix-vector product differently by the row's place in the batch. With a second column, of zeros,
    it becomes a matrix product, whose rows do not see each other.
    """
    return jax.lax.dot_general(x, jnp.pad(kernel, ((0, 0), (0, 1))), *args, **kwargs)[:, :1]


def batch_norm(train: bool, epsilon: float, name: str) -> nn.BatchNorm:
    """Flax's BatchNorm over all axes but the last. Momentum 0.9: Keras' 0.99 needs some 500 steps before the running
    statistics forget their start, more than a short training has; 0.9 needs 50."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name)


def as_detector(module: nn.Module, size: int) -> Detector:
    """A Flax module called as module(images, train) -> (logits, acts), as a Detector of size x size images.

    Its logits are (B, 2), or (B, 1) = z_fake, which becomes (0, z_fake). Randomness in training comes under the name
    'dropout'. Images of another size raise InputError when the function is traced.
    """
    shape = (size, size, 3)

    def init(key: Array) -> Variables:
        return module.init(key, jnp.zeros((1, *shape)), False)

    def apply(variables: Variables, images: Array) -> Outputs:
        _check_images(images, shape)
        return _outputs(*_call(module, variables, images, False))

    def train(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        _check_images(images, shape)
        result, updated = _call(module, variables, images, True, rngs={"dropout": key}, mutable=["batch_stats"])
        return _outputs(*result), {**variables, **updated}

    return Detector(init, apply, train, shape)


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.apply(*args, **kwargs)  # typed Any: what a module returns depends on `mutable`


def _outputs(logits: Array, acts: OrderedDict[str, Array]) -> Outputs:
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
    return Outputs(logits, None, acts)


def _check_images(images: Array, shape: tuple[int, int, int]) -> None:
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(f"images of shape {tuple(images.shape)} given to a detector of (B, {shape[0]}, {shape[1]}, 3)")


def at_size(detector: Detector, size: int) -> Detector:
    """The same detector, fed size x size images: they are resized (bilinear, antialiased) to its own size inside.

    The variables stay the same. The detector itself is returned if that is already its size.
    """
    if detector.shape == (size, size, 3):
        return detector

    def resized(images: Array) -> Array:
        _check_images(images, (size, size, 3))
        return jax.image.resize(images, (images.shape[0], *detector.shape), "bilinear", antialias=True)

    def apply(variables: Variables, images: Array) -> Outputs:
        return detector.apply(variables, resized(images))

    def train(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        return detector.train(variables, resized(images), key)

    return Detector(detector.init, apply, train, (size, size, 3))
