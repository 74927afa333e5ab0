"""Your own images: a folder with real/ and fake/, or a CSV that names files and labels."""

import csv
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ffjax.data.codecs import WORKERS, decode
from ffjax.errors import InputError
from ffjax.types import ImageSet

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MIN_SIDE = 8
"""An image with a shorter side than this holds nothing to judge; it is more likely a placeholder."""

CLASSES = ("real", "fake")
"""By label."""


class _Item(NamedTuple):
    """One image before it is read. group: images with equal text belong together."""

    name: str
    path: Path
    label: int
    group: str
    mask: Path | None


def load_folder(
    path: Path,
    size: int,
    limit: int | None = None,
    seed: int = 0,
    split: str | tuple[str, ...] | None = None,
    keep: Callable[[str], bool] = lambda group: True,
) -> ImageSet:
    """Read labelled images as (N, size, size, 3) uint8, sorted by label and then name.

    path is one of
    (a) a folder with real/ and fake/, searched recursively. If it has mask/, every fake needs a mask there under the
        same relative name, whatever the suffix. Each file is its own group.
    (b) a CSV file, or a folder with labels.csv (which goes before (a)): columns file, label (0, 1, real, fake) and
        optionally split, group, mask; files relative to the CSV. `split` keeps the rows of that split, or of those
        splits. Rows with equal group are one group; without a group a row is its own.

    Files that are not images by suffix (SUFFIXES), and hidden files, are passed over in (a). Each image is cropped to
    its central square and, unless that is `size` already, resized with Pillow's antialiased Lanczos filter; an image
    of the right size keeps its decoded bytes. Pixel formats: see `codecs.decode`. masks, if any: (N, size, size) uint8
    in {0, 255}, forged where the mask file is at least half bright (or 1 in a file of zeros and ones); all 0 for real.

    keep: only groups (by their text; a file that is its own group goes by its name) for which it is true are read.
    limit: at most so many per class, a choice without replacement that depends on seed and that class's names only.

    Raises InputError, one line that names the file and the fault, on whatever cannot be used: a missing, damaged, huge
    or tiny (< MIN_SIDE) image, a mask of another size than its image, a CSV fault (with its line), no images, or
    images of one class only.
    """
    path = Path(path)
    if size < 1 or (limit is not None and limit < 1):
        raise InputError(f"size and limit must be at least 1: {size}, {limit}")
    wanted = (split,) if isinstance(split, str) else split
    found = [item for item in _items(path, wanted) if keep(item.group)]
    items = _limited(sorted(found, key=lambda item: (item.label, item.name)), limit, seed)
    _refuse_one_class(path, items)
    with_masks = any(item.mask for item in items)
    images, masks = _read_all(items, size, with_masks)
    groups = np.unique([item.group for item in items], return_inverse=True)[1]
    return ImageSet(
        images=images,
        labels=np.array([item.label for item in items], np.int32),
        groups=groups.astype(np.int32),
        names=tuple(item.name for item in items),
        masks=masks,
    )


def splits(path: Path) -> tuple[str, ...]:
    """The names in the split column of a CSV, or of the folder's labels.csv; () where there is no such column."""
    file = path / "labels.csv" if path.is_dir() else path
    if not file.is_file():
        return ()
    columns, rows = _csv_rows(file)
    return tuple(sorted({row["split"] for _, row in rows})) if "split" in columns else ()


