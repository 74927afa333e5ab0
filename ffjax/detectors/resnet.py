"""Residual networks (He et al., CVPR 2016): ResNet-18 and ResNet-50 as torchvision has them, and ResNet-10, one basic
block a stage, narrow, and shaped for forensics on a CPU."""

from collections import OrderedDict
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.layers import (
    MEAN_AND_SPREAD,
    NORMS,
    as_detector,
    batch_norm,
    class_order,
    conv,
    norm_layer,
    normalised,
    one_of,
)
from ffjax.detectors.layout import Layout
from ffjax.detectors.pooling import max_pool, mean_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector

EPSILON = 1e-5
FEW = 8  # pixels on a side; below, convolutions are cheaper tap by tap
STEM = 8  # XLA:CPU's gradient of a stride-2 convolution is ten times slower from 16 channels than from 8
WIDTHS = (16, 32, 64, 128)
START = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def resnet10(size: int = 128, dropout: float = 0.0) -> Detector:
    """A ResNet of one basic block a stage, widths 16, 32, 64, 128, for size x size images.

    A 3x3 stem of 8 channels at full resolution without pooling, because traces of forgery sit in the highest
    frequencies; each block then halves the size. Global average pooling, two logits. 306,570 trainable numbers at any
    size. dropout: before the last layer, in training. Activations stem (after its ReLU), block1 .. block4 (after the
    sum's ReLU). InputError unless size is a multiple of 16.
    """
    return as_detector(_Small(dropout), _checked(size, "resnet10", 16))


def resnet18(
    size: int = 224,
    dropout: float = 0.0,
    *,
    width: int = 64,
    norm: str = "batch",
    normalise: str = "imagenet",
    relu: str = "relu",
) -> Detector:
    """ResNet-18 for size x size images, size a multiple of 32: one of the two networks of Gandhi & Jain (IJCNN 2020).

    7x7 stride-2 stem, 3x3 stride-2 max pool, eight basic blocks, global average, two logits: 11,177,538 trainable
    numbers. Activations stem (before the pool) and block1 .. block8, each after its (or the sum's) ReLU.

    dropout: before the last layer, in training. width: channels of the first stage, doubled by each later one.
    norm: 'batch', 'group', or 'none' (the convolutions then have biases). normalise: 'imagenet' (torchvision's mean
    and deviation), 'half' (to [-1, 1]), or 'none' (Gandhi & Jain: [0, 1] as it is). relu: 'relu', or 'huber': every
    ReLU, the stem's included, is Gandhi & Jain's half-Huber function. InputError for any other size or option.
    """
    return _general("resnet18", size, dropout, _Form(width, norm, normalise, relu))


def resnet50(
    size: int = 224,
    dropout: float = 0.0,
    *,
    width: int = 64,
    norm: str = "batch",
    normalise: str = "imagenet",
    relu: str = "relu",
) -> Detector:
    """ResNet-50, in all else as `resnet18`: sixteen bottleneck blocks, 23,512,130 trainable numbers.

    A block's stride sits in its 3x3 convolution, as in torchvision (the paper has it in the first 1x1). Activations
    stem and block1 .. block16.
    """
    return _general("resnet50", size, dropout, _Form(width, norm, normalise, relu))


def torch_layout(arch: str = "resnet18", *, classes: str = "real_first") -> Layout:
    """torchvision's state dict of 'resnet18' or 'resnet50' with two outputs.

    classes: 'real_first' (output 1 = fake, as here) or 'fake_first' (folders in alphabetical order: fake, real). An
    ImageNet file does not fit, because its last layer has 1000 rows: to start from one, first put two rows there.
    """
    depths = DEPTHS[one_of("ResNet", arch, DEPTHS)]
    names, number = {"stem": "conv1", "bn_stem": "bn1", "dense": "fc"}, 0
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            number += 1
            parts = {f"{kind}{k}": f"{kind}{k}" for kind in ("conv", "bn") for k in range(1, 3 + (arch == "resnet50"))}
            if i == 0 and (stage > 1 or arch == "resnet50"):
                parts |= {"project": "downsample.0", "bn_project": "downsample.1"}
            names |= {f"block{number}/{ours}": f"layer{stage}.{i}.{theirs}" for ours, theirs in parts.items()}
    return Layout(names, last=class_order(classes, "dense"))


def half_huber(x: Array) -> Array:
    """Gandhi & Jain's smooth ReLU: 0 below 0, x^2 / (2d) up to d = 0.5, x - d / 2 beyond."""
    bent = jnp.clip(x, 0.0, 0.5)
    return bent * (x - bent / 2) / 0.5


RELUS = {"relu": nn.relu, "huber": half_huber}


