"""What gradnorm_train and adversarial_train share: training by train_detector with a defended loss, the epoch chosen
under attack, and a report of what holds. No driver of its own."""

from dataclasses import dataclass

import numpy as np
from rich.console import Console

from experiments import train_detector
from experiments.train_detector import Defend, Judge, Prepare
from ffjax import detectors, hardness, run, study
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.metrics import plain
from ffjax.progress import step
from ffjax.types import Forward, ImageSet


@dataclass(frozen=True, kw_only=True)
class Config(train_detector.Config):
    """As train_detector's, and what holding is."""

    eps: float = 2.0
    """Bound in 1/255 of the PGD by which epochs are chosen and the test splits reported."""
    validation: int = 50
    """Validation images per class that are attacked, at most."""
    beside: str | None = None
    """A detector told beside it: a shipped name, or ARCHITECTURE:WEIGHTS-FILE; the one of --start by default."""


def train(cfg: Config, by: str, defend: Defend, prepare: Prepare | None = None) -> None:
    """Trains, chooses the epoch by `judge`, and writes OUT/robust.json: what holds of the test splits, beside what
    holds of the detector that cfg names."""
    if not 0 <= cfg.eps <= 255 or cfg.validation < 1:
        raise InputError(f"eps: from 0 to 255, validation: at least 1; got {cfg.eps}, {cfg.validation}")
    console, eps = Console(), cfg.eps / 255
    named = cfg.beside or cfg.start
    other = None if named is None else study.networks([detectors.load(named)], cfg.size).popitem()[1].forward
    forward, tests = train_detector.main(cfg, by, defend, judge(eps, cfg.validation, cfg.compute), prepare)
    with step(console, f"PGD inside {cfg.eps:g}/255 on the test splits"):
        own = hardness.report(forward, tests, eps, cfg.compute)
        others = {} if other is None else hardness.report(other, tests, eps, cfg.compute)
        flags = {name: hardness.flags(forward, tests[name], own[name].held, eps, cfg.compute) for name in tests}
    matched = {name: hardness.matched(own[name].held, others[name].held, tests[name].groups) for name in others}
    told = {"eps": cfg.eps, "steps": hardness.STEPS, "flags": flags, "matched": plain(matched)}
    told |= {"test": plain({name: one.shares for name, one in own.items()}), "beside": None}
    if named is not None:
        told |= {"beside": {"detector": named} | plain({name: one.shares for name, one in others.items()})}
    run.write_json(cfg.out / "robust.json", told)
    rows = own | {f"{name}, {named}": one for name, one in others.items()}
    hardness.show(console, {name: one.shares for name, one in rows.items()}, flags, matched, eps)


def judge(eps: float, images: int, compute: Compute) -> Judge:
    """hardness.score inside eps, in [0,1] units, that many validation images of either class attacked."""

    def score(forward: Forward, held: ImageSet) -> float:
        few = sets.limited(held, images, sorted(np.unique(held.labels)))
        return hardness.score(forward, held, few, eps, compute)

    return Judge("clean_then_pgd", score)