def _items(path: Path, split: tuple[str, ...] | None) -> list[_Item]:
    """Find out which of the layouts it is, and list it."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return _from_csv(path, split)
    if (path / "labels.csv").is_file():
        return _from_csv(path / "labels.csv", split)
    if split is not None:
        raise InputError(f"{path}: split {' or '.join(map(repr, split))} needs a labels.csv with a split column")
    if not any((path / name).is_dir() for name in CLASSES):
        raise InputError(f"{path}: holds neither real/ and fake/ folders nor labels.csv")
    return _from_folders(path)


def _from_folders(path: Path) -> list[_Item]:
    masks = {_stem(file, path / "mask"): file for file in image_files(path / "mask")}
    items = []
    for label, folder in enumerate(CLASSES):
        for file in image_files(path / folder):
            mask = masks.get(_stem(file, path / folder)) if label else None
            if masks and label and mask is None:
                raise InputError(f"{file}: no mask of that name under {path / 'mask'}")
            name = file.relative_to(path).as_posix()
            items.append(_Item(name, file, label, name, mask))
    return items


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below, sorted; none if the folder is missing. Hidden names are macOS resource forks or
    caches, even where they end in .jpg."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(found)


def _stem(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def _from_csv(path: Path, split: tuple[str, ...] | None) -> list[_Item]:
    columns, rows = _csv_rows(path)
    for needed in ("file", "label") if split is None else ("file", "label", "split"):
        if needed not in columns:
            raise InputError(f"{path}: no column {needed!r} (it has {', '.join(columns) or 'none'})")
    if split is not None:
        kept = [(line, row) for line, row in rows if row["split"] in split]
        if not kept:
            found = ", ".join(sorted({row["split"] for _, row in rows})) or "no rows"
            raise InputError(f"{path}: no rows with split {' or '.join(map(repr, split))} (it has {found})")
        rows = kept
    items = [_csv_item(path, line, row) for line, row in rows]
    _refuse_repeats(path, [line for line, _ in rows], items)
    _refuse_missing_masks(path, [line for line, _ in rows], items)
    return items


def _csv_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The column names, and (line number, column -> text) for each row that is not blank. Text is stripped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            rows = []
            for row in reader:
                cells = [cell.strip() for cell in row] + [""] * (len(columns) - len(row))
                if any(cells):
                    rows.append((reader.line_num, dict(zip(columns, cells, strict=False))))
            return columns, rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({_fault(error)})") from None


def _csv_item(path: Path, line: int, row: dict[str, str]) -> _Item:
    label = {"0": 0, "real": 0, "1": 1, "fake": 1}.get(row["label"].lower())
    if label is None:
        raise InputError(f"{path} line {line}: label {row['label']!r} is none of 0, 1, real, fake")
    if not row["file"]:
        raise InputError(f"{path} line {line}: no file named")
    # The prefix keeps a file's own group apart from a group that happens to be called like it.
    group = f"group:{row['group']}" if row.get("group") else f"file:{row['file']}"
    mask = path.parent / row["mask"] if row.get("mask") else None
    return _Item(row["file"], path.parent / row["file"], label, group, mask)


def _refuse_repeats(path: Path, lines: Sequence[int], items: Sequence[_Item]) -> None:
    first: dict[str, int] = {}
    for line, item in zip(lines, items, strict=True):
        if item.name in first:
            raise InputError(f"{path} line {line}: {item.name} was already named in line {first[item.name]}")
        first[item.name] = line


def _refuse_missing_masks(path: Path, lines: Sequence[int], items: Sequence[_Item]) -> None:
    if not any(item.mask for item in items):
        return
    for line, item in zip(lines, items, strict=True):
        if item.label and item.mask is None:
            raise InputError(f"{path} line {line}: {item.name} is fake and has no mask, where others have one")


def _limited(items: Sequence[_Item], limit: int | None, seed: int) -> list[_Item]:
    """items sorted by label and name -> at most `limit` of each label, in the same order."""
    kept = []
    for label in range(len(CLASSES)):
        of_class = [item for item in items if item.label == label]
        if limit is not None and len(of_class) > limit:
            chosen = np.random.default_rng([seed, label]).choice(len(of_class), limit, replace=False)
            of_class = [of_class[i] for i in sorted(chosen)]
        kept += of_class
    return kept


def _refuse_one_class(path: Path, items: Sequence[_Item]) -> None:
    labels = {item.label for item in items}
    if not labels:
        raise InputError(f"{path}: no images found")
    if len(labels) == 1:
        (label,) = labels
        raise InputError(f"{path}: holds only {CLASSES[label]} images, no {CLASSES[1 - label]} ones; both are needed")


def _read_all(items: Sequence[_Item], size: int, with_masks: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode in threads, straight into the arrays. The first unusable file, in order, stops it."""
    images = np.empty((len(items), size, size, 3), np.uint8)
    masks = np.zeros((len(items), size, size), np.uint8) if with_masks else None
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        # Pillow warns of odd metadata in images that it reads well. Filters belong to the whole process, so they are
        # set here, once, and not in the threads.
        warnings.simplefilter("ignore")
        for i, (image, mask) in enumerate(pool.map(partial(_read, size=size), items)):
            images[i] = image
            if masks is not None and mask is not None:
                masks[i] = mask
    return images, masks


def _read(item: _Item, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """-> (size, size, 3) uint8, and (size, size) uint8 in {0, 255} or None."""
    image = _decoded(item.path)
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{item.path}: {width}x{height} pixels is too small, at least {MIN_SIDE} a side are needed")
    if item.mask is None or not item.label:
        return _central(image, size), None
    mask = _decoded(item.mask)
    if mask.shape != image.shape:
        raise InputError(f"{item.mask}: {mask.shape[1]}x{mask.shape[0]} pixels, but its image has {width}x{height}")
    bright = mask.max(axis=-1) > (0 if mask.max() <= 1 else 127)
    return _central(image, size), np.where(_central(bright.astype(np.uint8) * 255, size) > 127, 255, 0).astype(np.uint8)


def _decoded(path: Path) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {_fault(error)}") from None


def _central(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W[, 3]) uint8 -> (size, size[, 3]). Cropped before it is resized: a long thin image would otherwise be blown
    up to gigabytes; only pixels within the filter's reach of the crop's edge differ."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def _fault(error: Exception) -> str:
    """The reason alone, on one line: the path is in our message already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())