class _Form(NamedTuple):
    """What all blocks of a network share."""

    width: int
    norm: str
    normalise: str
    relu: str


def _general(arch: str, size: int, dropout: float, form: _Form) -> Detector:
    one_of(f"{arch}: norm", form.norm, NORMS)
    one_of(f"{arch}: normalise", form.normalise, MEAN_AND_SPREAD)
    one_of(f"{arch}: relu", form.relu, RELUS)
    return as_detector(_General(DEPTHS[arch], arch == "resnet50", dropout, form), _checked(size, arch, 32))


def _checked(size: int, name: str, multiple: int) -> int:
    if size < multiple or size % multiple:
        raise InputError(f"{name}: image size must be a positive multiple of {multiple}, got {size}")
    return size


class _General(nn.Module):
    """Stem, max pool, four stages of basic or bottleneck blocks, global average, dense."""

    depths: tuple[int, ...]
    bottleneck: bool
    dropout: float
    form: _Form

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        x = _conv(normalised(images, self.form.normalise), self.form, train, "stem", self.form.width, 7, 2)
        acts = OrderedDict(stem=RELUS[self.form.relu](x))
        x = max_pool(acts["stem"], 3, 2, 1)
        block = _Bottleneck if self.bottleneck else _Basic
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                name, stride = f"block{len(acts)}", 2 if stage and i == 0 else 1
                x = acts[name] = block(self.form.width * 2**stage, stride, self.form, name=name)(x, train)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(mean_pool(x))
        return nn.Dense(2, name="dense")(pooled), acts


class _Basic(nn.Module):
    """3x3 - 3x3, plus the shortcut."""

    features: int
    stride: int
    form: _Form

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        relu = RELUS[self.form.relu]
        y = relu(_conv(x, self.form, train, "conv1", self.features, 3, self.stride))
        y = _conv(y, self.form, train, "conv2", self.features, 3)
        return relu(y + _shortcut(x, self.features, self.stride, self.form, train))


class _Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 to four times the features, plus the shortcut."""

    features: int
    stride: int
    form: _Form

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        relu, wide = RELUS[self.form.relu], 4 * self.features
        y = relu(_conv(x, self.form, train, "conv1", self.features))
        y = relu(_conv(y, self.form, train, "conv2", self.features, 3, self.stride))
        y = _conv(y, self.form, train, "conv3", wide)
        return relu(y + _shortcut(x, wide, self.stride, self.form, train))


def _shortcut(x: Array, features: int, stride: int, form: _Form, train: bool) -> Array:
    """The block's input, projected where its shape differs from the output's."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return _conv(x[:, ::stride, ::stride], form, train, "project", features)  # = stride 2, with a cheaper gradient


def _conv(x: Array, form: _Form, train: bool, name: str, features: int, window: int = 1, stride: int = 1) -> Array:
    """Convolution and normalisation: conv1 and bn1, stem and bn_stem."""
    bn = name.replace("conv", "bn") if name.startswith("conv") else f"bn_{name}"
    options: dict[str, Any] = {"use_bias": form.norm == "none", "kernel_init": START}
    return norm_layer(form.norm, train, bn, EPSILON)(
        conv(features, window, name, x.shape[-1] <= 4, stride, **options)(x)
    )


class _SmallBlock(nn.Module):
    """conv stride 2 - BN - ReLU - conv - BN, plus a 1x1 stride-2 projection, then ReLU: half the size."""

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(batch_norm(train, EPSILON, "bn1")(_small_conv(self.features, 3, 2, "conv1")(x)))
        y = batch_norm(train, EPSILON, "bn2")(_small_conv(self.features, 3, 1, "conv2")(y))
        short = _small_conv(self.features, 1, 1, "project")(x[:, ::2, ::2])
        return nn.relu(y + batch_norm(train, EPSILON, "bn_project")(short))


class _Small(nn.Module):
    """Stem, four blocks, global average, dense."""

    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        # [0, 1] to about [-2, 2]: photographs centre near the middle grey, with a spread of about a quarter.
        x = _small_conv(STEM, 3, 1, "stem", narrow=True)((images - 0.5) / 0.25)
        acts = OrderedDict(stem=nn.relu(batch_norm(train, EPSILON, "bn_stem")(x)))
        x = acts["stem"]
        for i, width in enumerate(WIDTHS, start=1):
            x = acts[f"block{i}"] = _SmallBlock(width, name=f"block{i}")(x, train)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(mean_pool(x))
        return nn.Dense(2, name="dense")(pooled), acts


def _small_conv(features: int, window: int, stride: int, name: str, narrow: bool = False) -> nn.Conv:
    return conv(features, window, name, narrow, stride, use_bias=False, kernel_init=nn.initializers.he_normal())
