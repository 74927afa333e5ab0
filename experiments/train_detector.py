"""Trains one detector on one data set, and reports its scores on that set's test split and on others.

    python -m experiments.train_detector --arch meso4 --train.seed 0 --out runs/meso4-a0

The shipped detectors were made by this driver (`python -m experiments.train_detector --help` for the settings;
ffjax/detectors/shipped/README.md lists each command and its figures). Cost: some minutes on 2 CPU cores.
Killed and started again it goes on from the last epoch. Result: OUT/weights.safetensors, OUT/results.json
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ffjax import checkpoint, detectors, events, run, study, train
from ffjax.data import patches, sets
from ffjax.data.jpeg_history import history_scorer
from ffjax.detectors import weights
from ffjax.detectors.loading import parse_options
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import clean_scores
from ffjax.metrics import Estimate, plain, summary
from ffjax.progress import stage, step
from ffjax.train import TrainConfig
from ffjax.types import Detector, Forward, ImageSet, LossFn, Variables

Defend = Callable[[Detector], Callable[[LossFn], LossFn]]
Prepare = Callable[[ImageSet], ImageSet]


class Judge(NamedTuple):
    """By what the epoch is chosen. name: in logs. score(forward, validation images) -> larger = better."""

    name: str
    score: Callable[[Forward, ImageSet], float]


KEY = jax.random.key(0)
"""Whatever the key, weights to start from are the same."""
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
    start: str | None = None
    """Weights to start from, ARCHITECTURE:WEIGHTS-FILE or a shipped name; random by default."""
    train: TrainConfig = field(default_factory=TrainConfig)
    tensorboard: bool = False
    """Whether curves are also written for TensorBoard, to OUT/tensorboard (extra `tensorboard`)."""
    out: Path = Path("runs/train_detector")
    compute: Compute = field(default_factory=Compute)


def main(
    cfg: Config,
    by: str = "experiments.train_detector",
    defend: Defend = lambda detector: lambda loss: loss,
    judge: Judge | None = None,
    prepare: Prepare | None = None,
) -> tuple[Forward, dict[str, ImageSet]]:
    """Trains, selects the epoch on validation images (by clean AUC, or `judge`), and reports the test splits once, at
    the end; the detector, and those splits. by: the driver whose command line asked for it, as the weights' header will
    say. defend: detector -> what is done to its loss. prepare: what is done to the training images, once."""
    console = Console()
    console.print(f"ffjax: training {cfg.arch} on {cfg.data} -> {cfg.out}", highlight=False)
    detector, options = built(cfg)
    _check(cfg)
    with step(console, "loading images (the embedded sets are generated at first use)"):
        images, validation, tests = _splits(cfg, detector)
    if prepare is None:  # else there may be more of them
        train.epoch_steps(cfg.train, len(images.labels))
    history = _history(cfg, images, tests)
    folder = run.open_run(cfg.out, cfg)
    if prepare is not None:
        with step(console, "preparing training images"):
            images = prepare(images)
    known = {"train": {cfg.data: images}, "validation": {cfg.data: validation}, "test": tests}
    study.check_inputs(folder, {}, known, begun(cfg))

    def forward(variables: Variables) -> Forward:
        return jax.tree_util.Partial(detector.apply, variables)

    def scores(variables: Variables, data: ImageSet) -> dict[str, Estimate]:
        return clean_scores(forward(variables), data, cfg.compute)

    chosen_by = judge or Judge("auc", lambda f, data: clean_scores(f, data, cfg.compute)["clean_auc"].value)

    shots, write = checkpoint.snapshots(folder / "checkpoints"), run.logbook(folder)
    steps = cfg.train.epochs * train.epoch_steps(cfg.train, len(images.labels))
    drawn = folder.folder / "tensorboard" if cfg.tensorboard else None
    with stage(console, cfg.out.name, steps) as tell, events.curves(drawn) as draw:

        def watch(done: int, infos: train.TrainInfo, score: float | None) -> None:
            row = {"step": done, "loss": float(np.mean(infos.loss)), "accuracy": float(np.mean(infos.accuracy))}
            row |= {} if score is None else {f"validation_{chosen_by.name}": score}
            write([row])
            draw(row)
            told = "" if score is None else f", validation {chosen_by.name} {score:.3f}"
            tell(done, f"loss {row['loss']:.3f}{told}")

        best, score = train.fit(
            detector, images, cfg.train, cfg.compute, lambda v: chosen_by.score(forward(v), validation), shots, watch,
            defend(detector),
        )  # fmt: skip
    shots.close()
    found = {name: scores(best, data) for name, data in tests.items()}
    asked = {"arch": cfg.arch, "size": cfg.size, "options": options, "seed": cfg.train.seed, "trained_on": cfg.data}
    meta = asked | {
        "test": {name: plain(e) for name, e in found.items()},
        "jpeg_history": {name: plain(e) for name, e in history.items()},
        f"validation_{chosen_by.name}": score,
    }
    command = f"python -m {by} " + shlex.join(sys.argv[1:])
    weights.save(folder / "weights.safetensors", best, meta | {"command": command})
    run.write_json(folder / "results.json", meta)
    _show(console, found, history)
    return forward(best), tests


def begun(cfg: Config) -> dict[str, str]:
    """A digest of the weights to start from, for study.check_inputs. InputError if the network cannot take them."""
    detector, _ = built(cfg)
    return {} if cfg.start is None else {"weights to start from": study.digest(jax.tree.leaves(detector.init(KEY)))}


def _splits(cfg: Config, detector: Detector) -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
    """Training, validation and test images, all of the size that the detector takes."""
    images = sets.load(cfg.data, "train", cfg.size, cfg.images)
    validation = sets.load(cfg.data, "validation", cfg.size)
    tests = sets.load_all((cfg.data, *cfg.others), "test", cfg.size)
    for name, data in {"training": images, "validation": validation, **tests}.items():
        if data.images.shape[1:] != detector.shape:
            raise InputError(f"{name} images are {data.images.shape[1:]}, and {cfg.arch} takes {detector.shape}")
    return images, validation, tests


def _show(console: Console, found: dict[str, dict[str, Estimate]], history: dict[str, dict[str, Estimate]]) -> None:
    for name, by_metric in found.items():
        console.print(_line(f"{name} test", by_metric), highlight=False, soft_wrap=True)
        if name in history:
            console.print(_line(f"{name} test, JPEG history alone", history[name]), highlight=False, soft_wrap=True)


def _check(cfg: Config) -> None:
    train.check(cfg.train)
    if cfg.tensorboard:
        events.check()
    run.check(cfg.out, cfg)


def built(cfg: Config) -> tuple[Detector, dict[str, Any]]:
    """The network, its init giving the weights to start from, and its options."""
    options = detectors.all_options(cfg.arch, parse_options(cfg.options))
    detector = detectors.build(cfg.arch, cfg.size, cfg.dropout, **options)
    if cfg.start is None:
        if options.get("trunk") == "frozen":
            raise InputError(
                f"{cfg.arch}: its frozen trunk would stay random; give --options trunk=trained, or --start"
            )
        return detector, options
    return detectors.starting_from(detector, cfg.start), options


def _history(cfg: Config, images: ImageSet, tests: dict[str, ImageSet]) -> dict[str, dict[str, Estimate]]:
    """What the JPEG history of patches alone gives away, scored as a detector is; nothing for other data."""
    specs = [spec for spec in (cfg.data, *cfg.others) if spec.startswith(patches.PREFIX)]
    if cfg.data not in specs:
        return {}
    said = history_scorer(images)
    found = {name: summary(said(tests[name])) for name in map(sets.short_name, specs)}
    return {name: {metric: by_metric[metric] for metric in SHOWN} for name, by_metric in found.items()}


def _line(name: str, by_metric: dict[str, Estimate]) -> str:
    told = (f"{m.removeprefix('clean_')} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for m, e in by_metric.items())
    return f"{name} (n = {by_metric['clean_accuracy'].n}): {', '.join(told)}"


if __name__ == "__main__":
    run.main(Config, main)
