"""What a universal perturbation rides on while it is made: nothing, or noise with the range of photographs."""

import functools

import jax
import jax.numpy as jnp

from ffjax.types import Array

MEAN = (123.7, 116.8, 103.9)
SD = (62.0, 58.0, 52.0)
"""Red, green, blue, on the 0-255 scale: GD-UAP's range prior (reference/PAPERS.md 1.3; listed there blue first, with
the standard deviations in the order 52, 58, 62)."""


def blank(shape: tuple[int, int, int], grey: float) -> Array:
    """(1, H, W, 3) of one grey level: at 0 the network is fed the perturbation alone."""
    return jnp.full((1, *shape), grey, jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def noise(key: Array, count: int, shape: tuple[int, int, int]) -> Array:
    """(count, H, W, 3) Gaussian noise images with the channel means and deviations of photographs, in [0, 1]."""
    mean, sd = (jnp.array(v, jnp.float32).reshape(1, 1, 1, 3) / 255 for v in (MEAN, SD))
    return jnp.clip(mean + sd * jax.random.normal(key, (count, *shape)), 0, 1)
