"""ClassNSeg, the Y-shaped auto-encoder with a verdict, a mask and a reconstruction (Nguyen, Fang, Yamagishi, Echizen,
BTAS 2019, arXiv 1906.06876)."""

from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from ffjax.detectors.blocks import conv_in_blocks, out_of_blocks
from ffjax.detectors.layers import MEAN_AND_SPREAD, as_detector, conv, normalised, on_cpu, one_of
from ffjax.detectors.layout import Layout
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Outputs, Variables

EPSILON = 1e-5
HALF = 64  # channels of the latent that speak for one class; the first half is the forged one's
ENCODE = ((8, 1), (8, 2), (16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2), (2 * HALF, 1))  # features, stride
SHARED = ((64, 1), (64, 2), (32, 1), (32, 2))
BRANCH = ((16, 1), (16, 2), (8, 1), (8, 2))

FEW = 16  # channels up to which XLA:CPU's own convolutions with zeros between pixels are starved: 4 to 10 times slower
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
START = nn.initializers.normal(0.02)  # the authors'

GATES = ("current", "fake", "real")
QUIRKS = ("fixed", "as_released")


def classnseg(
    size: int = 256,
    dropout: float = 0.0,
    *,
    gate: str = "current",
    normaliser: str = "fixed",
    mask_softmax: str = "fixed",
) -> Detector:
    """ClassNSeg for size x size images, size a multiple of 16 (InputError otherwise). 304,949 trainable numbers.

    The latent, 128 channels at a sixteenth of the size, has a half for each class; a class' score is the mean of |its
    half|, and the logits are the two scores (real, fake), whose softmax is the published probability. A decoder sees
    the latent with one half set to zero and returns the mask at full size and the reconstruction.

    Activations, each after BatchNorm and ReLU: encode1 .. encode9 (the latent), shared1 .. shared4, segment1 ..
    segment4, reconstruct1 .. reconstruct4; and last "reconstruction" (B, size, size, 3), after its tanh, which was
    trained to be the NORMALISED image, whose range it cannot reach. It costs nothing under jit where nobody reads it.

    Args:
      dropout: has none; only 0.
      gate: which half the decoder sees. "current": the class predicted for this very image, as the authors test; a hard
        choice, which the mask follows by a jump and no gradient crosses. "fake" or "real": always that one. To keep
        each row's clean prediction, or its label in training, see `gated`. In `train`, too, "current" is the class that
        the training forward predicts: labels are not known there.
      normaliser: "fixed", per channel; the golden outputs were made so. "as_released": the authors' loop runs over the
        first axis of the batch, so image i of the first three has the i-th channel's mean and deviation applied to all
        its channels, and all later images stay raw. Rows then depend on their place: not for attacks.
      mask_softmax: "fixed": the mask is the logit z1 - z0 of "forged", sigmoid(mask) the published probability.
        "as_released": it is p1 - p0, the difference of what the authors' training loss takes for logits though it is
        already softmaxed; decisions are the same, the gradient saturates.

    InputError for an option's unknown value.
    """
    _check_size(size)
    if dropout:
        raise InputError(f"classnseg: has no dropout, got {dropout}")
    return as_detector(_module(gate, normaliser, mask_softmax), size)


def gated(
    variables: Variables, images: Array, classes: Array, *, normaliser: str = "fixed", mask_softmax: str = "fixed"
) -> Outputs:
    """As `apply`, but the decoder sees for each row the half of the class given: classes (B,), 1 = fake, 0 = real.

    With classes = argmax(apply(variables, clean).logits) an attack keeps the gate of the clean image while the verdict
    moves; with the labels it is the forward the authors train.
    """
    _check_size(*images.shape[1:3])
    module: Any = _module("current", normaliser, mask_softmax)
    logits, acts, mask = module.apply(variables, images, False, classes)
    return Outputs(logits, mask, acts)


