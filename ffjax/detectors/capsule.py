"""Capsule-Forensics: capsules with dynamic routing on the first layers of VGG-19 (Nguyen, Yamagishi, Echizen).

v1: ICASSP 2019, arXiv 1810.11215. v2: arXiv 1910.12467.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ffjax.detectors.layers import CLASSES, as_detector, batch_norm, conv, max_pool, normalised, on_cpu, one_of
from ffjax.detectors.layout import Layout, Numbers, unchanged
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Outputs, Variables

EPSILON = 1e-5
TRUNK = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7}
TRUNK |= {"conv3_1": 10, "conv3_2": 12, "conv3_3": 14, "conv3_4": 16}
"""The trunk's convolutions -> their places in torchvision's `features`; the last pool is at 18."""

POOLED = ("conv1_2", "conv2_2", "conv3_4")
BRANCH = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 7, "bn3": 8, "conv4": 9, "bn4": 10}
"""A primary capsule's layers -> their places in the authors' module."""

START = nn.initializers.normal(0.02)  # the authors', of a capsule's convolutions
ROUNDS = 2  # of routing


class Head(NamedTuple):
    """What the capsules say of a batch.

    capsules: (B, N, 8), the primary capsules, squashed. outputs: (B, 4, 2), the two output capsules, class 1 = fake;
    a softmax over the last axis makes each of the four numbers an opinion. logits: (B, 2), the logarithm of the four
    opinions' mean.
    """

    capsules: Array
    outputs: Array
    logits: Array


def capsule_v1(
    size: int = 128, dropout: float = 0.0, *, features: str = "fixed", trunk: str = "frozen", noise: float = 0.0
) -> Detector:
    """Capsule-Forensics v1, three primary capsules, for size x size images, size at least 16 (InputError otherwise).

    471,321 trainable numbers on a trunk of 2,325,568: VGG-19 through its third max-pool, whose ImageNet weights come
    from a torchvision file (`torch_layout_v1`). Each primary capsule: two convolutions with BatchNorm and ReLU, then
    mean and standard deviation over space, then two one-dimensional convolutions with BatchNorm. softmax(logits) is the
    published class probability. It is a mean of softmaxes of numbers within (-1, 1), so that it stays in (0.119, 0.881)
    and the logits' gradient does not saturate.

    Activations, each after its ReLU: conv1_1 .. conv3_4 of the trunk; capsules1 and capsules2, the two convolutions of
    all primary capsules side by side. What follows has no place in the image, and is not listed.

    Args:
      dropout: share of the predictions between capsules set to zero in training; the others stay as they are, as
        released. (v1: none.)
      features: "fixed": gradients go through. "as_released": the trunk's output is detached from the capsules, as in
        the authors' code; values are the same, and the logits' gradient in the image is zero.
      trunk: "frozen": in `train` no gradient reaches the trunk's weights. "trained": it does, as it should where they
        do not come from ImageNet.
      noise: standard deviation of what training adds to the routing weights (v1: none, or 0.01 with their --random).

    InputError for an option's unknown value.
    """
    return _detector("capsule_v1", 3, size, dropout, features, trunk, noise)


def capsule_v2(
    size: int = 300, dropout: float = 0.05, *, features: str = "fixed", trunk: str = "frozen", noise: float = 0.01
) -> Detector:
    """Capsule-Forensics v2: ten primary capsules, 1,571,070 trainable numbers beside the trunk. All else as
    `capsule_v1`."""
    return _detector("capsule_v2", 10, size, dropout, features, trunk, noise)


def head(variables: Variables, features: Array) -> Head:
    """The capsules alone, of v1 or v2, as `apply` runs them: the trunk's output (B, h, w, 256) -> Head.

    The authors train on the sum over the four opinions of a cross-entropy which takes them, though already softmaxed,
    for logits. An objective without that second softmax reads `outputs`.
    """
    inside = {kind: tree["capsules"] for kind, tree in variables.items()}
    module: Any = _Capsules(inside["params"]["route_weights"].shape[1])
    return module.apply(inside, features, False)[0]


def trunk_output(variables: Variables, images: Array) -> Array:
    """What the capsules read of images (B, H, W, 3) in [0, 1]: (B, H // 8, W // 8, 256)."""
    module: Any = _Trunk()
    return module.apply({"params": variables["params"]["trunk"]}, images)[0]


def torch_layout_v1(classes: str = "fake_first") -> Layout:
    """The authors' capsule_N.pt united with torchvision's vgg19 file, whose later layers are passed over, or with the
    trunk under the name that the authors' extractor gives it, vgg_1.

    classes: the file's order, 'fake_first' (the authors') or 'real_first'; InputError for another.
    """
    return _layout([f"fea_ext.ext_{i}" for i in (1, 2, 3)], classes)


def torch_layout_v2(classes: str = "real_first") -> Layout:
    """As `torch_layout_v1`; the authors' class 0 is the original here."""
    return _layout([f"fea_ext.capsules.{i}" for i in range(10)], classes)


def _detector(name: str, count: int, size: int, dropout: float, features: str, trunk: str, noise: float) -> Detector:
    if size < 16:
        raise InputError(f"{name}: image size must be at least 16, got {size}")
    one_of(f"{name}: features", features, ("fixed", "as_released"))
    one_of(f"{name}: trunk", trunk, ("frozen", "trained"))
    detector = as_detector(_Network(count, dropout, noise, detached=features == "as_released"), size)
    return detector._replace(train=_frozen(detector.train)) if trunk == "frozen" else detector


def _frozen(train: Callable[..., tuple[Outputs, Variables]]) -> Callable[..., tuple[Outputs, Variables]]:
    def frozen(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        params = variables["params"]
        still = params | {"trunk": jax.lax.stop_gradient(params["trunk"])}
        outputs, updated = train(variables | {"params": still}, images, key)
        return outputs, updated | {"params": params}

    return frozen


def _layout(branches: list[str], classes: str) -> Layout:
    last = unchanged if one_of("classes", classes, CLASSES) == "real_first" else _classes_swapped
    names = {f"trunk/{ours}": f"features.{place}" for ours, place in TRUNK.items()}
    names |= {f"capsules/{ours}": f"capsules.{place}" for ours, place in BRANCH.items()}
    names["capsules"] = "routing_stats"
    return Layout(names, first=lambda numbers: _side_by_side(_only_trunk(numbers), branches), last=last)


def _only_trunk(numbers: Numbers) -> Numbers:
    """Without the layers of VGG-19 past the third pool."""
    numbers = {re.sub(r"^(vgg_ext\.)?vgg_1\.", "features.", key): value for key, value in numbers.items()}
    beyond = re.compile(r"classifier\.|features\.(19|[2-9]\d)\.")
    return {key: value for key, value in numbers.items() if not beyond.match(key)}


def _side_by_side(numbers: Numbers, branches: list[str]) -> Numbers:
    """The primary capsules' arrays, which all have output channels first, as one array for each layer."""
    pattern = re.compile(rf"({'|'.join(map(re.escape, branches))})\.(.+)")
    found = {key: match[2] for key in numbers if (match := pattern.fullmatch(key))}
    united = {key: value for key, value in numbers.items() if key not in found}
    for leaf in dict.fromkeys(found.values()):
        parts = [np.atleast_1d(numbers[f"{branch}.{leaf}"]) for branch in branches]
        united[f"capsules.{leaf}"] = np.concatenate(parts)
    return united


def _classes_swapped(flat: Numbers) -> Numbers:
    key = "params/capsules/route_weights"
    return flat | {key: flat[key][::-1]}


class _Network(nn.Module):
    """Trunk, then capsules."""

    count: int
    dropout: float
    noise: float
    detached: bool

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, OrderedDict[str, Array]]:
        features, acts = _Trunk(name="trunk")(images)
        if self.detached:
            features = jax.lax.stop_gradient(features)
        result, more = _Capsules(self.count, self.dropout, self.noise, name="capsules")(features, train)
        return result.logits, OrderedDict(acts | more)


class _Trunk(nn.Module):
    """VGG-19 through the third max-pool."""

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, OrderedDict[str, Array]]:
        x, acts = normalised(images, "imagenet"), OrderedDict()
        for name in TRUNK:
            width = 32 * 2 ** int(name[4])
            start = nn.initializers.he_normal()
            x = acts[name] = nn.relu(conv(width, 3, name, narrow=name == "conv1_1", kernel_init=start)(x))
            x = max_pool(x, 2) if name in POOLED else x
        return x, acts


