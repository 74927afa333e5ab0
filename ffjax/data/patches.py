"""Image-forensics patches from folders of photographs: as they were against processed, known labels, cut by photograph.

A pure function of (folders, settings, split), not a tfds builder: the photographs are the user's and may change, a
patch costs a millisecond, and a cache would have to know every file's content to be right.

A set kept for testing only, such as Kodak's, is a folder of its own:

    patches:bsds500-subset/test?operation=median3&test=kodak/colour

trains and validates on photographs of the first folder and tests on all of the second. `load` refuses a photograph
whose file name is in both; a copy under another name it cannot know.
"""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ffjax.data import codecs, specs
from ffjax.data.folder import image_files
from ffjax.data.operations import Chosen, chosen, resized
from ffjax.errors import InputError
from ffjax.types import ImageSet

PREFIX = "patches:"
SPLITS = {"train": 3, "validation": 1, "test": 1}
"""Shares of the photographs, among the splits that share a folder."""

BLOCK_CODED = ("JPEG", "MPO", "WEBP")
"""Formats (Pillow's names) that code in blocks; MPO is what some cameras call a JPEG."""

UNCHANGED = 0.05
"""Share of an operation's patches, at most, that may come out as they went in (flat sky under a median filter)."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """What to cut, from where.

    folder: photographs, at any depth. validation, test: folders of their own for those splits; '' shares `folder`.
    operation: see operations.chosen; of several, each photograph's patches take turns. patches: positions a photograph
    at most, each giving one original and one processed patch. channels: 3, or 1 for grey. seed: of positions and of
    what is random in an operation.
    """

    folder: Path
    validation: str = ""
    test: str = ""
    operation: str = "median3"
    patches: int = 16
    channels: int = 3
    seed: int = 0


def parse(spec: str) -> Patches:
    """'patches:FOLDER' or 'patches:FOLDER?operation=jpeg80&test=OTHER&patches=8' as settings; keys as in `Patches`.

    InputError: as specs.parse, and for an unknown operation or a number out of range.
    """
    settings = specs.parse(spec, Patches)
    if settings.patches < 1 or settings.channels not in (1, 3):
        raise InputError(f"{spec}: patches must be at least 1 and channels 1 or 3")
    chosen(settings.operation)
    return settings


def load(settings: Patches, split: str, size: int) -> ImageSet:
    """The patches of a split: (N, size, size, channels) uint8, labels 0 = original, 1 = processed, groups = photograph.

    A split with a folder of its own takes all of it; the others share `folder` by a hash of the photographs' names (3/5
    train, 1/5 each of the others), which no other file changes. A photograph is known by its file's name without the
    suffix: kodim03 in two subfolders is one photograph. A block-coded file (JPEG) is first halved, antialiased, to
    weaken its 8x8 grid. Then grey if asked for (a grey file in colour has three equal channels), the operation on the
    whole photograph, rounding to 8 bits, and the crops: both patches of a pair at one place, places drawn without
    repetition. A pair depends on its photograph, the settings and the size alone. Flat patches are kept.

    names: 'FILE/PLACE-original' and 'FILE/PLACE-median3'. InputError, with the file: no photographs, a damaged or too
    small one, an unknown split, one photograph's name in folders of different splits, or an operation that leaves more
    than UNCHANGED of its patches bit for bit as they were, whose labels would say what is not so.
    """
    if split not in SPLITS or size < 1:
        raise InputError(f"split {split}, size {size}: needs one of {', '.join(SPLITS)} and at least 1 pixel")
    operations, root, files = chosen(settings.operation), _folder(settings, split), _photographs(settings, split)
    photographs = sorted({file.stem for file in files})
    with ThreadPoolExecutor(codecs.WORKERS) as pool:
        cut = list(pool.map(lambda file: _pairs(root, file, operations, settings, size), files))
    counts = [len(names) for _, names in cut]
    data = ImageSet(
        images=np.concatenate([images for images, _ in cut]),
        labels=np.arange(sum(counts), dtype=np.int32) % 2,
        groups=np.repeat([photographs.index(file.stem) for file in files], counts).astype(np.int32),
        names=tuple(name for _, names in cut for name in names),
    )
    _refuse_unchanged(data, root, operations)
    return data


def short_name(spec: str) -> str:
    """What tables call it: the photographs' folder, the operation, and every other setting that is not its default."""
    settings = parse(spec)
    other = specs.differences(settings, named=("folder", "operation"))
    return f"{settings.folder.resolve().name}-{settings.operation}{other}"


