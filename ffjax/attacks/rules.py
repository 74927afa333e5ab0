"""What is made of a gradient before a step follows it: functions of one example's gradient and of what is remembered,
in optax's form, so that optax's own (trace, scale_by_adam) serve as they are and chain."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ffjax.balls import TINY
from ffjax.types import Array

Rule = optax.GradientTransformation


def plain() -> Rule:
    """The gradient itself."""
    return optax.identity()


def momentum(decay: float = 1.0) -> Rule:
    """g <- decay g + grad / mean |grad|: MI-FGSM (Dong et al., CVPR 2018). A zero gradient adds nothing."""
    return optax.chain(_each(lambda g: g / jnp.maximum(jnp.mean(jnp.abs(g)), TINY)), optax.trace(decay))


def smoothed(size: int = 15, spread: float = 3.0) -> Rule:
    """The gradient convolved with a Gaussian of `size` x `size` that reaches `spread` sd to each side: TI (Dong et al.,
    CVPR 2019), a gradient for the mean of shifted images."""
    profile = np.exp(-0.5 * np.linspace(-spread, spread, size) ** 2)
    taps = tuple(float(t) for t in profile / profile.sum())
    return _each(lambda g: _along(_along(g, taps, 0), taps, 1))


def variance_tuned() -> Rule:
    """(own, neighbours' mean) -> own + v, v being mean - own at the step before: VMI (Wang and He, CVPR 2021)."""

    def update(updates, state, params=None):
        del params
        own, mean = updates
        return own + state, mean - own

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def adam(b1: float = 0.9, b2: float = 0.999) -> Rule:
    """Adam's direction (Kingma and Ba, ICLR 2015), without its rate."""
    return optax.scale_by_adam(b1, b2)


def coarse(cells: int = 8, step: float = 0.25) -> Rule:
    """Low frequencies alone: steps to be taken as they are (descent with step=1, follow=identity, start="zero").

    It climbs by the signs among cells x cells values v in [-1, 1], a share `step` of the bound each time, and the
    perturbation is eps times what is linear between them, but where [0, 1] cuts it. Such a perturbation is never
    farther than its values are: clipping these is the projection to the l_inf ball. Of steps of 0.05, 0.1, 0.25 and 0.5
    a quarter went farthest in 20 (resnet10-a0, 8 + 8 images, 64 px, 4/255: mean margin past the boundary 0.59, 0.77,
    0.84 and 0.79; 9 broken by each).
    """

    def spread(values: Array, shape: tuple[int, ...]) -> Array:
        return jax.image.resize(values, shape, "linear")

    def init(params: Array) -> Array:
        return jnp.zeros((cells, cells, params.shape[2]), params.dtype)

    def update(updates: Array, state: Array, params: Array | None = None) -> tuple[Array, Array]:
        del params
        shape = updates.shape
        (gathered,) = jax.linear_transpose(lambda v: spread(v, shape), state)(updates)
        moved = jnp.clip(state + step * jnp.sign(gathered), -1, 1)
        return spread(moved - state, shape), moved

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _each(change: Callable[[Array], Array]) -> Rule:
    """A rule without memory."""
    return optax.stateless(lambda updates, params: jax.tree.map(change, updates))


def _along(x: Array, taps: tuple[float, ...], axis: int) -> Array:
    """(H, W, C) correlated with `taps` along an axis, zeros beyond the border."""
    half = len(taps) // 2
    pads = [(half, half) if a == axis else (0, 0) for a in range(x.ndim)]
    padded, side = jnp.pad(x, pads), x.shape[axis]
    return sum(
        (t * jax.lax.slice_in_dim(padded, k, k + side, axis=axis) for k, t in enumerate(taps)), jnp.zeros_like(x)
    )
