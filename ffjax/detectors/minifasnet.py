"""MiniFASNet: faces recaptured from print or screen against faces in front of the camera (Minivision,
Silent-Face-Anti-Spoofing, 2020; no paper).

A pruned MobileFaceNet: blocks of 1x1 convolution to many channels, depthwise 3x3, 1x1 back to few.
"""

from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.depthwise import depthwise
from ffjax.detectors.layers import as_detector, batch_norm, conv
from ffjax.detectors.layout import Layout
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Variables

EPSILON = 1e-5
Stages = tuple[tuple[str, int, tuple[int, ...]], ...]
"""(name, channels at its end, channels inside each of its blocks); a single block halves the size, others are added to
their input."""

V1: Stages = (
    ("conv_23", 64, (103,)),
    ("conv_3", 64, (13, 26, 13, 52)),
    ("conv_34", 128, (231,)),
    ("conv_4", 128, (154, 52, 26, 52, 26, 26)),
    ("conv_45", 128, (308,)),
    ("conv_5", 128, (26, 26)),
)
V2: Stages = (
    ("conv_23", 64, (103,)),
    ("conv_3", 64, (13, 13, 13, 13)),
    ("conv_34", 128, (231,)),
    ("conv_4", 128, (231, 52, 26, 77, 26, 26)),
    ("conv_45", 128, (308,)),
    ("conv_5", 128, (26, 26)),
)


def minifasnet_v1se(size: int = 80, dropout: float = 0.75) -> Detector:
    """MiniFASNetV1SE for size x size images, size a multiple of 16 (InputError otherwise). 433,586 trainable numbers.

    The published weights are for face boxes enlarged 4.0 times and resized to 80 x 80. RGB in [0, 1] becomes what they
    know, BGR in 0 .. 255, inside. Of their three classes one is a real face and two are attacks, (z0, z1, z2) with
    real = 1; the logits are (z1, logsumexp(z0, z2)), whose softmax is the published probability of a real face.

    Activations: conv1, conv2_dw (after BatchNorm and PReLU); then each block's output, which is linear as MobileNetV2's
    are, after the sum where there is one: conv_23, conv_3_0 .. conv_3_3, conv_34, conv_4_0 .. conv_4_5, conv_45,
    conv_5_0, conv_5_1; then conv_6_sep (after PReLU) and conv_6_dw, a linear number for each channel (B, 1, 1, 512).
    The last block of conv_3, conv_4 and conv_5 weights its channels by squeeze and excitation.
    dropout: before the last layer, in training.
    """
    return as_detector(_MiniFASNet(V1, True, dropout), _checked(size, "minifasnet_v1se"))


def minifasnet_v2(size: int = 80, dropout: float = 0.2) -> Detector:
    """MiniFASNetV2: as `minifasnet_v1se` without squeeze and excitation, other widths inside, 434,560 trainable
    numbers, for face boxes enlarged 2.7 times."""
    return as_detector(_MiniFASNet(V2, False, dropout), _checked(size, "minifasnet_v2"))


def three_classes(variables: Variables, images: Array) -> Array:
    """The published logits (B, 3) of either network, class 1 = real face: the two attacks apart."""
    squeezed = "squeeze" in variables["params"]["conv_3_3"]
    module: Any = _MiniFASNet(V1 if squeezed else V2, squeezed, 0.0, three=True)
    return module.apply(variables, images, False)[0]


def torch_layout_v1se() -> Layout:
    """The authors' .pth of V1SE."""
    return _layout(V1, True)


def torch_layout_v2() -> Layout:
    """The authors' .pth of V2."""
    return _layout(V2, False)


def _layout(stages: Stages, squeezed: bool) -> Layout:
    names = {name: name for name in ("linear", "bn", "prob")}
    for name in ("conv1", "conv2_dw", "conv_6_sep", "conv_6_dw"):
        names |= {f"{name}/{part}": f"{name}.{part}" for part in ("conv", "bn", "prelu")}
    for stage, _, widths in stages:
        for i, name in enumerate(_blocks(stage, widths)):
            theirs = stage if name == stage else f"{stage}.model.{i}"
            for layer in ("conv", "conv_dw", "project"):
                names |= {f"{name}/{layer}/{part}": f"{theirs}.{layer}.{part}" for part in ("conv", "bn", "prelu")}
            if squeezed and _is_last(i, widths):
                inside = ("fc1", "bn1", "fc2", "bn2")
                names |= {f"{name}/squeeze/{part}": f"{theirs}.se_module.{part}" for part in inside}
    return Layout(names)


