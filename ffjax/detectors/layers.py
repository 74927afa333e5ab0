"""What networks share: convolution forms that are fast on CPU, normalisation, and the step from Flax to Detector."""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ffjax.detectors.layout import Numbers, unchanged
from ffjax.detectors.pooling import max_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Outputs, Variables

__all__ = [
    "CLASSES",
    "MEAN_AND_SPREAD",
    "NORMS",
    "as_detector",
    "at_size",
    "batch_norm",
    "class_order",
    "conv",
    "conv_by_matrix",
    "conv_by_phases",
    "conv_by_rows",
    "conv_by_taps",
    "dot_to_one",
    "max_pool",
    "norm_layer",
    "normalised",
    "on_cpu",
    "one_of",
    "pointwise",
]

CLASSES = ("real_first", "fake_first")
NORMS = ("batch", "group", "none")

MEAN_AND_SPREAD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""How a network wants its images: what is taken off each channel, and what that is divided by."""


def on_cpu() -> bool:
    """Whether to trace the forms that are fast on CPU: the one place where a network's form is chosen by backend."""
    return jax.default_backend() == "cpu"


def conv(
    features: int, window: int, name: str, narrow: bool, stride: int = 1, dilation: int = 1, **kwargs: Any
) -> nn.Conv:
    """A window x window nn.Conv (odd window) padded by dilation * (window // 2) on every side.

    narrow: on CPU computed by `conv_by_rows`, or by `conv_by_phases` if it strides (over images of a multiple of the
    stride, undilated); that pays where at most four channels come in.
    """
    form: dict[str, Any] = {}
    if narrow and window > 1 and on_cpu():
        form["conv_general_dilated"] = conv_by_rows if stride == 1 else conv_by_phases
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


def pointwise(features: int, name: str, **kwargs: Any) -> nn.Conv:
    """A 1x1 nn.Conv of stride 1, on CPU computed as the matrix product it is, up to four times as fast as XLA:CPU's
    own convolution."""
    form: dict[str, Any] = {"conv_general_dilated": conv_by_matrix} if on_cpu() else {}
    return nn.Conv(features, (1, 1), name=name, **form, **kwargs)


