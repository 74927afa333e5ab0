"""Eight bits and real files: what an image goes through when it is stored and opened again.

Everything here is host numpy and Pillow. Float images are float32 NHWC in [0, 1]; stored ones are uint8. C is 3 (RGB)
or 1 (grey).
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from ffjax.errors import InputError

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that encode or decode; Pillow releases the interpreter lock while it does."""

MAX_PIXELS = 80_000_000
"""Larger images are refused (240 MB decoded). Below Pillow's own alarm, so that ours is the message one sees."""

_ORIENTATION = 0x0112  # the Exif tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_uint8(images: np.ndarray) -> np.ndarray:
    """float in [0, 1], any shape -> uint8 of the same shape: round(255 x), to the nearest level, never truncated.

    Halves go to the even level, as in `jnp.round`, so host and device agree on every float32. Values outside [0, 1]
    are clipped. Raises ValueError on NaN, which has no level.
    """
    levels = np.rint(np.clip(np.asarray(images, np.float32), 0, 1) * np.float32(255))
    if np.isnan(levels).any():
        raise ValueError("NaN in an image that is to be stored in 8 bits")
    return levels.astype(np.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8, any shape -> float32 of the same shape in [0, 1], x / 255. `to_uint8` undoes it exactly."""
    return np.divide(images, np.float32(255), dtype=np.float32)


def png_bytes(image: np.ndarray) -> bytes:
    """(H, W, C) uint8 -> a PNG file. Lossless; compressed at the fastest level, since the bytes are seldom kept."""
    return _encoded(image, format="PNG", compress_level=1)


def jpeg_bytes(image: np.ndarray, quality: int) -> bytes:
    """(H, W, C) uint8 -> a baseline JPEG file by libjpeg, chroma 4:2:0, quality 1..100 on libjpeg's scale.

    Grey is coded as the luma of three equal channels would be. Raises InputError on another quality.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"JPEG quality {quality} is outside 1..100")
    return _encoded(image, format="JPEG", quality=quality, subsampling="4:2:0")


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """The bytes of an image file -> (H, W, channels) uint8, upright: RGB, or its luma for 1 (exactly the values of a
    grey file); the first frame where there are several.

    16-bit grey is scaled by 1/257 and rounded (65535 -> 255); of 16-bit colour Pillow keeps the high byte, at most one
    level lower. Float images must be in [0, 1]. Transparent pixels are laid on white, the page they are usually seen
    on. Grey, palette and CMYK become RGB by Pillow's conversions; embedded colour profiles are ignored.

    Raises InputError, one line, on anything that cannot be decoded and on more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_huge(image)
            image.load()
            upright = _upright(_rgb(image), _orientation(image))
            return np.array(upright) if channels == 3 else np.array(upright.convert("L"))[..., None]
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError("empty file" if not data else "not an image, or one too damaged to recognise") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"damaged or unsupported image ({first})") from None


def png(images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1] -> the same, written as PNG and read again: exactly `to_uint8(images) / 255`."""
    return _round_trip(images, png_bytes)


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1] -> the same, written as JPEG (see `jpeg_bytes`) and read again.

    Each image is coded by itself: its result does not depend on its companions in the batch.
    """
    return _round_trip(images, partial(jpeg_bytes, quality=quality))


def resent(images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1] -> the same, as a messenger passes them on: sent at three quarters of the size
    (Lanczos) as JPEG 75, and enlarged again (bicubic)."""
    return _each(images, _resent)


def cropped(images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1] -> the same: of each the middle nine tenths of either side, enlarged to the whole
    (bicubic), in 8 bits."""
    return _each(images, _cropped)


def _resent(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    small = _sized(image, max(1, round(0.75 * height)), max(1, round(0.75 * width)), Image.Resampling.LANCZOS)
    return _sized(decode(jpeg_bytes(small, 75), channels), height, width, Image.Resampling.BICUBIC)


def _cropped(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    middle = image[height // 20 : height - height // 20, width // 20 : width - width // 20]
    return _sized(middle, height, width, Image.Resampling.BICUBIC)


def _sized(image: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    """(H, W, C) uint8 -> (height, width, C)."""
    flat = np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(Image.fromarray(flat).resize((width, height), how)).reshape(height, width, -1)


def _unchanged(images: np.ndarray) -> np.ndarray:
    return images


STORAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float": _unchanged,
    "png": png,
    "jpeg90": partial(jpeg, quality=90),
    "jpeg75": partial(jpeg, quality=75),
    "jpeg50": partial(jpeg, quality=50),
    "resent": resent,
    "cropped": cropped,
}
"""How an image is kept between the attacker and the detector: (B, H, W, C) float32 in [0, 1] -> the same."""

Stored = Literal["png", "jpeg90", "jpeg75", "jpeg50", "resent", "cropped"]
"""The keys of STORAGE but float, for command lines."""


def _encoded(image: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    grey = image.shape[-1] == 1
    Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image, np.uint8)).save(file, **options)
    return file.getvalue()


def _round_trip(images: np.ndarray, encode: Callable[[np.ndarray], bytes]) -> np.ndarray:
    return _each(images, lambda image: decode(encode(image), image.shape[-1]))


def _each(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """change((H, W, C) uint8) -> the same shape, of each by itself."""
    stored = to_uint8(images)
    with ThreadPoolExecutor(WORKERS) as pool:
        for i, image in enumerate(pool.map(change, stored.copy())):
            stored[i] = image
    return to_float(stored)


def _refuse_huge(image: Image.Image) -> None:
    """Reads the header only: nothing has been decoded yet."""
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")


def _rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_deep_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image.convert("RGBA"))
    return image.convert("RGB")


def _deep_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """(H, W) integer in [0, 65535], or float in [0, 1] -> uint8, rounded. Raises InputError outside that range."""
    top = 1 if grey.dtype.kind == "f" else 65535
    if not (grey.min() >= 0 and grey.max() <= top):  # written so that NaN fails it
        raise InputError(f"values outside [0, {top}], whose scale is unknown")
    return np.rint(grey.astype(np.float64) * (255 / top)).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 (upright) where there is none; Exif that cannot be read is no reason to lose an image."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
