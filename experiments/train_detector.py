"""Trains one detector on one data set, and reports its scores on that set's test split and on others.

    python -m experiments.train_detector --arch meso4 --train.seed 0 --out runs/meso4-a0

The shipped detectors were made by this driver (`python -m experiments.train_detector --help` for the settings;
ffjax/detectors/shipped/README.md lists each command and its figures). Cost: some minutes on 2 CPU cores.
Killed and started again it goes on from the last epoch. Result: OUT/weights.safetensors, OUT/results.json
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from ffjax import checkpoint, detectors, run, train
from ffjax.data import patches, sets
from ffjax.data.jpeg_history import history_scores
from ffjax.detectors import weights
from ffjax.detectors.loading import parse_options
from ffjax.engine import Compute
from ffjax.evaluate import margins, mask_overlap
from ffjax.metrics import Estimate, Scores, average, summary
from ffjax.progress import stage, step
from ffjax.train import TrainConfig
from ffjax.types import Detector, ImageSet, Variables

SHOWN = ("clean_accuracy", "clean_balanced_accuracy", "clean_auc", "clean_eer")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which network, on what."""

    arch: str = "meso4"
    """One of ffjax.detectors.DETECTORS."""
    data: str = "a"
    """Training set: a, b, or a CSV with a split column."""
    others: tuple[str, ...] = ("b",)
    """Sets it is only tested on."""
    size: int = 128
    """Image side in pixels."""
    options: tuple[str, ...] = ()
    """The architecture's own options: key=value, such as width=16 norm=group."""
    dropout: float | None = None
    """Share dropped before the dense layers in training; the architecture's own by default."""
    images: int | None = None
    """Training images per class, at most; all by default."""
    train: TrainConfig = field(default_factory=TrainConfig)
    out: Path = Path("runs/train_detector")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Trains, selects the epoch on validation AUC, and reports the test splits once, at the end."""
    console = Console()
    console.print(f"ffjax: training {cfg.arch} on {cfg.data} -> {cfg.out}", highlight=False)
    options = detectors.all_options(cfg.arch, parse_options(cfg.options))
    detector = detectors.build(cfg.arch, cfg.size, cfg.dropout, **options)
    run.check(cfg.out, cfg)
    with step(console, "loading images (the embedded sets are generated at first use)"):
        images = sets.load(cfg.data, "train", cfg.size, cfg.images)
        validation = sets.load(cfg.data, "validation", cfg.size)
    folder = run.open_run(cfg.out, cfg)

    def scores(variables: Variables, data: ImageSet) -> dict[str, Estimate]:
        said = margins(jax.tree_util.Partial(detector.apply, variables), data.images, cfg.compute)
        return summary(Scores(data.labels, data.groups, said, said))

    shots, write = checkpoint.snapshots(folder / "checkpoints"), run.logbook(folder)
    steps = cfg.train.epochs * -(-len(images.labels) // cfg.train.batch)
    with stage(console, cfg.out.name, steps) as tell:

        def watch(done: int, infos: train.TrainInfo, score: float | None) -> None:
            row = {"step": done, "loss": float(np.mean(infos.loss)), "accuracy": float(np.mean(infos.accuracy))}
            write([row | ({} if score is None else {"validation_auc": score})])
            tell(done, f"loss {row['loss']:.3f}" + ("" if score is None else f", validation AUC {score:.3f}"))

        best, score = train.fit(
            detector, images, cfg.train, cfg.compute, lambda v: scores(v, validation)["clean_auc"].value, shots, watch
        )
    shots.close()
    results = {}
    for name in (cfg.data, *cfg.others):
        held_out = sets.load(name, "test", cfg.size)
        found = {m: e for m, e in scores(best, held_out).items() if m in SHOWN} | _mask(detector, best, held_out, cfg)
        results[sets.short_name(name)] = {m: e._asdict() for m, e in found.items()}
    meta = {
        "arch": cfg.arch,
        "size": cfg.size,
        "options": options,
        "seed": cfg.train.seed,
        "trained_on": cfg.data,
        "test": results,
    }
    command = "python -m experiments.train_detector " + shlex.join(sys.argv[1:])
    weights.save(folder / "weights.safetensors", best, meta | {"validation_auc": score, "command": command})
    run.write_json(folder / "results.json", meta | {"validation_auc": score})
    for name, by_metric in (results | _history(cfg, images)).items():
        told = ", ".join(
            f"{m.removeprefix('clean_')} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
            for m, e in by_metric.items()
        )
        console.print(f"{name} test (n = {by_metric['clean_accuracy']['n']}): {told}", highlight=False)


def _mask(detector: Detector, variables: Variables, data: ImageSet, cfg: Config) -> dict[str, Estimate]:
    """Mean intersection over union of the mask on the fakes, where network and data have masks."""
    fakes = data.labels == 1
    if data.masks is None or not detectors.has_mask(detector):
        return {}
    forward = jax.tree_util.Partial(detector.apply, variables)
    overlap = mask_overlap(forward, data.images[fakes], data.masks[fakes], cfg.compute)
    return {"clean_mask_iou": average(overlap, data.groups[fakes])}


def _history(cfg: Config, images: ImageSet) -> dict[str, dict[str, dict[str, float]]]:
    """What the JPEG history of patches alone gives away, scored as a detector is; nothing for other data."""
    if not cfg.data.startswith(patches.PREFIX):
        return {}
    found = summary(history_scores(images, sets.load(cfg.data, "test", cfg.size)))
    return {"JPEG history alone,": {name: found[name]._asdict() for name in SHOWN}}


if __name__ == "__main__":
    run.main(Config, main)
