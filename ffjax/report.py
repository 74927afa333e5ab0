"""report.html, figures/ and the closing table of a universal-perturbation run, made from its folder alone.

python -m ffjax.report FOLDER
"""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffjax import figures, findings, page, run
from ffjax.data.codecs import to_uint8
from ffjax.errors import InputError
from ffjax.findings import DIRECTIONS, claim, condition, counts, estimate, groups, percent, verdict

PARTS = ("conditions", "sources", "detectors", "data", "patterns", "cells", "claims", "quality", "activations")
"""What results.json must hold."""

WIDE = 118
"""Columns from which a verdict fits beside its rates; below, it goes under them."""


class Record(NamedTuple):
    """A run folder as read. said: what the first source says of the examples, clean and attacked -> (k,) margins."""

    config: dict
    results: dict
    log: list[dict]
    delta: np.ndarray
    shots: dict[str, np.ndarray]
    said: dict[str, np.ndarray]


def read(folder: Path) -> Record:
    """Everything the report is made of. Raises InputError naming the file that is missing or cannot be read."""
    config, results = _open(folder / "config.json", json.loads), _results(folder)
    log = _open(folder / "metrics.jsonl", lambda raw: [json.loads(line) for line in raw.splitlines()])
    delta = _open(folder / "perturbation.npy", lambda raw: np.load(io.BytesIO(raw)))
    shots = _open(folder / "examples.npz", _arrays)
    source, scores = results["sources"][0], folder / f"scores/{results['data'][0]['name']}-test"
    names = {"clean": "clean-float", "attacked": condition(results, "uap", groups(results)[0], "float")}
    said = {
        key: _open(scores / f"{name}.npz", lambda raw: _arrays(raw)[source][shots["rows"]])
        for key, name in names.items()
    }
    return Record(config, results, log, delta, shots, said)


