"""Forgeries of a captured frame, in families modelled on FaceForensics++ (Roessler et al. 2019), and self-blending.

Every family takes the frame as the camera stored it and returns a frame in which only the mask has changed. None is
visible in a statistic of the whole picture: what gives them away is that the changed part disagrees with the skin
around it in grain, sharpness, colour or light. FAMILIES is the whole table.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from ffjax.data.camera import Shot, blur, expose
from ffjax.data.faces import (
    SIZE,
    Identity,
    Scene,
    face_region,
    mouth_region,
    noise,
    sample_expression,
    sample_light,
)
from ffjax.data.painting import Painting, Style, paint


class Source(NamedTuple):
    """What a forger holds. frame: (SIZE, SIZE, 3) float32 in [0, 1]. painting: the scene as rendered, for its geometry.
    donor: whose face to put in."""

    frame: np.ndarray
    painting: Painting
    who: Identity
    donor: Identity
    scene: Scene
    shot: Shot
    style: Style


Forged = tuple[np.ndarray, np.ndarray]
"""Image (SIZE, SIZE, 3) float32 in [0, 1] and mask (SIZE, SIZE) bool, outside of which the frame is untouched."""


def swap(source: Source, rng: np.random.Generator) -> Forged:
    """Identity swap: the donor with the target's pose, out of a low-resolution decoder, feathered in."""
    scene = source.scene._replace(light=_nudge(source.scene.light, rng), glasses=False)
    face = expose(paint(source.donor, scene, source.style).image, source.shot)
    face = decode(face, rng.uniform(2.2, 3.2), rng)
    alpha = face_region(source.painting.where, rng.uniform(0.15, 0.35))
    return blend(source.frame, match(face, source.frame, alpha, rng.uniform(0.5, 0.9)), alpha)


def reenact(source: Source, rng: np.random.Generator) -> Forged:
    """Expression transfer: the same person re-rendered with another expression by a model that knows no pores."""
    scene = source.scene._replace(**sample_expression(rng))
    face = expose(paint(source.who, scene, source.style, pores=0.0).image, source.shot)
    face = decode(face, rng.uniform(1.8, 2.6), rng)
    alpha = face_region(source.painting.where, rng.uniform(0.08, 0.20))
    return blend(source.frame, match(face, source.frame, alpha, rng.uniform(0.6, 1.0)), alpha)


def graphics(source: Source, rng: np.random.Generator) -> Forged:
    """Graphics-style swap: the donor, off a grainy photograph in its own light, as a texture laid on with a narrow seam
    and a wrong colour. The photograph is small: its grain is coarser than the frame's."""
    scene = source.scene._replace(light=sample_light(rng), glasses=False, texture=source.scene.texture + 7)
    face = wobble(expose(paint(source.donor, scene, source.style).image, source.shot), rng, 1.0)
    face = texture_map(face + rng.uniform(0.012, 0.028) * noise(rng, 0.0)[..., None], 2.0)
    alpha = face_region(source.painting.where, rng.uniform(0.05, 0.12))
    face = match(face, source.frame, alpha, rng.uniform(0.4, 0.8))
    return blend(source.frame, face * rng.normal(1, 0.06, 3).astype(np.float32), alpha)


def mouth(source: Source, rng: np.random.Generator) -> Forged:
    """Mouth re-rendering: only the lower face comes out of a network, the rest of the frame is real."""
    scene = source.scene._replace(smile=rng.normal(0.3, 0.5), jaw_drop=rng.uniform(0.1, 1.0))
    face = expose(paint(source.who, scene, source.style, pores=0.3).image, source.shot)
    face = decode(face, rng.uniform(2.2, 3.2), rng)
    alpha = mouth_region(source.painting.where, rng.uniform(0.12, 0.30))
    return blend(source.frame, match(face, source.frame, alpha, rng.uniform(0.7, 1.0)), alpha)


