"""Perturbations shared by all images: what is made large (measures), which way it rises (slopes), what it may look like
(shapes), the loop (ascent), and the published methods as configs."""

from ffjax.universal.build import universal
from ffjax.universal.config import METHODS, UapConfig, named

__all__ = ["METHODS", "UapConfig", "named", "universal"]
