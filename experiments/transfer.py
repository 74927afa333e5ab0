"""The transfer tensor: source x target detector x method x data set x storage, each cell beside clean images and sign
noise of the same bound.

    python -m experiments.transfer

Claim examined: universal perturbations carry to detectors and data they have not seen (Huang et al., ICIP 2020; no
published figures to compare with). Individual attacks stand beside them. Cost: about half an hour on 2 CPU cores;
killed and started again it goes on with the cell it was at. Result: runs/transfer/tables.txt, figures/, results.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from ffjax import classical, detectors, figures, run, study, transfer, transfer_table
from ffjax.attacks import ATTACKS
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.findings import DIRECTIONS
from ffjax.progress import stage, step
from ffjax.run import Run
from ffjax.transfer import CLEAN, Cell, Says
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import METHODS, UapConfig, named

TOGETHER = "all-"
"""Begins the name of a row that is made on all sources at once, before the way they are joined."""
SHIPPED = ("meso4-a0", "meso4-a1", "mesoinception4-a0", "mesoinception4-a1", "resnet10-a0", "resnet10-a1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made on which detectors, shown to which, how, on what."""

    sources: tuple[str, ...] = SHIPPED
    """Detectors that perturbations are made on: shipped names, or ARCHITECTURE:WEIGHTS-FILE."""
    others: tuple[str, ...] = ()
    """More detectors that they are shown to, besides the sources."""
    classical: tuple[Literal["svm", "forest"], ...] = ("svm", "forest")
    """Targets without gradients, fitted on the first set's training images."""
    together: tuple[Literal["average", "worst", "sum_log"], ...] = ()
    """Universal patterns are also made on all sources at once, joined so; a row each (sum_log: for ce alone)."""
    methods: tuple[str, ...] = ("gd_uap", "uap_pgd", "to_real", "mi_fgsm")
    """Universal methods (ffjax.universal.METHODS) and attacks inside an l_inf bound (ffjax.attacks.ATTACKS)."""
    data: tuple[str, ...] = ("a", "b", "resent:a")
    """Test sets; the first also trains and tunes what sees data."""
    eps: float = 10.0
    """Bound in 1/255."""
    images: int = 100
    """Test images per class and set, at most."""
    validation: int = 40
    """Validation images per class, at most, by which patterns are selected."""
    noises: int = 2
    """Draws of sign noise."""
    stored: tuple[Literal["png", "jpeg90", "jpeg75", "jpeg50"], ...] = ("png", "jpeg75")
    """How images are also stored, besides in float."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Starts of each universal pattern; its own score chooses one."""
    size: int = 128
    """Image side in pixels; every detector resizes to its own."""
    out: Path = Path("runs/transfer")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, makes what is missing, scores cell by cell, prints and draws."""
    console = Console()
    console.print(f"ffjax: transfer of {', '.join(cfg.methods)} from {len(cfg.sources)} detectors -> {cfg.out}")
    _check(cfg)
    loaded = [detectors.load(spec) for spec in (*cfg.sources, *cfg.others)]
    networks = study.networks(loaded, cfg.size)
    sources = [networks[one.name] for one in loaded[: len(cfg.sources)]]
    configs = {name: _config(cfg, name) for name in cfg.methods if name in METHODS}
    trains = cfg.classical or any(c.mode == "with_data" for c in configs.values())
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all(cfg.data, "test", cfg.size, cfg.images)
        held = sets.load(cfg.data[0], "validation", cfg.size, cfg.validation)
        train = sets.load(cfg.data[0], "train", cfg.size) if trains else None
    folder = run.open_run(cfg.out, cfg)
    seen = {"test": tests, "validation": {cfg.data[0]: held}} | ({"train": {cfg.data[0]: train}} if train else {})
    study.check_inputs(folder, networks, seen, {f"settings of {name}": repr(c) for name, c in configs.items()})
    for warning in study.save_networks(folder, loaded):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    targets = {name: transfer.says(one.forward, cfg.compute) for name, one in networks.items()}
    targets |= _classical(cfg, console, train, held)

    every = transfer.cells(list(tests), [s.name for s in sources], cfg.methods, cfg.noises)
    joined = [f"{TOGETHER}{join}" for join in cfg.together]
    every += transfer.cells(list(tests), joined, [name for name in cfg.methods if name in METHODS], 0)[len(tests) :]
    missing = [cell for cell in every if not transfer.path(folder, cell).exists()]
    with stage(console, "cells", len(every), "cells") as tell:
        tell(len(every) - len(missing))
        make = partial(_images, cfg, folder, networks, configs, train, held)
        for k, cell in enumerate(missing, start=len(every) - len(missing) + 1):
            scores = transfer.score(make(cell, tests[cell.data]), targets, cfg.stored)
            run.save_arrays(transfer.path(folder, cell), scores)
            tell(k, f"{cell.data} {cell.name}")
    with step(console, "intervals"):
        entries = list(transfer.entries(folder, tests, every, list(targets), cfg.stored))
    family = {one.name: str(one.meta.get("arch")) for one in loaded}
    family |= {name: [source.name for source in sources] for name in joined}
    _show(console, folder, entries, family)


def _check(cfg: Config) -> None:
    """Refuses, before anything is computed, what could not be carried to its end."""
    run.check(cfg.out, cfg)
    transfer.check_methods(cfg.methods)
    if not cfg.sources:
        raise InputError("sources: name at least one detector")
    for name in ("images", "validation", "noises", "size"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}: must be at least 1, got {getattr(cfg, name)}")
    if cfg.together and len(cfg.sources) < 2:
        raise InputError("together: needs at least two sources")
    for name in ("stored", "classical", "together"):
        if len(set(getattr(cfg, name))) < len(getattr(cfg, name)):
            raise InputError(f"{name}: none may be named twice, got {', '.join(getattr(cfg, name))}")
    if not 0 <= cfg.eps <= 255:
        raise InputError(f"eps: must be from 0 to 255, got {cfg.eps}")


def _config(cfg: Config, method: str) -> UapConfig:
    return replace(named(method), eps=(cfg.eps,), seeds=cfg.seeds)


def _classical(cfg: Config, console: Console, train: ImageSet | None, held: ImageSet) -> dict[str, Says]:
    found = {}
    for name in cfg.classical:
        assert train is not None
        with step(console, f"fitting {name}"):
            found[name] = partial(classical.margins, classical.fit(name, train, held, 0))
    return found


def _images(
    cfg: Config,
    folder: Run,
    networks: dict[str, Source],
    configs: dict[str, UapConfig],
    train: ImageSet | None,
    held: ImageSet,
    cell: Cell,
    data: ImageSet,
) -> np.ndarray:
    """The set's images as the cell has them."""
    if cell.method == CLEAN:
        return data.images
    if not cell.source:
        return transfer.noisy(data, int(cell.method.removeprefix("noise")), cfg.eps / 255)
    made_on = _made_on(cfg, networks, cell.source)
    if cell.method in ATTACKS:
        return transfer.individually(cell.method, made_on[0], data, cfg.eps / 255, cfg.compute, lambda done: None)
    config = configs[cell.method]
    if cell.source.startswith(TOGETHER):
        config = replace(config, join=cell.source.removeprefix(TOGETHER))
    place = folder / f"patterns/{cell.name}/pattern.npy"
    if not place.exists():
        snapshots = place.parent / "snapshots"
        deltas, scores = transfer.patterns(snapshots, config, made_on, cfg.size, cfg.compute, train, held)
        run.save_array(place, deltas[np.argmax(scores)])
    return transfer.universally(data, np.load(place), config)


