"""Photographs that were never compressed, made here for the tests of patches and of their JPEG history."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage


def photograph(seed: int, height: int = 96, width: int = 128, channels: int = 3) -> np.ndarray:
    """Smooth light with edges and some grain, never compressed."""
    rng = np.random.default_rng(seed)
    light = ndimage.gaussian_filter(rng.normal(size=(height, width, channels)), (6, 6, 0))
    image = 128 + 500 * light + 40 * (light > 0.05) + rng.normal(size=light.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 50) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def save(path: Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def write_thirty(root: Path) -> Path:
    """Thirty lossless photographs in two subfolders."""
    for i in range(30):
        save(root / f"{i % 2}" / f"p{i:02d}.png", photograph(i))
    return root
