"""A program that scores image files, as a function for `from_scores`."""

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ffjax.errors import InputError


def command(argv: str | Sequence[str], *, timeout: float = 600.0) -> Callable[[np.ndarray], np.ndarray]:
    """A program as a function images (n, H, W, C) uint8, C of 1 or 3 -> scores (n, K), one run per call.

    argv: its words, or one line that is parted as a shell parts it.
    The images are written as 00000.png, 00001.png, ... into a new folder, whose path is the program's last argument. It
    prints one line per image, in any order: the file's name and its scores, parted by blanks, commas or tabs. Other
    lines must not begin with such a name. timeout: seconds for one run.
    Raises InputError if the program cannot be started, fails, takes longer, leaves an image out, scores one twice, or
    prints what is no number.

        from_scores(command(["python", "their_detector.py"]), (64, 64, 3), says, dtype="uint8")
    """
    try:
        words = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv]
    except (TypeError, ValueError) as error:
        raise InputError(f"command: {argv!r} is no line of words ({error})") from None
    if not words:
        raise InputError("command: names no program")

    def ask(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise InputError(f"command: takes uint8 images (n, H, W, 1 or 3), got {images.dtype} {images.shape}")
        with tempfile.TemporaryDirectory(prefix="ffjax-") as folder:
            names = [f"{i:05d}.png" for i in range(len(images))]
            for name, image in zip(names, images, strict=True):
                Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(Path(folder) / name)
            return _parsed(_printed([*words, folder], timeout), names, words[0])

    return ask


def _printed(argv: Sequence[str], timeout: float) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    except OSError as error:
        raise InputError(f"{argv[0]}: cannot be started ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{argv[0]}: took longer than {timeout:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        raise InputError(f"{argv[0]}: exit code {done.returncode}: {said[-1]}")
    return done.stdout


def _parsed(printed: str, names: Sequence[str], program: str) -> np.ndarray:
    """(n, K) float32, in the order of names."""
    found: dict[str, list[float]] = {}
    for line in printed.splitlines():
        name, *words = line.replace(",", " ").split() or [""]
        name = Path(name).name
        if name in names:
            if name in found:
                raise InputError(f"{program}: scores {name} twice")
            found[name] = _numbers(words, line, program)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{program}: printed no score of {missing[0]} ({len(missing)} of {len(names)} missing)")
    if len({len(scores) for scores in found.values()}) > 1:
        raise InputError(f"{program}: prints different numbers of scores for different images")
    return np.array([found[name] for name in names], np.float32)


def _numbers(words: Sequence[str], line: str, program: str) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(f"{program}: no scores in the line {line.strip()!r}")
    return numbers
