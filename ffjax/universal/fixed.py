"""Patterns nobody optimised, of the same bound: what a universal perturbation must beat to have learnt anything.

Random signs say how much any noise of that size does; constants and Fourier signs probe one frequency at a time (after
the Fourier heat maps of Yin et al., NeurIPS 2019), and the strongest of them on validation images is the rival to beat.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.types import Array

FREQUENCIES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2), (0, 4), (4, 0), (4, 4), (0, 8), (8, 0), (8, 8),
               (0, 16), (16, 0), (16, 16), (0, 32), (32, 0), (32, 32))  # fmt: skip
"""Cycles over the image height and width of the Fourier-sign patterns."""

COUNT = 8 + len(FREQUENCIES) * 2 * 2 * 2
"""Patterns in the bank."""


def sign_noise(key: Array, shape: tuple[int, int, int], eps: float, norm: str = "linf") -> Array:
    """(H, W, 3) independent signs: +-eps under l_inf, scaled to ||.||_2 = eps under l_2."""
    return _sized(jax.random.rademacher(key, shape, jnp.float32), eps, norm)


def bank(shape: tuple[int, int, int], eps: float, norm: str = "linf") -> tuple[tuple[str, ...], Array]:
    """Names and (K, H, W, 3) patterns: every sign combination of a constant per channel (8, grey and colours), and the
    sign of a cosine and of a sine at each of FREQUENCIES, each once in grey and once with blue opposed to red and
    green, both ways round: COUNT = 152."""
    height, width, _ = shape
    names, patterns = [], []
    for signs in itertools.product((1.0, -1.0), repeat=3):
        names.append("constant" + "".join("+" if s > 0 else "-" for s in signs))
        patterns.append(np.broadcast_to(signs, shape))
    y, x = np.mgrid[0:height, 0:width]
    for (u, v), phase, colour, sign in itertools.product(FREQUENCIES, ("cos", "sin"), ("grey", "opposed"), (1.0, -1.0)):
        # off the grid by unlike fractions: no sample falls on a zero of a wave, where rounding would choose the sign
        angle = 2 * np.pi * (u * (y + 0.3) / height + v * (x + 0.4) / width)
        wave = np.where((np.cos(angle) if phase == "cos" else np.sin(angle)) >= 0, sign, -sign)
        names.append(f"fourier{u},{v}{phase}-{colour}{'+' if sign > 0 else '-'}")
        patterns.append(wave[..., None] * np.array((1.0, 1.0, 1.0) if colour == "grey" else (1.0, 1.0, -1.0)))
    stacked = jnp.asarray(np.stack(patterns), jnp.float32)
    return tuple(names), jax.vmap(lambda p: _sized(p, eps, norm))(stacked)


def _sized(signs: Array, eps: float, norm: str) -> Array:
    return eps * signs if norm == "linf" else eps * signs / jnp.sqrt(float(signs.size))
