"""What makes detectors hold: losses to train with, as functions of a LossFn to another, freely combined."""

from ffjax.defences.mixing import climb, kl, mixed, trades
from ffjax.defences.penalties import gradient_norm, lipschitz

__all__ = ["climb", "gradient_norm", "kl", "lipschitz", "mixed", "trades"]
