"""Frames out of videos (or folders of extracted frames), and faces out of frames."""

import csv
import functools
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffjax.data import codecs
from ffjax.data.folder import image_files
from ffjax.errors import InputError

CASCADE = "haarcascade_frontalface_alt2.xml"
"""OpenCV's file. Against its frontalface_default it finds a little fewer faces and places them more steadily."""

COLUMNS = ("video", "frame", "x", "y", "width", "height")


class Box(NamedTuple):
    """A face in pixels: left and top edge, width and height."""

    x: float
    y: float
    width: float
    height: float


Boxes = Mapping[str, Mapping[int, Box]]
"""Name of a video, number of a frame -> its face."""


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` positions spread evenly over 0 .. count - 1, each in the middle of its share; all where there are fewer.

    The first and last frames of a video are taken only when all are.
    """
    if wanted >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def numbers(path: Path) -> list[int]:
    """The numbers of a video's frames, in order: 0 .. n - 1 of a file; what the names in a folder of frames say.

    InputError: not there, no video, cut short (its header promises more than it holds), or a name that is no number.
    """
    if path.is_dir():
        return sorted(_extracted(path))
    with _opened(path) as container:
        stream = _stream(container, path)
        whole = [not packet.is_corrupt for packet in _guarded(container.demux(stream), path) if packet.size]
        if not whole or len(whole) < stream.frames or not all(whole):
            raise InputError(f"{path}: cut short or damaged, holds {sum(whole)} of {stream.frames or 'its'} frames")
        return list(range(len(whole)))


def frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these rising numbers, (H, W, 3) uint8 RGB, from a video file or a folder of frames.

    A file is decoded from its start: seeking would land on other frames with other coders. InputError: as `numbers`, a
    frame that is missing or damaged.
    """
    if path.is_dir():
        files = _extracted(path)
        for number in wanted:
            if number not in files:
                raise InputError(f"{path}: no frame {number}")
            yield _picture(files[number])
        return
    with _opened(path) as container:
        decoded = enumerate(_guarded(container.decode(_stream(container, path)), path))
        for number in wanted:
            found = next((frame for i, frame in decoded if i == number), None)
            if found is None or found.is_corrupt:
                fault = "is damaged" if found else "is missing: the file is cut short"
                raise InputError(f"{path}: frame {number} {fault}")
            yield found.to_ndarray(format="rgb24")


def square(box: Box, height: int, width: int, scale: float = 1.3) -> tuple[int, int, int]:
    """Top, left and side of the square to cut: `scale` x the larger side of the box, about its middle.

    One that sticks out of the image is moved inside; one that is larger than the image is as large as the image.
    """
    side = min(round(scale * max(box.width, box.height)), height, width)
    top = round(box.y + box.height / 2 - side / 2)
    left = round(box.x + box.width / 2 - side / 2)
    return min(max(top, 0), height - side), min(max(left, 0), width - side), side


def largest_face(frame: np.ndarray) -> Box | None:
    """(H, W, 3) uint8 -> the largest frontal face that OpenCV's cascade finds; other faces are passed over.

    None where it finds none. InputError where OpenCV is missing or carries no cascade.
    """
    cv2 = _opencv()
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    smallest = max(24, min(frame.shape[:2]) // 10)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
    boxes = sorted(Box(*map(float, box)) for box in found)  # OpenCV's threads report in any order
    return max(boxes, key=lambda box: box.width * box.height, default=None)


def read_boxes(path: Path) -> Boxes:
    """Faces given in a file: JSON {video: {frame: [x, y, width, height]}}, or CSV with the columns of COLUMNS.

    InputError, with the file and the entry: it cannot be read, or a box is not four finite numbers with positive sides.
    """
    try:
        rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as boxes ({' '.join(str(error).split())})") from None
    boxes: dict[str, dict[int, Box]] = {}
    for video, frame, values in rows:
        try:
            box = Box(*map(float, values))
            number = int(frame)
        except (TypeError, ValueError):
            raise InputError(f"{path}: {video} frame {frame}: not a frame's number and four numbers") from None
        if not all(map(math.isfinite, box)) or min(box.width, box.height) <= 0:
            raise InputError(f"{path}: {video} frame {frame}: {tuple(box)} is no box (x, y, width, height)")
        boxes.setdefault(video, {})[number] = box
    return boxes


def _json_rows(path: Path) -> Iterator[tuple[str, Any, Any]]:
    loaded = json.loads(path.read_text())
    if not isinstance(loaded, dict) or not all(isinstance(of_video, dict) for of_video in loaded.values()):
        raise ValueError("not {video: {frame: [x, y, width, height]}}")
    return ((video, frame, box) for video, of_video in loaded.items() for frame, box in of_video.items())


def _csv_rows(path: Path) -> list[tuple[str, Any, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        return [(row["video"], row["frame"], [row[column] for column in COLUMNS[2:]]) for row in reader]


def _extracted(folder: Path) -> dict[int, Path]:
    files = image_files(folder)
    unnumbered = [file for file in files if not file.stem.isdecimal()]
    if unnumbered or not files:
        fault = f"{unnumbered[0].name} is not named by a number" if unnumbered else "no frames"
        raise InputError(f"{folder}: {fault}")
    return {int(file.stem): file for file in files}


def _picture(file: Path) -> np.ndarray:
    try:
        return codecs.decode(file.read_bytes())
    except (OSError, InputError) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such video")
    av = _av()
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a video, or one cut short ({_first_line(error)})") from None


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise InputError(f"{path}: holds no video stream")
    return container.streams.video[0]


def _guarded(parts: Iterator[Any], path: Path) -> Iterator[Any]:
    """The same, with the decoder's faults as InputError."""
    try:
        yield from parts
    except (_av().error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise InputError("videos need PyAV: pip install 'ffjax[video]'") from None
    return av


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise InputError("finding faces needs OpenCV: pip install 'ffjax[video]', or give boxes=FILE") from None
    if not hasattr(cv2, "CascadeClassifier"):
        said = f"OpenCV {cv2.__version__} carries no face detector"
        raise InputError(f"{said}: pip install 'ffjax[video]' (which asks for 4.x), or give boxes=FILE")
    return cv2


@functools.cache
def _loaded_cascade(thread: int) -> Any:
    cv2 = _opencv()
    return cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)


def _cascade() -> Any:
    """One a thread: a cascade holds the image it is looking at."""
    return _loaded_cascade(threading.get_ident())
