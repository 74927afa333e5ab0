"""A photograph shown on a screen and photographed again, simulated: subpixels, perspective, moire, gamma, noise.

The moire is not painted on: the screen's stripes are sampled by a sensor of nearly the same pitch, and beat with it.
"""

import numpy as np
from scipy import ndimage

GAMMA = 2.2
SAMPLES = 4
"""Sub-samples of a sensor pixel along each side."""


def recapture(photograph: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, C) in [0, 1], C = 3 or 1 -> (H, W, C) float32 in [0, 1], seen through a screen and a camera.

    strength in (0, 1]: depth of the screen's structure, and how far the drawn settings go: corners moved by up to 2 %
    of a side, sensor pitch 0.85 to 1.15 screen pixels, tone exponent 0.8 to 1.25, colour balance within 15 %, sensor
    noise of up to 1 % of white. A grey photograph is shown in white and taken in grey. A function of its arguments.
    """
    height, width, channels = photograph.shape
    screen = np.broadcast_to(photograph, (height, width, 3)).astype(np.float32) ** np.float32(GAMMA)
    view = _view(height, width, strength, rng)
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    light = sum(_seen(screen, view, down, across, strength) for down in offsets for across in offsets)
    light = ndimage.gaussian_filter(np.asarray(light, np.float32) / SAMPLES**2, (0.35, 0.35, 0))
    balance = 1 + strength * rng.uniform(-0.15, 0.15, 3).astype(np.float32)
    noise = strength * rng.uniform(0.002, 0.01) * rng.standard_normal(light.shape, np.float32)
    tone = 1 + strength * (rng.uniform(0.8, 1.25) - 1)
    if channels == 1:
        light, noise = light.mean(axis=-1, keepdims=True), noise[..., :1]
        balance = balance[:1]
    return (np.clip(light * balance + noise * np.sqrt(light), 0, 1) ** (tone / GAMMA)).astype(np.float32)


def _view(height: int, width: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The homography (3, 3) from sensor pixels to screen pixels, x before y, about the middle of both."""
    pitch = 1 + strength * rng.uniform(-0.15, 0.15)
    half = np.array([width, height]) / 2
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    moved = pitch * corners + strength * 0.04 * rng.uniform(-1, 1, (4, 2)) * half
    return _homography(corners + half, moved + half)


def _homography(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The projective map that takes four points `here` (4, 2) to `there`: eight linear equations."""
    rows, values = [], []
    for (x, y), (u, v) in zip(here, there, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def _seen(screen: np.ndarray, view: np.ndarray, down: float, across: float, strength: float) -> np.ndarray:
    """The light (H, W, 3) at one sub-sample of every sensor pixel: which screen pixel is there, and which stripe of it.

    A screen pixel is three upright stripes, red, green, blue, above a dark gap. What lies beyond the screen's edge is
    its mirror image.
    """
    height, width = screen.shape[:2]
    y, x = np.mgrid[:height, :width]
    far = np.stack([x + 0.5 + across, y + 0.5 + down, np.ones_like(x)], axis=-1) @ view.T
    u, v = far[..., 0] / far[..., 2], far[..., 1] / far[..., 2]
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    shown = screen[_mirrored(row, height), _mirrored(column, width)]
    stripe = np.floor(3 * (u - column)).astype(int)[..., None] == np.arange(3)
    lit = (v - row < 0.85)[..., None]
    mean = 0.85 / 3  # of the structure, which the exposure makes up for
    return shown * (1 + strength * ((stripe & lit) / mean - 1)).astype(np.float32)


def _mirrored(index: np.ndarray, count: int) -> np.ndarray:
    index = np.abs(index) % (2 * count)
    return np.where(index < count, index, 2 * count - 1 - index)
