"""Cameras: from linear light to a compressed frame, and the last re-encoding that every picture passes through.

A frame is taken once (lens, vignette, exposure, sensor noise, in-camera smoothing, first JPEG), a forger may work on
it, and then real and forged frames alike are resampled and compressed again: neither the number of compressions nor
any property of the whole picture tells them apart.
"""

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ffjax.data.faces import SIZE, grid, noise


class Camera(NamedTuple):
    """A domain's camera; pairs are the ranges from which each shot draws.

    blur: lens blur, standard deviation in pixels. shot, read: noise that grows with the light and noise that does not,
    relative to white. grain: correlation length of the noise in pixels (demosaicking). chroma: how much of the noise
    is coloured. rows: share of the read noise that is common to a row. taken, sent: JPEG qualities of the first and
    last compression. subsampling: Pillow's chroma code (0 is 4:4:4, 2 is 4:2:0). filter: of the last resampling.
    """

    blur: tuple[float, float]
    shot: tuple[float, float]
    read: tuple[float, float]
    grain: float
    chroma: float
    rows: float
    taken: tuple[int, int]
    sent: tuple[int, int]
    subsampling: int
    filter: Image.Resampling


PHONE = Camera(
    blur=(0.35, 0.95),
    shot=(0.010, 0.045),
    read=(0.004, 0.016),
    grain=0.45,
    chroma=0.7,
    rows=0.0,
    taken=(85, 97),
    sent=(72, 95),
    subsampling=2,
    filter=Image.Resampling.BICUBIC,
)
WEBCAM = Camera(
    blur=(0.45, 1.05),
    shot=(0.006, 0.030),
    read=(0.008, 0.024),
    grain=0.60,
    chroma=0.3,
    rows=0.25,
    taken=(80, 95),
    sent=(66, 90),
    subsampling=0,
    filter=Image.Resampling.BILINEAR,
)


class Shot(NamedTuple):
    """One picture's settings, drawn from a Camera. balance: gains of R, G, B, exposure included. contrast: exponent on
    top of the display gamma. focus: blur of the backdrop in pixels. calm_backdrop, calm_person: share in [-1, 1]
    of the in-camera smoothing (portrait mode) outside and on the person; a negative share sharpens. seed: of the noise.
    """

    blur: float
    shot: float
    read: float
    balance: np.ndarray
    contrast: float
    vignette: float
    focus: float
    calm_backdrop: float
    calm_person: float
    quality: int
    seed: int


def sample_shot(camera: Camera, rng: np.random.Generator) -> Shot:
    """Settings for one picture; the same distribution whether it will be forged or not."""
    return Shot(
        blur=rng.uniform(*camera.blur),
        shot=_log_uniform(rng, *camera.shot),
        read=_log_uniform(rng, *camera.read),
        balance=(2 ** rng.uniform(-0.5, 0.9) * rng.normal(1, 0.05, 3)).astype(np.float32),
        contrast=rng.uniform(0.85, 1.2),
        vignette=rng.uniform(0, 0.3),
        focus=rng.uniform(0.3, 3.0) if rng.random() < 0.6 else 0.0,
        calm_backdrop=rng.uniform(-1.0, 1.0),
        calm_person=max(0.0, rng.uniform(-1.5, 0.5)),
        quality=int(rng.integers(*camera.taken, endpoint=True)),
        seed=int(rng.integers(2**31)),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def expose(light: np.ndarray, shot: Shot) -> np.ndarray:
    """Linear light (H, W, 3) -> display values in [0, 1] with the shot's exposure and tone; no lens, no noise.

    This is also what a forger's own renderer delivers: the picture's look without its sensor.
    """
    y, x = grid()
    fall_off = 1 - shot.vignette * (x**2 + y**2)[..., None]
    return np.clip(light * shot.balance * fall_off, 0, 1) ** np.float32(shot.contrast / 2.2)


def take(light: np.ndarray, person: np.ndarray, shot: Shot, camera: Camera) -> np.ndarray:
    """The frame as the camera stores it.

    light: (SIZE, SIZE, 3) linear. person: (SIZE, SIZE) cover of the subject, sharper and less smoothed than what is
    behind. Returns (SIZE, SIZE, 3) float32 in [0, 1] on the 8-bit lattice, once compressed.
    """
    rng = np.random.default_rng(shot.seed)
    sharp = blur(light, shot.blur)
    if shot.focus > 0:
        sharp = np.where(person[..., None] > 0.5, sharp, blur(light, shot.blur + shot.focus))
    noisy = sharp + _sensor(np.clip(sharp * shot.balance, 0, 1), shot, camera, rng) / shot.balance
    frame = expose(np.clip(noisy, 0, None), shot)
    calm = shot.calm_backdrop + person * (shot.calm_person - shot.calm_backdrop)
    frame = frame + calm[..., None] * (blur(frame, 1.1) - frame)
    return from_jpeg(to_jpeg(frame, shot.quality, camera.subsampling))


def _sensor(level: np.ndarray, shot: Shot, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Noise (SIZE, SIZE, 3) of a sensor that sees `level` in [0, 1], in the same unit."""
    grey = noise(rng, camera.grain)[..., None] * math.sqrt(1 - camera.chroma**2)
    colour = np.stack([noise(rng, camera.grain) for _ in range(3)], axis=-1) * camera.chroma
    row = rng.standard_normal((SIZE, 1, 1), np.float32) * camera.rows
    deviation = np.sqrt(shot.read**2 + shot.shot**2 * level) * (0.25 + 0.75 * np.sqrt(level))
    return (grey + colour) * deviation + row * shot.read


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an (H, W, 3) image."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3.0)


def to_jpeg(image: np.ndarray, quality: int, subsampling: int) -> bytes:
    """(H, W, 3) in [0, 1] -> JPEG bytes."""
    stream = io.BytesIO()
    lattice = Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    lattice.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def from_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes -> (H, W, 3) float32 in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(data)), np.float32) / 255


def send(
    frame: np.ndarray, mask: np.ndarray, camera: Camera, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The last step of every picture: crop and resample a little, compress.

    frame: (SIZE, SIZE, 3) in [0, 1]. mask: (SIZE, SIZE) bool, resampled alike. Returns uint8 image and uint8 mask in
    {0, 255}.
    """
    zoom = rng.uniform(0.92, 1.0)
    left, top = rng.uniform(0, SIZE * (1 - zoom), 2)
    window = (zoom, 0.0, left, 0.0, zoom, top)
    lattice = Image.fromarray((np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8))
    small = lattice.transform((SIZE, SIZE), Image.Transform.AFFINE, window, resample=camera.filter)
    area = Image.fromarray(mask.astype(np.uint8) * 255)
    area = area.transform((SIZE, SIZE), Image.Transform.AFFINE, window, resample=Image.Resampling.NEAREST)
    stream = io.BytesIO()
    quality = int(rng.integers(*camera.sent, endpoint=True))
    small.save(stream, "JPEG", quality=quality, subsampling=camera.subsampling)
    stream.seek(0)
    return np.asarray(Image.open(stream)), np.asarray(area)
