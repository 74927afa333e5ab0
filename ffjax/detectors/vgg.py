"""VGG-16 (Simonyan & Zisserman, ICLR 2015) as torchvision has it."""

from collections import OrderedDict

import flax.linen as nn

from ffjax.detectors.layers import (
    MEAN_AND_SPREAD,
    NORMS,
    as_detector,
    class_order,
    conv,
    norm_layer,
    normalised,
    one_of,
)
from ffjax.detectors.layout import Layout
from ffjax.detectors.pooling import adaptive_mean_pool, max_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions in each stage; a 2x2 max pool ends it."""

START = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def vgg16(
    size: int = 224,
    dropout: float = 0.5,
    *,
    width: int = 64,
    norm: str = "none",
    normalise: str = "imagenet",
    pooled: int = 7,
    hidden: int = 4096,
) -> Detector:
    """VGG-16 for size x size images, size a multiple of 32: one of the two networks of Gandhi & Jain (IJCNN 2020).

    Thirteen 3x3 convolutions in five stages, averages over 7x7 bins, two hidden dense layers, two logits: 134,268,738
    trainable numbers. Activations conv1_1, conv1_2, conv2_1 .. conv5_3, each after its ReLU.

    dropout: after each hidden layer, in training. width: channels of the first stage, doubled by each later one up to
    eight times. norm: 'none', 'batch' (torchvision's vgg16_bn) or 'group', between convolution and ReLU. normalise:
    'imagenet', 'half' (to [-1, 1]), or 'none' (Gandhi & Jain: [0, 1] as it is). pooled: bins on each side (PyTorch's
    adaptive average: overlapping where they do not divide the image). hidden: size of the hidden layers. InputError
    for any other size or option.
    """
    if size < 32 or size % 32:
        raise InputError(f"vgg16: image size must be a positive multiple of 32, got {size}")
    one_of("vgg16: norm", norm, NORMS)
    one_of("vgg16: normalise", normalise, MEAN_AND_SPREAD)
    return as_detector(_VGG(dropout, width, norm, normalise, pooled, hidden), size)


def torch_layout(norm: str = "none", *, classes: str = "real_first") -> Layout:
    """torchvision's state dict of vgg16 (norm 'none') or vgg16_bn ('batch') with two outputs.

    classes: 'real_first' (output 1 = fake, as here) or 'fake_first' (folders in alphabetical order: fake, real). An
    ImageNet file does not fit, because its last layer has 1000 rows: to start from one, first put two rows there.
    """
    names, place = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}, 0
    for stage, depth in enumerate(DEPTHS, start=1):
        for i in range(1, depth + 1):
            names[f"conv{stage}_{i}"] = f"features.{place}"
            if norm != "none":
                names[f"bn{stage}_{i}"] = f"features.{place + 1}"
            place += 2 if norm == "none" else 3
        place += 1
    return Layout(names, last=class_order(classes, "fc8"))


class _VGG(nn.Module):
    """Five stages, adaptive average, three dense layers."""

    dropout: float
    width: int
    norm: str
    normalise: str
    pooled: int
    hidden: int

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts, x = OrderedDict(), normalised(images, self.normalise)
        for stage, depth in enumerate(DEPTHS, start=1):
            for i in range(1, depth + 1):
                features = self.width * min(2 ** (stage - 1), 8)
                x = conv(features, 3, f"conv{stage}_{i}", x.shape[-1] <= 4, kernel_init=START)(x)
                x = nn.relu(norm_layer(self.norm, train, f"bn{stage}_{i}")(x))
                acts[f"conv{stage}_{i}"] = x
            x = max_pool(x, 2)
        x = adaptive_mean_pool(x, self.pooled)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # PyTorch's order, so that its weights fit as they are
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(2, name="fc8")(x), acts
