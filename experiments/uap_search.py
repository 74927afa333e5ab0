"""Which neurons to drive: over-firing patterns for every layer x statistic x aggregation, the best chosen on validation
images and reported on test images beside GD-UAP's choice and sign noise.

    python -m experiments.uap_search --source meso4-a0

The formula of Huang et al. (ICIP 2020) is not public; this is our search over what it may be (PAPERS.md 1.3). Cost: 6
minutes on 2 CPU cores for Meso-4 (estimated). Result: runs/uap_search/results.json
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import crossed, detectors, evaluate, huang_tables, metrics, run, study, transfer
from ffjax.data import sets
from ffjax.data.codecs import Stored
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import Condition, margins
from ffjax.objectives import AGGREGATIONS, STATISTICS
from ffjax.progress import stage, step
from ffjax.run import Run
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import UapConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """On what, how far."""

    source: str = "meso4-a0"
    """The detector: a shipped name, or ARCHITECTURE:WEIGHTS-FILE."""
    mode: Literal["no_data", "range_prior"] = "no_data"
    """What the patterns ride on."""
    data: str = "a"
    """Its validation images choose, its test images report."""
    eps: float = 10.0
    """Bound in 1/255."""
    steps: int = 300
    """Most steps of each."""
    images: int = 100
    """Test images per class, at most."""
    validation: int = 100
    """Validation images per class, at most."""
    noises: int = 5
    """Draws of sign noise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Starts of each pattern; their mean chooses."""
    stored: tuple[Stored, ...] = ("png",)
    """How images are also stored, besides in float, where the chosen are reported."""
    size: int = 128
    """Image side in pixels."""
    out: Path = Path("runs/uap_search")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Makes every pattern, chooses, reports."""
    console = Console()
    console.print(f"ffjax: which neurons of {cfg.source} to drive -> {cfg.out}", highlight=False)
    run.check(cfg.out, cfg)
    for name in ("steps", "images", "validation", "noises", "size"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}: must be at least 1, got {getattr(cfg, name)}")
    one = detectors.load(cfg.source)
    networks = study.networks([one], cfg.size)
    source = networks[one.name]
    with step(console, "loading images (the embedded sets are generated at first use)"):
        held, test = (
            sets.load(cfg.data, split, cfg.size, most)
            for split, most in (("validation", cfg.validation), ("test", cfg.images))
        )
    folder = run.open_run(cfg.out, cfg)
    tried = list(_tried(cfg, source))
    settings = {f"objective {k}": repr(config) for k, config in enumerate(tried)}
    study.check_inputs(folder, networks, {"test": {cfg.data: test}, "validation": {cfg.data: held}}, settings)
    made: dict[str, np.ndarray] = {}
    with stage(console, "objectives", len(tried), "objectives") as tell:
        for config in tried:
            made |= _made(cfg, folder, config, source)
            tell()
    with step(console, "choosing"):
        scores = {name: float(_changed(source, held, seeds, cfg.compute).mean()) for name, seeds in made.items()}
    best = max(scores, key=lambda name: scores[name])
    _report(cfg, console, folder, source, test, {"chosen": best, "GD-UAP's": "l2-sum_log-all"}, made, scores)


def _tried(cfg: Config, source: Source) -> Iterator[UapConfig]:
    """Every statistic on all layers and on each; other aggregations where there is something to aggregate."""
    for statistic in STATISTICS:
        for aggregation in AGGREGATIONS:
            layers = ("all", *source.layers) if aggregation == "sum_log" else ("all",)
            yield UapConfig(
                mode=cfg.mode, statistic=statistic, aggregation=aggregation, layers=layers,  # pyright: ignore
                eps=(cfg.eps,), steps=cfg.steps, seeds=cfg.seeds,
            )  # fmt: skip


def _made(cfg: Config, folder: Run, config: UapConfig, source: Source) -> dict[str, np.ndarray]:
    """STATISTIC-AGGREGATION-LAYERS -> patterns (S, H, W, 3), one a seed, for each layer choice."""
    place = folder / f"patterns/{config.statistic}-{config.aggregation}/patterns.npy"
    if not place.exists():
        deltas, _ = transfer.patterns(place.parent / "snapshots", config, [source], cfg.size, cfg.compute, None, None)
        run.save_array(place, deltas)
    names = [f"{config.statistic}-{config.aggregation}-{layer}" for layer in config.layers]
    made = np.load(place)
    return dict(zip(names, made.reshape(len(names), len(config.seeds), *made.shape[1:]), strict=True))


def _changed(
    source: Source, data: ImageSet, deltas: np.ndarray, compute: Compute, storage: str = "float"
) -> np.ndarray:
    """(P, N) whose verdict changes under each of P patterns, stored so."""
    before = margins(source.forward, data.images, compute) > 0
    seen = (evaluate.shown(data.images, Condition("", "uap", "", delta, storage)) for delta in deltas)
    after = [margins(source.forward, images, compute) > 0 for images in seen]
    return (np.stack(after) != before).astype(float)


def _report(
    cfg: Config,
    console: Console,
    folder: Run,
    source: Source,
    test: ImageSet,
    named: dict[str, str],
    made: dict[str, np.ndarray],
    scores: dict[str, float],
) -> None:
    draws = np.stack([transfer.noise((cfg.size, cfg.size, 3), k, cfg.eps / 255) for k in range(cfg.noises)])
    table = Table("", "objective", "validation: verdicts changed (%)", "stored", "test", "over noise (points)")
    told: dict[str, dict] = {"noise": {}}
    told |= {role: {"name": name, "validation": scores[name]} for role, name in named.items()}
    for storage in ("float", *cfg.stored):
        noise = _changed(source, test, draws, cfg.compute, storage)
        told["noise"][storage] = {"test": crossed.mean(noise, test.groups)}
        table.add_row("sign noise", "", "", storage, metrics.percent(told["noise"][storage]["test"]), "")
        for role, name in named.items():
            changed = _changed(source, test, made[name], cfg.compute, storage)
            share, over = crossed.mean(changed, test.groups), crossed.difference(changed, noise, test.groups)
            told[role][storage] = {"test": share, "over_noise": over}
            cells = (f"{100 * scores[name]:.0f}", storage, metrics.percent(share), huang_tables.points(over))
            table.add_row(role, name, *cells)
    console.print(table)
    ranked = sorted(scores, key=lambda name: -scores[name])
    console.print(
        "validation, best first: " + ", ".join(f"{n} {100 * scores[n]:.0f}" for n in ranked[:8]), highlight=False
    )
    run.write_json(
        folder / "results.json", {"scores": scores, "told": metrics.plain(told), "environment": study.environment()}
    )


if __name__ == "__main__":
    run.main(Config, main)