class _Capsules(nn.Module):
    """Primary capsules and routing. The N primary capsules are one network whose layers have N groups of channels."""

    count: int
    dropout: float = 0.0
    noise: float = 0.0

    @nn.compact
    def __call__(self, features: Array, train: bool) -> tuple[Head, OrderedDict[str, Array]]:
        acts: OrderedDict[str, Array] = OrderedDict()

        def norm(x: Array, i: int) -> Array:
            return batch_norm(train, EPSILON, f"bn{i}")(x)

        x = conv(64 * self.count, 3, "conv1", False, kernel_init=START)(features)  # all groups read the same
        x = acts["capsules1"] = nn.relu(norm(x, 1))
        x = acts["capsules2"] = nn.relu(norm(self._grouped(16, (3, 3), 1, 1, "conv2")(x), 2))
        x = norm(self._grouped(8, (5,), 2, 2, "conv3")(_statistics(x, self.count)), 3)
        x = norm(self._grouped(1, (3,), 1, 1, "conv4")(x), 4)  # (B, 8, N)
        capsules = _squash(x.transpose(0, 2, 1), axis=1)  # along the capsules: the authors' axis
        outputs = self._routed(capsules, train)
        logits = jnp.log(jnp.mean(nn.softmax(outputs, axis=2), axis=1))
        return Head(capsules, outputs, logits), acts

    def _grouped(self, features: int, window: tuple[int, ...], stride: int, pad: int, name: str) -> nn.Conv:
        form: dict[str, Any] = {"feature_group_count": self.count, "kernel_init": START, "name": name}
        return nn.Conv(features * self.count, window, stride, pad, conv_general_dilated=_group_by_group, **form)

    def _routed(self, capsules: Array, train: bool) -> Array:
        """Dynamic routing with an agreement for each number of a prediction: (B, N, 8) -> (B, 4, 2)."""
        weights = self.param("route_weights", nn.initializers.normal(1.0), (2, self.count, 4, 8))
        if train and self.noise:
            weights += self.noise * jax.random.normal(self.make_rng("dropout"), weights.shape)
        votes = jnp.sum(weights[None] * capsules[:, None, :, None], axis=-1)  # (B, 2, N, 4)
        if train and self.dropout:
            votes *= jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, votes.shape)
        agreement, outputs = jnp.zeros_like(votes), votes[:, :, :1]
        for i in range(ROUNDS):
            outputs = _squash(jnp.sum(nn.softmax(agreement, axis=2) * votes, axis=2, keepdims=True), axis=3)
            agreement += votes * outputs if i < ROUNDS - 1 else 0
        return outputs[:, :, 0].transpose(0, 2, 1)


