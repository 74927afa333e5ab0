"""Paint a parametric face: relief, albedo, light, hair, clothes and backdrop, in one of two rendering styles.

The two domains differ in how light falls on skin (plain Lambert with a highlight, or wrapped light with a warm
terminator), in hair and in backdrops, so that "another data set" is more than another camera.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ffjax.data.faces import PIXEL, SIZE, Geometry, Identity, Scene, bump, cover, geometry, grid, noise

Canvas = np.ndarray
"""(SIZE, SIZE, 3) float32 linear light, mostly in [0, 1]."""


class Style(NamedTuple):
    """How a domain renders. shade(normals, scene) -> light (SIZE, SIZE, 3); backdrop(scene, rng) -> Canvas;
    strands: how much the strands of hair differ in brightness."""

    shade: Callable[[np.ndarray, Scene], np.ndarray]
    backdrop: Callable[[Scene, np.random.Generator], Canvas]
    strands: float


class Painting(NamedTuple):
    """A rendered frame. image: Canvas. where: the head's geometry. person: (SIZE, SIZE) cover of everything that is
    not backdrop. skin: (SIZE, SIZE) cover of face, ears and neck."""

    image: Canvas
    where: Geometry
    person: np.ndarray
    skin: np.ndarray


def paint(who: Identity, scene: Scene, style: Style, pores: float = 1.0) -> Painting:
    """Render `who` in `scene`. `pores` scales the skin's fine texture (0 for a renderer that knows none)."""
    rng = np.random.default_rng(scene.texture)
    where = geometry(who, scene)
    image = style.backdrop(scene, rng) * _wallpaper(rng)
    back_hair, hair = _back_hair(who, where), _hair_light(who, where, style, rng)
    image = _over(image, hair, back_hair)
    grain = _skin_grain(who, scene, rng) * pores
    neck, shoulders = _neck(who, where), _shoulders(where)
    image = _over(image, _neck_light(who, scene, where, style, grain), neck)
    image = _over(image, _cloth_light(scene, where, rng), shoulders)
    normals = _normals(who, scene, where)
    light = style.shade(normals, scene)
    ears = _ears(who, scene, where)
    image = _over(image, who.skin * 0.9 * (1 + grain)[..., None] * light * 0.9, ears)
    image = _over(image, _albedo(who, scene, where, grain) * light + _gloss(normals, scene), where.head)
    image = _over(image, _eye_light(who, scene, where), _eye_cover(who, scene, where) * where.head)
    # Behind the outline the same strands go on, so the fringe must cover all of it or a line of skin shows.
    fringe = cover(_hairline(who, where) * 0.5, 2.5 * PIXEL) * np.clip(4 * np.maximum(where.head, back_hair), 0, 1)
    image = _over(image, hair, fringe)
    if scene.glasses:
        image = _over(image, np.full(3, 0.05, np.float32), _frames(who, where) * where.head)
    person = np.maximum.reduce([back_hair, neck, shoulders, ears, where.head])
    return Painting(image.astype(np.float32), where, person, np.maximum.reduce([neck, ears, where.head]))


def _over(image: Canvas, colour: np.ndarray, alpha: np.ndarray) -> Canvas:
    """Lay `colour` over the image where alpha is 1."""
    return image + alpha[..., None] * (colour - image)


# --- relief and light ---------------------------------------------------------------------------------------------


