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


def sign_noise(key: Array, shape: tuple[int, int, int], eps: Array | float, norm: str = "linf") -> Array:
    """(H, W, 3) independent signs: +-eps under l_inf, scaled to ||.||_2 = eps under l_2."""
    return _sized(jax.random.rademacher(key, shape, jnp.float32), eps, norm)


def bank(shape: tuple[int, int, int], eps: float, norm: str = "linf") -> tuple[tuple[str, ...], Array]:
    """Names and (K, H, W, 3) patterns, K = count(shape), each both ways round:

    every sign combination of a constant per channel (8, grey and colours); the signs of waves of period 2 (the
    checkerboard and its lines), 4, 8, ... pixels up to the image's side, in DIRECTIONS and COLOURS, as cosine and sine;
    and diagonal waves of period 4 and 8 that fall on their own zeros, where a random sign stands (half or a quarter of
    all pixels): part wave, part noise, and the strongest simple patterns that we have met.
    """
    signs = itertools.product((1.0, -1.0), repeat=3)
    found = [("constant" + "".join("+" if s > 0 else "-" for s in c), np.broadcast_to(c, shape)) for c in signs]
    for name, wave in _waves(shape) + _part_noise(shape):
        for (colour, channels), sign in itertools.product(COLOURS.items(), (1.0, -1.0)):
            found.append((f"{name}-{colour}{'+' if sign > 0 else '-'}", sign * wave[..., None] * np.array(channels)))
    stacked = jnp.asarray(np.stack([pattern for _, pattern in found]), jnp.float32)
    return tuple(name for name, _ in found), jax.vmap(lambda p: _sized(p, eps, norm))(stacked)


def count(shape: tuple[int, int, int]) -> int:
    """How many patterns the bank of a shape holds: 244 at 128 px, 276 at 256 px."""
    longer = max(shape[:2]).bit_length() - 2
    return 8 + (3 + longer * len(DIRECTIONS) * 2 + 8) * len(COLOURS) * 2


def _waves(shape: tuple[int, int, int]) -> list[tuple[str, np.ndarray]]:
    """Name, signs (H, W). At period 2, once signs are taken, both diagonals are the checkerboard, and the sine is the
    cosine or its negative."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    kinds = [(2, crest, "cos") for crest in "-|/"]
    periods = [2**k for k in range(2, max(shape[:2]).bit_length())]
    kinds += list(itertools.product(periods, DIRECTIONS, ("cos", "sin")))
    found = []
    for period, crest, phase in kinds:
        down, across = DIRECTIONS[crest]
        # off the grid by unlike fractions: no sample falls on a zero of a wave, where rounding would choose the sign
        angle = 2 * np.pi * (down * (y + 0.3) + across * (x + 0.4)) / period
        wave = np.cos(angle) if phase == "cos" else np.sin(angle)
        found.append((f"wave{period}{crest}{phase}", np.where(wave >= 0, 1.0, -1.0)))
    return found


def _part_noise(shape: tuple[int, int, int]) -> list[tuple[str, np.ndarray]]:
    """Name, signs (H, W): on the grid, in whole eighths of a turn, so that the zeros are exact."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    chance = np.random.default_rng(0).choice((-1.0, 1.0), shape[:2])
    found = []
    for period, crest, quarter in itertools.product((4, 8), "/\\", (0, 1)):
        down, across = DIRECTIONS[crest]
        eighths = ((down * y + across * x) * 8 // period + 2 * quarter) % 8
        wave = np.where(np.isin(eighths, (7, 0, 1)), 1.0, np.where(np.isin(eighths, (3, 4, 5)), -1.0, chance))
        found.append((f"wave{period}{crest}{'cos' if quarter else 'sin'}+noise", wave))
    return found


def _sized(signs: Array, eps: Array | float, norm: str) -> Array:
    return eps * signs if norm == "linf" else eps * signs / jnp.sqrt(float(signs.size))
