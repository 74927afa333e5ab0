"""What image forensics asks about: photographs filtered, recompressed, resampled, blurred, noisy, rephotographed.

An operation takes a whole photograph and is cropped afterwards: no patch shows a filter's border, and an 8x8 grid lies
at any phase in it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ffjax.data import codecs
from ffjax.data.recapture import recapture
from ffjax.errors import InputError


class Operation(NamedTuple):
    """apply(photograph (H, W, C) uint8, strength, rng) -> (H', W', C) uint8. usual: the strength where none is given.
    low, high: strengths it takes, both included, of those for which `takes` is true. means: what a strength is, for
    messages."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    usual: float
    low: float
    high: float
    means: str
    takes: Callable[[float], bool] = lambda strength: True


class Chosen(NamedTuple):
    """An operation at a strength. name: 'median3', which names of examples end in."""

    name: str
    operation: Operation
    strength: float

    def __call__(self, photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.operation.apply(photograph, self.strength, rng)


def chosen(text: str) -> tuple[Chosen, ...]:
    """'median', 'median5', or several joined by '+' ('median3+jpeg75'), as operations; 'all' is one of each.

    InputError: an unknown operation (the known ones are listed) or a strength it does not take.
    """
    return tuple(_one(part, text) for part in (OPERATIONS if text == "all" else text.split("+")))


def _one(part: str, text: str) -> Chosen:
    found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)?", part)
    if not found or found[1] not in OPERATIONS:
        known = ", ".join(f"{name}{op.usual:g}" for name, op in OPERATIONS.items())
        raise InputError(
            f"operation {part!r} in {text!r} is unknown; known, each with its usual strength: {known}; all"
        )
    operation = OPERATIONS[found[1]]
    strength = float(found[2]) if found[2] else operation.usual
    if not operation.low <= strength <= operation.high or not operation.takes(strength):
        raise InputError(f"operation {part!r}: {operation.means} from {operation.low:g} to {operation.high:g}")
    return Chosen(f"{found[1]}{strength:g}", operation, strength)


def _median(image: np.ndarray, window: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.median_filter(image, (int(window), int(window), 1), mode="mirror")


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    return codecs.decode(codecs.jpeg_bytes(image, int(quality)), image.shape[2])


def _resample(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    height, width = (max(1, round(factor * side)) for side in image.shape[:2])
    return resized(image, (width, height), Image.Resampling.BICUBIC)


def _blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="mirror"))


def _noise(image: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(image + sd * rng.standard_normal(image.shape, np.float32))


def _recapture(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(255 * recapture(codecs.to_float(image), strength, rng))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def resized(image: np.ndarray, to: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """(H, W, C) uint8 -> (height, width, C) for `to` = (width, height), by Pillow, antialiased."""
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize(to, how)) for band in np.moveaxis(image, -1, 0)
    ]
    return np.stack(bands, axis=-1)


OPERATIONS = {
    "median": Operation(_median, 3, 3, 15, "odd window widths in pixels", lambda width: width % 2 == 1),
    "jpeg": Operation(_jpeg, 75, 1, 100, "whole libjpeg qualities", lambda quality: quality % 1 == 0),
    "resample": Operation(
        _resample, 1.2, 0.5, 4, "factors of the side but 1, which changes nothing,", lambda factor: factor != 1
    ),
    "blur": Operation(_blur, 1, 0.1, 10, "Gaussian standard deviations in pixels"),
    "noise": Operation(_noise, 2, 0.1, 64, "Gaussian standard deviations in levels of 255"),
    "recapture": Operation(_recapture, 0.5, 0.05, 1, "shares of the screen's full structure"),
}
"""By name; a new entry is held to tests/data/test_patches.py as a whole."""
