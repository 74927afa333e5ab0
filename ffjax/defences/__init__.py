"""What makes detectors hold: losses to train with, as functions of a LossFn to another, freely combined."""

from ffjax.defences.mixing import adversarial, climb, kl, mixed, shared, trades
from ffjax.defences.penalties import gradient_norm, lipschitz

__all__ = ["adversarial", "climb", "gradient_norm", "kl", "lipschitz", "mixed", "shared", "trades"]
