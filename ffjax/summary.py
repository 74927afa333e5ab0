"""From saved scores to results.json: every metric of every cell, and the claim, each with its interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ffjax.evaluate import Condition
from ffjax.metrics import Scores, cluster_weights, summary

RESAMPLES = 1000
DIRECTIONS = {"fake_called_real": 1, "real_called_fake": 0}
"""Which label a direction counts errors among. The two are reported apart: a pattern that pushes everything to one
side wins one of them and loses the other, and a mean would hide it."""

MARGINS = ("over_clean", "over_noise", "over_fixed", "margin")


class Labelled(NamedTuple):
    """One data set's truth and what was said of it. scores: detector -> condition name -> (N,) margins."""

    name: str
    labels: np.ndarray
    groups: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


def cells(test: Labelled, validation: Labelled | None, conditions: Sequence[Condition]) -> list[dict]:
    """One row per detector and condition: every metric of `metrics.summary` as [value, low, high, n], None where it
    is undefined. Clean means clean in float; a condition with validation scores also gets a refitted threshold."""
    rows = []
    for detector in test.scores:
        for condition in conditions:
            held = None
            if validation is not None and condition.name in validation.scores.get(detector, {}):
                held = _paired(validation, detector, condition.name)
            found = summary(_paired(test, detector, condition.name), held, RESAMPLES)
            metrics = {name: _plain(estimate) for name, estimate in found.items()}
            rows.append({"detector": detector, "data": test.name, "condition": condition.name, "metrics": metrics})
    return rows


def claims(test: Labelled, conditions: Sequence[Condition]) -> list[dict]:
    """Is it over-firing, or luck? Per detector, pattern group and direction, all in float:

    uap: median and range over pattern seeds of the direction's error rate; noise: the same over sign-noise draws;
    fixed: the rate of the fixed pattern chosen for this direction on validation images; clean: the rate without any.
    over_clean, over_noise, over_fixed and margin: uap median minus clean, the noise median, fixed, and the largest of
    the three, each with a 95 % bootstrap interval over identities, pattern seeds and noise draws (each resample draws
    anew among all three, the same images for every kind). held: the interval of margin lies above 0. Where the set has
    no image of the class, margins and rates are None; of fewer than two identities there is no interval; held is then
    False.
    """
    rows = []
    for detector, scores in test.scores.items():
        for group in dict.fromkeys(c.group for c in conditions if c.group):
            for direction, label in DIRECTIONS.items():
                row = _claim(test, scores, _members(conditions, group, direction), label)
                rows.append({"detector": detector, "data": test.name, "group": group, "direction": direction} | row)
    return rows


def _members(conditions: Sequence[Condition], group: str, direction: str) -> dict[str, list[str]]:
    """Kind -> names of the float conditions that bear on one claim."""
    way = "to-real" if direction == "fake_called_real" else "to-fake"
    floats = [c for c in conditions if c.storage == "float" and c.group in ("", group)]
    return {
        kind: [c.name for c in floats if c.kind == kind and (kind != "fixed" or way in c.name)]
        for kind in ("clean", "noise", "fixed", "uap")
    }


def _claim(test: Labelled, scores: dict[str, np.ndarray], members: dict[str, list[str]], label: int) -> dict:
    among = test.labels == label
    counts = {"n": int(among.sum()), "groups": len(np.unique(test.groups[among]))}
    if not among.any():
        unknown = {"median": None, "low": None, "high": None}
        found = {kind: unknown | {"patterns": len(names)} for kind, names in members.items() if names}
        return found | counts | {name: [None, None, None] for name in MARGINS} | {"held": False}
    weights = np.insert(cluster_weights(test.groups[among], RESAMPLES, 0), 0, 1.0, axis=1)
    rates = {
        kind: np.stack([_wrong(scores[name][among], label) for name in names]) @ weights / weights.sum(axis=0)
        for kind, names in members.items()
        if names
    }
    medians = {kind: _resampled_median(rate, stream) for stream, (kind, rate) in enumerate(rates.items())}
    rivals = {f"over_{kind}": medians[kind] for kind in ("clean", "noise", "fixed") if kind in medians}
    rivals["margin"] = np.max(list(rivals.values()), axis=0)
    margins: dict[str, list[float | None]] = {name: [None, None, None] for name in MARGINS}
    margins |= {name: _margin(medians["uap"] - rival, counts["groups"] > 1) for name, rival in rivals.items()}
    found = {kind: _spread(rate[:, 0]) for kind, rate in rates.items()}
    return found | counts | margins | {"held": (margins["margin"][1] or 0) > 0}


def _margin(values: np.ndarray, several: bool) -> list[float | None]:
    """(1 + R,) -> value and 95 % interval; no interval where one identity is all there is."""
    low, high = (float(x) if several else None for x in np.percentile(values[1:], (2.5, 97.5)))
    return [float(values[0]), low, high]


def _resampled_median(rates: np.ndarray, stream: int) -> np.ndarray:
    """(P, 1 + R) -> (1 + R,): the median over patterns, over P of them drawn with replacement in every resample."""
    count, columns = rates.shape
    drawn = np.random.default_rng([1, stream]).integers(0, count, (count, columns))
    drawn[:, 0] = np.arange(count)
    return np.median(np.take_along_axis(rates, drawn, axis=0), axis=0)


def _wrong(scores: np.ndarray, label: int) -> np.ndarray:
    return ((scores > 0) != (label == 1)).astype(float)


def _spread(values: np.ndarray) -> dict[str, float | int]:
    low, median, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return {"median": median, "low": low, "high": high, "patterns": len(values)}


def _paired(data: Labelled, detector: str, condition: str) -> Scores:
    scores = data.scores[detector]
    return Scores(data.labels, data.groups, scores["clean-float"], scores[condition])


def _plain(estimate) -> list:
    return [None if np.isnan(x) else x for x in estimate[:3]] + [estimate.n]
