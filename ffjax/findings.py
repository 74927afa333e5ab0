"""What a results.json says: its cells and claims by name, the one rule of what may be claimed, and all that in words.

Plain text throughout; the page and the terminal dress it.
"""

from collections.abc import Sequence
from typing import NamedTuple

KINDS = {"clean": "clean", "noise": "same-norm noise", "fixed": "best fixed pattern", "uap": "universal perturbation"}
DIRECTIONS = {"fake_called_real": "fakes called real", "real_called_fake": "reals called fake"}
TRUSTED = 0.90
"""Clean balanced accuracy below which a detector is not there to be broken, and no claim is made of it."""


def groups(results: dict) -> list[str]:
    """Layer choice and bound of the patterns, in the order they were asked for."""
    return list(dict.fromkeys(pattern["group"] for pattern in results["patterns"]))


def chosen(results: dict, group: str) -> str:
    """The pattern of a group that its selection score chose."""
    return next(p["name"] for p in results["patterns"] if p["group"] == group and p["chosen"])


def condition(results: dict, kind: str, group: str, storage: str) -> str:
    """The condition that stands for a kind: clean, the first noise, the group's chosen pattern."""
    names = {"clean": f"clean-{storage}", "noise": f"noise-{group}-0-{storage}"}
    return names.get(kind) or f"uap-{chosen(results, group)}-{storage}"


def estimate(results: dict, detector: str, data: str, name: str, metric: str) -> list:
    """[value, low, high, n] of one cell; values None where undefined, all None where the cell has no such metric."""
    for cell in results["cells"]:
        if (cell["detector"], cell["data"], cell["condition"]) == (detector, data, name):
            return cell["metrics"].get(metric, [None] * 4)
    return [None] * 4


def claim(results: dict, detector: str, data: str, group: str, direction: str) -> dict:
    """The row of results["claims"]."""
    key = {"detector": detector, "data": data, "group": group, "direction": direction}
    return next(row for row in results["claims"] if key.items() <= row.items())


def verdict(results: dict, row: dict) -> str:
    """held: it beats clean, noise and the best fixed pattern; beats noise only: clean and noise, and is not shown to
    beat the fixed pattern; not held; no claim: the detector cannot tell clean images apart (below TRUSTED)."""
    accuracy = _clean(results, row["detector"], row["data"])[0]
    if accuracy is None or accuracy < TRUSTED:
        return "no claim"
    if row["held"]:
        return "held"
    beaten = all((row[key][1] or 0) > 0 for key in ("over_clean", "over_noise"))
    return "beats noise only" if beaten else "not held"


def storages(results: dict) -> list[str]:
    """Every storage the images went through, in the order asked for."""
    return list(dict.fromkeys(c["storage"] for c in results["conditions"] if c["kind"] == "clean"))


def counts(data: dict) -> str:
    """The denominators of a set, in words."""
    return f"{data['fake']} fakes, {data['real']} reals, {data['groups']} identities"


def number(value: float | None, scale: float = 100) -> str:
    """A share in per cent with one decimal, or (scale 1) a figure with three; an en dash where undefined."""
    if value is None:
        return "–"
    return (f"{scale * value:.1f}" if scale == 100 else f"{value:.3f}").replace("-", "−")


def percent(value: float | None, unit: str = "\u00a0%") -> str:
    """A share in whole per cent; the sign never leaves its number at the end of a line."""
    return "–" if value is None else f"{100 * value:.0f}{unit}"


def interval(found: Sequence) -> str:
    """The 95 % interval of [value, low, high, n] in whole per cent, or nothing where there is none."""
    return "" if found[1] is None else f"[{100 * found[1]:.0f}, {100 * found[2]:.0f}]"


def spread(row: dict) -> str:
    """The range of a claim's kind over its patterns in whole per cent."""
    return f"{percent(row['low'], '')}–{percent(row['high'], '')}"


def margin(values: Sequence[float | None]) -> str:
    """A signed difference in points, with its 95 % interval."""
    value, low, high = ("–" if x is None else f"{100 * x:+.1f}".replace("-", "−") for x in values)
    return f"{value} [{low}, {high}]"


class Story(NamedTuple):
    """The findings on one group of patterns: in a sentence a source and set, how the patterns were made, and at length:
    (what about, sentences)."""

    lead: str
    made: str
    points: list[tuple[str, list[str]]]


def story(results: dict, config: dict, group: str) -> Story:
    """Composed from the claims alone: each source on each set in both directions, then how far it carried."""
    pairs = [(detector, data) for data in results["data"] for detector in results["detectors"]]
    sources = [pair for pair in pairs if pair[0] in results["sources"]]
    asked = config.get("uap", {})
    blind = asked.get("mode") != "with_data" and asked.get("bank") != "data"
    seeds = sum(pattern["group"] == group for pattern in results["patterns"])
    made = f"Universal perturbations made on {', '.join(results['sources'])} {'without an' if blind else 'with'} image"
    made += f"{'s' * (not blind)}; {seeds} seed{'s' * (seeds > 1)}; layers and bound: {group}."
    points = [
        (f"{detector} on set {data['name']}", _point(results, detector, data, group)) for detector, data in sources
    ]
    points.append(("Unseen detectors", _carried(results, pairs, group)))
    return Story(" ".join(_lead(results, detector, data["name"], group) for detector, data in sources), made, points)


