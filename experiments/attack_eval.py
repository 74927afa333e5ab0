"""One detector, one attack, one bound, one data set: how many verdicts break, at what distance, and what survives
storage; every figure beside clean images and noise of the same size.

    python -m experiments.attack_eval --detector meso4-a0 --attack pgd --eps 2

`--attack auto` runs the parameter-free ensemble, each member on what still stands, and prints the signs of robustness
that is none. Killed and started again it goes on after the last batch in OUT/ledger.jsonl, and inside a batch after the
last compute.snapshot steps of its attack (OUT/underway, removed when the batch is in the ledger). Cost: seconds to
minutes on 2 CPU cores. Result: OUT/results.json, OUT/ledger.jsonl (one line an image; seconds are those of the last
start)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from ffjax import campaign, detectors, individual, run, study
from ffjax.campaign import Plan
from ffjax.data import sets
from ffjax.detectors.loading import parse_options
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.progress import stage, step


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to break, with what, on which images."""

    detector: str = "meso4-a0"
    """A shipped name, or ARCHITECTURE[option=value]:WEIGHTS-FILE."""
    attack: str = "pgd"
    """One of ffjax.attacks.ATTACKS, or auto."""
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps: float = 2.0
    """Bound: in 1/255 for linf, in [0,1] image units for l2 and l1, in components for l0. A minimal-norm attack that
    ends farther away has failed."""
    options: tuple[str, ...] = ()
    """The attack's own options: key=value, such as steps=100."""
    loss: Literal["published", "margin", "ce"] = "published"
    """What a gradient attack climbs (published: what its paper does)."""
    restarts: int = 1
    """Starts of a fixed-bound attack, each on what still stands."""
    smallest: int = 0
    """Halvings in search of each image's smallest bound, with a fixed-bound attack; 0 for none."""
    grid: bool = False
    """Results on the 8-bit grid, inside the bound and adversarial as stored."""
    threshold: Literal["half", "calibrated"] = "half"
    """Where the detector says fake: at probability 0.5, or where balanced accuracy on validation images is best."""
    data: str = "a"
    images: int = 100
    """Test images per class, at most."""
    jpeg: tuple[int, ...] = (95, 90, 75, 50)
    """Qualities at which results are called again."""
    effort: int = 8
    """Standing images on which a gradient attack inside a bound is tried again, with twice the steps and without the
    bound, for signs that it failed; 0 for none."""
    save: bool = False
    """Whether attacked images are written, as 8-bit PNG."""
    seed: int = 0
    out: Path = Path("runs/attack_eval")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, attacks what the ledger lacks, sums up."""
    console = Console()
    console.print(f"ffjax: {cfg.attack} on {cfg.detector} -> {cfg.out}", highlight=False)
    run.check(cfg.out, cfg)
    _check(cfg)
    plan = Plan(cfg.attack, cfg.norm, parse_options(cfg.options), cfg.loss, 0.0, cfg.restarts, cfg.smallest, cfg.grid)
    campaign.check(plan)
    loaded = detectors.load(cfg.detector)
    size = loaded.detector.shape[0]
    network = study.networks([loaded], size)[loaded.name]
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all((cfg.data,), "test", size, cfg.images)
        held = sets.load(cfg.data, "validation", size) if cfg.threshold == "calibrated" else None
    (data,) = tests.values()
    threshold = 0.0 if held is None else campaign.calibrated(network.forward, held, cfg.compute)
    plan = plan._replace(threshold=threshold)
    eps = cfg.eps / 255 if cfg.norm == "linf" else cfg.eps
    folder = run.open_run(cfg.out, cfg)
    seen = {"test": tests} | ({} if held is None else {"validation": {cfg.data: held}})
    study.check_inputs(folder, {loaded.name: network}, seen, campaign.settings(plan))
    for warning in study.save_networks(folder, [loaded]):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    with stage(console, cfg.attack, len(data.labels), "images") as tell:
        job = campaign.job(plan, network.forward, cfg.compute, folder.folder, tell)
        rows = individual.attack(
            folder / "ledger.jsonl",
            data,
            network.forward,
            job.attack,
            job.noise,
            eps,
            minimal=campaign.minimal(plan),
            threshold=threshold,
            qualities=cfg.jpeg,
            seed=cfg.seed,
            compute=cfg.compute,
            note=job.note,
            keep=campaign.saver(folder.folder / "images") if cfg.save else lambda ids, result: None,
            tell=job.tell,
        )
    found = individual.summary(rows, threshold)
    with step(console, "looking for signs of robustness that is none"):
        flags = campaign.flags(plan, network.forward, data, rows, cfg.compute)
        flags |= campaign.effort(plan, network.forward, data, rows, cfg.compute, eps, cfg.seed, cfg.effort)
    run.write_json(folder / "results.json", found | {"threshold": threshold, "flags": flags})
    campaign.show(console, found, flags)


def _check(cfg: Config) -> None:
    if cfg.eps < 0:
        raise InputError(f"eps: must not be negative, got {cfg.eps:g}")
    if cfg.effort < 0:
        raise InputError(f"effort: must not be negative, got {cfg.effort}")
    individual.check_qualities(cfg.jpeg)
    individual.check_seed(cfg.seed)


if __name__ == "__main__":
    run.main(Config, main)
