"""Parametric faces: who (Identity), in what situation (Scene), and where every pixel lies on the head (Geometry).

Everything is drawn from a numpy Generator, so a face is a pure function of its seed. Lengths are in head units: the
frame spans [-1, 1] both ways, x to the right and y down; on the head itself positions are relative to its half width
and half height, so that the eyes lie near y = -0.1 and the mouth near y = 0.5 for everybody.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIZE = 128
"""Side of every image, in pixels."""
PIXEL = 2 / SIZE

SKINS = ((0.88, 0.66, 0.53), (0.80, 0.57, 0.43), (0.67, 0.44, 0.31), (0.50, 0.31, 0.21), (0.34, 0.20, 0.14))
HAIRS = ((0.05, 0.04, 0.04), (0.17, 0.10, 0.06), (0.36, 0.22, 0.12), (0.62, 0.46, 0.25), (0.45, 0.44, 0.43))
EYES = ((0.22, 0.13, 0.07), (0.30, 0.22, 0.10), (0.25, 0.37, 0.45), (0.28, 0.38, 0.26))


class Identity(NamedTuple):
    """What stays with a person. Colours are linear RGB in [0, 1]; lengths are relative to an average face."""

    width: float
    height: float
    jaw: float
    skin: np.ndarray
    eye_gap: float
    eye_size: float
    eye_colour: np.ndarray
    brow_weight: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_fullness: float
    lip_redness: float
    hair_colour: np.ndarray
    hairline: float
    hair_volume: float
    hair_length: float
    pores: float
    freckles: float
    beard: float


class Scene(NamedTuple):
    """What changes from picture to picture: pose (radians, head units), expression, light, surroundings.

    light, fill: unit vectors towards the lamps, z towards the camera. ambient, strength: radiance in [0, 1].
    texture: seed of pores, hair strands, cloth and backdrop.
    """

    yaw: float
    pitch: float
    roll: float
    x: float
    y: float
    scale: float
    smile: float
    jaw_drop: float
    brow_raise: float
    eye_open: float
    gaze: float
    light: np.ndarray
    fill: np.ndarray
    strength: float
    ambient: float
    tint: np.ndarray
    make_up: float
    glasses: bool
    cloth: np.ndarray
    backdrop: np.ndarray
    texture: int


class Geometry(NamedTuple):
    """Where the head lies in the frame; every field is (SIZE, SIZE) float32.

    u, v: upright head coordinates in head units. x, y: position on the head's surface, relative to its half sizes.
    depth: distance towards the camera. head: cover of the head's outline in [0, 1].
    """

    u: np.ndarray
    v: np.ndarray
    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    head: np.ndarray


def _pick(rng: np.random.Generator, palette: tuple, spread: float) -> np.ndarray:
    """A colour between two neighbours of the palette, a little off."""
    i = rng.integers(len(palette) - 1)
    mixed = np.asarray(palette[i]) + rng.random() * (np.asarray(palette[i + 1]) - np.asarray(palette[i]))
    return np.clip(mixed * rng.normal(1, spread, 3), 0.02, 0.95).astype(np.float32)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A colour of cloth or wallpaper: any grey, half of any hue."""
    return (rng.uniform(0.05, 0.75) * rng.uniform(0.45, 1.15, 3)).astype(np.float32)


def sample_identity(rng: np.random.Generator) -> Identity:
    """A person. The distribution is the same in every domain and split."""
    return Identity(
        width=rng.normal(1, 0.05),
        height=rng.normal(1, 0.05),
        jaw=rng.uniform(0.10, 0.34),
        skin=_pick(rng, SKINS, 0.04),
        eye_gap=rng.normal(1, 0.06),
        eye_size=rng.normal(1, 0.10),
        eye_colour=_pick(rng, EYES, 0.10),
        brow_weight=rng.uniform(0.5, 1.4),
        brow_arch=rng.uniform(0.2, 1.2),
        nose_length=rng.normal(1, 0.10),
        nose_width=rng.normal(1, 0.14),
        mouth_width=rng.normal(1, 0.10),
        lip_fullness=rng.normal(1, 0.20),
        lip_redness=rng.uniform(0.2, 1.0),
        hair_colour=_pick(rng, HAIRS, 0.10),
        hairline=rng.uniform(-0.78, -0.52),
        hair_volume=rng.uniform(1.02, 1.35),
        hair_length=float(rng.choice([0.0, 0.5, 1.2])) + rng.uniform(-0.2, 0.2),
        pores=rng.uniform(0.4, 1.6),
        freckles=max(0.0, rng.normal(0, 0.5)),
        beard=max(0.0, rng.normal(-0.3, 0.5)),
    )