def _lead(results: dict, detector: str, data: str, group: str) -> str:
    parts = []
    for way, words in DIRECTIONS.items():
        row = claim(results, detector, data, group, way)
        said = verdict(results, row)
        if said == "no claim":
            accuracy = percent(_clean(results, detector, data)[0])
            return f"{detector} on set {data}: clean accuracy too low for a claim (balanced {accuracy})."
        noise = f" (noise {percent(row['noise']['median'])})" if "noise" in row else ""
        rates = " → ".join(percent(row[kind]["median"]) for kind in ("clean", "uap"))
        parts.append(f"{words} {rates}{noise}, {said}")
    return f"{detector} on set {data}: {'; '.join(parts)}."


def _point(results: dict, detector: str, data: dict, group: str) -> list[str]:
    rows = {way: claim(results, detector, data["name"], group, way) for way in DIRECTIONS}
    clean = _clean(results, detector, data["name"])
    weak = verdict(results, rows["fake_called_real"]) == "no claim"
    lines = [
        f"Clean balanced accuracy {percent(clean[0])} {interval(clean)}"
        f"{': too low for a claim, so what follows is a verdict shift, not a break' if weak else ''}.",
        *(_direction(results, DIRECTIONS[way], row) for way, row in rows.items()),
        _one_sided(rows),
        _refitted(results, detector, data["name"], group),
        _stored(results, detector, data, group),
    ]
    return [line for line in lines if line]


def _direction(results: dict, words: str, row: dict) -> str:
    rates = [f"{percent(row[kind]['median'])} {name}" for kind, name in KINDS.items() if kind in row]
    return (
        f"{words.capitalize()} (of {row['n']}, {row['groups']} identities): {', '.join(rates)} ({spread(row['uap'])} "
        f"over {row['uap']['patterns']} seeds). Margin over noise {margin(row['over_noise'])}, over the fixed pattern "
        f"{margin(row['over_fixed'])} points: {verdict(results, row)}."
    )


def _one_sided(rows: dict[str, dict]) -> str:
    """Said where errors of one kind are gained at the price of the other, which a mean would hide."""
    gain = {way: (row["uap"]["median"] or 0) - (row["clean"]["median"] or 0) for way, row in rows.items()}
    sides = {"real": ("fake_called_real", "real_called_fake"), "fake": ("real_called_fake", "fake_called_real")}
    for side, (way, other) in sides.items():
        if gain[way] > 0.05 and gain[other] < 0:
            return f"It pushes images to one side, {side}: errors the other way become fewer."
    return ""


def _refitted(results: dict, detector: str, data: str, group: str) -> str:
    best = condition(results, "uap", group, "float")
    kept, refit = (estimate(results, detector, data, best, f"{m}_balanced_accuracy") for m in ("attacked", "refit"))
    if refit[0] is None:
        return ""
    return (
        f"Balanced accuracy under the chosen perturbation {percent(kept[0])} {interval(kept)}; with the threshold "
        f"refitted on attacked validation images {percent(refit[0])} {interval(refit)}."
    )


def _stored(results: dict, detector: str, data: dict, group: str) -> str:
    storage, seen = storages(results)[-1], []
    for kind in ("clean", "noise", "uap"):
        found = estimate(results, detector, data["name"], condition(results, kind, group, storage), "fooling_rate")
        seen.append(f"{percent(found[0])} {interval(found)} {KINDS[kind]}")
    return f"Verdicts changed after {storage} (of {data['real'] + data['fake']}): {', '.join(seen)}."


def _carried(results: dict, pairs: Sequence[tuple[str, dict]], group: str) -> list[str]:
    unseen = [(detector, data["name"]) for detector, data in pairs if detector not in results["sources"]]
    said = [[verdict(results, claim(results, *pair, group, way)) for way in DIRECTIONS] for pair in unseen]
    fit = [answers for answers in said if "no claim" not in answers]
    lines = [f"Detector and set pairs: {len(unseen)}; with the clean balanced accuracy for a claim: {len(fit)}."]
    for j, words in enumerate(DIRECTIONS.values()):
        if fit:
            held, beaten = (sum(one[j] == word for one in fit) for word in ("held", "beats noise only"))
            lines.append(f"{words.capitalize()}: held in {held} of {len(fit)}, and beats noise only in {beaten} more.")
    return lines


def _clean(results: dict, detector: str, data: str) -> list:
    return estimate(results, detector, data, "clean-float", "attacked_balanced_accuracy")
