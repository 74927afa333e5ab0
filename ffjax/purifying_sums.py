"""What the ledgers of detectors behind purifiers amount to: where each says fake, which images stand, and the shares
called rightly.

An image is called rightly by a random purifier where most of its draws are; by a fixed one, where its one call is. Each
is judged at a threshold of its own, calibrated on validation images: a purifier shifts margins, and what that alone
costs at another detector's threshold is no loss of the trace.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ffjax import metrics
from ffjax.errors import InputError
from ffjax.individual import Row
from ffjax.metrics import Estimate
from ffjax.types import ImageSet

MADE = ("unaware", "transfer")
"""Made once, whatever the purifier: by PGD on the detector as it is, and on another."""

WHITE = ("exact", "bpda", "soft", "low")
"""PGD through the purifier: with its own derivative, roundings passed straight through; with the identity's in its
place; with a softer one of the same value, where one is known; and low frequencies alone (attacks.rules.coarse)."""

LATE = ("longer", "square")
"""Tried on what stands alone. longer: PGD through the purifier, by the softer derivative where there is one, with twice
the steps, on all that stands under MADE and WHITE. Square: on some of what stands under longer too."""

AWARE = (*MADE, *WHITE, *LATE)
"""All attackers, in the order in which they are tried."""

FORMS = ("float", "png")
SIDES = {"fake": 1, "real": 0}

Cells = Mapping[str, Sequence[Row]]
"""clean, noise or attacker -> its ledger, one row an image that it was tried on."""


class Entry(NamedTuple):
    """What a purifier came to under one kind of images, as shown (float) or stored (png): shares of all images called
    rightly, of the fakes, and of the reals (real recall); an image called wrongly as it is counts as wrong everywhere.
    kind: clean, noise, an attacker, or aware, the strongest of all attackers of each image. The shares of longer and of
    Square are of what each was tried on, which stood, in one form at least, under all before it. drawn: the mean share
    of draws that call an image rightly, of the draws' worst kind."""

    purifier: str
    kind: str
    form: str
    every: Estimate
    fake: Estimate
    real: Estimate
    drawn: Estimate


class Level(NamedTuple):
    """What a purifier's shares are to be read with. threshold: the margin above which the detector behind it says fake.
    auc: of clean test images, whatever the threshold. untried: form -> fake, real -> images that stand under every
    other attacker and that Square was not tried on: so many of the aware share may be too many."""

    threshold: float
    auc: Estimate
    untried: Mapping[str, Mapping[str, int]]


def calibrated(rows: Sequence[Row], who: str) -> float:
    """The margin threshold of best balanced accuracy on rows of clean held-out images. Of a random purifier by each
    image's median margin, which is above a threshold just where most draws are. InputError, which names `who`, where
    there is none."""
    labels, _, said = _medians(rows)
    best = metrics.calibrated(said, labels)
    if not np.isfinite(best):
        raise InputError(
            f"{who}: no threshold can be calibrated: the validation images are of one class, or no threshold parts "
            "them better than chance"
        )
    return best


def share_right(cells: Cells, kinds: Sequence[str], form: str, count: int, threshold: float) -> np.ndarray:
    """(count,) the least share, over these kinds and clean, of the draws that call each image rightly."""
    found = np.ones(count)
    for kind in {"clean", *kinds}:
        for row in cells[kind]:
            calls = (np.array(row["margins"][form]) > threshold) == (row["label"] == 1)
            found[row["id"]] = min(found[row["id"]], calls.mean())
    return found


def before(kind: str, cells: Cells) -> list[str]:
    """The attackers there are that come before that one."""
    return [other for other in AWARE[: AWARE.index(kind)] if other in cells]


def tried_on(kind: str, cells: Cells, threshold: float, data: ImageSet, few: int) -> np.ndarray:
    """Ids, in order, of the images that are to be shown as `kind`: all, but for LATE. longer: all that stand under the
    attackers before it, as shown or as stored. Square: of either class the first `few` that stand under all others as
    shown and then, where these are fewer, of those that do so only as stored. A function of the ledgers of those before
    it alone."""
    if kind not in LATE:
        return np.arange(len(data.labels))
    shown, stored = (_left(kind, cells, threshold, data, form) for form in FORMS)
    if kind == "longer":
        return np.flatnonzero(shown | stored)
    ids = np.concatenate([np.flatnonzero(shown), np.flatnonzero(stored & ~shown)])
    return np.sort(np.concatenate([ids[data.labels[ids] == label][:few] for label in (0, 1)]))


def level(cells: Cells, threshold: float, data: ImageSet, resamples: int = 1000) -> Level:
    """Of a purifier that every attacker has been tried on."""
    labels, groups, said = _medians(cells["clean"])
    auc = metrics.summary(metrics.Scores(labels, groups, said, said), resamples=resamples)["clean_auc"]
    tried = np.isin(np.arange(len(data.labels)), [row["id"] for row in cells["square"]])
    untried = {}
    for form in FORMS:
        stands = _left("square", cells, threshold, data, form) & ~tried
        untried[form] = {side: int(np.sum(stands & (data.labels == label))) for side, label in SIDES.items()}
    return Level(threshold, auc, untried)


def entries(name: str, cells: Cells, threshold: float, data: ImageSet, resamples: int = 1000) -> list[Entry]:
    """One a kind and form, and of all attackers together."""
    attackers = [kind for kind in cells if kind in AWARE]
    kinds = {kind: [kind] for kind in cells} | {"aware": attackers}
    found = []
    for form in FORMS:
        for kind, those in kinds.items():
            there = np.array([row["id"] for row in cells["clean" if kind == "aware" else kind]], int)
            drawn = share_right(cells, those, form, len(data.labels), threshold)[there]
            found.append(Entry(name, kind, form, *_shares(drawn, data.labels[there], data.groups[there], resamples)))
    return found


def _shares(drawn: np.ndarray, labels: np.ndarray, groups: np.ndarray, resamples: int) -> list[Estimate]:
    """every, fake, real and drawn of an Entry, over the images that the kind was tried on; undefined where none is."""

    def share(values: np.ndarray, among: np.ndarray) -> Estimate:
        if not among.any():
            return Estimate(np.nan, np.nan, np.nan, 0)
        return metrics.share(values[among], groups[among], resamples)

    right, all_of = (drawn > 0.5).astype(float), np.ones(len(drawn), bool)
    return [share(right, all_of), *(share(right, labels == label) for label in SIDES.values()), share(drawn, all_of)]


def _left(kind: str, cells: Cells, threshold: float, data: ImageSet, form: str) -> np.ndarray:
    """(N,) bool: what stands under all attackers before that one; an image that one of them was not tried on counts by
    the others."""
    return share_right(cells, before(kind, cells), form, len(data.labels), threshold) > 0.5


def _medians(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, groups and median margins over draws, (N,) each."""
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    return labels, groups, np.median([row["margins"]["float"] for row in rows], axis=1)