def write(folder: Path) -> None:
    """figures/*.png, perturbation.png and the self-contained report.html, from the folder alone.

    Guarantee: the same folder gives the same bytes; the page names no address outside itself. Raises InputError.
    """
    record = read(folder)
    (folder / "figures").mkdir(exist_ok=True)
    pictures = []
    for name, title, caption, figure in _figures(record):
        path = folder / "figures" / f"{name}.png"
        figures.save(figure, path)
        pictures.append(page.Picture(title, caption, path.read_bytes()))
    image = to_uint8(figures.amplified(record.delta)[0])
    bigger = max(1, 512 // max(image.shape[:2]))
    Image.fromarray(image.repeat(bigger, 0).repeat(bigger, 1)).save(folder / "perturbation.png")
    text = page.page(folder, record.config, record.results, pictures)
    (folder / "report.html").write_text(text, encoding="utf-8")


def closing_table(folder: Path, console: Console) -> None:
    """The result in a terminal: a table per pattern group and set, both directions, and where the report is.

    Fits 120 columns; in fewer, verdicts go below their rates.
    """
    results = _results(folder)
    storage = findings.storages(results)[-1]
    for group in groups(results):
        for data in results["data"]:
            title = f"{escape(group)} on {escape(data['name'])}: {counts(data)}; all in %"
            table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
            table.add_column("detector", overflow="fold")
            for head in ("clean\nbalanced", *DIRECTIONS.values(), f"verdicts changed,\n{storage} [95 %]"):
                table.add_column(head)
            for detector in results["detectors"]:
                table.add_row(*_row(results, detector, data["name"], group, storage, console.width))
            console.print(table)
    trusted = percent(findings.TRUSTED)
    console.print(
        "clean → noise → universal perturbation (range over seeds). held: it beats clean, noise and the best fixed "
        "pattern (95 % interval above 0). beats noise only: not shown to beat the fixed pattern. "
        f"no claim: clean balanced accuracy below {trusted}.",
        style="dim",
        highlight=False,
    )
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


def _row(results: dict, detector: str, data: str, group: str, storage: str, width: int) -> list[str]:
    gap = "  " if width >= WIDE else "\n"
    clean = estimate(results, detector, data, "clean-float", "attacked_balanced_accuracy")[0]
    cells = [escape(detector) + f"{gap[0]}[dim](source)[/]" * (detector in results["sources"]), percent(clean, "")]
    colours = {
        "held": "bold green",
        "beats noise only": "yellow",
        "not held": "default",
        "no claim": "dim",
    }
    for direction in DIRECTIONS:
        row = claim(results, detector, data, group, direction)
        rates = " → ".join(percent(row[kind]["median"], "") for kind in ("clean", "noise", "uap") if kind in row)
        said = verdict(results, row)
        cells.append(f"{rates} ({findings.spread(row['uap'])}){gap}[{colours[said]}]{said}[/]")
    names = [condition(results, kind, group, storage) for kind in ("clean", "noise", "uap")]
    found = [estimate(results, detector, data, name, "fooling_rate") for name in names]
    changed = " → ".join(percent(one[0], "") for one in found)
    return [*cells, f"{changed}{gap[0]}{escape(findings.interval(found[-1]))}"]


def _figures(record: Record) -> Iterable[tuple[str, str, str, Figure]]:
    """(file name, title, caption, figure), made one by one."""
    results, first = record.results, record.results["data"][0]
    peak = float(np.abs(record.delta).max()) * 255
    caption = (
        f"From set {first['name']}, spread evenly over each class whatever the detector says: the image, the "
        f"perturbation (at most {peak:.1f} of 255 levels; amplified about grey to be seen), and their sum."
    )
    drawn = figures.styled(figures.examples, record.shots, record.said, results["sources"][0])
    yield "examples", "Examples", caption, drawn
    for group in groups(results):
        yield from _group_figures(record, group, first)


def _group_figures(record: Record, group: str, first: dict) -> Iterable[tuple[str, str, str, Figure]]:
    results = record.results
    stands = "Noise is its first draw, the perturbation the chosen one."
    caption = (
        "Share of fakes called real and of reals called fake, in float. Noise: the median of its draws. Fixed: the one "
        "chosen for that direction. Perturbation: the median of its seeds. At the right: what may be claimed. "
        + "; ".join(f"{data['name']}: {counts(data)}" for data in results["data"])
        + "."
    )
    drawn = figures.styled(figures.directions, results, group)
    yield f"directions-{group}", f"Both directions ({group})", caption, drawn
    for data in results["data"]:
        caption = (
            "What is left when images are stored before a detector meets them: verdicts that differ from clean in "
            f"float, and errors in both directions. {counts(data).capitalize()}. {stands}"
        )
        drawn = figures.styled(figures.storage, results, group, data)
        yield f"storage-{group}-{data['name']}", f"Storage ({group}, set {data['name']})", caption, drawn
    caption = (
        f"Each layer before and after, over the {first['real'] + first['fake']} images of set {first['name']}: mean "
        f"|activation| as a multiple of clean (log axis), and the share of neurons above 0. {stands}"
    )
    yield f"activations-{group}", f"Activations ({group})", caption, figures.styled(figures.activations, results, group)
    caption = "The over-firing objective of every seed, step by step, and the share of components at the bound."
    drawn = figures.styled(figures.objective, results, record.log, group)
    yield f"objective-{group}", f"Objective ({group})", caption, drawn


def _results(folder: Path) -> dict:
    results = _open(folder / "results.json", json.loads)
    missing = [name for name in PARTS if name not in results]
    if missing:
        raise InputError(f"{folder / 'results.json'}: holds no {missing[0]}; not the results of such a run")
    return results


def _open(path: Path, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; a report needs the folder of a finished run") from error
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise InputError(f"{path}: not as a run leaves it ({error})") from error


def _arrays(raw: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(raw)) as file:
        return dict(file)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which run to report on."""

    folder: tyro.conf.Positional[Path]
    """The folder of a finished run."""


def main(cfg: Config) -> None:
    """Makes figures and page again and prints the table."""
    write(cfg.folder)
    closing_table(cfg.folder, Console())


if __name__ == "__main__":
    run.main(Config, main)
