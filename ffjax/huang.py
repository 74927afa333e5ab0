"""The first paper's claims about universal perturbations (Huang et al., ICIP 2020), each as a comparison that can fail.

The paper's tables and its formula are not public (PAPERS.md 1.2): the claims are its abstract's, the measures ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ffjax import crossed
from ffjax.metrics import Estimate
from ffjax.transfer import Sheet

LADDER = ("gd_uap", "gd_uap_range", "gd_uap_data")
"""Rungs, each of which shall reach above the one below: nothing, noise with the range of photographs, images."""
LABELLED = ("uap_pgd", "to_real")
"""With images and their labels: what a universal perturbation can do there, as a measure of the rungs."""
CALIBRATION = 20.0
"""Points over noise that the first rung shall reach on a network where GD-UAP is known to work (ours)."""
MEASURES = {
    "fooling": "verdicts changed",
    "fake_called_real": "fakes called real",
    "real_called_fake": "reals called fake",
}


class Said(NamedTuple):
    """Margins of one source's patterns by one target on one set in one storage: patterns (P, N), noise (Q, N)."""

    patterns: np.ndarray
    noise: np.ndarray


def measured(sheet: Sheet, target: str, said: np.ndarray, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """(P, n) in {0, 1} and the groups (n,) of margins said (P, N). fooling: a verdict that differs from the clean one,
    of all images; the others: a wrong verdict, of the images of that class that are called rightly clean."""
    clean, fake = sheet.clean[f"{target}|float"] > 0, sheet.labels == 1
    if measure == "fooling":
        return ((said > 0) != clean).astype(float), sheet.groups
    rows = (clean == fake) & (fake if measure == "fake_called_real" else ~fake)
    return ((said[:, rows] > 0) != fake[rows]).astype(float), sheet.groups[rows]


def row(sheet: Sheet, target: str, storage: str, said: Said, measure: str) -> dict[str, Any] | None:
    """rate, noise, clean and over_noise with their intervals; None where no image can go that way."""
    values, groups = measured(sheet, target, said.patterns, measure)
    if not len(groups):
        return None
    noise = measured(sheet, target, said.noise, measure)[0]
    clean = measured(sheet, target, sheet.clean[f"{target}|{storage}"][None], measure)[0]
    found = {"rate": crossed.mean(values, groups), "noise": crossed.mean(noise, groups)}
    found |= {"clean": crossed.mean(clean, groups), "over_noise": crossed.difference(values, noise, groups)}
    return found | {"seeds": [float(x) for x in values.mean(axis=1)]}


def rungs(sheet: Sheet, target: str, said: Mapping[str, Said]) -> list[dict[str, Any]]:
    """Each rung of LADDER among `said` (method -> margins in float), over the one below it, noise under the first; in
    share of changed verdicts. held: its whole interval above 0, or, of the first, above CALIBRATION."""
    found = []
    first = next(iter(said.values()))
    below, name = first.noise, "noise"
    for method in [m for m in LADDER if m in said]:
        one, groups = measured(sheet, target, said[method].patterns, "fooling")
        other = measured(sheet, target, below, "fooling")[0]
        gain = crossed.difference(one, other, groups)
        least = CALIBRATION / 100 if name == "noise" else 0.0
        held = gain.low > least
        found.append({"method": method, "over": name, "gain": gain, "least": least, "held": bool(held)})
        below, name = said[method].patterns, method
    return found


def verdict(gains: Sequence[Estimate | None]) -> str:
    """'held in 3 of 4: +12 to +80 points over noise', of gains with their intervals; None: no claim can be made."""
    known = [g for g in gains if g is not None]
    if not known:
        return "no claim: no detector here tells the clean images apart"
    held = sum(g.low > 0 for g in known)
    low, high = (100 * f(g.value for g in known) for f in (min, max))
    word = "held" if held == len(known) else "not held" if held == 0 else "held in part"
    return f"{word}: more than noise by a whole interval in {held} of {len(known)}; {low:+.0f} to {high:+.0f} points"