def _folder(settings: Patches, split: str) -> Path:
    own = {"validation": settings.validation, "test": settings.test}.get(split)
    return Path(own) if own else settings.folder


def _photographs(settings: Patches, split: str) -> list[Path]:
    """The split's files, sorted."""
    folders = {name: _folder(settings, name) for name in SPLITS}
    files = {folder: image_files(folder) for folder in folders.values()}
    _refuse_shared(folders, files)
    sharing = [name for name in SPLITS if folders[name] == folders[split]]
    found = [file for file in files[folders[split]] if _part(file.stem, sharing) == split]
    if not found:
        why = "no such folder" if not folders[split].is_dir() else f"no photographs for {split}"
        raise InputError(f"{folders[split]}: {why} ({len(files[folders[split]])} image files found)")
    return found


def _part(photograph: str, sharing: list[str]) -> str:
    """Which of the splits that share a folder a photograph is in, by the hash of its name alone."""
    turns = [name for name in sharing for _ in range(SPLITS[name])]
    return turns[zlib.crc32(photograph.encode()) % len(turns)]


def _refuse_shared(folders: dict[str, Path], files: dict[Path, list[Path]]) -> None:
    owner: dict[str, Path] = {}
    for folder in dict.fromkeys(folders.values()):
        for file in files[folder]:
            other = owner.setdefault(file.stem, folder)
            if other != folder:
                raise InputError(
                    f"{file}: a photograph of that name is in {other} too, which is another split's folder"
                )


def _refuse_unchanged(data: ImageSet, root: Path, operations: tuple[Chosen, ...]) -> None:
    same = (data.images[::2] == data.images[1::2]).all(axis=(1, 2, 3))
    by = np.array([name.rpartition("-")[2] for name in data.names[1::2]])
    for operation in operations:
        share = same[by == operation.name].mean() if operation.name in by else 0
        if share > UNCHANGED:
            raise InputError(
                f"{root}: operation {operation.name} leaves {100 * share:.0f} % of its patches as they were, "
                f"more than {100 * UNCHANGED:g} %: their label would be false; another strength is needed"
            )


def _pairs(
    root: Path, file: Path, operations: tuple[Chosen, ...], settings: Patches, size: int
) -> tuple[np.ndarray, list[str]]:
    """One photograph -> (2 n, size, size, C): original, processed, original, ... and their names."""
    photograph = _fits(file, _photograph(file, settings.channels), size)
    rng = np.random.default_rng((settings.seed, zlib.crc32(file.stem.encode())))
    processed = [_fits(file, operation(photograph, rng), size) for operation in operations]
    height, width = photograph.shape[:2]
    places = (height - size + 1) * (width - size + 1)
    drawn = rng.choice(places, min(settings.patches, places), replace=False)
    images, names = [], []
    for i, (top, left) in enumerate(zip(*np.divmod(drawn, width - size + 1), strict=True)):
        turn = i % len(operations)
        centre = (top + size / 2) / height, (left + size / 2) / width
        images += [_crop(photograph, centre, size), _crop(processed[turn], centre, size)]
        names += [f"{file.relative_to(root).as_posix()}/{i:03d}-{what}" for what in ("original", operations[turn].name)]
    return np.stack(images), names


def _fits(file: Path, image: np.ndarray, size: int) -> np.ndarray:
    if min(image.shape[:2]) < size:
        across = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"{file}: patches of {size} pixels do not fit into {across} (JPEGs are halved first)")
    return image


def _photograph(file: Path, channels: int) -> np.ndarray:
    """(H, W, channels) uint8, halved if the file is block-coded."""
    try:
        data = file.read_bytes()
        image = codecs.decode(data)
        coded = _format(data) in BLOCK_CODED
    except OSError as error:
        raise InputError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if coded:
        height, width = (max(1, side // 2) for side in image.shape[:2])
        image = resized(image, (width, height), Image.Resampling.LANCZOS)
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _format(data: bytes) -> str | None:
    """Pillow's name of an image file's format, which its suffix may not tell."""
    with Image.open(io.BytesIO(data)) as image:
        return image.format


def _crop(image: np.ndarray, centre: tuple[float, float], size: int) -> np.ndarray:
    """The size x size square about a place given as shares of the height and width, moved inside if it sticks out."""
    top, left = (
        int(np.clip(round(share * side - size / 2), 0, side - size))
        for share, side in zip(centre, image.shape[:2], strict=True)
    )
    return image[top : top + size, left : left + size]
