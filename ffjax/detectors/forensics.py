"""Small networks that tell how an image was processed, for patches of 64 to 256 pixels, grey or colour.

`laplacian` after Yang, Ni and Zhao (IWDW 2016; recaptured images), `bondi` after Bondi et al. (IEEE Signal Processing
Letters 24(3), 2017; camera models), `bayar` after Bayar and Stamm (IEEE TIFS 13(11), 2018; processing). None is "the
network" of Zhao et al. 2018, who do not name theirs. Each ends in two classes, 1 = processed, whatever its paper has.
"""

from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ffjax.detectors.layers import NORMS, as_detector, batch_norm, max_pool, norm_layer, one_of
from ffjax.errors import InputError
from ffjax.types import Array, Detector

SMALLEST = 64
EPSILON = 1e-5


def laplacian(
    size: int = 64,
    dropout: float = 0.0,
    *,
    channels: int = 3,
    widths: tuple[int, ...] = (16, 32, 64, 128, 128),
    kernels: tuple[int, ...] = (3, 3, 3, 3, 3),
    norm: str = "batch",
) -> Detector:
    """A fixed Laplacian of each channel, five convolutions with ReLU and average pools between, global average, logits.

    Published are the Laplacian front, the five layers, ReLU, the average and global average pools, and that no hidden
    dense layer follows (PAPERS.md 4.7). Not published are widths, kernel sizes, pool windows and normalisation: 16 to
    128 channels, 3x3, 2x2 and batch normalisation before each ReLU (norm: batch, group, none) are ours. The
    Laplacian is taken without padding: at a padded border it would answer to the border. 245,650 trainable numbers at
    any size. Activations conv1 .. conv5. dropout: before the logits, in training. InputError: a size under 64, channels
    other than 1 or 3, widths and kernels that are not five of each, an even kernel, an unknown norm.
    """
    if len(widths) != 5 or len(kernels) != 5 or min(widths) < 1 or any(k < 1 or k % 2 == 0 for k in kernels):
        raise InputError(f"laplacian: needs five widths and five odd kernels, got {widths} and {kernels}")
    one_of("laplacian: norm", norm, NORMS)
    return _detector(_Laplacian(tuple(widths), tuple(kernels), norm, dropout), "laplacian", size, channels)


def bondi(size: int = 64, dropout: float = 0.0, *, channels: int = 3) -> Detector:
    """Convolutions 32@4x4, 48@5x5, 64@5x5, 128@5x5 without padding, 2x2 max pools after the first three, dense 128 with
    ReLU, logits.

    As the authors' released network has it, nothing but the pools bends between the convolutions, pools keep an odd
    last row and column, and pixels are scaled by 255/80; it subtracts the training set's mean, this one mid-grey.
    338,578 trainable numbers at 64 (the published count but for its 18 classes); a larger image only widens the dense
    layer. Activations conv1 .. conv4. dropout: before the logits, in training. InputError: a size under 64, channels
    other than 1 or 3.
    """
    return _detector(_Bondi(dropout), "bondi", size, channels)


def bayar(size: int = 256, dropout: float = 0.0, *, channels: int = 3) -> Detector:
    """A constrained 5x5 convolution to 3 maps, 96@7x7 stride 2, 64@5x5, 64@5x5, 128@1x1, two dense layers of 200.

    Constrained: of each 5x5 slice the centre is -1 and the other 24 sum to 1, so a flat image gives 0. It is a
    projection of the stored weights inside the forward, so it holds at every step of any optimiser; the authors project
    the weights themselves after each step. Then batch normalisation, TanH and 3x3 stride-2 pooling after every
    convolution (maximum, after the last the average; an odd row or column at the end is kept), TanH after the dense
    layers. Widths, kernels and order agree with several independent restatements of the paper; paddings (0, 3, 2, 2, 0)
    and the BatchNorm epsilon are from memory. 1,574,637 trainable numbers at 256 grey (the published form), 150 more in
    colour. Activations constrained (which has no non-linearity), conv2 .. conv5. dropout: before the logits, in
    training. InputError: a size under 64, channels other than 1 or 3.
    """
    return _detector(_Bayar(dropout), "bayar", size, channels)


def _detector(module: nn.Module, name: str, size: int, channels: int) -> Detector:
    if size < SMALLEST:
        raise InputError(f"{name}: image size must be at least {SMALLEST}, got {size}")
    if channels not in (1, 3):
        raise InputError(f"{name}: channels must be 1 (grey) or 3 (colour), got {channels}")
    return as_detector(module, size, channels)


