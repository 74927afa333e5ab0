"""The transfer tensor: source x target detector x method x data set x storage, each cell beside clean images and sign
noise of the same bound.

    python -m experiments.transfer

Claim examined: universal perturbations carry to detectors and data they have not seen (Huang et al., ICIP 2020; no
published figures to compare with). Individual attacks stand beside them. Cost: 43 minutes of one CPU core's time;
killed and started again it goes on with the cell it was at. Result: runs/transfer/tables.txt, figures/, results.json
"""

from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console

from ffjax import attempts, classical, detectors, evaluate, run, study, transfer, transfer_table
from ffjax.attacks import ATTACKS
from ffjax.data import sets
from ffjax.data.codecs import Stored
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.progress import stage, step
from ffjax.transfer import TOGETHER, Says, Workshop
from ffjax.types import ImageSet
from ffjax.universal import METHODS, UapConfig, named
from ffjax.universal.config import check

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
    noises: int = 3
    """Draws of sign noise."""
    stored: tuple[Stored, ...] = ("png", "jpeg75")
    """How images are also stored, besides in float."""
    seeds: tuple[int, ...] = (0, 1)
    """Starts of each universal pattern; all of them are shown."""
    size: int = 128
    """Image side in pixels; every detector resizes to its own."""
    made: int | None = None
    """Image side at which universal patterns are made, to be resized to --size; --size itself by default."""
    out: Path = Path("runs/transfer")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, makes what is missing, scores cell by cell, prints and draws."""
    console = Console()
    console.print(f"ffjax: transfer of {', '.join(cfg.methods)} from {len(cfg.sources)} detectors -> {cfg.out}")
    _check(cfg)
    loaded = [detectors.load(spec) for spec in (*cfg.sources, *cfg.others)]
    networks, made = study.networks(loaded, cfg.size), cfg.made or cfg.size
    sources = list(study.networks(loaded[: len(cfg.sources)], made).values())
    configs = {name: _config(cfg, name) for name in cfg.methods if name in METHODS}
    maskless = [s.name for s in sources if not evaluate.has_mask(s.forward, made)]
    if maskless and any(c.mask != "leave" for c in configs.values()):
        raise InputError(f"{maskless[0]}: has no mask, which a method asked for is after")
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all(cfg.data, "test", cfg.size, cfg.images)
        held = sets.load(cfg.data[0], "validation", made, cfg.validation)
        with_data = any(c.mode == "with_data" for c in configs.values())
        train = sets.load(cfg.data[0], "train", made) if with_data or cfg.classical else None
    folder = run.open_run(cfg.out, cfg)
    seen = {"test": tests, "validation": {cfg.data[0]: held}} | ({"train": {cfg.data[0]: train}} if train else {})
    study.check_inputs(folder, networks, seen, _settings(cfg, configs))
    for warning in study.save_networks(folder, loaded):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    targets = {name: transfer.says(one.forward, cfg.compute) for name, one in networks.items()}
    targets |= _classical(cfg, console, train, held)

    joined = [f"{TOGETHER}{join}" for join in cfg.together]
    every = transfer.baselines(list(tests))
    every += transfer.cells(list(tests), [s.name for s in sources], cfg.methods)
    every += transfer.cells(list(tests), joined, [name for name in cfg.methods if name in METHODS])
    missing = [cell for cell in every if not transfer.path(folder, cell).exists()]
    with stage(console, "cells", len(every), "cells") as tell:
        tell(len(every) - len(missing))
        shop = Workshop(folder, networks, sources, configs, cfg.eps / 255, cfg.noises, cfg.compute, train, held)
        for k, cell in enumerate(missing, start=len(every) - len(missing) + 1):
            scores = transfer.score(transfer.perturbed(shop, cell, tests[cell.data]), targets, cfg.stored)
            run.save_arrays(transfer.path(folder, cell), scores)
            tell(k, f"{cell.data} {cell.name}")
    with step(console, "intervals"):
        entries = list(transfer.entries(folder, tests, every, list(targets), cfg.stored))
    family = {one.name: str(one.meta.get("arch")) for one in loaded}
    family |= {name: [source.name for source in sources] for name in joined}
    transfer_table.show(console, folder, entries, family)


def _check(cfg: Config) -> None:
    """Refuses, before anything is computed, what could not be carried to its end."""
    run.check(cfg.out, cfg)
    transfer.check_methods(cfg.methods)
    if not cfg.sources:
        raise InputError("sources: name at least one detector")
    for name in ("images", "validation", "noises", "size", "made"):
        if getattr(cfg, name) is not None and getattr(cfg, name) < 1:
            raise InputError(f"{name}: must be at least 1, got {getattr(cfg, name)}")
    if cfg.together and len(cfg.sources) < 2:
        raise InputError("together: needs at least two sources")
    for name in ("stored", "classical", "together"):
        if len(set(getattr(cfg, name))) < len(getattr(cfg, name)):
            raise InputError(f"{name}: none may be named twice, got {', '.join(getattr(cfg, name))}")
    taken = set(cfg.classical) & {Path(spec.rpartition(":")[2]).stem for spec in (*cfg.sources, *cfg.others)}
    if taken:
        raise InputError(f"detector {taken.pop()}: has the name of a classical target; rename its file or its folder")
    for name in (name for name in cfg.methods if name in METHODS):
        for join in ("average", *cfg.together):
            check(replace(_config(cfg, name), join=join))
    if not 0 <= cfg.eps <= 255:
        raise InputError(f"eps: must be from 0 to 255, got {cfg.eps}")


def _config(cfg: Config, method: str) -> UapConfig:
    return replace(named(method), eps=(cfg.eps,), seeds=cfg.seeds)


def _settings(cfg: Config, configs: dict[str, UapConfig]) -> dict[str, str]:
    """What else cells stand on, and config.json does not hold."""
    found = {f"settings of {name}": repr(c) for name, c in configs.items()}
    found |= {f"settings of {n}": repr(attempts.chosen_options(n, {})) for n in cfg.methods if n in ATTACKS}
    if cfg.classical:
        grids = {name: classical.KINDS[name][1] for name in cfg.classical}
        found["classical targets"] = f"{grids} scikit-learn {version('scikit-learn')}"
    return found


def _classical(cfg: Config, console: Console, train: ImageSet | None, held: ImageSet) -> dict[str, Says]:
    """Fitted at --size; train, held: as patterns are made with."""
    found: dict[str, Says] = {}
    if cfg.classical and cfg.made not in (None, cfg.size):
        train = sets.load(cfg.data[0], "train", cfg.size)
        held = sets.load(cfg.data[0], "validation", cfg.size, cfg.validation)
    for name in cfg.classical:
        assert train is not None
        with step(console, f"fitting {name}"):
            found[name] = partial(classical.margins, classical.fit(name, train, held, 0))
    return found


if __name__ == "__main__":
    run.main(Config, main)