def _made_on(cfg: Config, networks: dict[str, Source], name: str) -> list[Source]:
    """The detectors that a row of the tensor is made on."""
    if not name.startswith(TOGETHER):
        return [networks[name]]
    return list(networks.values())[: len(cfg.sources)]


def _show(console: Console, folder: Run, entries: Sequence[dict], family: dict[str, Any]) -> None:
    """results.json, tables.txt, a heat map a method; and the matrices in float on the console."""
    found = transfer_table.tensor(entries)
    told = transfer_table.sentences(found, family)
    value = {"entries": entries, "told": told, "family": family, "environment": study.environment()}
    run.write_json(folder / "results.json", value)
    for method in found.methods:
        for side in DIRECTIONS:
            drawn = figures.styled(transfer_table.heat_map, found, method, side)
            figures.save(drawn, folder / f"figures/{method}-{side}.png")
    with (folder / "tables.txt").open("w") as file:
        book = Console(file=file, width=200)
        book.print(f"{transfer_table.NOTE}\n", highlight=False)
        _matrices(book, found, found.stored, tuple(DIRECTIONS))
    _matrices(console, found, found.stored[:1], (None,))
    console.print(transfer_table.NOTE, highlight=False, soft_wrap=True)
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"all storages and directions: {folder.folder / 'tables.txt'}; heat maps: {folder.folder / 'figures'}"
    )


def _matrices(
    console: Console, found: transfer_table.Tensor, stored: Sequence[str], sides: Sequence[str | None]
) -> None:
    for method in found.methods:
        for data in found.data:
            for storage in stored:
                for side in sides:
                    console.print(transfer_table.title(data, method, storage, side), highlight=False, soft_wrap=True)
                    console.print(transfer_table.matrix(found, data, method, storage, side))


if __name__ == "__main__":
    run.main(Config, main)
