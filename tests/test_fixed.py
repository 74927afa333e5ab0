"""Patterns nobody optimised: of the bound they say, well defined, and none of them twice."""

import jax
import numpy as np
import pytest

from ffjax.universal import fixed


@pytest.mark.parametrize("side", [128, 256])
def test_the_bank_is_of_the_bound_and_holds_no_pattern_twice(side):
    names, bank = fixed.bank((side, side, 3), 0.04)
    patterns = np.asarray(bank)
    total = {128: 244, 256: 276}[side]
    assert len(names) == len(set(names)) == len(patterns) == fixed.count((side, side, 3)) == total
    assert (np.abs(patterns) == np.float32(0.04)).all()
    assert len({pattern.tobytes() for pattern in patterns}) == total
    waves = patterns[[k for k, name in enumerate(names) if name.startswith("wave")]]
    random = [patterns[k] for k, name in enumerate(names) if "noise" in name]
    assert len(random) == 32 and len(
        [1 for p in random if abs(np.corrcoef(p[2:, 2:, 0].flat, p[:-2, :-2, 0].flat)[0, 1]) < 0.9]
    )
    assert np.abs(waves.mean(axis=(1, 2))).max() < 0.1 * 0.04  # a wave spends half its time each way
    checkerboard = (-1.0) ** np.add.outer(np.arange(side), np.arange(side))
    assert any(abs((p[..., 0] * checkerboard).sum()) > 0.039 * side**2 for p in patterns)


@pytest.mark.parametrize("side", [32, 64, 128, 256, 299])
def test_no_sign_is_left_to_rounding(side, monkeypatch):
    """The waves, before their sign is taken, stay away from zero: every processor takes the same sign."""
    smallest, true_cosine = [], np.cos

    def cosine(angle):
        value = true_cosine(angle)
        smallest.append(np.abs(value).min())
        return value

    monkeypatch.setattr(fixed.np, "cos", cosine)
    monkeypatch.setattr(fixed.np, "sin", lambda angle: cosine(angle - np.pi / 2))
    fixed.bank((side, side, 3), 0.04)
    assert smallest and min(smallest) > 1e-4


def test_under_l2_every_pattern_has_the_norm():
    _, bank = fixed.bank((32, 32, 3), 2.0, "l2")
    np.testing.assert_allclose(np.linalg.norm(np.asarray(bank).reshape(len(bank), -1), axis=1), 2.0, rtol=1e-5)


def test_sign_noise_is_signs_of_its_key():
    noise = np.asarray(fixed.sign_noise(jax.random.key(0), (64, 64, 3), 0.04))
    assert (np.abs(noise) == np.float32(0.04)).all() and abs(noise.mean()) < 0.002
    assert (noise != np.asarray(fixed.sign_noise(jax.random.key(1), (64, 64, 3), 0.04))).any()
    l2 = np.asarray(fixed.sign_noise(jax.random.key(0), (64, 64, 3), 3.0, "l2"))
    assert np.linalg.norm(l2) == pytest.approx(3.0, rel=1e-5)