def _plain(features: int, window: int, name: str, padding: int = 0, stride: int = 1, bias: bool = True) -> nn.Conv:
    start = nn.initializers.glorot_uniform()
    return nn.Conv(features, (window, window), stride, padding, use_bias=bias, kernel_init=start, name=name)


def _logits(x: Array, dropout: float, train: bool) -> Array:
    return _dense(2, "dense")(nn.Dropout(dropout, deterministic=not train)(x))


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform(), name=name)


class _Laplacian(nn.Module):
    """See `laplacian`."""

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    norm: str
    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts, x = OrderedDict(), laplacian_of(images)
        for i, (width, window) in enumerate(zip(self.widths, self.kernels, strict=True), start=1):
            x = _plain(width, window, f"conv{i}", window // 2, bias=self.norm == "none")(x)
            acts[f"conv{i}"] = nn.relu(norm_layer(self.norm, train, f"bn{i}")(x))
            x = nn.avg_pool(acts[f"conv{i}"], (2, 2), (2, 2)) if i < 5 else acts[f"conv{i}"]
        return _logits(jnp.mean(x, axis=(1, 2)), self.dropout, train), acts


def laplacian_of(images: Array) -> Array:
    """(B, H, W, C) -> (B, H-2, W-2, C): each pixel's four neighbours less four times itself, channel by channel."""
    x = images[:, 1:-1, 1:-1]
    above, below = images[:, :-2, 1:-1], images[:, 2:, 1:-1]
    return above + below + images[:, 1:-1, :-2] + images[:, 1:-1, 2:] - 4 * x


class _Bondi(nn.Module):
    """See `bondi`."""

    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts, x = OrderedDict(), (images - 0.5) * (255 / 80)
        for i, (width, window) in enumerate(((32, 4), (48, 5), (64, 5), (128, 5)), start=1):
            x = acts[f"conv{i}"] = _plain(width, window, f"conv{i}")(x)
            x = _max_pool(x, 2) if i < 4 else x
        x = nn.relu(_dense(128, "dense1")(x.reshape(x.shape[0], -1)))
        return _logits(x, self.dropout, train), acts


class _Bayar(nn.Module):
    """See `bayar`."""

    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        x = _Constrained(name="constrained")(images)
        acts = OrderedDict(constrained=x)
        for i, (width, window, pad) in enumerate(((96, 7, 3), (64, 5, 2), (64, 5, 2), (128, 1, 0)), start=2):
            x = _plain(width, window, f"conv{i}", pad, 2 if i == 2 else 1)(x)
            x = acts[f"conv{i}"] = jnp.tanh(batch_norm(train, EPSILON, f"bn{i}")(x))
            x = (_max_pool if i < 5 else _mean_pool)(x, 3)
        x = x.reshape(x.shape[0], -1)
        for name in ("dense1", "dense2"):
            x = jnp.tanh(_dense(200, name)(x))
        return _logits(x, self.dropout, train), acts


class _Constrained(nn.Module):
    """A 5x5 convolution to 3 maps, no padding, no bias, whose kernel is `constrained` before it is used.

    Its scale does not matter: batch normalisation follows the next layer.
    """

    @nn.compact
    def __call__(self, images: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (5, 5, images.shape[-1], 3))
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, constrained(kernel), (1, 1), "VALID", None, None, layout)


def constrained(kernel: Array) -> Array:
    """(n, n, I, O), n odd -> the same with -1 at the centre of each n x n slice and the other numbers summing to 1.

    The orthogonal projection: the others are shifted by a common amount. (The authors divide them by their sum, which
    has no bound where the sum is near zero.) Idempotent; its gradient is that of a linear map.
    """
    n = kernel.shape[0]
    centre = jnp.zeros((n, n, 1, 1)).at[n // 2, n // 2].set(1)
    around = kernel * (1 - centre)
    missing = (1 - jnp.sum(around, axis=(0, 1), keepdims=True)) / (n * n - 1)
    return (around + missing) * (1 - centre) - centre


def _max_pool(x: Array, window: int) -> Array:
    """Maxima of windows 2 apart. A last row or column that fills no window is repeated to fill one: its own maximum."""
    pads = [(0, _missing(side, window)) for side in x.shape[1:3]]
    return max_pool(jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge"), window, 2)


def _mean_pool(x: Array, window: int) -> Array:
    """Means of windows 2 apart, at the end of what is there."""
    pads: Any = [(0, _missing(side, window)) for side in x.shape[1:3]]  # typed Any: Flax's own type is too narrow
    return nn.avg_pool(x, (window, window), (2, 2), pads, count_include_pad=False)


def _missing(side: int, window: int) -> int:
    return (window - side) % 2
