"""ClassNSeg as its authors published it, on the two images they published with it: one fake and one real face attacked,
as a worked example. Two fitting images give no rates."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import detectors, evaluate, fabrication, individual, run
from ffjax.data import codecs
from ffjax.detectors import Loaded
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.fabrication import Cell, Victim
from ffjax.individual import Row
from ffjax.run import Run
from ffjax.types import ImageSet

PARTS = ("checkpoints/full/encoder_46.pt", "checkpoints/full/decoder_46.pt")
CLASSES = ("real", "fake")


def load(folder: Path) -> tuple[Loaded, ImageSet]:
    """The authors' weights, and inputs256/{real,fake}.png with their masks. InputError for what is not there."""
    loaded = detectors.load("classnseg:" + "+".join(str(folder / part) for part in PARTS))
    pictures = [_read(folder / f"inputs256/{name}.png", 3) for name in CLASSES]
    truth = [_read(folder / f"inputs256/{name}_mask.png", 1)[..., 0] for name in CLASSES]
    numbers = np.arange(2, dtype=np.int32)
    masks = np.where(np.stack(truth) > 127, 255, 0).astype(np.uint8)
    return loaded, ImageSet(np.stack(pictures), numbers, numbers, CLASSES, masks)


def show(
    console: Console, folder: Path, cells: Sequence[Cell], out: Run, attack: str, seed: int, compute: Compute
) -> None:
    """Runs the verdict and mask cells that two images allow (no mask of another identity) and prints what the detector
    says of each image, before and after; OUT/example.json."""
    loaded, data = load(folder)
    forward = fabrication.forward(loaded)
    margins = evaluate.margins(forward, data.images, compute)
    victim = Victim(forward, lambda gate: forward, 0.0, float(np.min(np.abs(margins))), 0.0)
    chosen = [cell for cell in cells if cell.part in ("verdict", "mask") and cell.target != "another"]
    small = dataclasses.replace(compute, batch=min(compute.batch, compute.least))  # two images, not a batch of padding
    rows = fabrication.attack(chosen, out.folder / "cells", data, victim, attack, (), seed, small)
    table = Table("image", "attack", "eps/255", "shown as", "margin", "IoU true", "IoU wanted", "pixels wanted", "area")
    table.title = "worked example: the authors' weights on their two images (no rates)"
    for cell in chosen:
        for row in rows[cell.name]:
            attacked = cell.target or f"verdict, {cell.loss}, T {cell.steps}"
            for kind in individual.KINDS if "success" in row else ():
                table.add_row(row["name"], attacked, f"{cell.eps:g}", kind, *_numbers(row, kind))
    console.print(table)
    console.print(
        "An example, not rates: the authors' test sets are not at hand, and these two images fit the weights."
    )
    run.write_json(out / "example.json", {name: found for name, found in rows.items()})


def _numbers(row: Row, kind: str) -> list[str]:
    seen = row["masks"][kind]["float"]
    measures = [seen.get(name) for name in ("iou_true", "iou_wanted", "pixels_wanted", "area")]
    return [f"{row['margins'][kind]['float']:+.2f}", *("" if value is None else f"{value:.3f}" for value in measures)]


def _read(path: Path, channels: int) -> np.ndarray:
    try:
        return codecs.decode(path.read_bytes(), channels)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
