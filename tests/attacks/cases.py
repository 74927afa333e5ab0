"""Every attack in a short setting, on the 12 px detectors: what the whole-table tests run over."""

import jax
import numpy as np
import toys

from ffjax import goals
from ffjax.attacks import ATTACKS
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.types import Batch, Forward, Process

SHORT: dict[str, dict] = {
    "nes": {"steps": 14, "pairs": 8},
    "spsa": {"steps": 6, "pairs": 4},
    "vmi_fgsm": {"steps": 4, "count": 3},
    "pgd": {"steps": 12},
    "adam_pgd": {"steps": 12},
    "eot_pgd": {"steps": 8, "step": 0.3, "samples": 2, "transform": "noise+shift"},
    "apgd": {"steps": 12},
    "apgd_ce": {"steps": 12},
    "square": {"steps": 40},
    "boundary": {"steps": 60},
    "hop_skip_jump": {"steps": 60, "samples": 8, "gamma": 300.0},
    "deepfool": {"steps": 8},
    "cw": {"searches": 3, "inner": 20, "rate": 0.05},
    "ddn": {"steps": 20},
    "fmn": {"steps": 20},
    "fab": {"steps": 12},
}
"""Options that make an attack short enough for a test of bookkeeping; the others are."""

EPS = {"linf": 8 / 255, "l2": 0.3, "l1": 2.0, "l0": 4.0}
"""Bounds at which about half of the rows fall."""

CASES = [(name, norm) for name, attack in ATTACKS.items() for norm in attack.norms]
ROWS = 64
ALONE = Compute(batch=ROWS, least=32, chunk=5, devices=1, execution="stepped")


def process(name: str, norm: str, **options) -> Process:
    """The attack as published, short."""
    return ATTACKS[name].build(goals.verdict(ATTACKS[name].loss), norm, **SHORT.get(name, {}) | options)


def batch(count: int = ROWS, seed: int = 0, forward: Forward | None = None) -> Batch:
    """Random pictures, each with the label that the detector gives it."""
    pictures = (toys.images(count, seed).images / 255).astype(np.float32)
    said = margin((forward or toys.forward())(pictures))
    return Batch(pictures, (np.asarray(said) > 0).astype(np.int32), np.arange(count, dtype=np.int32))  # type: ignore[arg-type]


def rows(tree, chosen):
    return jax.tree.map(lambda x: np.asarray(x)[chosen], tree)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
