"""What makes detectors hold: losses to train with, as functions of a LossFn to another, freely combined; what is put
around a trained detector, as functions of a Forward to another; and purifiers, which clean what it is shown."""

from ffjax.defences.mixing import adversarial, climb, kl, mixed, shared, trades
from ffjax.defences.penalties import gradient_norm, lipschitz, own_gradient_norm
from ffjax.defences.smoothing import smoothed

__all__ = ["adversarial", "climb", "gradient_norm", "kl", "lipschitz", "mixed", "own_gradient_norm", "shared"]
__all__ += ["smoothed", "trades"]
