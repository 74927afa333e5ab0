"""One universal perturbation, made by driving a detector's neurons to over-fire and without a training image: does it
break the detector, how far does it carry, and does it beat noise of its size?

    python -m experiments.uap_overfire

Claim examined: Huang et al., ICIP 2020 (no published figures to compare with: reference in README).
Cost: under 3 minutes on 2 CPU cores, data generation included. Result: runs/uap_overfire/report.html
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from ffjax import checkpoint, detectors, evaluate, pattern_card, report, run, study, uap, viewing
from ffjax.data import sets
from ffjax.data.codecs import Stored
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.progress import stage, step
from ffjax.universal import UapConfig
from ffjax.universal.patterns import lay_out


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to break, with what, on which images."""

    source: tuple[str, ...] = ("meso4-a0",)
    """Detectors the perturbation is made on: shipped names, or ARCHITECTURE:WEIGHTS-FILE."""
    unseen: tuple[str, ...] = ("meso4-a1", "mesoinception4-a0", "mesoinception4-a1", "resnet10-a0", "resnet10-a1")
    """Detectors it never saw."""
    data: tuple[str, ...] = ("a", "b")
    """Test sets: a, b, or a folder with real/ and fake/, or a CSV. The first also serves with_data mode."""
    images: int = 80
    """Test images per class and set, at most."""
    validation: int = 40
    """Validation images per class and set, at most: they choose the fixed patterns and refit thresholds."""
    noises: int = 5
    """Draws of sign noise."""
    stored: tuple[Stored, ...] = ("png", "jpeg90", "jpeg75")
    """How images are also stored before a detector meets them, besides in float."""
    viewing: int = 20
    """Pairs of images exported under blind names."""
    uap: UapConfig = field(default_factory=UapConfig)
    out: Path = Path("runs/uap_overfire")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Loads, optimises, scores, reports; every stage resumes."""
    console, began = Console(), time.monotonic()
    console.print(f"ffjax: over-firing {', '.join(cfg.source)} -> {cfg.out}", highlight=False)
    _check(cfg)
    loaded = [detectors.load(spec) for spec in (*cfg.source, *cfg.unseen)]
    shape = loaded[0].detector.shape
    size = shape[0]
    networks = study.networks(loaded, size)
    sources = [networks[one.name] for one in loaded[: len(cfg.source)]]
    maskless = [source.name for source in sources if not evaluate.has_mask(source.forward, size)]
    if cfg.uap.mask != "leave" and maskless:
        raise InputError(f"uap.mask: {maskless[0]} has no mask")
    patterns = lay_out(cfg.uap, [(source.name, source.layers) for source in sources])
    with step(console, "loading images (the embedded sets are generated at first use)"):
        tests = sets.load_all(cfg.data, "test", size, cfg.images)
        helds = sets.load_all(cfg.data, "validation", size, cfg.validation)
        train = sets.load(cfg.data[0], "train", size) if cfg.uap.mode == "with_data" else None
    held = helds[sets.short_name(cfg.data[0])]

    folder = run.open_run(cfg.out, cfg)
    study.check_inputs(folder, networks, {"test": tests, "validation": helds})
    for warning in study.save_networks(folder, loaded):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    shots = checkpoint.snapshots(folder / "checkpoints")
    with stage(console, f"{len(patterns.names)} patterns", cfg.uap.steps) as tell:
        watch = study.logger(folder, tell)
        state = uap.make(cfg.uap, patterns, sources, shape, cfg.compute, shots, watch, train, held)
    shots.close()
    deltas, best = np.asarray(state.best), np.asarray(state.best_score)
    study.save_patterns(folder, patterns, deltas, best)
    seen = pattern_card.seen(cfg.uap, sets.short_name(cfg.data[0]), train, held)
    cards = pattern_card.cards_of(
        cfg.uap, patterns, deltas, best, [pattern_card.maker(one) for one in loaded[: len(sources)]], seen
    )
    pattern_card.write_all(folder / "patterns", cards)
    pattern_card.write(folder / "perturbation.npy", *next(iter(cards.values())))

    with stage(console, "fixed patterns", study.fixed_count(patterns, shape), "patterns") as tell:
        fixed = study.fixed_conditions(folder, cfg.uap, patterns, sources, held, cfg.compute, tell)
    rows = uap.conditions(cfg.uap, patterns, deltas, best, cfg.noises, cfg.stored) + fixed
    refit = study.refitted(rows, patterns, best)
    with stage(console, "scores", (len(rows) + len(refit)) * len(tests), "conditions") as tell:
        study.score(folder, rows, networks, tests, "test", cfg.compute, tell)
        study.score(folder, refit, networks, helds, "validation", cfg.compute, tell)
    with step(console, "intervals, figures, report"):
        study.results(folder, rows, refit, sources, tests, helds, cfg.compute, began)
        first, delta = next(iter(tests.values())), deltas[uap.chosen(patterns, best)[0]]
        viewing.export(folder, first, delta, cfg.viewing)
        study.save_examples(folder, first, delta)
        report.write(folder.folder)
    report.closing_table(folder.folder, console)


def _check(cfg: Config) -> None:
    """Refuses, before anything is computed, what could not be carried to its end."""
    run.check(cfg.out, cfg)
    if not cfg.source:
        raise InputError("source: name at least one detector")
    for name in ("images", "validation", "noises"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}: must be at least 1, got {getattr(cfg, name)}")
    if cfg.uap.shape == "filter":
        raise InputError("uap.shape filter: this report draws what is added to an image; see experiments.huang_uap")
    if cfg.viewing < 0 or len(set(cfg.stored)) < len(cfg.stored):
        raise InputError(f"viewing must not be negative nor a storage named twice: {cfg.viewing}, {cfg.stored}")


if __name__ == "__main__":
    run.main(Config, main)