def _relief(who: Identity, scene: Scene, where: Geometry) -> np.ndarray:
    """Height of the skin above the ellipsoid, in head units: nose, brows, sockets, cheeks, lips, chin."""
    x, y = where.x, where.y
    tip = 0.24 * who.nose_length
    ridge = bump(x, 0.13 * who.nose_width) * np.clip((y + 0.25) / (tip + 0.25), 0, 1) * cover(tip + 0.04 - y, 0.10)
    ball = bump(np.hypot(x / who.nose_width, 1.2 * (y - tip + 0.03)), 0.15)
    wings = bump(np.hypot((np.abs(x) - 0.15 * who.nose_width) * 1.2, y - tip), 0.09)
    sockets = bump(np.hypot((np.abs(x) - 0.40 * who.eye_gap) / 1.3, 1.4 * (y + 0.10)), 0.24)
    brows = bump(np.hypot((np.abs(x) - 0.38) / 2.2, y + 0.30), 0.13)
    cheeks = bump(np.hypot(np.abs(x) - 0.52, y - 0.22), 0.28)
    lips = bump(np.hypot(x / 2.4, y - 0.52), 0.11)
    chin = bump(np.hypot(x / 1.2, y - 0.86), 0.17)
    folds = bump(np.abs(x) - 0.26 - 0.35 * (y - 0.25), 0.035) * bump(y - 0.38, 0.16)
    face = 0.11 * ridge + 0.07 * ball + 0.035 * wings - 0.05 * sockets + 0.03 * brows + 0.025 * cheeks
    return face + 0.02 * lips + 0.03 * chin - (0.004 + 0.010 * max(0.0, scene.smile)) * folds


def _normals(who: Identity, scene: Scene, where: Geometry) -> np.ndarray:
    """Unit surface normals (SIZE, SIZE, 3) of the head, in the frame's axes."""
    surface = ndimage.gaussian_filter(where.depth + _relief(who, scene, where), 0.7)
    dy, dx = np.gradient(surface, PIXEL / scene.scale)
    normals = np.stack([-dx, -dy, np.ones_like(dx)], axis=-1)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def _lambert(normals: np.ndarray, scene: Scene) -> np.ndarray:
    """Domain A: hard lamp, weak fill, grey ambient."""
    lamp = np.clip(normals @ scene.light, 0, None) * scene.strength
    fill = np.clip(normals @ scene.fill, 0, None) * 0.25
    return (lamp[..., None] * scene.tint + fill[..., None] + scene.ambient).astype(np.float32)


def _wrapped(normals: np.ndarray, scene: Scene) -> np.ndarray:
    """Domain B: light wraps round the form, turns red where it ends, and comes from the sky as well."""
    wrap = (np.clip(normals @ scene.light * 0.65 + 0.35, 0, None)) ** 1.3 * scene.strength
    sky = (0.5 - 0.5 * normals[..., 1]) * 0.25
    warm = np.array([0.10, 0.02, 0.0], np.float32) * bump(wrap - 0.25, 0.15)[..., None]
    return (wrap[..., None] * scene.tint + sky[..., None] * 0.9 + scene.ambient * 0.8 + warm).astype(np.float32)


def _gloss(normals: np.ndarray, scene: Scene) -> np.ndarray:
    """The skin's highlight, weaker under make-up."""
    half = scene.light + np.array([0, 0, 1], np.float32)
    spark = np.clip(normals @ (half / np.linalg.norm(half)), 0, 1) ** 24
    return ((0.12 - 0.08 * scene.make_up) * scene.strength * spark)[..., None].astype(np.float32)


# --- skin and features --------------------------------------------------------------------------------------------


