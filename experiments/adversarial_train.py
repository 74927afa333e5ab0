"""Trains a detector on normal and adversarial images together, made at every step or once, or by TRADES.

    python -m experiments.adversarial_train --arch meso4 --attack.eps 2

The third paper's second defence ("Security Consideration for Deep Learning-Based Image Forensics", 2018; bound, share
and attack are not public: FGSM with bounds drawn from 0 to 2/255 and half of the loss are our guesses). All of
experiments.train_detector's flags hold. The epoch is chosen on validation images, by clean accuracy up to 90 % and
by PGD-20 too from there, which passes over epochs that a single step has overfitted, unless they gain a fifth of what
they lose. Result: OUT/weights.safetensors, OUT/results.json, OUT/robust.json
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from experiments import hardened
from ffjax import attacked_copy, defences, detectors, objectives, run, study
from ffjax.defences import mixing
from ffjax.defences.mixing import Attacker, Start
from ffjax.detectors import Loaded
from ffjax.errors import InputError
from ffjax.types import Detector, ImageSet, LossFn


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What is trained against: sign steps up the loss, made anew at every step."""

    eps: float = 2.0
    """Bound in 1/255."""
    ranged: bool = True
    """Whether each image's bound is drawn from 0 to eps, or is eps."""
    steps: int = 1
    """1 is FGSM."""
    stride: float | None = None
    """Length of a step in bounds; none for 1 of one step, 2.5 / steps of more."""
    start: Start | None = None
    """clean, uniform in the bound, or near (sd 0.001); none for clean, and near for trades, whose divergence has no
    gradient at the clean image."""
    heap: int = 1
    """Images that share one perturbation, which starts uniform in the bound: against universal ones."""


@dataclass(frozen=True, kw_only=True)
class Config(hardened.Config):
    """The detector and its training, and how the images are mixed."""

    attack: Attack = field(default_factory=Attack)
    method: Literal["mixed", "attacked", "offline", "trades"] = "mixed"
    """mixed: the cross-entropy of both, attacked anew at every step; attacked: that of the attacked ones, which alone
    are shown; offline: the training set and a copy of it attacked once, on --copies; trades: the cross-entropy of the
    normal ones, and how far the attack moves outputs."""
    copies: str | None = None
    """The detector that the copy is attacked on (offline): a shipped name, or ARCHITECTURE:WEIGHTS-FILE."""
    share: float | None = None
    """Of the adversarial images' loss, 0.5 by default; at 1 the normal ones count in batch statistics alone (mixed)."""
    beta: float | None = None
    """Weight of the divergence, 6 by default (trades)."""
    penalty: float = 0.0
    """Weight of the gradient-norm penalty on the normal images beside it."""
    out: Path = Path("runs/adversarial_train")


def main(cfg: Config) -> None:
    """Trains and reports."""
    share, beta = _weights(cfg)
    if not 0 <= share <= 1 or beta < 0 or cfg.penalty < 0:
        raise InputError(f"share in [0, 1], beta and penalty >= 0 are needed, got {share}, {beta}, {cfg.penalty}")
    for name, method in (("share", "mixed"), ("beta", "trades")):
        if getattr(cfg, name) is not None and cfg.method != method:
            raise InputError(f"{name}: is for --method {method} alone, and has no effect on {cfg.method}")
    one = cfg.attack
    if not 0 < one.eps <= 255 or one.steps < 1 or not mixing.length(one.stride, one.steps) > 0:
        raise InputError("attack: eps in (0, 255], steps >= 1 and stride > 0 are needed")
    if cfg.attack.heap < 1 or cfg.train.batch % cfg.attack.heap:
        raise InputError(f"attack.heap: {cfg.train.batch} images a step are no whole number of {cfg.attack.heap}")
    if cfg.attack.heap > 1 and (cfg.attack.ranged or cfg.method == "trades"):
        raise InputError("attack.heap: needs --attack.no-ranged, and is not for trades")
    if one.heap > 1 and one.start not in (None, "uniform"):
        raise InputError(f"attack.start: what a heap shares starts uniform in the bound, got {one.start}")
    if cfg.method == "trades" and cfg.attack.start == "clean":
        raise InputError("attack.start: at the clean image the divergence of trades has no gradient; near or uniform")
    if (cfg.copies is None) == (cfg.method == "offline"):
        raise InputError("copies: the detector that --method offline attacks the training set on, and for it alone")
    copied = None if cfg.copies is None else partial(_copied, cfg, detectors.load(cfg.copies))
    hardened.train(cfg, "experiments.adversarial_train", partial(_defence, cfg), copied)


def _weights(cfg: Config) -> tuple[float, float]:
    return 0.5 if cfg.share is None else cfg.share, 6.0 if cfg.beta is None else cfg.beta


def _defence(cfg: Config, detector: Detector) -> Callable[[LossFn], LossFn]:
    share, beta = _weights(cfg)

    def defend(loss: LossFn) -> LossFn:
        if cfg.method == "trades":
            defended = defences.trades(loss, detector, _attacker(cfg), beta, cfg.train.mask)
        elif cfg.method == "mixed":
            defended = defences.mixed(loss, detector, _attacker(cfg), share)
        elif cfg.method == "attacked":
            defended = defences.adversarial(loss, detector, _attacker(cfg))
        else:
            defended = loss
        of = partial(objectives.cross_entropy, mask=cfg.train.mask)
        return defences.gradient_norm(defended, detector, cfg.penalty, of=of) if cfg.penalty else defended

    return defend


def _attacker(cfg: Config) -> Attacker:
    one, trades = cfg.attack, cfg.method == "trades"
    up = partial(defences.kl if trades else mixing.labels, mask=cfg.train.mask)
    if one.heap > 1:
        return defences.shared(one.eps / 255, one.steps, one.stride, one.heap, up)
    start = one.start or ("near" if trades else "clean")
    return defences.climb(one.eps / 255, one.steps, one.stride, start, one.ranged, up)


def _copied(cfg: Config, loaded: Loaded, images: ImageSet) -> ImageSet:
    forward = study.networks([loaded], cfg.size)[loaded.name].forward
    return attacked_copy.fused(images, forward, _attacker(cfg), cfg.train.batch, cfg.train.seed)


if __name__ == "__main__":
    run.main(Config, main)
