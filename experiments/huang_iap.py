"""The first paper's individual perturbations (Huang et al., ICIP 2020): verdict, mask and both of a detector with two
heads, fabricated image by image; beside clean images and noise of the same size.

    python -m experiments.huang_iap --detector classnseg:runs/classnseg/weights.safetensors

Such weights come from `python -m experiments.train_detector --arch classnseg` (README has the settings). The paper's
losses, bounds and tables are not public: settings are those of PAPERS.md 1.3, ours. Tables: the verdict by bound and
steps; the mask towards six targets; verdict and mask together, with the Pareto front of their weight; ClassNSeg's gate
in its three ways; what survives a file; heads that disagree; the verdict set by set. Killed and started again it goes
on from OUT/cells/*.jsonl. Cost: some 40 minutes on 2 CPU cores, reckoned from the count of gradients, not timed.
Result: OUT/results.json, OUT/figures/front.png

`--published FOLDER` takes the authors' own weights on their own two images instead: an example, no rates.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from ffjax import detectors, fabrication, fabrication_plan, figures, individual, published_example, run, study
from ffjax import fabrication_tables as tables
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.fabrication_plan import IapConfig
from ffjax.progress import stage, step

COMPETENT = 0.6
"""Mean clean mask IoU on the fakes below which nothing is claimed; nor is it below findings.TRUSTED of the verdict."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to break, and how thoroughly."""

    detector: str = ""
    """ARCHITECTURE[option=value]:WEIGHTS-FILE of a detector with a mask, such as classnseg:weights.safetensors."""
    published: Path | None = None
    """The authors' folder (checkpoints/full, inputs256) for the worked example, instead of a detector. It uses seed,
    compute, out and, of iap, attack, losses, eps, the fewest of steps, step, targets (not another), real_targets,
    mask_eps and mask_steps; all else (data, images, jpeg, weights, joint...) does nothing there."""
    data: tuple[str, ...] = ("a", "b")
    """Test images come from the first set, then from the next, until there are so many; the first is tuned on."""
    images: int = 240
    """Test images a class: of 240 fakes a good detector calls the 200 rightly that the shares are to rest on."""
    iap: IapConfig = field(default_factory=IapConfig)
    jpeg: tuple[int, ...] = (90, 75)
    seed: int = 0
    out: Path = Path("runs/huang_iap")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, tunes on validation, attacks what the ledgers lack, prints the tables."""
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    run.check(cfg.out, cfg)
    _check(cfg)
    if cfg.published is not None:
        cells = fabrication_plan.plan(replace(cfg.iap, steps=(min(cfg.iap.steps),)), 1, gates=False)
        out = run.open_run(cfg.out, cfg)
        published_example.show(console, cfg.published, cells, out, cfg.iap.attack, cfg.seed, cfg.compute)
        return
    console.print(f"ffjax: individual perturbations of {cfg.detector} -> {cfg.out}", highlight=False)
    loaded = detectors.load(cfg.detector)
    size = loaded.detector.shape[0]
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all(cfg.data, "test", size)
        held = sets.load(cfg.data[0], "validation", size)
    data = fabrication.pooled(tests, cfg.images)
    gates = fabrication.has_gate(loaded)
    cells = fabrication_plan.plan(cfg.iap, cfg.images, gates)
    fabrication.check_targets(cells, data, cfg.seed)
    with step(console, "the detector on clean images"):
        victim = fabrication.victim(loaded, held, cfg.iap.sure, cfg.compute)
        clean = fabrication.clean(tests | {"attacked": data}, victim, cfg.compute)
    lacking = tables.show_clean(console, clean, victim, COMPETENT)
    folder = run.open_run(cfg.out, cfg)
    seen = {"test": {"attacked": data}, "validation": {"held": held}}
    study.check_inputs(folder, study.networks([loaded], size), seen, fabrication.settings(cfg.iap.attack))
    for warning in study.save_networks(folder, [loaded]):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    if not gates:
        console.print(f"no table of gates: {loaded.name} has none (option gate)", highlight=False)
    with stage(console, "attacks", fabrication.images(cells, data), "images") as tell:
        rows = fabrication.attack(
            cells, folder.folder / "cells", data, victim, cfg.iap.attack, cfg.jpeg, cfg.seed, cfg.compute, tell
        )
    with step(console, "intervals"):
        found = fabrication.results(rows, victim)
        apart = fabrication.by_set(cells, rows, tuple(tests), victim)
    lines = tables.show(console, cells, found, apart, lacking)
    figures.save(figures.styled(tables.front_figure, cells, found, not lacking), folder / "figures/front.png")
    more = {"clean": clean, "competent": not lacking, "lacking": lacking, "lines": lines, "limits": tables.LIMITS}
    more |= {"sets": apart, "environment": study.environment()}
    run.write_json(folder / "results.json", fabrication.as_json(cells, found, victim, **more))


def _check(cfg: Config) -> None:
    fabrication_plan.check(cfg.iap)
    if bool(cfg.detector) == (cfg.published is not None):
        raise InputError("give either --detector ARCHITECTURE:WEIGHTS-FILE or --published FOLDER, for the example")
    individual.check_qualities(cfg.jpeg)
    individual.check_seed(cfg.seed)
    if cfg.images < 1:
        raise InputError(f"images: must be at least 1, got {cfg.images}")


if __name__ == "__main__":
    run.main(Config, main)