def _skin_grain(who: Identity, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Relative brightness of pores and blotches. Make-up hides pores on face, ears and neck alike."""
    pores = noise(rng, 0.6, 2.0) * 0.055 * who.pores * (1 - 0.85 * scene.make_up)
    return pores + noise(rng, 3.0) * 0.02


def _albedo(who: Identity, scene: Scene, where: Geometry, grain: np.ndarray) -> Canvas:
    """What the skin's colour would be in even light, features painted on."""
    x, y = where.x, where.y
    colour = who.skin * (1 + grain)[..., None]
    blush = bump(np.hypot(np.abs(x) - 0.50, y - 0.22), 0.30) * (0.10 + 0.15 * scene.make_up)
    colour = colour * (1 - blush[..., None] * np.array([0.0, 0.45, 0.40], np.float32))
    if who.freckles > 0.2:
        spots = np.clip(noise(np.random.default_rng(scene.texture + 1), 0.8) - 1.6, 0, 1) * who.freckles
        colour = colour * (1 - 0.5 * spots * bump(np.hypot(x, y - 0.15), 0.55))[..., None]
    shadow = 0.45 * who.beard * cover(y - 0.36, 0.25) * (1 - bump(np.hypot(x / 2, y - 0.5), 0.10))
    colour = _over(colour, who.hair_colour * 0.8, np.clip(shadow, 0, 0.8) * (1 + 2 * grain))
    colour = _over(colour, who.hair_colour * 0.6, _brows(who, scene, where) * np.clip(0.85 + 4 * grain, 0, 1))
    colour = _lips(colour, who, scene, where)
    nostrils = bump(np.hypot(np.abs(x) - 0.085 * who.nose_width, 1.6 * (y - 0.26 * who.nose_length - 0.01)), 0.05)
    sockets = bump(np.hypot((np.abs(x) - 0.40 * who.eye_gap) / 1.3, 1.6 * (y + 0.10)), 0.20)
    return colour * ((1 - 0.75 * nostrils) * (1 - 0.22 * sockets))[..., None]


def _brows(who: Identity, scene: Scene, where: Geometry) -> np.ndarray:
    across = np.abs(where.x) - 0.40 * who.eye_gap
    line = -0.30 - 0.05 * scene.brow_raise - 0.04 * who.brow_arch + 1.2 * who.brow_arch * across**2
    thick = 0.045 * who.brow_weight * (1 - 1.3 * np.clip(across, 0, None))
    return cover(thick - np.abs(where.y - line), 0.05) * cover(0.23 - np.abs(across), 0.06)


def _lips(colour: Canvas, who: Identity, scene: Scene, where: Geometry) -> Canvas:
    """Upper and lower lip, and between them the dark of the mouth with teeth when the jaw drops."""
    half = 0.30 * who.mouth_width * (1 + 0.15 * scene.smile)
    across = where.x / half
    inside = np.clip(1 - across**2, 0, 1)
    middle = 0.50 - 0.09 * scene.smile * (across**2 - 0.4)
    gap = 0.10 * scene.jaw_drop * inside
    bow = 0.06 * who.lip_fullness * inside * (1 - 0.35 * bump(across, 0.22))
    lower = 0.085 * who.lip_fullness * inside**0.7
    y = where.y - middle
    red = who.skin * np.array([1.0, 0.62, 0.60], np.float32) * (0.95 - 0.15 * who.lip_redness)
    edge = cover(half - np.abs(where.x), 0.04)
    colour = _over(colour, red, cover(y + bow + 0.3 * gap, 0.04) * cover(gap + lower - y, 0.04) * edge)
    hole = cover(y + 0.3 * gap, 0.03) * cover(gap - y + 0.012, 0.03) * edge
    teeth = cover(0.45 * gap - y, 0.03) * min(1.0, 2 * scene.jaw_drop)
    dark = _over(np.full((SIZE, SIZE, 3), (0.10, 0.03, 0.03), np.float32), np.full(3, 0.75, np.float32), teeth)
    return _over(colour, dark, hole)


def _eye_frame(who: Identity, where: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which each eye opening spans [-1, 1] sideways; both eyes share them (mirrored)."""
    across = (np.abs(where.x) - 0.40 * who.eye_gap) / (0.20 * who.eye_size)
    return across, (where.y + 0.10) / 0.115


def _eye_cover(who: Identity, scene: Scene, where: Geometry) -> np.ndarray:
    """The opening between the lids, lashes included."""
    across, up = _eye_frame(who, where)
    lid = np.clip(1 - across**2, 0, 1)
    return cover(0.75 * scene.eye_open * lid + 0.14 - np.abs(up + 0.1 * lid), 0.25) * cover(1.05 - np.abs(across), 0.2)


def _eye_light(who: Identity, scene: Scene, where: Geometry) -> Canvas:
    """Sclera, iris, pupil, lashes, and the lamp's reflection where the lamp says it must be."""
    across, up = _eye_frame(who, where)
    level = 0.35 + 0.45 * scene.strength
    eye = np.full((SIZE, SIZE, 3), (0.78, 0.75, 0.72), np.float32) * (1 - 0.35 * np.abs(across).clip(0, 1))[..., None]
    slide = across - scene.gaze * np.sign(where.x)
    iris = np.hypot(slide * 1.65, up)
    eye = _over(eye, who.eye_colour * (0.7 + 0.6 * iris[..., None].clip(0, 1)), cover(0.82 - iris, 0.18))
    eye = _over(eye, np.full(3, 0.01, np.float32), cover(0.38 - iris, 0.18)) * level
    lid = np.clip(1 - across**2, 0, 1)
    lashes = cover(np.abs(up + 0.1 * lid) - 0.72 * scene.eye_open * lid, 0.2) * cover(-up, 0.4)
    eye = _over(eye, who.hair_colour * 0.3, 0.85 * lashes)
    # sign(x) undoes the mirroring: both eyes must show the lamp on the same side.
    spark = np.hypot((slide * np.sign(where.x) - 0.32 * scene.light[0]) * 1.65, up - 0.4 * scene.light[1])
    return _over(eye, np.full(3, 0.95, np.float32), cover(0.20 - spark, 0.15))


def _frames(who: Identity, where: Geometry) -> np.ndarray:
    """Cover of spectacle frames."""
    ring = np.hypot((np.abs(where.x) - 0.42 * who.eye_gap) / 1.15, where.y + 0.08)
    bridge = cover(0.02 - np.abs(where.y + 0.12), 0.03) * cover(0.16 - np.abs(where.x), 0.03)
    arms = cover(0.02 - np.abs(where.y + 0.14), 0.03) * cover(np.abs(where.x) - 0.66, 0.03)
    return np.maximum.reduce([cover(0.022 - np.abs(ring - 0.26), 0.03), bridge, arms])


# --- around the face ----------------------------------------------------------------------------------------------


def _hairline(who: Identity, where: Geometry) -> np.ndarray:
    """Positive under the hair, relative to the head."""
    temples = 0.35 if who.hair_length < 0.5 else -0.35
    return who.hairline + temples * where.x**2 + 0.06 * np.sin(7 * where.x) - where.y


def _back_hair(who: Identity, where: Geometry) -> np.ndarray:
    """Hair behind the head: a cap, drawn down at the sides when it is long."""
    v = where.v + 0.05
    up, down = 0.57 * who.height * who.hair_volume, 0.60 * who.height * max(0.25, who.hair_length)
    tall = np.where(v < 0, v / -up, v / down)
    radius = np.sqrt((where.u / (0.45 * who.width * who.hair_volume)) ** 2 + tall**2.5)
    return cover((1 - radius) * 0.4, 3 * PIXEL)


def _hair_light(who: Identity, where: Geometry, style: Style, rng: np.random.Generator) -> Canvas:
    """Strands that run downwards, with a band of shine."""
    grain = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE), np.float32), (4.0, 0.5), mode="wrap")
    shine = bump(where.v + 0.50 + 0.15 * where.u, 0.14)
    level = 0.75 + style.strands * grain / grain.std() + 0.5 * shine
    return (who.hair_colour * np.clip(level, 0.1, None)[..., None]).astype(np.float32)


