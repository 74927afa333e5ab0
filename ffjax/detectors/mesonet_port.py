"""The widely used PyTorch port of Meso-4 and MesoInception-4 (H. Liu, MesoNet-Pytorch, 2019; also in DeepfakeBench).

It is another network than the authors' (see mesonet.py, which is its corrected form): two logits, mean and standard
deviation 0.5, convolutions without bias, no non-linearity inside an inception layer, and one BatchNorm module used
after two convolutions. Its names were read off the port's public sources; no released file of it was at hand, so what
is proven is the arithmetic and the reading of a state dict with these names, not a published figure.
"""

from collections import OrderedDict

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.layers import as_detector, batch_norm, class_order, conv, normalised, one_of
from ffjax.detectors.layout import Layout, Numbers
from ffjax.detectors.pooling import max_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector

EPSILON = 1e-5
START = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's
BRANCHES = {"a": "1", "b1": "2_1", "b2": "2_2", "c1": "3_1", "c2": "3_2", "d1": "4_1", "d2": "4_2"}
"""Ours -> the end of the port's name."""
QUIRKS = ("fixed", "as_released")


def meso4_port(size: int = 256, dropout: float = 0.5, *, shared_norm: str = "fixed") -> Detector:
    """The port's Meso-4 for size x size images, size a multiple of 32.

    27,946 trainable numbers at 256, 27,898 as released. Activations conv1 .. conv4: after ReLU, before BatchNorm.

    Args:
      dropout: before each dense layer, in training; the port's Dropout2d, of vectors, drops single numbers too.
      shared_norm: "as_released": one BatchNorm stands after conv1 and conv2, another after conv3 and conv4, and in
        training each gathers the statistics of both places. "fixed": one each. Published numbers go to both places, so
        inference is the same.

    InputError for a size or value it does not take.
    """
    return _built("meso4_port", size, dropout, shared_norm)


def mesoinception4_port(size: int = 256, dropout: float = 0.5, *, shared_norm: str = "fixed") -> Detector:
    """The port's MesoInception-4 for size x size images, size a multiple of 32.

    28,557 trainable numbers at 256, 28,525 as released. Activations inception1, inception2 (the four branches side by
    side; linear in their input), conv3, conv4 (after ReLU), each before BatchNorm. Arguments as in `meso4_port`; here
    the shared BatchNorm is that of conv3 and conv4 alone.
    """
    return _built("mesoinception4_port", size, dropout, shared_norm)


def meso4_layout(*, shared_norm: str = "fixed", classes: str = "real_first") -> Layout:
    """The port's Meso4, with or without DeepfakeBench's 'backbone.' before its names.

    classes: the order of its two outputs. 'real_first' in DeepfakeBench; the port itself numbers folders by the
    alphabet, so 'fake_first' for df and real.
    """
    names = {f"conv{i}": f"conv{i}" for i in range(1, 5)}
    return _layout(names, ("bn1", "bn1", "bn2", "bn2"), shared_norm, classes)


def mesoinception4_layout(*, shared_norm: str = "fixed", classes: str = "real_first") -> Layout:
    """The port's MesoInception4, whose Inception is spelt Incption; otherwise as `meso4_layout`."""
    names = {f"inception{i}/{ours}": f"Incption{i}_conv{end}" for i in (1, 2) for ours, end in BRANCHES.items()}
    norms = ("Incption1_bn", "Incption2_bn", "bn1", "bn1")
    return _layout(names | {"conv3": "conv1", "conv4": "conv2"}, norms, shared_norm, classes)


def _layout(names: dict[str, str], norms: tuple[str, ...], shared_norm: str, classes: str) -> Layout:
    names = {**names, **_norms(shared_norm, norms), "dense1": "fc1", "dense2": "fc2"}
    return Layout(names, first=_without_backbone, last=class_order(classes, "dense2"))


def _norms(shared_norm: str, theirs: tuple[str, ...]) -> dict[str, str]:
    """Our BatchNorms -> the port's, block by block; as released, ours take the number of the first block they serve."""
    first = [theirs.index(name) if shared_norm == "as_released" else i for i, name in enumerate(theirs)]
    return {f"bn{i + 1}": name for i, name in zip(first, theirs, strict=True)}


def _without_backbone(state: Numbers) -> Numbers:
    return {key.removeprefix("backbone."): value for key, value in state.items()}


def _built(arch: str, size: int, dropout: float, shared_norm: str) -> Detector:
    if size < 32 or size % 32:
        raise InputError(f"{arch}: image size must be a positive multiple of 32, got {size}")
    shared = one_of(f"{arch}: shared_norm", shared_norm, QUIRKS) == "as_released"
    return as_detector(_Port(arch.startswith("mesoinception4"), dropout, shared), size)


def _conv(x: Array, features: int, window: int, name: str, dilation: int = 1) -> Array:
    form = conv(features, window, name, x.shape[-1] <= 4, dilation=dilation, use_bias=False, kernel_init=START)
    return form(x)


class _Inception(nn.Module):
    """Four branches side by side: 1x1, and three of 1x1 then 3x3 with dilation 1, 2, 3. `first` is the width of a."""

    first: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [_conv(x, self.first, 1, "a")]
        for dilation, (branch, width) in enumerate(zip("bcd", (4, 4, 2), strict=True), start=1):
            branches.append(_conv(_conv(x, width, 1, f"{branch}1"), width, 3, f"{branch}2", dilation))
        return jnp.concatenate(branches, axis=-1)


class _Port(nn.Module):
    """Four blocks, of which the first two may be inception layers, and the head."""

    inception: bool
    dropout: float
    shared: bool

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        places = ((0, 1, 2, 2) if self.inception else (0, 0, 2, 2)) if self.shared else range(4)
        norms = {i: batch_norm(train, EPSILON, f"bn{i + 1}") for i in sorted(set(places))}
        acts, x = OrderedDict(), normalised(images, "half")
        for i, (place, pool) in enumerate(zip(places, (2, 2, 2, 4), strict=True)):
            if self.inception and i < 2:
                name = f"inception{i + 1}"
                acts[name] = _Inception(i + 1, name=name)(x)
            else:
                name = f"conv{i + 1}"
                acts[name] = nn.relu(_conv(x, (8, 8, 16, 16)[i], (3, 5, 5, 5)[i], name))
            x = max_pool(norms[place](acts[name]), pool)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first: the order the published fc1 reads
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.leaky_relu(nn.Dense(16, kernel_init=START, name="dense1")(x), 0.1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(2, kernel_init=START, name="dense2")(x), acts
