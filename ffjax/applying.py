"""A universal pattern on the images of a folder: where each goes, what was done to it, and taking up again what an
interrupted start left. OUT/applied.json has the pattern, the settings and a row for each image."""

import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ffjax import evaluate, run
from ffjax.data.codecs import decode, jpeg_bytes, png_bytes, to_float, to_uint8
from ffjax.data.folder import image_files
from ffjax.errors import InputError
from ffjax.evaluate import Condition
from ffjax.imagequality import WINDOW, psnr, ssim
from ffjax.pattern_card import Card, read_json, sha256
from ffjax.progress import Tell
from ffjax.universal import shapes

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
RECORD = "applied.json"
EVERY = 5.0
"""Seconds between two writings of the record, or twenty times what one costs: with 100,000 rows that is a second."""


class Work(NamedTuple):
    """What is done to each image. shown(image (H, W, 3) uint8) -> the same with the pattern, uint8. size: of images for
    which the pattern is not resized, None for a filter. pattern, settings: what applied.json says of them."""

    shown: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int] | None
    jpeg: int | None
    pattern: dict[str, Any]
    settings: dict[str, Any]


class Made(NamedTuple):
    """One image written. source: digest of the file it was made from. was: what had to be converted to RGB, or "".
    linf: the largest change of a component, in levels of 255; psnr in dB, None if nothing changed; ssim None below 11
    pixels a side. All three are of the file as written, against the original."""

    source: str
    was: str
    resized: bool
    linf: int
    psnr: float | None
    ssim: float | None


class Outcome(NamedTuple):
    """rows: of all images that are in OUT now; written, skipped, changed (written again since the original is another
    than it was): how many, this time; broken: which files."""

    rows: dict[str, Made]
    written: int
    skipped: int
    changed: int
    broken: list[Path]


def work(array: np.ndarray, card: Card, strength: float, jpeg: int | None) -> Work:
    """The pattern of `card`, times strength, to be stored as JPEG of that quality, or PNG. InputError if strength is
    outside (0, 1] or the quality outside 1..100.

    Stored as PNG no component of an image is farther from the original than strength * eps and half a level, since the
    original is on the 8-bit grid and the sum goes to the nearest level.
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength: must be above 0 and at most 1, got {strength:g}")
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise InputError(f"jpeg: quality must be from 1 to 100, got {jpeg}")
    scaled = jnp.asarray(array * np.float32(strength))

    @lru_cache(maxsize=4)
    def condition(height: int, width: int) -> Condition:
        fitted = np.asarray(shapes.resized(card.kind, scaled, height, width))
        return Condition("", "uap", "", fitted, shape=card.kind)

    def shown(image: np.ndarray) -> np.ndarray:
        return to_uint8(evaluate.shown(image[None], condition(*image.shape[:2]))[0])

    pattern = {"sha256": sha256([array]), "name": card.name, "norm": card.norm, "bound": card.bound}
    settings = {"kind": card.kind, "strength": strength, "stored": "png" if jpeg is None else f"jpeg {jpeg}"}
    size = None if card.kind == "filter" else (array.shape[0], array.shape[1])
    return Work(shown, size, jpeg, pattern, settings)


def files(source: Path, out: Path, jpeg: int | None) -> dict[str, Path]:
    """Name in OUT -> image file: all below `source`, or itself. InputError if there is none, if two would have one
    name, or if one of source and out lies in the other."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    inside, outside = source.resolve(), out.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise InputError(f"{out}: is or holds the images, or lies among them; give another OUT")
    if not out.is_dir() and (out.exists() or out.suffix.lower() in SUFFIXES):
        raise InputError(f"{out}: OUT must be a folder, not a file")
    suffix = ".png" if jpeg is None else ".jpg"
    if source.is_file():
        return {source.with_suffix(suffix).name: source}
    found: dict[str, Path] = {}
    for file in image_files(source):
        name = file.relative_to(source).with_suffix(suffix).as_posix()
        if file.suffix.lower() not in SUFFIXES:
            continue
        if name in found:
            raise InputError(f"{file} and {found[name].name}: both would become {name}; rename one")
        found[name] = file
    if not found:
        raise InputError(f"{source}: no images in it ({', '.join(SUFFIXES)})")
    return found


