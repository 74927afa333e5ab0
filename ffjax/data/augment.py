"""Training-time variations of a batch, as a pure function of (seed, step): flips, light, blur, noise, recompression."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from ffjax.data import codecs
from ffjax.types import Batch


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Probability of each variation, and its range; a probability of 0 switches it off.

    flip: left-right. jpeg: recompressed at a quality drawn from jpeg_quality. blur: Gaussian of sigma up to blur_sigma
    pixels. noise: Gaussian of sd up to noise_sd / 255. light: gain and offset of up to +-light_range.
    """

    flip: float = 0.5
    jpeg: float = 0.2
    jpeg_quality: tuple[int, int] = (75, 95)
    blur: float = 0.0
    blur_sigma: float = 0.7
    noise: float = 0.0
    noise_sd: float = 3.0
    light: float = 0.5
    light_range: float = 0.1


def augmented(batch: Batch, config: Augment, seed: int, step: int) -> Batch:
    """A batch of numpy arrays, each row varied by its own draws; float32 in [0, 1], masks flipped along."""
    draws = [np.random.Generator(np.random.Philox(key=[seed, (step << 20) + i])) for i in range(len(batch.labels))]
    images, masks = np.array(batch.images), None if batch.masks is None else np.array(batch.masks)
    for i, rng in enumerate(draws):
        if rng.random() < config.flip:
            images[i] = images[i, :, ::-1]
            if masks is not None:
                masks[i] = masks[i, :, ::-1]
        images[i] = np.clip(_varied(images[i], config, rng), 0, 1)
    qualities = [int(rng.integers(*config.jpeg_quality, endpoint=True)) if rng.random() < config.jpeg else 0
                 for rng in draws]  # fmt: skip
    for i in np.flatnonzero(qualities):
        images[i] = codecs.to_float(codecs.decode(codecs.jpeg_bytes(codecs.to_uint8(images[i]), qualities[i])))
    return batch._replace(images=images, masks=masks)


def _varied(image: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    """One image with light, blur and noise drawn; float32, not clipped."""
    if rng.random() < config.light:
        gain, offset = rng.uniform(-config.light_range, config.light_range, 2)
        image = image * np.float32(1 + gain) + np.float32(offset)
    if rng.random() < config.blur:
        sigma = rng.uniform(0, config.blur_sigma)
        image = gaussian_filter(image, (sigma, sigma, 0))
    if rng.random() < config.noise:
        sd = rng.uniform(0, config.noise_sd / 255)
        image = image + np.float32(sd) * rng.standard_normal(image.shape, np.float32)
    return image
