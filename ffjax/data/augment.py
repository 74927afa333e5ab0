"""Training-time variations of a batch, a pure function of (seed, step): position, light, blur, noise, recompression."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ffjax.data import codecs
from ffjax.errors import InputError
from ffjax.types import Batch


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Probability of each variation, and its range; a probability of 0 switches it off.

    flip: left-right. shift: moved by up to shift_pixels each way, the border repeated. jpeg: recompressed at a quality
    drawn from jpeg_quality. blur: Gaussian of sigma up to blur_sigma pixels. resize: to a share of its sides drawn
    from resize_scale and back (Pillow, bilinear). noise: Gaussian of sd up to
    noise_sd / 255. light: gain and offset of up to +-light_range.
    """

    flip: float = 0.5
    shift: float = 1.0
    shift_pixels: int = 6
    jpeg: float = 0.2
    jpeg_quality: tuple[int, int] = (75, 95)
    blur: float = 0.0
    blur_sigma: float = 0.7
    resize: float = 0.0
    resize_scale: tuple[float, float] = (0.5, 1.0)
    noise: float = 0.0
    noise_sd: float = 3.0
    light: float = 0.5
    light_range: float = 0.1


def check(config: Augment) -> None:
    """InputError for a probability outside [0, 1], and for a range that nothing can be drawn from."""
    for name in ("flip", "shift", "jpeg", "blur", "resize", "noise", "light"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"train.augment.{name}: a probability in [0, 1] is needed, got {getattr(config, name)}")
    for name in ("shift_pixels", "blur_sigma", "noise_sd", "light_range"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"train.augment.{name}: must be finite and not negative, got {getattr(config, name)}")
    for name, least, most in (("jpeg_quality", 1, 100), ("resize_scale", 0.01, 8)):
        low, high = getattr(config, name)
        if not least <= low <= high <= most:
            raise InputError(f"train.augment.{name}: two of {least} to {most}, the lesser first, got {low} and {high}")


def augmented(batch: Batch, config: Augment, seed: int, step: int) -> Batch:
    """A batch of numpy arrays (B, H, W, 3 or 1), each row varied by its own draws; float32 in [0, 1], masks flipped
    along."""
    draws = [np.random.Generator(np.random.Philox(key=[seed, (step << 20) + i])) for i in range(len(batch.labels))]
    images, masks = np.array(batch.images), None if batch.masks is None else np.array(batch.masks)
    for i, rng in enumerate(draws):
        move = _movement(images.shape[1:3], config, rng)
        images[i] = np.clip(_varied(images[i][move], config, rng), 0, 1)
        if masks is not None:
            masks[i] = masks[i][move]
    qualities = [int(rng.integers(*config.jpeg_quality, endpoint=True)) if rng.random() < config.jpeg else 0
                 for rng in draws]  # fmt: skip
    for i in np.flatnonzero(qualities):
        coded = codecs.jpeg_bytes(codecs.to_uint8(images[i]), qualities[i])
        images[i] = codecs.to_float(codecs.decode(coded, images.shape[-1]))
    return batch._replace(images=images, masks=masks)


def _movement(shape: tuple[int, ...], config: Augment, rng: np.random.Generator) -> tuple:
    """(H, W) -> the rows and columns to take: a flip and a shift as one index."""
    rows, columns = (np.arange(side) for side in shape)
    if rng.random() < config.flip:
        columns = columns[::-1]
    if rng.random() < config.shift:
        down, across = rng.integers(-config.shift_pixels, config.shift_pixels, 2, endpoint=True)
        rows = np.clip(rows + down, 0, shape[0] - 1)
        columns = np.clip(columns + across, 0, shape[1] - 1)
    return np.ix_(rows, columns)


def _varied(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    """One image with light, blur and noise drawn; float32, not clipped."""
    if rng.random() < config.light:
        gain, offset = rng.uniform(-config.light_range, config.light_range, 2)
        image = image * np.float32(1 + gain) + np.float32(offset)
    if rng.random() < config.blur:
        sigma = rng.uniform(0, config.blur_sigma)
        image = gaussian_filter(image, (sigma, sigma, 0))
    if config.resize and rng.random() < config.resize:  # asked first: without it the draws are those of before
        image = _resized(image, rng.uniform(*config.resize_scale))
    if rng.random() < config.noise:
        sd = rng.uniform(0, config.noise_sd / 255)
        image = image + np.float32(sd) * rng.standard_normal(image.shape, np.float32)
    return image


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    """Down to that share of its sides and back."""
    height, width = image.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = [Image.fromarray(plane).resize(small, Image.Resampling.BILINEAR) for plane in np.moveaxis(image, -1, 0)]
    back = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(back, axis=-1)