def before(out: Path, job: Work) -> dict[str, Made]:
    """The rows of what an earlier start with this pattern and these settings left in OUT. InputError if OUT was made
    with others, or holds files of something else. Touches nothing."""
    record = out / RECORD
    if not record.exists():
        if out.is_dir() and any(path.name != "applied.part" for path in out.iterdir()):  # .part: killed at once
            raise InputError(f"{out}: not empty, and not made by this program (no {RECORD}); give another OUT")
        return {}
    value = read_json(record)
    try:
        there, settings = str(value["pattern"]["sha256"]), dict(value["settings"])
        rows = {name: Made(**row) for name, row in value["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{record}: not the record of images that this program writes") from None
    if there != job.pattern["sha256"]:
        other = f"sha256 {there[:12]} there, {job.pattern['sha256'][:12]} given"
        raise InputError(f"{out}: made with another pattern ({other}); give another OUT")
    for key, asked in job.settings.items():
        if settings.get(key) != asked:
            raise InputError(f"{out}: made with {key} {settings.get(key)}, not {asked}; give another OUT")
    return rows


def apply(
    files: Mapping[str, Path],
    out: Path,
    job: Work,
    done: Mapping[str, Made],
    tell: Tell,
    say: Callable[[str], None],
) -> Outcome:
    """Writes what `done` (see `before`) lacks, image after image, each whole or not at all; say(line) for each that
    cannot be used. The record is written first, every now and then, and last, even where it is interrupted."""
    rows, broken, written, changed = dict(done), [], 0, 0
    keep = _keeper(out, job, done)
    keep(rows)
    try:
        for name, file in files.items():
            known = rows.get(name) if (out / name).is_file() else None
            row, image = _one(file, job, known, say)
            tell()
            if row is None:
                if rows.pop(name, None) is not None:  # ours, of what the original was
                    (out / name).unlink(missing_ok=True)
                broken.append(file)
            elif image is not None:
                _write(out / name, image)
                changed += known is not None
                written += 1
                rows[name] = row
                keep(rows, EVERY)
    finally:
        keep(rows)
    skipped = len(files) - written - len(broken)
    return Outcome({name: rows[name] for name in files if name in rows}, written, skipped, changed, broken)


def stamped(data: bytes, job: Work) -> tuple[bytes, Made]:
    """The bytes of an image file -> those of the file with the pattern, and its row. InputError as `decode`."""
    clean, was = decode(data), _mode(data)
    marked = job.shown(clean)
    image = png_bytes(marked) if job.jpeg is None else jpeg_bytes(marked, job.jpeg)
    stored = marked if job.jpeg is None else decode(image)
    levels = int(np.abs(clean.astype(np.int16) - stored).max())
    pair = to_float(clean)[None], to_float(stored)[None]
    decibels = float(psnr(*pair)[0]) if levels else None
    likeness = float(ssim(*pair)[0]) if min(clean.shape[:2]) >= WINDOW else None
    resized = job.size not in (None, clean.shape[:2])
    return image, Made(_digest(data), was, resized, levels, decibels, likeness)


def _one(file: Path, job: Work, known: Made | None, say: Callable[[str], None]) -> tuple[Made | None, bytes | None]:
    """Its row and bytes; no bytes where `known` is of the same original, nothing where the file cannot be used."""
    try:
        data = file.read_bytes()
        if known is not None and known.source == _digest(data):
            return known, None
        with warnings.catch_warnings():  # Pillow warns of odd metadata in images that it reads well
            warnings.simplefilter("ignore")
            image, row = stamped(data, job)
        return row, image
    except (OSError, InputError) as error:
        say(f"broken, left out: {file}: {getattr(error, 'strerror', None) or error}")
        return None, None


def _keeper(out: Path, job: Work, done: Mapping[str, Made]) -> Callable[..., None]:
    """keep(rows, every=0): writes the record, unless it says so already or was written less than `every` seconds ago,
    or twenty times as long as that took. done: the rows that it has, if there is one."""
    last: list[Any] = [dict(done) if (out / RECORD).exists() else None, time.monotonic(), 0.0]

    def keep(rows: Mapping[str, Made], every: float = 0.0) -> None:
        begun = time.monotonic()
        if (every and begun - last[1] < max(every, 20 * last[2])) or rows == last[0]:
            return
        listed = {name: row._asdict() for name, row in rows.items()}
        value = {"pattern": job.pattern, "settings": job.settings, "files": listed}
        with _writing(out):
            out.mkdir(parents=True, exist_ok=True)
            run.write_json(out / RECORD, value)
        now = time.monotonic()
        last[:] = dict(rows), now, now - begun

    return keep


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _mode(data: bytes) -> str:
    """What an image is besides opaque RGB that does not move, by Pillow's names: L, CMYK, RGBA, P ...; else ""."""
    with Image.open(io.BytesIO(data)) as image:
        mode = "" if image.mode == "RGB" and not image.has_transparency_data else image.mode
        try:
            moves = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # cameras' previews are no film
        except Exception:  # what follows the first frame may be damaged
            moves = False
    return f"{mode} first frame".strip() if moves else mode
