"""The ledger of an evaluation: one line of JSON an image, appended as results come, never rewritten.

A killed run loses the batch it was at. Half a last line, as a kill leaves it, is cut off before the next is written.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ffjax.errors import InputError


def read(path: Path) -> list[dict[str, Any]]:
    """Every complete line so far, in the order written; nothing if there is no file. InputError names a line that is
    not JSON, which a kill cannot have left, since it only cuts the last."""
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error})") from error
    return rows


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds lines and waits until they are on the disk."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    _cut_half_line(path)
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _cut_half_line(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
