"""The FaceForensics++ layout on disk (Roessler et al., ICCV 2019): which videos a split is made of.

    FOLDER/original_sequences/youtube/c23/videos/033.mp4
    FOLDER/manipulated_sequences/Deepfakes/c23/videos/033_097.mp4      (target 033, face or expression of 097)
    FOLDER/manipulated_sequences/Deepfakes/masks/videos/033_097.mp4
    FOLDER/splits/train.json, val.json, test.json                      (the official pairs)

Frames that were extracted already lie in images/033/0000.png instead of videos/033.mp4.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ffjax.data import specs
from ffjax.errors import InputError

PREFIX = "faceforensics:"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
COMPRESSIONS = ("raw", "c23", "c40")
SPLITS = {"train": "train.json", "validation": "val.json", "test": "test.json"}
ORIGINAL = "youtube"
SOURCE = (
    "FaceForensics++ is given to researchers who ask its authors for it (github.com/ondyari/FaceForensics: fill in the "
    "form there, then run the download script they send)"
)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What to take, from where.

    folder: of the layout above. compression: raw, c23 or c40. methods: joined by '+', the four of the paper unless
    said. frames: of each video, evenly spread. boxes: a file of faces (video.read_boxes; videos are called
    'youtube/033' and 'Deepfakes/033_097'); '' finds them with OpenCV's cascade. masks: 1 to read masks of what was
    forged, which FaceShifter has none of. splits: folder of the split files; '' is FOLDER/splits.
    """

    folder: Path
    compression: str = "c23"
    methods: str = "Deepfakes+Face2Face+FaceSwap+NeuralTextures"
    frames: int = 10
    boxes: str = ""
    masks: int = 0
    splits: str = ""


class Clip(NamedTuple):
    """One video. name: 'Deepfakes/033_097'. path, mask: files or folders of frames; mask None where there is none to
    read. label: 1 = fake. pair: its identity pair's number."""

    name: str
    path: Path
    mask: Path | None
    label: int
    pair: int


def parse(spec: str) -> Sequences:
    """'faceforensics:FOLDER' or 'faceforensics:FOLDER?compression=c40&methods=Deepfakes+FaceSwap' as settings.

    InputError: as specs.parse; a compression or method that there is not, with those that there are.
    """
    settings = specs.parse(spec, Sequences)
    if settings.compression not in COMPRESSIONS:
        raise InputError(f"{spec}: compression {settings.compression!r}; known: {', '.join(COMPRESSIONS)}")
    methods = settings.methods.split("+")
    for method in methods:
        if method not in METHODS or methods.count(method) > 1:
            raise InputError(f"{spec}: method {method!r} is unknown or given twice; known: {', '.join(METHODS)}")
    if settings.frames < 1 or settings.masks not in (0, 1):
        raise InputError(f"{spec}: frames must be at least 1, and masks 0 or 1")
    return settings


def short_name(spec: str) -> str:
    """What tables call it: 'c23-Deepfakes+FaceSwap', and every other setting that is not its default."""
    settings = parse(spec)
    other = specs.differences(settings, named=("folder", "compression", "methods"))
    return f"{settings.compression}-{settings.methods}{other}"


def clips(settings: Sequences, split: str) -> list[Clip]:
    """The videos of a split: the originals, then each method's, in the split file's order.

    A split file lists a pair once, in either order; both of its manipulations are taken. InputError as `load`, and,
    with the files and pairs, for an identity in more than one pair of the split files that there are: between splits it
    would leak, within one it would be there twice.
    """
    if split not in SPLITS:
        raise InputError(f"split {split}: unknown; known: {', '.join(SPLITS)}")
    if not settings.folder.is_dir():
        raise InputError(f"{settings.folder}: no such folder. {SOURCE}")
    if settings.boxes and not Path(settings.boxes).is_file():
        raise InputError(f"{settings.boxes}: no such file of boxes")
    pairs = _pairs(Path(settings.splits or settings.folder / "splits"), split)
    originals = _sequences(settings, f"original_sequences/{ORIGINAL}")
    found = [_clip(ORIGINAL, originals, who, None, 0, pair) for pair in pairs for who in pair]
    for method in settings.methods.split("+"):
        place = _sequences(settings, f"manipulated_sequences/{method}")
        masks = place.parent / "masks" if settings.masks else None
        found += [_clip(method, place, f"{a}_{b}", masks, 1, (a, b)) for p in pairs for a, b in (p, p[::-1])]
    return found


def _pairs(folder: Path, split: str) -> list[tuple[str, str]]:
    """The pairs of a split, none of whose identities is in another pair or in another split's file."""
    files = {name: folder / file for name, file in SPLITS.items() if name == split or (folder / file).exists()}
    listed = {name: _listed(files[name]) for name in (split, *(name for name in files if name != split))}
    owner: dict[str, str] = {}
    for name, pairs in listed.items():
        for pair in pairs:
            place = f"{'_'.join(pair)} of {files[name]}"
            for who in pair:
                if who in owner:
                    raise InputError(
                        f"identity {who} is in {owner[who]} and {place}; each may be in one pair of one split"
                    )
                owner[who] = place
    return listed[split]


def _listed(file: Path) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file}: no such split file; the official ones are in the authors' repository") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise InputError(f'{file}: is not a list of pairs like ["033", "097"]')
    return [(a, b) for a, b in pairs]


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(who, str) and who.isdecimal() for who in pair)


def _sequences(settings: Sequences, where: str) -> Path:
    """The folder of one kind of sequence at the compression asked for; the message says which there are."""
    above = settings.folder / where
    if not above.is_dir():
        raise InputError(f"{above}: no such folder. {SOURCE}")
    if not (above / settings.compression).is_dir():
        there = ", ".join(name for name in COMPRESSIONS if (above / name).is_dir()) or "none"
        raise InputError(f"{above}: no compression {settings.compression}; there: {there}")
    return above / settings.compression


def _clip(kind: str, place: Path, who: str, masks: Path | None, label: int, pair: tuple[str, str]) -> Clip:
    return Clip(
        name=f"{kind}/{who}",
        path=_file_or_frames(place, who),
        mask=_file_or_frames(masks, who) if masks else None,
        label=label,
        pair=min(map(int, pair)),
    )


def _file_or_frames(place: Path, who: str) -> Path:
    file, folder = place / "videos" / f"{who}.mp4", place / "images" / who
    if not file.is_file() and not folder.is_dir():
        raise InputError(f"{file}: no such video, nor frames in {folder}")
    return file if file.is_file() else folder