def sample_light(rng: np.random.Generator) -> np.ndarray:
    """A unit vector towards a lamp in front of the face, anywhere from left to right, rather from above."""
    angle, lift = rng.uniform(-1.2, 1.2), rng.uniform(-0.3, 0.9)
    return np.array([np.sin(angle) * np.cos(lift), -np.sin(lift), np.cos(angle) * np.cos(lift)], np.float32)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A situation. Real and forged pictures draw theirs from this one distribution."""
    return Scene(
        yaw=float(np.clip(rng.normal(0, 0.25), -0.5, 0.5)),
        pitch=rng.normal(0, 0.10),
        roll=rng.normal(0, 0.07),
        x=rng.normal(0, 0.04),
        y=rng.normal(-0.06, 0.03),
        scale=rng.uniform(1.12, 1.32),
        light=sample_light(rng),
        fill=sample_light(rng),
        strength=rng.uniform(0.5, 1.0),
        ambient=rng.uniform(0.15, 0.4),
        tint=rng.normal(1, 0.06, 3).astype(np.float32),
        make_up=max(0.0, rng.uniform(-0.5, 1.0)),
        glasses=rng.random() < 0.15,
        cloth=_muted(rng),
        backdrop=np.stack([_muted(rng), _muted(rng)]),
        texture=int(rng.integers(2**31)),
        **sample_expression(rng),
    )


def sample_expression(rng: np.random.Generator) -> dict[str, float]:
    """The fields of a Scene that make up the expression."""
    return {
        "smile": rng.normal(0.2, 0.4),
        "jaw_drop": max(0.0, rng.normal(0.1, 0.4)),
        "brow_raise": rng.normal(0, 0.5),
        "eye_open": float(np.clip(rng.normal(1, 0.2), 0.35, 1.4)),
        "gaze": rng.normal(0, 0.3),
    }


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Frame coordinates (y, x) of the pixel centres, each (SIZE, SIZE) float32 in (-1, 1)."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * PIXEL - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def cover(distance: np.ndarray, softness: float = PIXEL) -> np.ndarray:
    """Anti-aliased coverage of the region where `distance` (head units) is positive: a ramp `softness` wide."""
    return np.clip(0.5 + distance / softness, 0, 1)


def bump(x: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian hump of height 1."""
    return np.exp(-((x / width) ** 2))


def geometry(who: Identity, scene: Scene) -> Geometry:
    """Cast the head, an ellipsoid that narrows towards the chin, into the frame."""
    y, x = grid()
    x, y = x - scene.x, y - scene.y
    cos, sin = math.cos(scene.roll) / scene.scale, math.sin(scene.roll) / scene.scale
    u, v = x * cos + y * sin, y * cos - x * sin
    half_width, half_height = 0.42 * who.width, 0.56 * who.height
    down = np.clip(v / half_height, 0, 1.2)
    narrow = half_width * (1 - who.jaw * down**1.7)
    radius = np.sqrt((u / narrow) ** 2 + (np.abs(v) / half_height) ** 2.2)
    depth = np.sqrt(np.clip(1 - radius**2, 0, 1)) * 0.45
    # Turn each visible point back into the head's own frame: this is what makes features slide and foreshorten.
    side = u * math.cos(scene.yaw) - depth * math.sin(scene.yaw)
    front = u * math.sin(scene.yaw) + depth * math.cos(scene.yaw)
    lift = v * math.cos(scene.pitch) - front * math.sin(scene.pitch)
    outline = cover((1 - radius) * half_width, 1.5 * PIXEL)
    return Geometry(u, v, side / narrow, lift / half_height, depth, outline)


def face_region(where: Geometry, feather: float) -> np.ndarray:
    """The inner face from the brows to the lower lip, (SIZE, SIZE) in [0, 1], falling off over `feather` (relative)."""
    radius = np.sqrt((where.x / 0.74) ** 2 + ((where.y - 0.16) / 0.66) ** 2)
    return _smooth(np.clip((1 - radius) / feather, 0, 1)) * where.head


def mouth_region(where: Geometry, feather: float) -> np.ndarray:
    """Mouth, chin and lower cheeks, (SIZE, SIZE) in [0, 1], falling off over `feather` (relative)."""
    radius = np.sqrt((where.x / 0.66) ** 2 + ((where.y - 0.56) / 0.46) ** 2)
    return _smooth(np.clip((1 - radius) / feather, 0, 1)) * where.head


def _smooth(ramp: np.ndarray) -> np.ndarray:
    return ramp * ramp * (3 - 2 * ramp)


def landmarks(who: Identity, scene: Scene) -> np.ndarray:
    """Frame positions (x, y) in pixels of eyes, nose tip, mouth corners and chin, (6, 2) float32.

    Positions off the head's silhouette cannot occur: the points lie well inside the front of the ellipsoid.
    """
    where = geometry(who, scene)
    gap, tip, wide = 0.40 * who.eye_gap, 0.22 * who.nose_length, 0.34 * who.mouth_width
    points = ((-gap, -0.10), (gap, -0.10), (0.0, tip), (-wide, 0.5), (wide, 0.5), (0.0, 0.92))
    off = [np.where(where.head > 0.5, (where.x - px) ** 2 + (where.y - py) ** 2, np.inf).argmin() for px, py in points]
    return np.stack([np.asarray(off) % SIZE, np.asarray(off) // SIZE], axis=1).astype(np.float32)


def noise(rng: np.random.Generator, fine: float, coarse: float | None = None) -> np.ndarray:
    """Unit-variance noise (SIZE, SIZE), blurred by `fine` pixels; what is coarser than `coarse` pixels is removed."""
    if fine >= 3:  # the same look from a quarter of the samples
        field = ndimage.gaussian_filter(rng.standard_normal((SIZE // 4, SIZE // 4), np.float32), fine / 4, mode="wrap")
        low = np.asarray(ndimage.zoom(field, 4, order=1, mode="grid-wrap", grid_mode=True))
    else:
        low = np.asarray(ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE), np.float32), fine, mode="wrap"))
    if coarse is not None:
        low = low - ndimage.gaussian_filter(low, coarse, mode="wrap")
    return low / low.std()
