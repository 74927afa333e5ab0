"""How visible a perturbation is: PSNR and SSIM between clean and attacked images. Host numpy, float64."""

import numpy as np

from ffjax.errors import InputError

WINDOW = 11
"""Pixels a side of SSIM's Gaussian window; images must be at least as large."""

_TAPS = np.exp(-(np.arange(-(WINDOW // 2), WINDOW // 2 + 1) ** 2) / (2 * 1.5**2))
_TAPS /= _TAPS.sum()
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 at the data range L = 1


def psnr(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Two (B, H, W, C) in [0, 1] -> peak signal-to-noise ratio (B,) in dB: -10 log10 of the mean squared error.

    Identical images give inf, which is what the definition says: take the median over images, or count them apart,
    rather than the mean.
    """
    _check(clean, attacked)
    error = np.subtract(clean, attacked, dtype=np.float64)
    mse = np.mean(error**2, axis=(1, 2, 3))
    return -10 * np.log10(mse, out=np.full(len(mse), -np.inf), where=mse > 0)


def ssim(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Two (B, H, W, C) in [0, 1] -> structural similarity (B,), at most 1; identical images give exactly 1.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13, with their constants and 11x11 Gaussian window (sigma 1.5),
    over windows that lie wholly inside the image. The mean is over the channels, as in TensorFlow and scikit-image,
    where the paper takes luminance: a perturbation whose colours cancel in luminance is still a perturbation.
    Symmetric. Raises InputError on images smaller than the window or of unequal shapes.
    """
    _check(clean, attacked)
    if min(clean.shape[1:3]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW} pixels a side, these are {clean.shape[1:3]}")
    return np.array([_ssim(a, b) for a, b in zip(clean, attacked, strict=True)])


def _check(clean: np.ndarray, attacked: np.ndarray) -> None:
    if np.ndim(clean) != 4 or np.shape(clean) != np.shape(attacked):
        raise InputError(f"two batches (B, H, W, C) of one shape are needed: {np.shape(clean)}, {np.shape(attacked)}")


def _ssim(clean: np.ndarray, attacked: np.ndarray) -> float:
    """Two (H, W, C) -> the mean over windows and channels. One channel at a time: its statistics stay in the
    processor's cache, which makes it twice as fast."""
    planes = zip(np.moveaxis(clean, -1, 0), np.moveaxis(attacked, -1, 0), strict=True)
    return float(np.mean([_ssim_map(a.astype(np.float64), b.astype(np.float64)).mean() for a, b in planes]))


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two (H, W) float64 -> (H - 10, W - 10), one value a window."""
    mean_a, mean_b, squares, product = _blur(np.stack([a, b, a * a + b * b, a * b]))
    means = mean_a * mean_a + mean_b * mean_b
    covariance = product - mean_a * mean_b
    return ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / ((means + _C1) * (squares - means + _C2))


def _blur(fields: np.ndarray) -> np.ndarray:
    """(F, H, W) -> (F, H - 10, W - 10): the Gaussian window, one axis after the other."""
    height, width = fields.shape[1] - WINDOW + 1, fields.shape[2] - WINDOW + 1
    fields = _folded([fields[:, k : k + height] for k in range(WINDOW)])
    return _folded([fields[:, :, k : k + width] for k in range(WINDOW)])


def _folded(shifted: list[np.ndarray]) -> np.ndarray:
    """The weighted sum of the WINDOW shifted copies; the window is symmetric, so each pair shares a product."""
    total = _TAPS[WINDOW // 2] * shifted[WINDOW // 2]
    for k in range(WINDOW // 2):
        total += _TAPS[k] * (shifted[k] + shifted[-1 - k])
    return total
