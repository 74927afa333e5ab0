"""One way to name any data set: an embedded domain (a, b), or a folder or CSV of your own."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ffjax.data import folder, forged_faces
from ffjax.errors import InputError
from ffjax.types import ImageSet

EMBEDDED = ("a", "b")
SPLITS = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


def load(spec: str, split: str, size: int, limit: int | None = None) -> ImageSet:
    """The images of `spec` as (N, size, size, 3), at most `limit` of each class, chosen once and for all.

    spec: `a` or `b`, the embedded domains; else the path of a folder or CSV (data.folder). A split column is followed
    (val, valid and dev mean validation). Where no validation split is marked, a third of the groups that are for
    training (or, with no split column, of all) becomes it, by a hash of their names that no other image changes.
    Raises InputError as `load_folder` does, and for a train split that is not marked.
    """
    if split not in SPLITS:
        raise InputError(f"split {split}: unknown; known: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"{spec}: at least one image per class is needed, {limit} asked")
    if spec in EMBEDDED:
        return _limited(_resized(forged_faces.load(spec, split), size), limit)
    path = Path(spec)
    marked = {ALIASES.get(name, name): name for name in folder.splits(path)}
    if split == "train" and "train" not in marked:
        raise InputError(f"{path}: no image is marked for training (no split column with train)")
    if "validation" in marked or (split == "test" and "test" in marked):
        return folder.load_folder(path, size, limit, split=marked.get(split, split))
    pool = folder.load_folder(path, size, split="train" if "train" in marked else None)
    return _limited(_taken(pool, _held_out(pool) == (split == "validation")), limit)


def load_all(specs: Sequence[str], split: str, size: int, limit: int | None = None) -> dict[str, ImageSet]:
    """Short name -> images, for several sets. InputError if there is none, or two would be called the same."""
    names = [short_name(spec) for spec in specs]
    if not names or len(set(names)) < len(names):
        raise InputError(f"data: needs at least one set and no two of one name, got {', '.join(specs) or 'none'}")
    return {name: load(spec, split, size, limit) for name, spec in zip(names, specs, strict=True)}


def short_name(spec: str) -> str:
    """What tables and file names call a data set."""
    return spec if spec in EMBEDDED else Path(spec).stem


def _held_out(data: ImageSet) -> np.ndarray:
    """(N,) bool: a third of the groups, by the hash of each group's first name, which no other image changes."""
    first = {group: name for group, name in zip(data.groups[::-1], data.names[::-1], strict=True)}
    return np.array([zlib.crc32(first[group].encode()) % 3 == 0 for group in data.groups])


def _limited(data: ImageSet, limit: int | None) -> ImageSet:
    """The first `limit` of each class in an order shuffled once, with a fixed seed, then put back in order."""
    if limit is None:
        return data
    order = np.random.default_rng(0).permutation(len(data.labels))
    kept = [order[data.labels[order] == label][:limit] for label in (0, 1)]
    rows = np.zeros(len(data.labels), bool)
    rows[np.concatenate(kept)] = True
    return _taken(data, rows)


def _taken(data: ImageSet, rows: np.ndarray) -> ImageSet:
    names = tuple(name for name, row in zip(data.names, rows, strict=True) if row)
    masks = None if data.masks is None else data.masks[rows]
    return ImageSet(data.images[rows], data.labels[rows], data.groups[rows], names, masks)


def _resized(data: ImageSet, size: int) -> ImageSet:
    if data.images.shape[1:3] == (size, size):
        return data

    def one(image: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((size, size), how))

    images = np.stack([one(image, Image.Resampling.LANCZOS) for image in data.images])
    masks = None if data.masks is None else np.stack([one(mask, Image.Resampling.NEAREST) for mask in data.masks])
    return data._replace(images=images, masks=masks)
