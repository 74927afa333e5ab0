"""Meso-4 and MesoInception-4 (Afchar, Nozick, Yamagishi, Echizen, WIFS 2018, arXiv 1809.00888).

These follow the authors' Keras networks, not the PyTorch port with one BatchNorm shared by two layers: every
convolution has a bias and a ReLU, and batch normalisation stands after the ReLU.
"""

from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ffjax.detectors.blocks import conv_in_blocks, out_of_blocks
from ffjax.detectors.layers import as_detector, batch_norm, conv, dot_to_one, on_cpu
from ffjax.detectors.pooling import first_maximum, max_pool
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Variables

EPSILON = 1e-3  # Keras' default, part of what the published weights mean
START = nn.initializers.glorot_uniform()  # Keras', too
FEATURES, WINDOWS = (8, 8, 16, 16), (3, 5, 5, 5)


def meso4(size: int = 256, dropout: float = 0.5) -> Detector:
    """Meso-4 for size x size images, size a multiple of 32 (InputError otherwise).

    27,977 trainable numbers at 256. Activations conv1 .. conv4: each block's value after ReLU, before BatchNorm.
    dropout: before each dense layer, in training (0.5: the authors').
    """
    return as_detector(_Meso(inception=False, dropout=dropout), _checked(size, "meso4"))


def mesoinception4(size: int = 256, dropout: float = 0.5) -> Detector:
    """MesoInception-4 for size x size images, size a multiple of 32 (InputError otherwise).

    28,615 trainable numbers at 256. Activations inception1, inception2 (the four branches side by side, after ReLU,
    before BatchNorm), conv3, conv4. dropout as in `meso4`.
    """
    return as_detector(_Meso(inception=True, dropout=dropout), _checked(size, "mesoinception4"))


def input_size(variables: Variables) -> int:
    """The image size a set of Meso variables was made for, read off its first dense layer. InputError if none fits."""
    rows = variables["params"]["dense1"]["kernel"].shape[0]
    size = 32 * round((rows / 16) ** 0.5)
    if size == 0 or 16 * (size // 32) ** 2 != rows:
        raise InputError(f"a dense layer of {rows} rows fits no square image")
    return size


def _checked(size: int, name: str) -> int:
    if size < 32 or size % 32:
        raise InputError(f"{name}: image size must be a positive multiple of 32, got {size}")
    return size


def _conv(x: Array, features: int, window: int, name: str, dilation: int = 1) -> Array:
    narrow = x.shape[-1] <= 4
    return nn.relu(conv(features, window, name, narrow, dilation=dilation, kernel_init=START)(x))


class _Inception(nn.Module):
    """Four branches side by side, with a ReLU after every convolution: a is 1x1; b, c, d are 1x1 and then 3x3 with
    dilation 1, 2, 3. `widths` are their channels."""

    widths: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [_conv(x, self.widths[0], 1, "a")]
        for dilation, (branch, width) in enumerate(zip("bcd", self.widths[1:], strict=True), start=1):
            narrow = _conv(x, width, 1, f"{branch}1")
            branches.append(_conv(narrow, width, 3, f"{branch}2", dilation))
        return jnp.concatenate(branches, axis=-1)


class _Meso(nn.Module):
    """The four blocks and the head; the first two blocks are inception layers if so asked."""

    inception: bool
    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        acts, x = OrderedDict(), images
        for i, (name, pool) in enumerate(zip(self._names(), (2, 2, 2, 4), strict=True)):
            bn = batch_norm(train, EPSILON, name=f"bn{i + 1}")
            if train or not on_cpu() or name.startswith("inception"):
                acts[name] = self._block(x, i, name)
                x = max_pool(bn(acts[name]), pool)
            else:
                acts[name], x = self._pooled_first(x, i, name, bn, pool)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        x = nn.leaky_relu(_dense(16, "dense1")(x), 0.1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _dense(1, "dense2", dot_general=dot_to_one)(x), acts

    def _names(self) -> tuple[str, ...]:
        kind = "inception" if self.inception else "conv"
        return (f"{kind}1", f"{kind}2", "conv3", "conv4")

    def _block(self, x: Array, i: int, name: str) -> Array:
        if self.inception and i < 2:
            return _Inception(((1, 4, 4, 2), (2, 4, 4, 2))[i], name=name)(x)
        return _conv(x, FEATURES[i], WINDOWS[i], name)

    def _pooled_first(self, x: Array, i: int, name: str, bn: nn.BatchNorm, pool: int) -> tuple[Array, Array]:
        """A convolution's block for CPU: (after ReLU, after normalisation and pooling).

        Bias, ReLU and normalisation do not change what is the largest, unless the normalisation's scale is negative:
        then it is the smallest. So the pool comes first, and the rest works on a quarter of the numbers.
        """
        form: dict[str, Any] = {"conv_general_dilated": conv_in_blocks, "kernel_init": START, "name": name}
        y = nn.Conv(FEATURES[i], (WINDOWS[i], WINDOWS[i]), **form)(x)
        flips = jnp.where(self.get_variable("params", f"bn{i + 1}", {"scale": jnp.ones(1)})["scale"] < 0, -1.0, 1.0)
        flips = flips.reshape(1, 1, 1, -1)
        whole = out_of_blocks(y)
        pooled = flips * (first_maximum(y * flips[None], 3) if pool == 2 else max_pool(whole * flips, pool))
        return nn.relu(whole), bn(nn.relu(pooled))


def _dense(features: int, name: str, **kwargs: Any) -> nn.Dense:
    return nn.Dense(features, kernel_init=START, name=name, **kwargs)
