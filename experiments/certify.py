"""One detector under randomised smoothing (Cohen et al., ICML 2019; masks: Fischer et al., ICML 2021): how many
verdicts no l_2 perturbation of a radius can change, proved from votes under Gaussian noise, beside the undefended
detector.

    python -m experiments.certify --detector meso4-a0 --sigma 0.05 0.1

Noise shifts margins, so votes are counted at a threshold of their own for each sigma, of best balanced accuracy on
validation images under that noise; so are mask pixels, and the undefended detector has its own without noise. Where
none parts the validation images better than chance, 0 is used and that is told: of the trace that this detector goes by
nothing is left at this sigma. Fakes and reals stand apart, and abstaining counts as wrong. A certificate is of the
smoothed detector: what it calls rightly says how much of the forensic trace the noise has left. Killed and started
again it goes on with the thresholds in OUT/thresholds.json (by sigma; 0.0: undefended) after the last images in
OUT/ledger.jsonl, with the same results to the bit. Cost: first + samples forward passes a test image and sigma, copies
a validation image and sigma; by default some 15 minutes of Meso-4 at 128 px on 2 CPU cores. Result: OUT/results.json,
OUT/ledger.jsonl (one line an image and sigma), OUT/figures/certified.png
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ffjax import certified, certified_figure, certified_thresholds, detectors, figures, metrics, run, study
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
    calibrate: int = 50
    """Validation images per class, at most, on which the thresholds are calibrated."""
    copies: int = 15
    """Noisy copies of each by which they are calibrated; odd."""
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
    certified_thresholds.check(cfg.calibrate, cfg.copies)
    loaded = detectors.load(cfg.detector)
    size = loaded.detector.shape[0]
    network = study.networks([loaded], size)[loaded.name]
    with step(console, "loading images (the embedded sets are generated at first use)"):
        counts = {"test": cfg.images, "validation": cfg.calibrate}
        found = {split: sets.load_all((cfg.data,), split, size, count) for split, count in counts.items()}
    (data,), (held,) = (some.values() for some in found.values())
    folder = run.open_run(cfg.out, cfg)
    study.check_inputs(folder, {loaded.name: network}, found)
    for warning in study.save_networks(folder, [loaded]):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    with stage(console, "calibration", 1 + len(cfg.sigma), "thresholds") as tell:
        given = (folder / "thresholds.json", held, network.forward, cfg.sigma, cfg.copies, cfg.seed)
        levels = certified_thresholds.calibrate(*given, cfg.compute, tell)
    with stage(console, "smoothing", len(data.labels) * len(cfg.sigma), "images x sigmas") as tell:
        path = folder / "ledger.jsonl"
        rows = certified.certify(path, data, network.forward, levels, draws, cfg.compute, tell)
    summed = certified.summary(rows, levels, draws, cfg.radii)
    about = {"detector": loaded.name, "data": cfg.data, "shape": data.images.shape[1:]}
    told = metrics.plain(about | summed | {"environment": study.environment()})
    run.write_json(folder / "results.json", told)
    results = json.loads((folder / "results.json").read_text())
    figures.save(figures.styled(certified_figure.certified, results, loaded.name), folder / "figures/certified.png")
    certified.show(console, summed)


if __name__ == "__main__":
    run.main(Config, main)
