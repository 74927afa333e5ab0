"""EfficientNet-B0 and -B4 (Tan & Le, ICML 2019) as torchvision has them."""

from collections import OrderedDict
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.depthwise import depthwise
from ffjax.detectors.layers import (
    MEAN_AND_SPREAD,
    as_detector,
    batch_norm,
    class_order,
    conv,
    normalised,
    one_of,
    pointwise,
)
from ffjax.detectors.layout import Layout
from ffjax.detectors.pooling import mean_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector

EPSILON = 1e-5
START = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Plan(NamedTuple):
    """How a member of the family is scaled. blocks: (expansion, window, stride, channels out) of each MBConv block."""

    stem: int
    blocks: tuple[tuple[int, int, int, int], ...]
    head: int


def _plan(stem: int, channels: tuple[int, ...], repeats: tuple[int, ...], head: int) -> _Plan:
    forms = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))
    blocks = []
    for (expand, window, stride), width, count in zip(forms, channels, repeats, strict=True):
        blocks += [(expand, window, stride if i == 0 else 1, width) for i in range(count)]
    return _Plan(stem, tuple(blocks), head)


PLANS = {
    "efficientnet_b0": _plan(32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280),
    "efficientnet_b4": _plan(48, (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2), 1792),
}


def efficientnet_b0(
    size: int = 224, dropout: float = 0.2, *, normalise: str = "imagenet", stochastic_depth: float = 0.2
) -> Detector:
    """EfficientNet-B0 for size x size images, any size from 32: 4,010,110 trainable numbers.

    3x3 stride-2 stem, sixteen MBConv blocks (1x1 expansion, depthwise convolution, squeeze and excitation, 1x1
    projection; SiLU), a 1x1 head, global average, two logits. Activations stem and head after SiLU, and block1 ..
    block16 as the blocks end: in a linear projection or a sum, without a non-linearity.

    dropout: before the last layer, in training. stochastic_depth: the share of images that skip the last block in
    training; proportionally fewer skip the earlier ones. normalise: 'imagenet', 'half' (to [-1, 1]) or 'none'.
    InputError for any other size or option.
    """
    return _family("efficientnet_b0", size, dropout, normalise, stochastic_depth)


def efficientnet_b4(
    size: int = 380, dropout: float = 0.4, *, normalise: str = "imagenet", stochastic_depth: float = 0.2
) -> Detector:
    """EfficientNet-B4, in all else as `efficientnet_b0`: 32 blocks, 17,552,202 trainable numbers."""
    return _family("efficientnet_b4", size, dropout, normalise, stochastic_depth)


def _family(arch: str, size: int, dropout: float, normalise: str, stochastic_depth: float) -> Detector:
    if size < 32:
        raise InputError(f"{arch}: image size must be at least 32, got {size}")
    one_of(f"{arch}: normalise", normalise, MEAN_AND_SPREAD)
    return as_detector(_EfficientNet(PLANS[arch], dropout, normalise, stochastic_depth), size)


def torch_layout(arch: str = "efficientnet_b0", *, classes: str = "real_first") -> Layout:
    """torchvision's state dict of 'efficientnet_b0' or 'efficientnet_b4' with two outputs.

    classes: 'real_first' (output 1 = fake, as here) or 'fake_first' (folders in alphabetical order: fake, real). An
    ImageNet file does not fit, because its last layer has 1000 rows: to start from one, first put two rows there.
    """
    plan = PLANS[one_of("EfficientNet", arch, PLANS)]
    names = {"stem": "features.0.0", "bn_stem": "features.0.1", "dense": "classifier.1"}
    names |= {"head": "features.8.0", "bn_head": "features.8.1"}
    stage, place = 0, 0
    for number, (block, before) in enumerate(zip(plan.blocks, (None, *plan.blocks), strict=False), start=1):
        new = before is None or (block[1], block[3]) != (before[1], before[3])
        stage, place = (stage + 1, 0) if new else (stage, place + 1)
        steps = ("depthwise", "excite", "project") if block[0] == 1 else ("expand", "depthwise", "excite", "project")
        for i, step in enumerate(steps):
            ours, theirs = f"block{number}/{step}", f"features.{stage}.{place}.block.{i}"
            if step == "excite":
                names |= {f"{ours}/{name}": f"{theirs}.{name}" for name in ("fc1", "fc2")}
            else:
                names |= {ours: f"{theirs}.0", f"block{number}/bn_{step}": f"{theirs}.1"}
    return Layout(names, last=class_order(classes, "dense"))


class _Excite(nn.Module):
    """Squeeze and excitation: each channel times a share in (0, 1) read off all channels' means."""

    squeezed: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = nn.silu(pointwise(self.squeezed, "fc1")(means))
        return x * nn.sigmoid(pointwise(x.shape[-1], "fc2")(y))


class _MBConv(nn.Module):
    """Expand, depthwise, excite, project; plus the shortcut where the shape stays. skip: stochastic depth."""

    form: tuple[int, int, int, int]
    skip: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        (expand, window, stride, features), given = self.form, x.shape[-1]
        y, wide = x, expand * given
        if expand > 1:
            y = nn.silu(_to_width(y, wide, "expand", train))
        y = depthwise(wide, window, "depthwise", stride, use_bias=False, kernel_init=START)(y)
        y = _Excite(max(1, given // 4), name="excite")(nn.silu(batch_norm(train, EPSILON, "bn_depthwise")(y)))
        y = _to_width(y, features, "project", train)
        if stride > 1 or features != given:
            return y
        return x + nn.Dropout(self.skip, (1, 2, 3), deterministic=not train)(y)


def _to_width(x: Array, features: int, name: str, train: bool) -> Array:
    layer = pointwise(features, name, use_bias=False, kernel_init=START)
    return batch_norm(train, EPSILON, f"bn_{name}")(layer(x))


class _EfficientNet(nn.Module):
    """Stem, blocks, head, global average, dense."""

    plan: _Plan
    dropout: float
    normalise: str
    stochastic_depth: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        size = images.shape[1]
        stem = conv(self.plan.stem, 3, "stem", size % 2 == 0, 2, use_bias=False, kernel_init=START)
        x = stem(normalised(images, self.normalise))
        x = nn.silu(batch_norm(train, EPSILON, "bn_stem")(x))
        acts = OrderedDict(stem=x)
        for i, form in enumerate(self.plan.blocks):
            skip = self.stochastic_depth * i / len(self.plan.blocks)
            x = acts[f"block{i + 1}"] = _MBConv(form, skip, name=f"block{i + 1}")(x, train)
        x = acts["head"] = nn.silu(_to_width(x, self.plan.head, "head", train))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(mean_pool(x))
        return nn.Dense(2, name="dense")(pooled), acts
