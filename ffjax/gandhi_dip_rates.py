"""What a defence by Deep Image Prior comes to over a population, and not over strata of ten: each stratum counted as
often as it occurs, with an interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjax import metrics
from ffjax.gandhi_dip import CLEAN, by_stratum, figures, spoken_of, undefended
from ffjax.gandhi_dip_rules import Row, Rule, rightly
from ffjax.metrics import LEVELS, Estimate

Part = tuple[np.ndarray, np.ndarray]
"""(k,) and (k,) of k images: yes or no, and the group."""


def population(fooled: Part, strata: Mapping[bool, Part], resamples: int = 1000, seed: int = 0) -> Estimate | None:
    """Share of a pool of attacked fakes that is called fake with the defence: its two strata, each counted as often as
    it occurs. None where a stratum that occurs has no image.

    fooled: of every image of the pool, whether the attack fooled the bare detector. strata: fooled -> of those that
    were drawn, all of them of the pool, whether they are called fake. n: how many these are. The interval is a cluster
    bootstrap of the pool, an image drawn counting as often as its group: how often an attack fools is as uncertain as
    what the defence makes of it. Where all images of a stratum are alike it is at least as wide as metrics.share has
    it; nothing can be said where those of an occurring stratum are of one group.
    """
    parts = [fooled, *(strata.get(outcome, (np.zeros(0), np.zeros(0, int))) for outcome in (True, False))]
    groups = np.concatenate([part[1] for part in parts])
    weights = np.insert(metrics.cluster_weights(groups, resamples, seed), 0, 1.0, axis=1)
    pieces = np.split(weights, np.cumsum([len(part[1]) for part in parts])[:-1])
    often, *rates = (_mean(part[0], piece) for part, piece in zip(parts, pieces, strict=True))
    occur = [(share, rate, part) for share, rate, part in zip((often, 1 - often), rates, parts[1:], strict=True)]
    occur = [one for one in occur if one[0][0] > 0]
    if any(len(part[0]) == 0 for *_, part in occur):
        return None
    # a stratum that does not occur in a resample has no rate there, and needs none; one that does and has none, of
    # which no image drawn is in it, leaves the resample undefined
    values = np.sum([np.where(share > 0, share * rate, 0.0) for share, rate, _ in occur], axis=0)
    ends = [share[0] * np.array(_ends(part, resamples, seed)) for share, _, part in occur]
    resampled = np.nanpercentile(values[1:], LEVELS)
    low, high = np.sum(ends, axis=0)
    low, high = np.minimum(low, resampled[0]), np.maximum(high, resampled[1])  # NaN where an end is
    return Estimate(float(values[0]), float(low), float(high), sum(len(part[0]) for *_, part in occur))


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(k,), (k, R) -> (R,); NaN where nothing has weight."""
    whole = weights.sum(axis=0)
    return np.einsum("n,nr->r", values.astype(float), weights) / np.where(whole == 0, np.nan, whole)


def _ends(part: Part, resamples: int, seed: int) -> tuple[float, float]:
    """What the rate of a stratum may be, of which all that was drawn is alike (NaN of one group); else the rate itself:
    the bootstrap sees how it varies."""
    values, groups = part
    if len(np.unique(groups)) > 1 and np.any(values != values[0]):
        return float(values.mean()), float(values.mean())
    found = metrics.share(values.astype(float), groups, resamples, seed)
    return found.low, found.high


def attacked(
    rows: Sequence[Row], rules: Mapping[str, Rule], ledgers: Mapping[str, Sequence[Row]], detector: str
) -> dict[str, dict[str, Any]]:
    """Attack -> of all fakes attacked so (images, how many), the share called fake undefended and under each rule."""
    found = {}
    names = np.array([row["stratum"] for row in rows])
    groups = np.array([row["group"] for row in rows])
    for name, ledger in ledgers.items():
        attack, said = spoken_of(name, ledger, detector)
        fooled, of = np.array(said) <= 0, np.array([row["group"] for row in ledger])
        found[attack] = {"images": len(ledger), "undefended": metrics.share((~fooled).astype(float), of)}
        for rule, one in rules.items():
            right = rightly(rows, one)
            chosen = {o: names == f"{attack} {'' if o else 'not '}fooled" for o in (True, False)}
            strata = {o: (right[among], groups[among]) for o, among in chosen.items()}
            found[attack][rule] = population((fooled, of), strata)
    return found


def clean(rows: Sequence[Row], rules: Mapping[str, Rule], alone: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Clean stratum -> of all clean images of its class that the detector alone calls rightly (images, how many; so
    undefended it is all of them), the share called rightly under each rule. Those that were drawn are a random sample
    of them. alone: clean stratum -> of all images of the split, the share that the detector alone calls rightly."""
    held = {rule: by_stratum(rows, one) for rule, one in rules.items()}
    found = {}
    for name in CLEAN:
        count = round(alone[name].value * alone[name].n)
        by_construction = Estimate(1.0, np.nan, np.nan, count)
        found[name] = {"images": count, "undefended": by_construction} | {r: one.get(name) for r, one in held.items()}
    return found


def tables(
    rows: Sequence[Row],
    rules: Mapping[str, Rule],
    ledgers: Mapping[str, Sequence[Row]],
    detector: str,
    alone: Mapping[str, Estimate],
) -> dict[str, dict[str, Any]]:
    """Everything that is laid out. table: a line of the paper's table for each rule, and for the detector alone. Strata
    are filled by what that says: its figures are made by how many there are, and have no interval. strata: stratum ->
    rule -> share called rightly. rates: `clean`, and `attacked`."""
    table = {f"DIP, {name}": figures(rows, rule) for name, rule in rules.items()}
    table["detector alone"] = {name: e._replace(low=np.nan, high=np.nan) for name, e in undefended(rows).items()}
    by_rule = {name: by_stratum(rows, rule) for name, rule in rules.items()}
    names = list(dict.fromkeys(row["stratum"] for row in rows))
    return {
        "table": table,
        "strata": {name: {rule: one[name] for rule, one in by_rule.items()} for name in names},
        "rates": clean(rows, rules, alone) | attacked(rows, rules, ledgers, detector),
    }
