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
