"""Patterns nobody optimised, of the same bound: what a universal perturbation must beat to have learnt anything.

Random signs say how much any noise of that size does; constants and waves probe one frequency at a time (after the
Fourier heat maps of Yin et al., NeurIPS 2019), and the strongest of them on validation images is the rival to beat.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.types import Array

DIRECTIONS = {"-": (1, 0), "|": (0, 1), "/": (1, 1), "\\": (1, -1)}
"""Of the waves, by the look of their crests: (rows, columns) that advance the phase."""

COLOURS = {"grey": (1.0, 1.0, 1.0), "blue": (1.0, 1.0, -1.0)}
"""All channels alike, or blue opposed to red and green."""


def sign_noise(key: Array, shape: tuple[int, int, int], eps: float, norm: str = "linf") -> Array:
    """(H, W, 3) independent signs: +-eps under l_inf, scaled to ||.||_2 = eps under l_2."""
    return _sized(jax.random.rademacher(key, shape, jnp.float32), eps, norm)


def bank(shape: tuple[int, int, int], eps: float, norm: str = "linf") -> tuple[tuple[str, ...], Array]:
    """Names and (K, H, W, 3) patterns, K = count(shape): every sign combination of a constant per channel (8, grey and
    colours), and the signs of waves of period 2 (the checkerboard and its lines), 4, 8, ... pixels up to the image's
    side, in DIRECTIONS and COLOURS, as cosine and sine, each both ways round."""
    height, width, _ = shape
    y, x = np.mgrid[0:height, 0:width]
    found = [
        ("constant" + "".join("+" if s > 0 else "-" for s in signs), np.broadcast_to(signs, shape))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    for period, crest, phases in _waves(shape):
        down, across = DIRECTIONS[crest]
        # off the grid by unlike fractions: no sample falls on a zero of a wave, where rounding would choose the sign
        angle = 2 * np.pi * (down * (y + 0.3) + across * (x + 0.4)) / period
        for phase, (colour, channels), sign in itertools.product(phases, COLOURS.items(), (1.0, -1.0)):
            wave = np.where((np.cos(angle) if phase == "cos" else np.sin(angle)) >= 0, sign, -sign)
            name = f"wave{period}{crest}{phase}-{colour}{'+' if sign > 0 else '-'}"
            found.append((name, wave[..., None] * np.array(channels)))
    stacked = jnp.asarray(np.stack([pattern for _, pattern in found]), jnp.float32)
    return tuple(name for name, _ in found), jax.vmap(lambda p: _sized(p, eps, norm))(stacked)


def count(shape: tuple[int, int, int]) -> int:
    """How many patterns the bank of a shape holds: 212 at 128 px, 244 at 256 px."""
    return 8 + sum(len(phases) for _, _, phases in _waves(shape)) * len(COLOURS) * 2


def _waves(shape: tuple[int, int, int]) -> list[tuple[int, str, tuple[str, ...]]]:
    """Period, crest, phases. At period 2, once signs are taken, both diagonals are the checkerboard, and the sine is
    the cosine or its negative."""
    side = max(shape[:2])
    longer = [(2**k, crest, ("cos", "sin")) for k in range(2, side.bit_length()) for crest in DIRECTIONS]
    return [(2, crest, ("cos",)) for crest in "-|/"] + longer


def _sized(signs: Array, eps: float, norm: str) -> Array:
    return eps * signs if norm == "linf" else eps * signs / jnp.sqrt(float(signs.size))
