"""The encoder-decoder whose shape is the prior of Deep Image Prior (Ulyanov, Vedaldi and Lempitsky, CVPR 2018), as many
networks side by side as there are images.

Every image has a network of its own, all are fed one code z. Nothing here is shared between images but z: parameters
and activations have the image axis first, and batch normalisation is over one image's pixels (training mode with a
batch of one, as there).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax.types import Array

SLOPE = 0.2
"""Of the leaky ReLU below zero."""
EPSILON = 1e-5
"""Of batch normalisation."""

Params = dict[str, Array]
"""'down0' (B, 3, 3, C, F), 'down0_bias' (B, F), 'down0_scale', 'down0_shift' of the normalisation after it, ..."""


class Skip(NamedTuple):
    """A network of that kind. channels: of each scale, finest first, encoder and decoder alike; skips: of the branch
    that leads past each scale, 0 for none; code: channels of z."""

    channels: tuple[int, ...]
    skips: tuple[int, ...]
    code: int = 32


NETWORKS: dict[str, Skip] = {
    "paper": Skip((8, 16, 32, 64, 128), (0, 0, 0, 4, 4)),
    "denoising": Skip((128,) * 5, (4,) * 5),
    "small": Skip((8, 16, 32), (0, 0, 4), 16),
}
"""paper: 574,915 numbers, what Gandhi and Jain's script runs (PAPERS.md 2.7); denoising: 2,217,831, the other one in
it; small: 37,423, ours, three scales."""


def canvas(network: Skip, height: int, width: int) -> tuple[int, int]:
    """What the network draws an image of that size on, whose first rows and columns are the image's: the next multiples
    of 2^scales, and twice that at least (the coarsest scale is mirrored about its border, for which it needs two
    pixels)."""
    unit = 2 ** len(network.channels)
    return max(2 * unit, -(-height // unit) * unit), max(2 * unit, -(-width // unit) * unit)


def init(network: Skip, key: Array) -> Params:
    """One image's parameters, without the image axis: kernels and biases uniform within 1 / sqrt(fan in), scales 1,
    shifts 0 (what PyTorch begins with, on which the paper's code relies)."""
    found: Params = {}
    for name, (window, given, made) in convolutions(network).items():
        key, kernel, bias = jax.random.split(key, 3)
        reach = (window * window * given) ** -0.5
        found[name] = jax.random.uniform(kernel, (window, window, given, made), minval=-reach, maxval=reach)
        found[f"{name}_bias"] = jax.random.uniform(bias, (made,), minval=-reach, maxval=reach)
    for name, count in _normalised(network).items():
        found |= {f"{name}_scale": jnp.ones(count), f"{name}_shift": jnp.zeros(count)}
    return found


def code(key: Array, network: Skip, height: int, width: int) -> Array:
    """z (*canvas, code) for images of that size, uniform in [0, 0.1)."""
    return 0.1 * jax.random.uniform(key, (*canvas(network, height, width), network.code))


def apply(network: Skip, params: Params, z: Array, conv: Callable[..., Array] | None = None) -> Array:
    """The images (B, H, W, 3) in (0, 1) that B networks draw of one code z (H, W, code), as large as a canvas.

    A bias before a normalisation is one of the parameters and has no effect, since the mean is taken off: it is not
    read. conv: how a kernel of its own is applied to each image (`one_by_one`, `grouped`, `columns`); by default what
    is fast on this backend.
    """
    each = conv or fastest()
    scales = len(network.channels)

    def block(name: str, x: Array, stride: int = 1) -> Array:
        return _leaky(_norm(params, name, each(x, params[name], stride)))

    def scale(i: int, x: Array) -> Array:
        """x at scale i, what the encoder has made so far -> (B, its size, channels[i]) of the decoder."""
        deep = block(f"down{i}", x, 2)
        deep = block(f"deep{i}", deep)
        if i + 1 < scales:
            deep = scale(i + 1, deep)
        deep = _doubled(deep)
        if network.skips[i]:
            deep = jnp.concatenate([block(f"skip{i}", x), deep], axis=-1)
        return block(f"mix{i}", block(f"up{i}", _norm(params, f"joined{i}", deep)))

    drawn = each(scale(0, z[None]), params["last"], 1) + params["last_bias"][:, None, None]
    return jax.nn.sigmoid(drawn)


def one_by_one(x: Array, kernels: Array, stride: int) -> Array:
    """x (B, H, W, C), or (1, H, W, C) for all, mirrored about its border, with a kernel (B, n, n, C, F) for each image
    -> (B, H / stride, W / stride, F). One convolution an image, in one program: on CPU a grouped one is some twenty
    times slower. One image for all is one convolution with all kernels side by side."""
    x = _mirrored(x, kernels.shape[1] // 2)
    if len(x) == 1:
        n, _, given, made = kernels.shape[1:]
        wide = kernels.transpose(1, 2, 3, 0, 4).reshape(n, n, given, -1)
        found = _conv(x, wide, stride)
        return found.reshape(*found.shape[1:3], -1, made).transpose(2, 0, 1, 3)
    pairs = zip(apart(x), apart(kernels), strict=True)
    return jnp.stack([_conv(one[None], kernel, stride)[0] for one, kernel in pairs])


@jax.custom_vjp
def apart(x: Array) -> tuple[Array, ...]:
    """The rows of x, whose gradients are stacked: each alone would be put back among zeros, B times B rows."""
    return tuple(x[b] for b in range(len(x)))


apart.defvjp(lambda x: (apart(x), None), lambda nothing, slopes: (jnp.stack(slopes),))


def grouped(x: Array, kernels: Array, stride: int) -> Array:
    """The same as one grouped convolution, for accelerators."""
    x = _mirrored(x, kernels.shape[1] // 2)
    if len(x) == 1:
        x = jnp.broadcast_to(x, (len(kernels), *x.shape[1:]))
    return jax.vmap(lambda one, kernel: _conv(one[None], kernel, stride)[0])(x, kernels)


def columns(x: Array, kernels: Array, stride: int) -> Array:
    """The same as one matrix product an image, of the windows laid side by side. What is derived of it, once or twice,
    is matrix products again; the second derivatives of a convolution are ones that XLA:CPU has no fast form of."""
    n, side = kernels.shape[1], (x.shape[1] // stride, x.shape[2] // stride)
    x = _mirrored(x, n // 2)

    def along(axis: int, first: int) -> slice:
        return slice(first, first + (side[axis] - 1) * stride + 1, stride)

    laid = jnp.concatenate([x[:, along(0, i), along(1, j)] for i in range(n) for j in range(n)], axis=-1)
    flat = kernels.reshape(len(kernels), -1, kernels.shape[-1])
    if len(x) == 1:
        return jnp.einsum("hwk,bkf->bhwf", laid[0], flat)
    return jnp.einsum("bhwk,bkf->bhwf", laid, flat)


def fastest() -> Callable[..., Array]:
    """What is fast on this backend."""
    return one_by_one if jax.default_backend() == "cpu" else grouped


def _conv(x: Array, kernel: Array, stride: int) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=layout)


def _mirrored(x: Array, by: int) -> Array:
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode="reflect") if by else x


def _norm(params: Params, name: str, x: Array) -> Array:
    """Each image's channels to mean 0 and variance 1 over its pixels, then scaled and shifted."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    centred = x - mean
    spread = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
    factor = params[f"{name}_scale"][:, None, None] * jax.lax.rsqrt(spread + EPSILON)
    return centred * factor + params[f"{name}_shift"][:, None, None]


def _leaky(x: Array) -> Array:
    return jnp.where(x >= 0, x, SLOPE * x)


def _doubled(x: Array) -> Array:
    """Twice as high and wide, bilinear, pixel centres kept (PyTorch's align_corners=False)."""
    for axis in (1, 2):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, k, k + 1, axis=axis) for k in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        both = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def convolutions(network: Skip) -> dict[str, tuple[int, int, int]]:
    """name -> (window, channels in, channels out)."""
    found, given = {}, network.code
    for i, (made, skip) in enumerate(zip(network.channels, network.skips, strict=True)):
        inside = network.channels[min(i + 1, len(network.channels) - 1)]
        if skip:
            found[f"skip{i}"] = (1, given, skip)
        found |= {f"down{i}": (3, given, made), f"deep{i}": (3, made, made)}
        found |= {f"up{i}": (3, inside + skip, made), f"mix{i}": (1, made, made)}
        given = made
    return found | {"last": (1, network.channels[0], 3)}


def _normalised(network: Skip) -> dict[str, int]:
    """What is normalised: name -> channels."""
    found = {name: made for name, (_, _, made) in convolutions(network).items() if name != "last"}
    for i, skip in enumerate(network.skips):
        found[f"joined{i}"] = network.channels[min(i + 1, len(network.channels) - 1)] + skip
    return found