def gated_train(
    variables: Variables, images: Array, classes: Array, *, normaliser: str = "fixed", mask_softmax: str = "fixed"
) -> tuple[Outputs, Variables]:
    """As `train`, with the gate of `gated`. The authors' three losses read logits (|a - one-hot|), mask, and the act
    "reconstruction" against the normalised image; they give it the labels as classes."""
    _check_size(*images.shape[1:3])
    module: Any = _module("current", normaliser, mask_softmax)
    (logits, acts, mask), updated = module.apply(variables, images, True, classes, mutable=["batch_stats"])
    return Outputs(logits, mask, acts), {**variables, **updated}


def network_input(images: Array, normaliser: str = "fixed") -> Array:
    """Images (B, h, w, 3) in [0, 1] as the network sees them and its reconstruction imitates them; see `classnseg`."""
    if normaliser == "fixed":
        return normalised(images, "imagenet")
    mean, spread = (jnp.asarray(numbers)[: len(images)] for numbers in MEAN_AND_SPREAD["imagenet"])
    raw = len(images) - len(mean)
    mean, spread = jnp.pad(mean, (0, raw)), jnp.pad(spread, (0, raw), constant_values=1.0)
    return (images - mean.reshape(-1, 1, 1, 1)) / spread.reshape(-1, 1, 1, 1)


def torch_layout() -> Layout:
    """The authors' encoder_N.pt and decoder_N.pt, their keys united."""
    stages = [("encode", "encoder", ENCODE), ("shared", "shared", SHARED)]
    stages += [("segment", "segmenter", BRANCH), ("reconstruct", "decoder", BRANCH)]
    names = {"mask": "segmenter.12", "reconstruction": "decoder.12"}
    for ours, theirs, widths in stages:
        for i in range(len(widths)):
            names[f"{ours}{i + 1}/conv"] = f"{theirs}.{3 * i}"
            names[f"{ours}{i + 1}/bn"] = f"{theirs}.{3 * i + 1}"
    return Layout(names)


def _check_size(*sizes: int) -> None:
    for size in sizes:
        if size < 16 or size % 16:
            raise InputError(f"classnseg: image size must be a positive multiple of 16, got {size}")


def _module(gate: str, normaliser: str, mask_softmax: str) -> nn.Module:
    one_of("classnseg: gate", gate, GATES)
    one_of("classnseg: normaliser", normaliser, QUIRKS)
    one_of("classnseg: mask_softmax", mask_softmax, QUIRKS)
    return _ClassNSeg(gate, normaliser, mask_softmax)


class _ClassNSeg(nn.Module):
    """Encoder, scores, gate, shared decoder, two branches."""

    gate: str
    normaliser: str
    mask_softmax: str

    @nn.compact
    def __call__(
        self, images: Array, train: bool, classes: Array | None = None
    ) -> tuple[Array, OrderedDict[str, Array], Array]:
        acts: OrderedDict[str, Array] = OrderedDict()

        def run(x: Array, name: str, stages: tuple[tuple[int, int], ...], transposed: bool = True) -> Array:
            for i, (features, stride) in enumerate(stages, start=1):
                x = acts[f"{name}{i}"] = _Stage(features, stride, transposed, name=f"{name}{i}")(x, train)
            return x

        latent = run(network_input(images, self.normaliser), "encode", ENCODE, transposed=False)
        fake, real = jnp.split(latent, 2, axis=-1)
        logits = jnp.stack([jnp.mean(jnp.abs(half), axis=(1, 2, 3)) for half in (real, fake)], axis=1)
        forged = self._forged(logits, classes).reshape(-1, 1, 1, 1)
        kept = jnp.concatenate([jnp.where(forged, fake, 0), jnp.where(forged, 0, real)], axis=-1)
        shared = run(kept, "shared", SHARED)
        pair = _Transposed(2, name="mask")(run(shared, "segment", BRANCH))
        mask = pair[..., 1] - pair[..., 0]
        rebuilt = run(shared, "reconstruct", BRANCH)
        acts["reconstruction"] = jnp.tanh(_Transposed(3, name="reconstruction")(rebuilt))
        return logits, acts, mask if self.mask_softmax == "fixed" else jnp.tanh(mask / 2)  # = p1 - p0

    def _forged(self, logits: Array, classes: Array | None) -> Array:
        """(B,) bool: the decoder sees the forged half."""
        if classes is not None:
            return classes == 1
        if self.gate == "current":
            return logits[:, 1] > logits[:, 0]  # a tie is real, as released
        return jnp.full(len(logits), self.gate == "fake")