def self_blend(source: Source, rng: np.random.Generator) -> Forged:
    """Self-blended image (Shiohara & Yamasaki, CVPR 2022): two views of one frame that differ in colour and sharpness,
    one shifted and scaled a little, mixed through a deformed face mask at a random opacity."""
    view = source.frame
    if rng.random() < 0.3:
        view = resize(view, rng.uniform(2.2, 3.6))
    else:
        view = np.clip(view + rng.uniform(1.8, 3.4) * (view - blur(view, 1.0)), 0, 1)
    view = view * rng.normal(1, 0.10, 3).astype(np.float32) + rng.normal(0, 0.02)
    scale, shift = rng.uniform(0.95, 1.05), rng.uniform(-0.02, 0.02, 2) * SIZE
    frame_to_view = np.eye(4)
    frame_to_view[(0, 1), (0, 1)], frame_to_view[:2, 3] = scale, (1 - scale) * SIZE / 2 + shift
    view = ndimage.affine_transform(view, frame_to_view, order=1, mode="nearest")
    alpha = wobble(face_region(source.painting.where, rng.uniform(0.1, 0.4))[..., None], rng, 3.0)[..., 0]
    return blend(source.frame, view, alpha * rng.choice([0.75, 1.0, 1.0]))


FAMILIES: dict[str, Callable[[Source, np.random.Generator], Forged]] = {
    "swap": swap,
    "reenact": reenact,
    "graphics": graphics,
    "mouth": mouth,
    "sbi": self_blend,
}


# --- the forger's tools -------------------------------------------------------------------------------------------


def blend(frame: np.ndarray, face: np.ndarray, alpha: np.ndarray) -> Forged:
    """Lay `face` over the frame. The mask is where alpha reaches 1/16; below that the frame is left alone."""
    mask = alpha >= 1 / 16
    return np.clip(np.where(mask[..., None], frame + alpha[..., None] * (face - frame), frame), 0, 1), mask


def resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Down by `factor` and up again, each channel bilinear: what a low-resolution decoder can still say."""
    small = round(SIZE / factor)
    channels = [Image.fromarray(image[..., c]) for c in range(3)]
    down = [c.resize((small, small), Image.Resampling.BOX) for c in channels]
    return np.stack([np.asarray(c.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for c in down], axis=-1)


def decode(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """A generator's output: low resolution, then the checkerboard of its transposed convolutions."""
    low = resize(image.astype(np.float32), factor)
    phase = rng.integers(0, 4, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    board = np.cos(np.pi / 2 * (y + phase[0])) * np.cos(np.pi / 2 * (x + phase[1]))
    return low + rng.uniform(0.02, 0.045) * board[..., None].astype(np.float32)


def texture_map(image: np.ndarray, texel: float) -> np.ndarray:
    """A rasteriser without filtering: every texel, `texel` pixels wide, shows the one sample it was given."""
    at = np.clip((np.arange(SIZE) // texel + 0.5) * texel, 0, SIZE - 1).astype(int)
    return image[at][:, at]


def match(face: np.ndarray, frame: np.ndarray, alpha: np.ndarray, strength: float) -> np.ndarray:
    """Move the face's mean and spread of each channel towards the frame's under alpha, by `strength` in [0, 1]."""
    inside = alpha > 0.5
    if not inside.any():
        return face
    old, new = face[inside], frame[inside]
    gain = np.clip(new.std(axis=0) / (old.std(axis=0) + 1e-3), 0.5, 2.0)
    return face + strength * ((face - old.mean(axis=0)) * gain + new.mean(axis=0) - face)


def wobble(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Elastic warp by about `amount` pixels."""
    y, x = np.mgrid[:SIZE, :SIZE]
    at = np.stack([y + amount * noise(rng, 12.0), x + amount * noise(rng, 12.0)])
    return np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in np.moveaxis(image, -1, 0)], -1)


def _nudge(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = light + rng.normal(0, 0.35, 3).astype(np.float32)
    return moved / np.linalg.norm(moved)
