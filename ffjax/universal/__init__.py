"""Perturbations shared by all images: one file a family, a table of builders."""

from ffjax.universal.overfire import UapConfig, over_firing

__all__ = ["UNIVERSALS", "UapConfig", "over_firing"]

UNIVERSALS = {"over_firing": over_firing}