class _Stage(nn.Module):
    """3x3 convolution, plain or transposed, BatchNorm, ReLU; started as the authors do."""

    features: int
    stride: int
    transposed: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.transposed:
            x = _Transposed(self.features, self.stride, name="conv")(x)
        else:
            form: dict[str, Any] = {"conv_general_dilated": _halve} if self.stride == 2 else {}
            x = conv(self.features, 3, "conv", x.shape[-1] <= 4, self.stride, kernel_init=START, **form)(x)
        scale = nn.initializers.normal(0.02)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=EPSILON,
            scale_init=lambda *args: 0.5 + scale(*args),
            name="bn",
        )
        return nn.relu(norm(x))


class _Transposed(nn.Module):
    """3x3 transposed convolution that keeps the size (stride 1) or doubles it (stride 2); kernel (3, 3, out, in)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", START, (3, 3, self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias)
        kernel = kernel[::-1, ::-1].transpose(0, 1, 3, 2)  # now a correlation on the image with zeros in between
        if self.stride == 2 and x.shape[-1] <= FEW and on_cpu():
            y = _double_by_phases(x, kernel)
        elif self.features <= 4 and on_cpu():
            y = out_of_blocks(conv_in_blocks(x, kernel))
        else:
            pads = ((1, self.stride), (1, self.stride))
            spread = (self.stride, self.stride)
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, spread, dimension_numbers=DIMENSIONS)
        return y + bias.reshape(1, 1, 1, -1)


def _double_by_phases(x: Array, kernel: Array) -> Array:
    """The doubling as one 2x2 convolution to four times the channels: a pixel of each parity of row and column.

    x (B, H, W, C), kernel (3, 3, C, F) -> (B, 2H, 2W, F). An even output row sees the middle tap on its own input row,
    an odd one the first tap there and the last on the next row; columns alike.
    """
    height, width, features = *x.shape[1:3], kernel.shape[-1]
    for axis in (0, 2):  # (3, ...) -> (2 taps, 2 parities, ...)
        first, middle, last = (jax.lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
        own, after = jnp.stack([middle, first]), jnp.stack([jnp.zeros_like(last), last])
        kernel = jnp.stack([own, after])
    taps = kernel.transpose(2, 0, 4, 3, 1, 5).reshape(2, 2, x.shape[-1], 4 * features)
    y = jax.lax.conv_general_dilated(x, taps, (1, 1), ((0, 1), (0, 1)), dimension_numbers=DIMENSIONS)
    y = y.reshape(-1, height, width, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(-1, 2 * height, 2 * width, features)


def _halve(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """3x3, stride 2, padding 1; the signature is lax.conv_general_dilated's, for nn.Conv.

    With few channels, the value comes from the textbook form and every derivative from `_halving_by_blocks`, each where
    it is faster.
    """
    return (_halving_fast if x.shape[-1] <= FEW and on_cpu() else _halving)(x, kernel)


def _halving(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=DIMENSIONS)


def _halving_by_blocks(x: Array, kernel: Array) -> Array:
    """`_halving` as a 2x2 convolution, stride 1, over blocks of 2x2 pixels moved into channels."""
    height, width, channels = x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    blocks = x.reshape(-1, height, 2, width, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(-1, height, width, 4 * channels)
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, channels, -1)
    taps = taps.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * channels, -1)
    return jax.lax.conv_general_dilated(blocks, taps, (1, 1), ((1, 0), (1, 0)), dimension_numbers=DIMENSIONS)


_halving_fast = jax.custom_jvp(_halving)


@_halving_fast.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return _halving_fast(x, kernel), _halving_by_blocks(dx, kernel) + _halving_by_blocks(x, dkernel)