def _group_by_group(x: Array, kernel: Array, *args: Any, feature_group_count: int, **kwargs: Any) -> Array:
    """lax.conv_general_dilated with groups of channels, for nn.Conv.

    On CPU as one convolution for each group, side by side: XLA's own takes up to ten times longer, and its kernel
    gradient a hundred times.
    """
    groups = feature_group_count if on_cpu() else 1
    pairs = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    inner = feature_group_count // groups
    parts = [jax.lax.conv_general_dilated(a, b, *args, feature_group_count=inner, **kwargs) for a, b in pairs]
    return jnp.concatenate(parts, axis=-1)


def _statistics(x: Array, count: int) -> Array:
    """Mean and unbiased standard deviation over space, a pair for each capsule: (B, h, w, N * 16) -> (B, 16, N * 2)."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    variance = jnp.sum((x - mean) ** 2, axis=(1, 2)) / (x.shape[1] * x.shape[2] - 1)
    pairs = jnp.stack([mean[:, 0, 0], _root(variance)], axis=-1).reshape(len(x), count, -1, 2)
    return pairs.transpose(0, 2, 1, 3).reshape(len(x), -1, 2 * count)


def _squash(x: Array, axis: int) -> Array:
    """x times |x| / (1 + |x|^2), |x| its norm along the axis; 0, with gradient 0, at 0."""
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    return x * _root(square) / (1 + square)


def _root(x: Array) -> Array:
    """The square root, with gradient 0 at 0, where its own is infinite. It needs no epsilon: what it is given here is a
    sum of squares, and the gradient of a norm is bounded."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
