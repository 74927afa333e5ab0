"""The first paper's claims about universal perturbations, laid out as tables on what we have: without data and with, on
unseen data, on unseen detectors, verdict and mask, and how visible they are; a line under each says held or not held.

    python -m experiments.huang_uap
    python -m experiments.huang_uap --sources vgg16:runs/zoo-vgg16/weights.safetensors --unseen --data a

Claims examined: Huang et al., ICIP 2020 (their tables are not public: nothing to compare with). The second command is
the check against GD-UAP's known order of rungs. Cost: 29 minutes of one CPU core's time; killed and started
again it goes on. Result: runs/huang_uap/results.json, figures/
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ffjax import (
    anatomy_figures,
    detectors,
    evaluate,
    huang,
    huang_cells,
    huang_tables,
    needs,
    portrait,
    run,
    study,
    transfer,
)
from ffjax.data import sets
from ffjax.data.codecs import Stored
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.metrics import plain
from ffjax.progress import stage, step
from ffjax.run import Run
from ffjax.transfer import Cell, Workshop
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import METHODS, UapConfig, named
from ffjax.universal.config import check

NEEDED = "to_real"
"""The method of which it is asked what it needs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made on what, shown to what."""

    sources: tuple[str, ...] = ("meso4-a0", "mesoinception4-a0", "resnet10-a0")
    """Detectors the perturbations are made on; one with a mask is examined for that too."""
    unseen: tuple[str, ...] = ("meso4-a1", "mesoinception4-a1", "resnet10-a1")
    """Detectors they never saw, besides each other's sources."""
    methods: tuple[str, ...] = huang.LADDER + huang.LABELLED
    """Of ffjax.universal.METHODS."""
    data: tuple[str, ...] = ("a", "b")
    """Test sets; the first also trains and tunes what sees data."""
    eps: float = 10.0
    """Bound in 1/255."""
    images: int = 80
    """Test images per class and set, at most."""
    validation: int = 40
    """Validation images per class, at most."""
    noises: int = 5
    """Draws of sign noise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Starts of each pattern; all count."""
    stored: tuple[Stored, ...] = ("png", "jpeg75")
    """How images are also stored, besides in float."""
    needs: bool = True
    """Whether it is also asked, on the first source, how many images and steps a pattern needs (ten more patterns)."""
    size: int = 128
    """Image side in pixels."""
    out: Path = Path("runs/huang_uap")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, makes what is missing, scores, prints the claims."""
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    console.print(f"ffjax: Huang et al.'s claims on {', '.join(cfg.sources)} -> {cfg.out}", highlight=False)
    _check(cfg)
    loaded = [detectors.load(spec) for spec in (*cfg.sources, *cfg.unseen)]
    networks = study.networks(loaded, cfg.size)
    sources = [networks[one.name] for one in loaded[: len(cfg.sources)]]
    configs = {name: _config(cfg, name) for name in cfg.methods}
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all(cfg.data, "test", cfg.size, cfg.images)
        held = sets.load(cfg.data[0], "validation", cfg.size, cfg.validation)
        needed = any(config.mode == "with_data" for config in configs.values())
        train = sets.load(cfg.data[0], "train", cfg.size) if needed else None
    one_sided = [name for name, data in tests.items() if len(set(data.labels.tolist())) < 2]
    if one_sided:
        raise InputError(f"data {one_sided[0]}: needs reals and fakes in its test split")
    folder = run.open_run(cfg.out, cfg)
    given = {"test": tests, "validation": {cfg.data[0]: held}} | ({"train": {cfg.data[0]: train}} if train else {})
    settings = {f"settings of {name}": repr(c) for name, c in (configs | {NEEDED: _config(cfg, NEEDED)}).items()}
    study.check_inputs(folder, networks, given, settings)
    for warning in study.save_networks(folder, loaded):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)

    every = transfer.baselines(list(tests))
    every += [Cell(d, s.name, m) for s in sources for m in cfg.methods for d in tests if _fits(configs[m], s, cfg.size)]
    shop = Workshop(folder, networks, sources, configs, cfg.eps / 255, cfg.noises, cfg.compute, train, held)
    with stage(console, "cells", len(every), "cells") as tell:
        for k, cell in enumerate(every, start=1):
            if not transfer.path(folder, cell).exists():
                data = tests[cell.data]
                shown = transfer.perturbed(shop, cell, data)
                scores = huang_cells.scored(shown, networks, data, cfg.stored, cfg.compute)
                run.save_arrays(transfer.path(folder, cell), scores)
            tell(k, f"{cell.data} {cell.name}")
    with step(console, "intervals"):
        rows, ladder, masks = huang_cells.measured(folder, tests, every, networks, cfg.stored)
        quality = [huang_cells.quality(folder, configs[c.method], c, tests[c.data]) for c in every if c.source]
    told = huang_tables.show(console, rows, ladder, masks, quality, next(iter(tests)))
    found = {"rows": rows, "rungs": ladder, "masks": masks, "quality": quality, "told": told}
    run.write_json(folder / "results.json", plain(found) | {"environment": study.environment()})
    with step(console, "why it works: figures"):
        for source in sources:
            _anatomy(cfg, folder, source, next(iter(tests.values())))
    if train is not None and cfg.needs:
        with stage(console, f"what it needs, on {sources[0].name}", needs.runs(), "patterns") as tell:
            config = replace(_config(cfg, NEEDED), seeds=(0,))
            test = next(iter(tests.values()))
            curves = needs.curves(folder, config, sources[0], cfg.size, cfg.compute, train, held, test, tell)
        place = folder / f"figures/{sources[0].name}/needs.json"
        run.write_json(place, curves)
        anatomy_figures.save_all(place.parent, sources[0].name, {"needs": curves})
    console.print(f"figures: {folder.folder / 'figures'}", highlight=False)


def _check(cfg: Config) -> None:
    """Refuses, before anything is computed, what could not be carried to its end."""
    run.check(cfg.out, cfg)
    if not cfg.sources:
        raise InputError("sources: name at least one detector")
    unknown = [name for name in cfg.methods if name not in METHODS]
    if unknown or not cfg.methods or len(set(cfg.methods)) < len(cfg.methods):
        raise InputError(f"methods: at least one, none twice, of {', '.join(METHODS)}; got {', '.join(cfg.methods)}")
    for name in cfg.methods:
        check(_config(cfg, name))
    for name in ("images", "validation", "noises", "size"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}: must be at least 1, got {getattr(cfg, name)}")
    if not 0 < cfg.eps <= 255:
        raise InputError(f"eps: must be above 0 and at most 255, got {cfg.eps}")


def _config(cfg: Config, method: str) -> UapConfig:
    return replace(named(method), eps=(cfg.eps,), seeds=cfg.seeds)


def _fits(config: UapConfig, source: Source, size: int) -> bool:
    """Whether a source has what a method is after."""
    return config.mask == "leave" or evaluate.has_mask(source.forward, size)


def _anatomy(cfg: Config, folder: Run, source: Source, data: ImageSet) -> None:
    """Why it works, in figures: the first seed of every additive method beside noise."""
    patterns = {"noise": transfer.noise((cfg.size, cfg.size, 3), 0, cfg.eps / 255)}
    for method in cfg.methods:
        place = transfer.place(folder, Cell("", source.name, method))
        if place.exists() and METHODS[method].get("shape", "additive") != "filter":
            patterns[f"uap {method}"] = np.load(place)[0]
    portrait.draw((folder / f"figures/{source.name}/anatomy.json").parent, source, data, patterns, cfg.compute)


if __name__ == "__main__":
    run.main(Config, main)
