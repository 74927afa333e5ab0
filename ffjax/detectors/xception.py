"""Xception (Chollet, CVPR 2017) in the form of FaceForensics++ (Roessler et al., ICCV 2019)."""

from collections import OrderedDict

import flax.linen as nn
import numpy as np

from ffjax.detectors.depthwise import depthwise
from ffjax.detectors.layers import MEAN_AND_SPREAD, as_detector, batch_norm, class_order, normalised, one_of, pointwise
from ffjax.detectors.layout import Layout, Numbers
from ffjax.detectors.pooling import max_pool, mean_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector

EPSILON = 1e-5
START = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
BLOCKS = (
    ((128, 128), 2),
    ((256, 256), 2),
    ((728, 728), 2),
    *[((728, 728, 728), 1)] * 8,
    ((728, 1024), 2),
)
"""Widths of each block's separable convolutions, and the stride of the block."""


def xception(size: int = 299, dropout: float = 0.0, *, normalise: str = "half") -> Detector:
    """XceptionNet for size x size images, any size from 32.

    Two 3x3 convolutions without padding (the first of stride 2), twelve blocks of two or three separable convolutions
    beside a shortcut, two more separable convolutions, global average, two logits: 20,811,050 trainable numbers.

    Activations conv1, conv2, block1 .. block12, conv3, conv4. A block ends in a sum without a ReLU; its activation is
    the positive part of the sum, because that is what the next block's convolutions see (only the shortcuts, and conv3
    after block12, see the sum itself).

    dropout: before the last layer, in training. normalise: 'half' (to [-1, 1], as FaceForensics++ does), 'imagenet' or
    'none'. InputError for any other size or option.
    """
    if size < 32:
        raise InputError(f"xception: image size must be at least 32, got {size}")
    one_of("xception: normalise", normalise, MEAN_AND_SPREAD)
    return as_detector(_Xception(dropout, normalise), size)


def torch_layout(*, classes: str = "real_first") -> Layout:
    """The state dict of FaceForensics++'s Xception, or of the ImageNet one it starts from, with two outputs.

    Understood: a `model.` before every key, the last layer as `last_linear`, `last_linear.1` (behind a dropout) or
    `fc`, and pointwise kernels as matrices (the first ImageNet file). classes: 'real_first' (output 1 = fake, as here
    and in FaceForensics++) or 'fake_first'. An ImageNet file does not fit until its last layer has two rows.
    """
    names = {f"{kind}{i}": f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2)} | {"dense": "last_linear"}
    for i in (3, 4):
        names |= {f"bn{i}": f"bn{i}"} | _separable(f"conv{i}", f"conv{i}")
    for number, (widths, stride) in enumerate(BLOCKS, start=1):
        ours, theirs = f"block{number}", f"block{number}"
        for i in range(len(widths)):
            place = 3 * i + (number > 1)  # every block but the first begins with a ReLU, which counts as a module
            names |= {f"{ours}/bn{i + 1}": f"{theirs}.rep.{place + 1}"}
            names |= _separable(f"{ours}/conv{i + 1}", f"{theirs}.rep.{place}")
        if stride > 1:
            names |= {f"{ours}/project": f"{theirs}.skip", f"{ours}/bn_project": f"{theirs}.skipbn"}
    return Layout(names, first=_of_any_release, last=class_order(classes, "dense"))


def _separable(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/depthwise": f"{theirs}.conv1", f"{ours}/pointwise": f"{theirs}.pointwise"}


def _of_any_release(state: Numbers) -> Numbers:
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    for last in ("fc.", "last_linear.1."):
        if not any(key in state for key in ("last_linear.weight", "last_linear.bias")):
            state = {key.replace(last, "last_linear.") if key.startswith(last) else key: state[key] for key in state}
    return {key: _four_axes(value) if key.endswith("pointwise.weight") else value for key, value in state.items()}


def _four_axes(kernel: np.ndarray) -> np.ndarray:
    return kernel[:, :, None, None] if kernel.ndim == 2 else kernel


class _Separable(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, with nothing between."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = depthwise(x.shape[-1], 3, "depthwise", use_bias=False, kernel_init=START)(x)
        return pointwise(self.features, "pointwise", use_bias=False, kernel_init=START)(x)


class _Block(nn.Module):
    """ReLU, separable convolution, BN, as often as there are widths; max pool if it strides; plus the shortcut."""

    widths: tuple[int, ...]
    stride: int
    relu_first: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = x
        for i, width in enumerate(self.widths, start=1):
            y = nn.relu(y) if i > 1 or self.relu_first else y
            y = batch_norm(train, EPSILON, f"bn{i}")(_Separable(width, name=f"conv{i}")(y))
        if self.stride == 1:
            return y + x
        short = pointwise(self.widths[-1], "project", use_bias=False, kernel_init=START)(x[:, ::2, ::2])
        return max_pool(y, 3, 2, 1) + batch_norm(train, EPSILON, "bn_project")(short)


class _Xception(nn.Module):
    """Entry, middle and exit flow, global average, dense."""

    dropout: float
    normalise: str

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts, x = OrderedDict(), normalised(images, self.normalise)
        for i, (features, stride) in enumerate(((32, 2), (64, 1)), start=1):
            plain = nn.Conv(features, (3, 3), stride, 0, use_bias=False, kernel_init=START, name=f"conv{i}")
            x = acts[f"conv{i}"] = nn.relu(batch_norm(train, EPSILON, f"bn{i}")(plain(x)))
        for i, (widths, stride) in enumerate(BLOCKS, start=1):
            x = _Block(widths, stride, i > 1, name=f"block{i}")(x, train)
            acts[f"block{i}"] = nn.relu(x)
        for i, features in ((3, 1536), (4, 2048)):
            x = _Separable(features, name=f"conv{i}")(x)
            x = acts[f"conv{i}"] = nn.relu(batch_norm(train, EPSILON, f"bn{i}")(x))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(mean_pool(x))
        return nn.Dense(2, name="dense")(pooled), acts