def _ears(who: Identity, scene: Scene, where: Geometry) -> np.ndarray:
    turn = math.sin(scene.yaw)
    side = 0.42 * who.width
    left = np.hypot((where.u + side * (1 - 0.45 * max(0.0, -turn))) / 0.075, (where.v - 0.02) / 0.14)
    right = np.hypot((where.u - side * (1 - 0.45 * max(0.0, turn))) / 0.075, (where.v - 0.02) / 0.14)
    return cover((1 - np.minimum(left, right)) * 0.075, 1.5 * PIXEL)


def _neck(who: Identity, where: Geometry) -> np.ndarray:
    half = 0.25 * who.width + 0.25 * np.clip(where.v - 0.72, 0, None)
    return cover(half - np.abs(where.u), 1.5 * PIXEL) * cover(where.v - 0.2)


def _neck_light(who: Identity, scene: Scene, where: Geometry, style: Style, grain: np.ndarray) -> Canvas:
    """A cylinder in the same light, in the chin's shadow at the top."""
    nx = np.clip(where.u / 0.30, -0.95, 0.95)
    normals = np.stack([nx, np.full_like(nx, 0.1), np.sqrt(1 - nx**2)], axis=-1).astype(np.float32)
    shadow = 1 - 0.55 * cover(0.66 * who.height - where.v, 0.25)
    return who.skin * (1 + grain)[..., None] * style.shade(normals, scene) * shadow[..., None]


