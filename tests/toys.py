"""Two detectors small enough that compiling them costs nothing: every whole-table test runs on these."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.types import Array, Detector, Forward, ImageSet, Outputs, Variables
from ffjax.uap import Source

SIZE = 12
SHAPE = (SIZE, SIZE, 3)
LAYERS = ("conv1", "conv2")
TRACES: list[tuple[int, ...]] = []
"""Shapes that the two-layer detector was traced (or, outside jit, called) with."""


def two_layer() -> Detector:
    """Two 3x3 convolutions with ReLU, stride 2 between them, mean over positions, two logits, to both of which `shift`
    is added."""

    def init(key: Array) -> Variables:
        k1, k2, k3, k4 = jax.random.split(key, 4)
        return {
            "params": {
                "conv1": 0.5 * jax.random.normal(k1, (3, 3, 3, 4)),
                "bias1": 0.1 * jax.random.normal(k4, (4,)),
                "conv2": 0.5 * jax.random.normal(k2, (3, 3, 4, 6)),
                "head": jax.random.normal(k3, (6, 2)),
                "shift": jnp.float32(0),
            }
        }

    def apply(variables: Variables, images: Array) -> Outputs:
        TRACES.append(images.shape)
        p = variables["params"]
        first = jax.nn.relu(_conv(images - 0.5, p["conv1"]) + p["bias1"][None, None, None, :])
        second = jax.nn.relu(_conv(first[:, ::2, ::2], p["conv2"]))
        acts = OrderedDict(zip(LAYERS, (first, second), strict=True))
        return Outputs(jnp.mean(second, axis=(1, 2)) @ p["head"] + p["shift"], None, acts)

    return Detector(init, apply, lambda variables, images, key: (apply(variables, images), variables), SHAPE)


def linear() -> Detector:
    """z_fake - z_real = <w, x> + b; its one activation is the image itself."""

    def init(key: Array) -> Variables:
        return {"params": {"w": jax.random.normal(key, SHAPE), "b": jnp.float32(0.1)}}

    def apply(variables: Variables, images: Array) -> Outputs:
        p = variables["params"]
        score = jnp.sum(images * p["w"][None], axis=(1, 2, 3)) + p["b"]
        return Outputs(jnp.stack([jnp.zeros_like(score), score], axis=1), None, OrderedDict(image=images))

    return Detector(init, apply, lambda variables, images, key: (apply(variables, images), variables), SHAPE)


TOY = two_layer()
LINEAR = linear()


def forward(seed: int = 0, detector: Detector = TOY) -> Forward:
    """The detector with weights of a seed. One `apply` object for all seeds, so that compilations are shared."""
    return jax.tree_util.Partial(detector.apply, detector.init(jax.random.key(seed)))


def source(seed: int = 0) -> Source:
    return Source(f"toy{seed}", forward(seed), LAYERS)


def two_headed() -> Source:
    """The toy with a mask: its second activation, summed over channels, enlarged."""

    def apply(variables, images) -> Outputs:
        said = TOY.apply(variables, images)
        small = jnp.sum(said.acts["conv2"], axis=3) - 3.0
        return said._replace(mask=jax.image.resize(small, images.shape[:3], "linear"))

    return Source("two", jax.tree_util.Partial(apply, TOY.init(jax.random.key(0))), LAYERS)


def masking() -> Detector:
    """The same to train."""
    apply = two_headed().forward.func
    return TOY._replace(apply=apply, train=lambda variables, images, key: (apply(variables, images), variables))


def images(count: int = 20, seed: int = 0) -> ImageSet:
    """Random pictures, classes and identities alternating."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(count)
    return ImageSet(
        images=rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8),
        labels=(numbers % 2).astype(np.int32),
        groups=(numbers // 2).astype(np.int32),
        names=tuple(f"{i}.png" for i in numbers),
    )


def masked(count: int = 20, seed: int = 0) -> ImageSet:
    """As images, with masks."""
    masks = 255 * np.random.default_rng(seed).integers(0, 2, (count, SIZE, SIZE), dtype=np.uint8)
    return images(count, seed)._replace(masks=masks)


def _conv(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
