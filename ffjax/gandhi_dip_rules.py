"""How a trajectory of the detector's looks at what Deep Image Prior draws becomes a verdict: by a rule that is chosen
on held-out images, or along the way (Gandhi and Jain, IJCNN 2020; PAPERS.md 2.7: theirs is one iteration, and
thresholds 0.25 and 0.5). A row is one of gandhi_dip.draw."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ffjax import metrics
from ffjax.defences.dip import Prior, Stop
from ffjax.errors import InputError

Row = dict[str, Any]


class Rule(NamedTuple):
    """When a trajectory means real: the mean of P(real) over the last `window` looks up to number `look` is above the
    threshold. form: 'drawn' or 'average', which of the two images the detector looks at."""

    form: str
    look: int
    threshold: float
    window: int


def scores(rows: Sequence[Row], form: str, window: int) -> np.ndarray:
    """(N, looks) mean P(real) over the last `window` looks; of fewer at the beginning."""
    key = "said" if form == "drawn" else "said_average"
    real = 1 / (1 + np.exp(np.array([row[key] for row in rows])))
    sums = np.cumsum(np.pad(real, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, real.shape[1] + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[:, ends] - sums[:, starts]) / (ends - starts)


def called_fake(real: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Mean P(real), any shape -> bool. What lies on the threshold is called fake."""
    return real <= threshold


def check_classes(labels: Sequence[int] | np.ndarray, told: str = "the rule cannot be calibrated") -> None:
    """InputError, which begins as told, if one class is lacking among these labels."""
    for label, name in ((0, "real"), (1, "fake")):
        if label not in labels:
            needed = "images of both classes are needed that the detector calls rightly"
            raise InputError(f"{told}: {needed}, and no {name} is among them")


def calibrated(rows: Sequence[Row], window: int, threshold: float | None = None) -> Rule:
    """The form, look and threshold of best balanced accuracy on these rows; of several, the one that parts reals from
    fakes best (AUC), then the earliest. Thresholds are tried in the middle between neighbouring scores, and of those
    that are as good the middle one is taken; or it is given, and form and look are those that suit it best. Chosen
    among so many looks a rule is good on its own rows whatever they are: see `left_out`. InputError without both
    classes."""
    labels = np.array([row["label"] for row in rows])
    check_classes(labels)
    best = None
    for form in ("drawn", "average"):
        values = scores(rows, form, window)
        for look in range(window - 1, values.shape[1]):
            tried = _between(values[:, look]) if threshold is None else np.array([threshold])
            says = called_fake(values[:, look, None], tried[None])
            balanced = (says[labels == 1].mean(axis=0) + (~says[labels == 0]).mean(axis=0)) / 2
            if best is not None and balanced.max() < best[0][0]:
                continue
            high = np.flatnonzero(balanced == balanced.max())
            rank = (float(balanced.max()), _auc(-values[:, look], labels), -look)
            if best is None or rank > best[0]:
                best = rank, Rule(form, look, float(tried[high[len(high) // 2]]), window)
    assert best is not None
    return best[1]


def _between(values: np.ndarray) -> np.ndarray:
    """The middles between neighbouring values; the value itself where all are one."""
    known = np.unique(values)
    return (known[1:] + known[:-1]) / 2 if len(known) > 1 else known


def left_out(rows: Sequence[Row], window: int, threshold: float | None = None) -> dict[str, float]:
    """What a rule chosen on these rows stands on. images, and photographs, of which several may be; own: balanced
    accuracy of the rule on them; left_out: that of each photograph's images under the rule of all others, about 0.5
    where there is nothing to go by (NaN where a class hangs on one photograph)."""
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    right = np.full(len(rows), np.nan)
    for group in np.unique(groups):
        rest = [row for row in rows if row["group"] != group]
        if len({row["label"] for row in rest}) == 2:
            own = [k for k in range(len(rows)) if groups[k] == group]
            right[own] = rightly([rows[k] for k in own], calibrated(rest, window, threshold))
    found = {"images": len(rows), "photographs": len(np.unique(groups))}
    return found | {
        "own": _balanced(rightly(rows, calibrated(rows, window, threshold)), labels),
        "left_out": _balanced(right, labels),
    }


def _balanced(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in (0, 1)]))


def _auc(fake: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.auc(metrics.roc(fake, labels, np.ones((len(labels), 1))))[0])


def rightly(rows: Sequence[Row], rule: Rule) -> np.ndarray:
    """(N,) bool: called rightly under the rule."""
    real = scores(rows, rule.form, rule.window)[:, rule.look]
    return called_fake(real, rule.threshold) == np.array([row["label"] == 1 for row in rows])


def shortened(prior: Prior, rules: Iterable[Rule]) -> Prior:
    """The same drawing, ended at the last look that any of these rules takes."""
    return prior._replace(steps=min(prior.steps, prior.look * (1 + max(rule.look for rule in rules))))


class Early(NamedTuple):
    """Deciding along the way: real as soon as `patience` looks in a row, none of them before look `first`, are above
    the rule's threshold."""

    patience: int
    first: int


def stopping(rule: Rule, how: Early) -> Stop:
    """For a drawing (`shortened` to this rule) that is to end as soon as `early` would decide."""
    return Stop(rule.form, rule.window, rule.threshold, how.first, how.patience)


def early(rows: Sequence[Row], rule: Rule, how: Early) -> tuple[np.ndarray, np.ndarray]:
    """As `how` says, else what the rule says at its look. -> (N,) bool called fake, (N,) looks that it took."""
    real = ~called_fake(scores(rows, rule.form, rule.window)[:, : rule.look + 1], rule.threshold)
    runs, took, called = np.zeros(len(real), int), np.full(len(real), rule.look + 1), ~real[:, -1]
    open_ = np.ones(len(real), bool)
    for k in range(how.first, real.shape[1]):
        runs = np.where(real[:, k], runs + 1, 0)
        now = open_ & (runs >= how.patience)
        took[now], called[now], open_[now] = k + 1, False, False
    return called, took


def hasty(rows: Sequence[Row], rule: Rule) -> Early:
    """The one that takes the fewest looks of those that are as good on these rows as the rule itself, by balanced
    accuracy; the rule's own look where none other is."""
    labels = np.array([row["label"] for row in rows])
    least, best = _balanced(rightly(rows, rule), labels), Early(1, rule.look)
    fewest = rule.look + 1.0
    for patience in (1, 2, 3, 5, 10, 20):
        for first in range(0, rule.look + 1, max(1, rule.look // 20)):
            called, took = early(rows, rule, Early(patience, first))
            if _balanced(called == (labels == 1), labels) >= least and took.mean() < fewest:
                fewest, best = float(took.mean()), Early(patience, first)
    return best


def hastened(rows: Sequence[Row], rule: Rule, prior: Prior, how: Early) -> dict[str, float]:
    """What deciding along the way comes to: accuracy, the rule's beside it, and mean iterations, of all and of reals
    (NaN without any)."""
    called, took = early(rows, rule, how)
    labels = np.array([row["label"] for row in rows])
    steps = np.minimum(took * prior.look, prior.steps)
    found = {**how._asdict(), "accuracy": float(np.mean(called == (labels == 1)))}
    found |= {"accuracy_of_rule": float(rightly(rows, rule).mean()), "iterations": float(steps.mean())}
    return found | {"iterations_of_reals": float(steps[labels == 0].mean()) if (labels == 0).any() else np.nan}