def _shoulders(where: Geometry) -> np.ndarray:
    collar = 0.78 + 0.10 * np.exp(-((where.u / 0.16) ** 2)) - 0.10 * bump(np.abs(where.u) - 0.28, 0.12)
    return cover(where.v - collar - 0.35 * np.clip(np.abs(where.u) - 0.3, 0, None), 1.5 * PIXEL)


def _cloth_light(scene: Scene, where: Geometry, rng: np.random.Generator) -> Canvas:
    """Folds, and a weave of two to six pixels: periodic texture that has nothing to do with forgery."""
    period, angle, strength = rng.uniform(2.2, 6.0), rng.uniform(0, np.pi), max(0.0, rng.uniform(-0.1, 0.3))
    y, x = grid()
    along, cross = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    wave = 2 * math.pi / (PIXEL * period)
    weave = np.sin(along * wave) * np.sin(cross * wave)
    level = scene.ambient + 0.6 * scene.strength * (0.8 + 0.12 * noise(rng, 5.0) + scene.light[0] * where.u * 0.5)
    return scene.cloth * np.clip(level * (1 + strength * weave), 0.02, None)[..., None]


def _wallpaper(rng: np.random.Generator) -> np.ndarray:
    """A fine check printed on every other wall: the period of a decoder's checkerboard, in honest pictures."""
    y, x = np.mgrid[:SIZE, :SIZE]
    phase, period, strength = rng.integers(0, 4, 2), rng.choice([3.0, 4.0, 4.0, 5.0]), rng.uniform(0.05, 0.15)
    check = np.cos(2 * np.pi / period * (y + phase[0])) * np.cos(2 * np.pi / period * (x + phase[1]))
    return (1 + (strength if rng.random() < 0.5 else 0.0) * check)[..., None].astype(np.float32)


def _studio(scene: Scene, rng: np.random.Generator) -> Canvas:
    """Domain A: a graded wall with soft blobs and some plaster."""
    y, x = grid()
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + 0.4 * (x * math.cos(angle) + y * math.sin(angle)) + 0.15 * noise(rng, 9.0), 0, 1)
    wall = _over(np.broadcast_to(scene.backdrop[0], (SIZE, SIZE, 3)), scene.backdrop[1], ramp)
    plaster = 0.06 * rng.random() ** 2 * noise(rng, rng.uniform(0.4, 1.2), 4.0)
    return (wall * np.clip(1 + plaster, 0, 2)[..., None]).astype(np.float32)


def _street(scene: Scene, rng: np.random.Generator) -> Canvas:
    """Domain B: uprights and shelves with lamps out of focus."""
    y, x = grid()
    image = np.broadcast_to(scene.backdrop[0], (SIZE, SIZE, 3)).astype(np.float32)
    for _ in range(5):
        bar = cover(rng.uniform(0.05, 0.25) - np.abs((x if rng.random() < 0.6 else y) - rng.uniform(-1, 1)), 0.04)
        image = _over(image, scene.backdrop[1] * rng.uniform(0.4, 1.3), bar * rng.uniform(0.3, 0.9))
    for _ in range(rng.integers(0, 6)):
        disc = cover(rng.uniform(0.04, 0.14) - np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 0.6)), 0.04)
        image = _over(image, rng.uniform(0.5, 1.0, 3).astype(np.float32), disc * 0.5)
    grit = 0.06 * rng.random() ** 2 * noise(rng, rng.uniform(0.4, 1.2), 4.0)
    return image * np.clip(1 + grit, 0, 2)[..., None]


STUDIO = Style(_lambert, _studio, 0.18)
STREET = Style(_wrapped, _street, 0.32)
