"""Trains a detector with a penalty on the 2-norm of the loss gradient with respect to the input.

    python -m experiments.gradnorm_train --arch meso4 --weight 0.1

The third paper's first defence ("Security Consideration for Deep Learning-Based Image Forensics", 2018; its lambda is
not public, 0.1 is our guess). All of experiments.train_detector's flags hold. The epoch is chosen on validation
images, by clean accuracy up to 90 % and by PGD-20 too from there. Result: OUT/weights.safetensors, OUT/results.json,
OUT/robust.json
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax

from experiments import hardened, train_detector
from ffjax import defences, objectives, run
from ffjax.defences import penalties
from ffjax.errors import InputError
from ffjax.types import Detector, LossFn


@dataclass(frozen=True, kw_only=True)
class Config(hardened.Config):
    """The detector and its training, and the penalty."""

    weight: float = 0.1
    """lambda: of the norm beside the cross-entropy, with images in [0, 1]."""
    norm: penalties.Size = "norm"
    """Of each example's gradient: 2-norm, its square, 1-norm; batch: B times that of the batch's mean loss."""
    through: Literal["deployed", "training"] = "deployed"
    """The forward whose gradient it is: as it will be attacked, or that of the training itself, with dropout, which
    costs a backward pass less and is not for networks with BatchNorm."""
    out: Path = Path("runs/gradnorm_train")


def main(cfg: Config) -> None:
    """Trains and reports."""
    if cfg.weight < 0:
        raise InputError(f"weight: must not be negative, got {cfg.weight}")
    if cfg.through == "training":
        detector, _ = train_detector.built(cfg)
        penalties.check_rows(jax.eval_shape(detector.init, jax.random.key(0)))
    hardened.train(cfg, "experiments.gradnorm_train", partial(_defence, cfg))


def _defence(cfg: Config, detector: Detector) -> Callable[[LossFn], LossFn]:
    if cfg.through == "training":
        return lambda loss: defences.own_gradient_norm(loss, cfg.weight, cfg.norm)
    of = partial(objectives.cross_entropy, mask=cfg.train.mask)
    return lambda loss: defences.gradient_norm(loss, detector, cfg.weight, cfg.norm, of)


if __name__ == "__main__":
    run.main(Config, main)
