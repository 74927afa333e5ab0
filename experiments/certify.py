"""One detector under randomised smoothing (Cohen et al., ICML 2019; masks: Fischer et al., ICML 2021): how many
verdicts no l_2 perturbation of a radius can change, proved from votes under Gaussian noise, beside the undefended
detector.

    python -m experiments.certify --detector meso4-a0 --sigma 0.05 0.1

Fakes and reals stand apart, and abstaining counts as wrong. A certificate is of the smoothed detector: what it calls
rightly says how much of the forensic trace the noise has left. Killed and started again it goes on after the last
images in OUT/ledger.jsonl, with the same results to the bit. Cost: first + samples forward passes an image and sigma;
by default some 15 minutes of Meso-4 at 128 px on 2 CPU cores. Result: OUT/results.json, OUT/ledger.jsonl (one line an
image and sigma), OUT/figures/certified.png
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ffjax import certified, certified_figure, detectors, figures, metrics, run, study
from ffjax.certified import Draws
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.progress import stage, step


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to certify, under which noise, on which images."""

    detector: str = "meso4-a0"
    """A shipped name, or ARCHITECTURE[option=value]:WEIGHTS-FILE."""
    data: str = "a"
    images: int = 50
    """Test images per class, at most."""
    sigma: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Standard deviations of the noise, in [0,1] image units. What a forgery leaves behind is itself small noise, so
    they are smaller than is usual for photographs of things."""
    first: int = 100
    """Noisy copies by which a class is guessed."""
    samples: int = 1000
    """Fresh noisy copies by which its probability is bounded."""
    alpha: float = 0.001
    """Probability that a certificate is wrong: of each verdict, and of each image's pixels together."""
    tau: float = 0.75
    """What the probability of a mask pixel's class must exceed; it sets the radius of all pixels."""
    radii: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    """l_2, in [0,1] image units, at which certified accuracy is told."""
    seed: int = 0
    out: Path = Path("runs/certify")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, counts what the ledger lacks, sums up, draws."""
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    console.print(f"ffjax: certifying {cfg.detector} -> {cfg.out}", highlight=False)
    run.check(cfg.out, cfg)
    draws = Draws(cfg.first, cfg.samples, cfg.alpha, cfg.tau, cfg.seed)
    certified.check(cfg.sigma, draws, cfg.radii)
    loaded = detectors.load(cfg.detector)
    size = loaded.detector.shape[0]
    network = study.networks([loaded], size)[loaded.name]
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all((cfg.data,), "test", size, cfg.images)
    (data,) = tests.values()
    folder = run.open_run(cfg.out, cfg)
    study.check_inputs(folder, {loaded.name: network}, {"test": tests})
    for warning in study.save_networks(folder, [loaded]):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    with stage(console, "smoothing", len(data.labels) * len(cfg.sigma), "images x sigmas") as tell:
        path = folder / "ledger.jsonl"
        rows = certified.certify(path, data, network.forward, cfg.sigma, draws, cfg.compute, tell)
    found = certified.summary(rows, cfg.sigma, draws, cfg.radii)
    about = {"detector": loaded.name, "data": cfg.data, "shape": data.images.shape[1:]}
    told = metrics.plain(about | found | {"environment": study.environment()})
    run.write_json(folder / "results.json", told)
    results = json.loads((folder / "results.json").read_text())
    figures.save(figures.styled(certified_figure.certified, results, loaded.name), folder / "figures/certified.png")
    certified.show(console, found)


if __name__ == "__main__":
    run.main(Config, main)
