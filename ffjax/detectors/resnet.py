"""ResNet-10: one basic block a stage (He et al., CVPR 2016), narrow, and shaped for forensics on a CPU."""

from collections import OrderedDict

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.layers import as_detector, batch_norm, conv
from ffjax.errors import InputError
from ffjax.types import Array, Detector

EPSILON = 1e-5
STEM = 8  # XLA:CPU's gradient of a stride-2 convolution is ten times slower from 16 channels than from 8
WIDTHS = (16, 32, 64, 128)


def resnet10(size: int = 128, dropout: float = 0.0) -> Detector:
    """A ResNet of one basic block a stage, widths 16, 32, 64, 128, for size x size images.

    A 3x3 stem of 8 channels at full resolution without pooling, because traces of forgery sit in the highest
    frequencies; each block then halves the size. Global average pooling, two logits. 306,570 trainable numbers at any
    size. dropout: before the last layer, in training. Activations stem (after its ReLU), block1 .. block4 (after the
    sum's ReLU). InputError unless size is a multiple of 16.
    """
    if size < 16 or size % 16:
        raise InputError(f"resnet10: image size must be a positive multiple of 16, got {size}")
    return as_detector(_ResNet(dropout), size)


def _conv(features: int, window: int, stride: int, name: str, narrow: bool = False) -> nn.Conv:
    return conv(features, window, name, narrow, stride, use_bias=False, kernel_init=nn.initializers.he_normal())


class _Block(nn.Module):
    """conv stride 2 - BN - ReLU - conv - BN, plus a 1x1 stride-2 projection, then ReLU: half the size."""

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(batch_norm(train, EPSILON, "bn1")(_conv(self.features, 3, 2, "conv1")(x)))
        y = batch_norm(train, EPSILON, "bn2")(_conv(self.features, 3, 1, "conv2")(y))
        short = _conv(self.features, 1, 1, "project")(x[:, ::2, ::2])  # = stride 2, with a cheaper gradient
        return nn.relu(y + batch_norm(train, EPSILON, "bn_project")(short))


class _ResNet(nn.Module):
    """Stem, four blocks, global average, dense."""

    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        # [0, 1] to about [-2, 2]: photographs centre near the middle grey, with a spread of about a quarter.
        x = _conv(STEM, 3, 1, "stem", narrow=True)((images - 0.5) / 0.25)
        acts = OrderedDict(stem=nn.relu(batch_norm(train, EPSILON, "bn_stem")(x)))
        x = acts["stem"]
        for i, width in enumerate(WIDTHS, start=1):
            x = acts[f"block{i}"] = _Block(width, name=f"block{i}")(x, train)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(2, name="dense")(pooled), acts