def conv_by_matrix(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """The 1x1 convolution of stride 1: x (B, H, W, C), kernel (1, 1, C, F) -> (B, H, W, F). The signature is
    lax.conv_general_dilated's, for nn.Conv."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def conv_by_taps(x: Array, kernel: Array, strides: Any, padding: Any, **_: Any) -> Array:
    """The convolution of stride 1 as one matrix product for each tap of the kernel.

    x (B, H, W, C), kernel (n, m, C, F) -> (B, H', W', F); the signature is lax.conv_general_dilated's, for nn.Conv.
    Equal to the textbook form up to rounding. It pays for images of a few pixels and many channels, where turning the
    kernel around for the gradient costs XLA:CPU as much as the convolution.
    """
    wide = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = wide.shape[1] - kernel.shape[0] + 1, wide.shape[2] - kernel.shape[1] + 1
    taps = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    seen = (wide[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]) @ kernel[i, j] for i, j in taps)
    return functools.reduce(jnp.add, seen).reshape(x.shape[0], height, width, -1)


def conv_by_phases(x: Array, kernel: Array, strides: Any, padding: Any, **_: Any) -> Array:
    """The convolution of stride s as one of stride 1 over the s x s phases of the image, moved into channels.

    x (B, H, W, C) with H and W multiples of s, kernel (n, m, C, F) -> (B, H', W', F); the signature is
    lax.conv_general_dilated's, for nn.Conv. Equal to the textbook form up to rounding. It pays for a large window over
    few channels, whose input gradient XLA:CPU otherwise takes from an image most of whose pixels are zeros.
    """
    (sy, sx), (batch, height, width, c) = strides, x.shape
    (rows, tall), (columns, wide) = (_phased(kernel.shape[i], x.shape[i + 1], strides[i], padding[i]) for i in (0, 1))
    image = x.reshape(batch, height // sy, sy, width // sx, sx, c).transpose(0, 1, 3, 2, 4, 5)
    taps = jnp.pad(kernel, (tall, wide, (0, 0), (0, 0)))
    n, m, features = taps.shape[0] // sy, taps.shape[1] // sx, kernel.shape[3]
    taps = taps.reshape(n, sy, m, sx, c, features).transpose(0, 2, 1, 3, 4, 5).reshape(n, m, sy * sx * c, features)
    image, layout = image.reshape(batch, height // sy, width // sx, sy * sx * c), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, taps, (1, 1), (rows, columns), None, None, layout)


def _phased(window: int, length: int, stride: int, pad: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Along one axis, the padding in pixels of a phase, and the zeros around the kernel that bring it into step."""
    first = -(-pad[0] // stride)
    front = first * stride - pad[0]
    taps, count = -(-(window + front) // stride), (length + sum(pad) - window) // stride + 1
    return (first, count - 1 + taps - first - length // stride), (front, taps * stride - window - front)


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


def norm_layer(kind: str, train: bool, name: str, epsilon: float = 1e-5) -> Callable[[Array], Array]:
    """A normalisation layer: 'batch', 'group' (32 groups, or as many of them as divide the channels) or 'none'."""
    if kind == "none":
        return lambda x: x
    if kind == "batch":
        return batch_norm(train, epsilon, name)
    return lambda x: nn.GroupNorm(math.gcd(32, x.shape[-1]), epsilon=epsilon, name=name)(x)


def normalised(images: Array, how: str) -> Array:
    """Images in [0, 1] as a network expects them: a key of MEAN_AND_SPREAD."""
    if how == "none":
        return images
    mean, spread = (jnp.asarray(numbers, images.dtype).reshape(1, 1, 1, 3) for numbers in MEAN_AND_SPREAD[how])
    return (images - mean) / spread


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is known; InputError, with what is known, if not."""
    if value not in known:
        raise InputError(f"{what} {value!r} is unknown; known: {', '.join(known)}")
    return value


def class_order(classes: str, layer: str) -> Callable[[Numbers], Numbers]:
    """A Layout's `last` for a file whose two outputs come in that order: 'real_first' (1 = fake, as here), or
    'fake_first' (folders in alphabetical order), where the last layer's two columns change places."""
    if one_of("classes", classes, CLASSES) == "real_first":
        return unchanged
    keys = (f"params/{layer}/kernel", f"params/{layer}/bias")
    return lambda flat: flat | {key: flat[key][..., ::-1] for key in keys if key in flat}


def as_detector(module: nn.Module, size: int, channels: int = 3) -> Detector:
    """A Flax module called as module(images, train) -> (logits, acts) or (logits, acts, mask), as a Detector of
    size x size images.

    Its logits are (B, 2), or (B, 1) = z_fake, which becomes (0, z_fake); its mask (B, h, w) logits of "forged".
    Randomness in training comes under the name 'dropout'. Images of another size raise InputError when the function is
    traced.
    """
    shape = (size, size, channels)

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


def _outputs(logits: Array, acts: OrderedDict[str, Array], mask: Array | None = None) -> Outputs:
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
    return Outputs(logits, mask, acts)


def _check_images(images: Array, shape: tuple[int, int, int]) -> None:
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"images of shape {tuple(images.shape)} given to a detector of (B, {', '.join(map(str, shape))})"
        )


@functools.lru_cache(maxsize=64)
def at_size(detector: Detector, size: int) -> Detector:
    """The same detector, fed size x size images: they are resized (bilinear, antialiased) to its own size inside; the
    same functions each time, so that two sets of weights share a compilation.

    The variables stay the same. The detector itself is returned if that is already its size.
    """
    shape = (size, size, detector.shape[2])
    if detector.shape == shape:
        return detector

    def resized(images: Array) -> Array:
        _check_images(images, shape)
        return jax.image.resize(images, (images.shape[0], *detector.shape), "bilinear", antialias=True)

    def apply(variables: Variables, images: Array) -> Outputs:
        return detector.apply(variables, resized(images))

    def train(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        return detector.train(variables, resized(images), key)

    return Detector(detector.init, apply, train, shape)
