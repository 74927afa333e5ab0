"""One way to name any data set: an embedded domain (a, b), a folder or CSV of your own, or a layout with a prefix."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ffjax.data import codecs, faceforensics, folder, forged_faces, patches, sequences
from ffjax.errors import InputError
from ffjax.types import ImageSet

EMBEDDED = ("a", "b")
RESENT = "resent:"
SPLITS = ("train", "validation", "test")
ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


def load(spec: str, split: str, size: int, limit: int | None = None) -> ImageSet:
    """The images of `spec` as (N, size, size, 3), at most `limit` of each class, chosen once and for all.

    spec: `a` or `b`, the embedded domains; `resent:SPEC`, any set as a messenger passes it on (codecs.resent);
    `patches:FOLDER?...` (data.patches) or `faceforensics:FOLDER?...` (data.sequences); else the path of a folder or CSV
    (data.folder). A split column is followed (in any case; val, valid and dev mean validation). Where it marks no
    validation split, a third of the groups of train (or of all there is, where no train split is marked either)
    becomes it, by a hash of their names that no other image changes; train and test never share an image with it.
    Raises InputError as the loaders do, for a split name that is none of these, and for a train split that is not
    marked.
    """
    if split not in SPLITS:
        raise InputError(f"split {split}: unknown; known: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"{spec}: at least one image per class is needed, {limit} asked")
    if size < 1:
        raise InputError(f"{spec}: size must be at least 1 pixel, got {size}")
    if spec.startswith(RESENT):
        whole = load(spec.removeprefix(RESENT), split, size, limit)
        return whole._replace(images=codecs.to_uint8(codecs.resent(codecs.to_float(whole.images))))
    if spec in EMBEDDED:
        return _limited(_resized(forged_faces.load(spec, split), size), limit)
    if spec.startswith(patches.PREFIX):
        return _limited(patches.load(patches.parse(spec), split, size), limit)
    if spec.startswith(sequences.PREFIX):
        return _limited(faceforensics.load(sequences.parse(spec), split, size), limit)
    path = Path(spec)
    marked = _marked(path)
    if split == "train" and not marked["train"]:
        raise InputError(f"{path}: no image is marked for training (no split column with train)")
    if marked["validation"] or (split == "test" and marked["train"]):
        return folder.load_folder(path, size, limit, split=marked[split] or (split,))
    pool = marked["train"] or marked["test"] or None
    validation = split == "validation"
    try:
        return folder.load_folder(path, size, limit, split=pool, keep=lambda group: held_out(group) == validation)
    except InputError as error:
        part = "the third of the groups, by a hash of their names, that is validation" if validation else "what is left"
        raise InputError(f"{error} ({split} is {part}; a split column in labels.csv would say otherwise)") from None


def held_out(group: str) -> bool:
    """Whether a group of an unmarked pool belongs to validation: so does a third, by the hash of its name alone."""
    return zlib.crc32(group.encode()) % 3 == 0


def _marked(path: Path) -> dict[str, tuple[str, ...]]:
    """Split -> the names the split column of `path` has for it. InputError for a name that is none."""
    marked: dict[str, tuple[str, ...]] = {split: () for split in SPLITS}
    for name in folder.splits(path):
        split = ALIASES.get(name.lower(), name.lower())
        if split not in marked:
            known = ", ".join((*SPLITS, *ALIASES))
            raise InputError(f"{path}: split {name!r} in its split column is unknown; known: {known}")
        marked[split] += (name,)
    return marked


def load_all(specs: Sequence[str], split: str, size: int, limit: int | None = None) -> dict[str, ImageSet]:
    """Short name -> images, for several sets. InputError if there is none, or two would be called the same."""
    names = [short_name(spec) for spec in specs]
    if not names or len(set(names)) < len(names):
        raise InputError(f"data: needs at least one set and no two of one name, got {', '.join(specs) or 'none'}")
    return {name: load(spec, split, size, limit) for name, spec in zip(names, specs, strict=True)}


def short_name(spec: str) -> str:
    """What tables and file names call a data set: a, b, the folder's name, or the CSV's (labels.csv: its folder's)."""
    if spec in EMBEDDED:
        return spec
    if spec.startswith(RESENT):
        return f"{short_name(spec.removeprefix(RESENT))}-resent"
    if spec.startswith(patches.PREFIX):
        return patches.short_name(spec)
    if spec.startswith(sequences.PREFIX):
        return sequences.short_name(spec)
    path = Path(spec).resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == "labels.csv" else path.stem


def _limited(data: ImageSet, limit: int | None) -> ImageSet:
    return data if limit is None else limited(data, limit)


def limited(data: ImageSet, limit: int, classes: Sequence[int] = (0, 1)) -> ImageSet:
    """The first `limit` of each of these classes in an order shuffled once, with a fixed seed, put back in order."""
    order = np.random.default_rng(0).permutation(len(data.labels))
    return taken(data, np.sort(np.concatenate([order[data.labels[order] == label][:limit] for label in classes])))


def taken(data: ImageSet, rows: np.ndarray) -> ImageSet:
    """The images with these numbers, in this order."""
    names = tuple(data.names[i] for i in rows)
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
