"""Faces cut out of FaceForensics++ videos: a TFDS builder whose download is the licence holder's own folder."""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from ffjax.data import codecs, forged_faces, kept, video
from ffjax.data.examples import Example
from ffjax.data.folder import MIN_SIDE
from ffjax.data.sequences import Clip, Sequences, clips
from ffjax.errors import InputError
from ffjax.types import ImageSet


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """One split of one folder at one size; the name holds a digest of all that the faces depend on."""

    settings: Sequences | None = None
    split: str = "test"
    size: int = 0


class FaceForensics(tfds.core.GeneratorBasedBuilder):
    """Faces cut out of FaceForensics++ videos. metadata: per video, how many frames were looked at and had no face."""

    # To be raised whenever a pixel changes: sets made before are found again by it.
    VERSION = tfds.core.Version("1.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        chosen = self.builder_config
        assert isinstance(chosen, Config)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(chosen.size, chosen.size, 3), encoding_format="png"),
                "mask": tfds.features.Image(shape=(chosen.size, chosen.size, 1), encoding_format="png"),
                "label": tfds.features.Scalar(np.int32),
                "identity": tfds.features.Scalar(np.int32),
                "name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        chosen = self.builder_config
        assert isinstance(chosen, Config)
        return {chosen.split: self._generate_examples(chosen)}

    def _generate_examples(self, chosen: Config):
        assert chosen.settings is not None
        assert self.info.metadata is not None
        found, count = clips(chosen.settings, chosen.split), 0
        for clip, (faces, looked) in zip(found, _all_faces(found, chosen.settings, chosen.size), strict=True):
            self.info.metadata[clip.name] = [looked, looked - len(faces)]
            for face in faces:
                yield count, forged_faces.encode(face)
                count += 1
        if count == 0:
            raise InputError(f"{chosen.settings.folder}: no face found in any frame of {chosen.split}")


def load(
    settings: Sequences,
    split: str,
    size: int,
    data_dir: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> ImageSet:
    """The faces of a split, cut at the first call and kept in `data_dir` (kept.default_data_dir()).

    Of each video `frames` frames, evenly spread (video.spread); of each frame the largest face (others are passed
    over), cut as a square of 1.3 x the larger side of its box about the box's middle (video.square; the authors' crop,
    PAPERS.md 4.2, though their boxes are not OpenCV's) and resized to `size` (Lanczos, antialiased). A frame without a
    face is left out, counted, and `tell` is told in one line (standard error, if not given). Masks, if asked for, are
    cut alike: 255 where the mask is at least half bright, 0 for originals.

    labels: 1 = manipulated. groups: the identity pair of the split file, by its smaller number; both originals and all
    manipulations of a pair are one group. names: 'Deepfakes/033_097/0021'. What was kept is made anew if a video, split
    or box file has changed. InputError, one line that names the file: no such folder (with where the data is to be
    had), compression, method, split file or video; an identity in two pairs; a video cut short; a mask of another size;
    a box beside the frame or too small; no face at all.
    """
    if size < 1:
        raise InputError(f"{settings.folder}: size {size}: must be at least 1 pixel")
    builder = kept.prepared(FaceForensics, config(settings, split, size), data_dir)
    _tell_of_gaps(dict(builder.info.metadata or {}), split, tell or functools.partial(print, file=sys.stderr))
    data = forged_faces.decode(kept.records(builder, split))
    return data if settings.masks else data._replace(masks=None)


def config(settings: Sequences, split: str, size: int) -> Config:
    """What a split's faces are kept under: their settings, and the size and date of every file they come from."""
    files = [Path(settings.boxes)] if settings.boxes else []
    for clip in clips(settings, split):
        files += [clip.path, *([clip.mask] if clip.mask else [])]
    marks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([dataclasses.asdict(settings), split, size, marks], default=str)
    name = f"{split}_{size}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return _config(name, settings, split, size)


@functools.cache  # tfds wants one object a name
def _config(name: str, settings: Sequences, split: str, size: int) -> Config:
    return Config(name=name, settings=settings, split=split, size=size)


def _all_faces(found: list[Clip], settings: Sequences, size: int) -> Iterator[tuple[list[Example], int]]:
    """Each clip's faces and how many frames were looked at, in order; a few clips at a time in threads."""
    boxes = video.read_boxes(Path(settings.boxes)) if settings.boxes else None
    hidden = not sys.stderr.isatty()
    with ThreadPoolExecutor(codecs.WORKERS) as pool:
        starts = range(0, len(found), 2 * codecs.WORKERS)
        for start in track(starts, "Cutting faces", console=Console(stderr=True), transient=True, disable=hidden):
            part = found[start : start + 2 * codecs.WORKERS]
            yield from pool.map(lambda clip: faces(clip, settings, size, boxes), part)


def faces(clip: Clip, settings: Sequences, size: int, boxes: video.Boxes | None) -> tuple[list[Example], int]:
    """A clip's faces, each (size, size, 3), and how many frames were looked at. boxes: what settings.boxes holds; None:
    the cascade finds them."""
    known = video.numbers(clip.path)
    wanted = [known[i] for i in video.spread(len(known), settings.frames)]
    masks = video.frames(clip.mask, wanted) if clip.mask else None
    found = []
    for number, frame in zip(wanted, video.frames(clip.path, wanted), strict=True):
        mask = _mask(next(masks), frame, clip) if masks else np.zeros(frame.shape[:2], np.uint8)
        box = video.largest_face(frame) if boxes is None else boxes.get(clip.name, {}).get(number)
        if box is not None:
            top, left, side = _inside(box, frame, f"{settings.boxes or clip.path}: {clip.name} frame {number}")
            cut = slice(top, top + side), slice(left, left + side)
            area = np.where(_resized(mask[cut], size) > 127, 255, 0).astype(np.uint8)
            name = f"{clip.name}/{number:04d}"
            found.append(Example(_resized(frame[cut], size), area, clip.label, clip.pair, name))
    return found, len(wanted)


def _mask(mask: np.ndarray, frame: np.ndarray, clip: Clip) -> np.ndarray:
    if mask.shape != frame.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (mask, frame)]
        raise InputError(f"{clip.mask}: {sizes[0]} pixels, but {clip.path} has {sizes[1]}")
    return np.where(mask.max(axis=-1) > 127, 255, 0).astype(np.uint8)


def _inside(box: video.Box, frame: np.ndarray, what: str) -> tuple[int, int, int]:
    height, width = frame.shape[:2]
    if not (0 <= box.x + box.width / 2 <= width and 0 <= box.y + box.height / 2 <= height):
        raise InputError(f"{what}: the middle of the box {tuple(box)} is outside the {width}x{height} frame")
    top, left, side = video.square(box, height, width)
    if side < MIN_SIDE:
        raise InputError(
            f"{what}: the cut about the box {tuple(box)} is {side} wide, at least {MIN_SIDE} pixels are needed"
        )
    return top, left, side


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def _tell_of_gaps(counts: dict, split: str, tell: Callable[[str], None]) -> None:
    without = {name: missing for name, (_, missing) in counts.items() if missing}
    if without:
        worst = max(without, key=lambda name: without[name])
        looked = sum(total for total, _ in counts.values())
        tell(
            f"FaceForensics++ {split}: no face in {sum(without.values())} of {looked} frames, left out "
            f"(most in {worst}: {without[worst]} of {counts[worst][0]})"
        )