def _blocks(stage: str, widths: tuple[int, ...]) -> list[str]:
    return [stage] if len(widths) == 1 else [f"{stage}_{i}" for i in range(len(widths))]


def _is_last(i: int, widths: tuple[int, ...]) -> bool:
    return len(widths) > 1 and i == len(widths) - 1


def _checked(size: int, name: str) -> int:
    if size < 16 or size % 16:
        raise InputError(f"{name}: image size must be a positive multiple of 16, got {size}")
    return size


class _MiniFASNet(nn.Module):
    """Stem, blocks, a depthwise layer over all that is left of the image, two dense layers."""

    stages: Stages
    squeezed: bool
    dropout: float
    three: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts: OrderedDict[str, Array] = OrderedDict()
        x = acts["conv1"] = _Layer(32, 3, 2, name="conv1")(images[..., ::-1] * 255, train)
        x = acts["conv2_dw"] = _Layer(32, 3, alone=True, name="conv2_dw")(x, train)
        for stage, features, widths in self.stages:
            for i, name in enumerate(_blocks(stage, widths)):
                squeeze = self.squeezed and _is_last(i, widths)
                x = acts[name] = _Block(widths[i], features, len(widths) == 1, squeeze, name=name)(x, train)
        x = acts["conv_6_sep"] = _Layer(512, 1, name="conv_6_sep")(x, train)
        whole = _Layer(512, x.shape[1], padding=0, alone=True, linear=True, name="conv_6_dw")
        x = acts["conv_6_dw"] = whole(x, train)
        x = batch_norm(train, EPSILON, "bn")(nn.Dense(128, use_bias=False, name="linear")(x[:, 0, 0]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        z = nn.Dense(3, use_bias=False, name="prob")(x)
        return z if self.three else jnp.stack([z[:, 1], jnp.logaddexp(z[:, 0], z[:, 2])], axis=1), acts


class _Block(nn.Module):
    """1x1, depthwise 3x3, 1x1; halving the size, or with its input added."""

    width: int
    features: int
    halving: bool
    squeeze: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _Layer(self.width, 1, name="conv")(x, train)
        y = _Layer(self.width, 3, 2 if self.halving else 1, alone=True, name="conv_dw")(y, train)
        y = _Layer(self.features, 1, linear=True, name="project")(y, train)
        y = _Squeeze(name="squeeze")(y, train) if self.squeeze else y
        return y if self.halving else x + y


class _Layer(nn.Module):
    """Convolution without bias, BatchNorm, PReLU. alone: depthwise. linear: no PReLU."""

    features: int
    window: int
    stride: int = 1
    padding: int | None = None
    alone: bool = False
    linear: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        start: dict[str, Any] = {"use_bias": False, "kernel_init": nn.initializers.he_normal()}
        if self.alone:
            x = depthwise(self.features, self.window, "conv", self.stride, self.padding, **start)(x)
        else:
            x = conv(self.features, self.window, "conv", False, self.stride, **start)(x)
        x = batch_norm(train, EPSILON, "bn")(x)
        return x if self.linear else _PRelu(name="prelu")(x)


class _PRelu(nn.Module):
    """x where it is positive, else x times its channel's slope."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, x * slope.reshape(1, 1, 1, -1))


class _Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018), a quarter of the channels inside, with BatchNorm."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        form: dict[str, Any] = {"use_bias": False, "conv_general_dilated": _of_one_pixel}
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        for i, features in enumerate((x.shape[-1] // 4, x.shape[-1]), start=1):
            y = conv(features, 1, f"fc{i}", False, **form)(y)
            y = batch_norm(train, EPSILON, f"bn{i}")(y)
            y = nn.relu(y) if i == 1 else nn.sigmoid(y)
        return x * y


def _of_one_pixel(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """The 1x1 convolution of 1x1 images as the matrix product it is; the signature is lax.conv_general_dilated's, for
    nn.Conv. XLA:CPU's own convolution rounds a row differently by the number of rows."""
    return (x[:, 0, 0] @ kernel[0, 0])[:, None, None]
