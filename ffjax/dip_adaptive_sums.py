"""What the ledgers of attacks on Deep Image Prior amount to (dip_adaptive): where each judge says fake, what it knows
of clean images, which verdicts stand, and how far margins have moved."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ffjax import metrics
from ffjax.errors import InputError
from ffjax.findings import TRUSTED
from ffjax.metrics import Estimate

Row = dict[str, Any]
JUDGES = ("undefended", "own", "fresh")
"""Of 8-bit images the bare detector; the defended one under the key that the attacker knows; under another."""
CONTROLS = ("clean", "noise", "noises")
"""noises: of as many draws as PGD has steps the worst, by scores through DIP: what asking so often comes to alone."""
WORST, CHOSEN = "strongest per image", "strongest by the attacker's key"


def calibrated(rows: Sequence[Row], judge: str) -> tuple[float, float]:
    """The margin above which this judge says fake, of best balanced accuracy on held-out rows, and that accuracy.
    InputError where nothing parts the classes better than chance."""
    labels = np.array([row["label"] for row in rows])
    said = np.array([row["margins"][judge] for row in rows])
    threshold = metrics.calibrated(said, labels)
    if not np.isfinite(threshold):
        where = "undefended" if judge == "undefended" else f"behind DIP ({judge} key)"
        raise InputError(f"no threshold can be calibrated: {where} fakes score no higher than reals")
    return threshold, _balanced(said, labels, threshold)


def competence(rows: Sequence[Row], thresholds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Judge -> of clean test images auc (Estimate), whatever the threshold; balanced accuracy at it; and trusted:
    whether that is enough for a claim (findings.TRUSTED)."""
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    found = {}
    for judge, threshold in thresholds.items():
        said = np.array([row["margins"][judge] for row in rows])
        balanced = _balanced(said, labels, threshold)
        auc = metrics.summary(metrics.Scores(labels, groups, said, said))["clean_auc"]
        found[judge] = {"auc": auc, "balanced": balanced, "trusted": balanced >= TRUSTED}
    return found


def _balanced(said: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    calls = (said > threshold) == (labels == 1)
    return float(np.mean([calls[labels == label].mean() for label in (0, 1)]))


Shares = dict[str, dict[str, Estimate]]
"""Judge -> fakes, reals -> share that stays rightly called."""


def figures(ledgers: Mapping[str, Sequence[Row]], thresholds: Mapping[str, float]) -> dict[str, Shares]:
    """Control, attack, or the strongest of them -> Shares. An image counts as right where it is called so as it is and
    as attacked: the attacker may hand it in as it is. Of the strongest, an image that one attack was not tried on
    counts by the others.

    strongest per image: wrong under any attack (by that judge). strongest by the attacker's key: of each image the one
    that went farthest to the wrong side under the key that he knows, whatever the judge.
    """
    clean = {row["id"]: row for row in ledgers["clean"]}
    found: dict[str, Shares] = {}
    for name, rows in ledgers.items():
        found[name] = {j: _shares(rows, [_right(r, j, t, clean) for r in rows]) for j, t in thresholds.items()}
    tried, rows = _tried(ledgers), list(clean.values())
    found[WORST], found[CHOSEN] = {}, {}
    for judge, threshold in thresholds.items():
        worst = [all(_right(r, judge, threshold, clean) for r in some) for some in tried]
        best = [max(some, key=partial(_wrongness, "own", thresholds["own"])) for some in tried]
        found[WORST][judge] = _shares(rows, worst)
        found[CHOSEN][judge] = _shares(rows, [_right(r, judge, threshold, clean) for r in best])
    return found


def moves(ledgers: Mapping[str, Sequence[Row]], judges: Sequence[str] = JUDGES) -> dict[str, dict[str, Estimate]]:
    """As `figures`, but of each judge how far its margin has moved to the wrong side, in logits, the mean over all
    images that an attack was tried on: what an attack does whether or not the detector was right before."""
    clean = {row["id"]: row for row in ledgers["clean"]}

    def moved(row: Row, judge: str) -> float:
        return _wrongness(judge, clean[row["id"]]["margins"][judge], row)

    def mean(rows: Sequence[Row], values: Sequence[float]) -> Estimate:
        return metrics.average(np.array(values), np.array([row["group"] for row in rows]))

    found = {name: {j: mean(rows, [moved(r, j) for r in rows]) for j in judges} for name, rows in ledgers.items()}
    tried, rows = _tried(ledgers), list(clean.values())
    best = [max(some, key=partial(moved, judge="own")) for some in tried]
    found[WORST] = {j: mean(rows, [max(moved(r, j) for r in some) for some in tried]) for j in judges}
    found[CHOSEN] = {j: mean(rows, [moved(r, j) for r in best]) for j in judges}
    return found


def _tried(ledgers: Mapping[str, Sequence[Row]]) -> list[list[Row]]:
    """Of each image, in the order of the clean ones, its rows under every attack that was tried on it."""
    by_id = [{row["id"]: row for row in rows} for name, rows in ledgers.items() if name not in CONTROLS]
    return [[by[row["id"]] for by in by_id if row["id"] in by] for row in ledgers["clean"]]


def _wrongness(judge: str, threshold: float, row: Row) -> float:
    past = row["margins"][judge] - threshold
    return -past if row["label"] == 1 else past


def _right(row: Row, judge: str, threshold: float, clean: Mapping[int, Row]) -> bool:
    return all((r["margins"][judge] > threshold) == (r["label"] == 1) for r in (row, clean[row["id"]]))


def _shares(rows: Sequence[Row], right: Sequence[bool]) -> dict[str, Estimate]:
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    values = np.array(right, float)
    return {
        name: metrics.share(values[labels == label], groups[labels == label])
        for name, label in (("fakes", 1), ("reals", 0))
    }
