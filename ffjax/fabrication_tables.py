"""What `experiments.huang_iap` prints and draws: one table a question, and under each a line that says which claim of
Huang et al. (ICIP 2020) it bears on, and whether that held here. Shares and means in per cent with 95 % intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffjax import figures, masks, metrics
from ffjax.fabrication import ACTIVATED, ALONE, BySet, Cell, Found, Victim
from ffjax.fabrication_plan import by_class, sweeps, weight
from ffjax.findings import TRUSTED
from ffjax.individual import KINDS
from ffjax.metrics import Estimate

LIMITS = "Intervals are over identities alone: one training, one attack seed, one noise draw."
ENOUGH = 200
"""Images a class below which a table says how few it rests on."""
UNKNOWN = "Published figures: not found (neither paper nor code gives any that could be read)."
VERDICT = "wrong"
NAMES = {"fakes": "fakes called real", "reals": "reals called fake"}
IN_MASKS = ("iou_true", "iou_wanted", "pixels_true", "pixels_wanted", "area", "wrong", "shown", "both")
HEADS = (
    "IoU true",
    "IoU wanted",
    "pixels true",
    "pixels wanted",
    "area",
    "verdict wrong",
    "mask shown",
    "both at once",
)


def show(console: Console, cells: Sequence[Cell], found: Found, apart: BySet, lacking: str) -> dict[str, str]:
    """Every table that has cells, each with its line; table -> the line. apart: the verdict cells set by set. lacking:
    what `show_clean` returned; if anything, every heading says so and nothing is claimed."""
    drawn, lines = {}, {}
    for part, (draw, parts) in TABLES.items():
        chosen = [cell for cell in cells if cell.part in parts]
        drawn[part] = (*draw(chosen, found), _counts(chosen, found))
    verdicts = [cell for cell in cells if cell.part == "verdict"]
    drawn["sets"] = (*_sets(verdicts, apart), [n for one in apart.values() for n in _counts(verdicts, one)])
    for part, (table, line, counts) in drawn.items():
        if table.row_count:
            table.title = ("detector not competent: " if lacking else "") + str(table.title)
            said = f"Nothing is claimed, the detector is not competent: {lacking}." if lacking else line
            lines[part] = said + _few(counts)
            console.print(table)
            console.print(escape(lines[part]) + "\n", highlight=False, soft_wrap=True)
    console.print(LIMITS + "\n", highlight=False, soft_wrap=True)
    return lines


def show_clean(console: Console, clean: Mapping[str, Mapping[str, Estimate]], victim: Victim, least: float) -> str:
    """What the detector does unattacked, set by set and on all that is attacked; where it falls short of a mask IoU of
    `least` on what is attacked, and of findings.TRUSTED verdicts on the first set. Empty: it is competent."""
    names = {"clean_balanced_accuracy": "balanced accuracy", "clean_mask_iou": "mask IoU of fakes"}
    names["clean_disagree"] = "heads disagree"
    table = Table("set", "images", *names.values(), title="0. The detector on clean test images")
    counts = []
    for name, found in clean.items():
        images, fakes = found["clean_accuracy"].n, found["clean_mask_iou"].n
        counts += [fakes, images - fakes]
        table.add_row(name, str(images), *(metrics.percent(found[key]) for key in names))
    console.print(table)
    said = f"a verdict alone is pushed to a margin of {victim.confidence:.2f} (loss activation: at most {ACTIVATED}); "
    said += f"a mask says fake above {100 * victim.least:.1f} % of the image.{_few(counts)}"
    console.print(f"Tuned on validation images: {said}", highlight=False, soft_wrap=True)
    first, iou = next(iter(clean)), clean["attacked"]["clean_mask_iou"]
    right = clean[first]["clean_balanced_accuracy"]
    asked = {
        f"clean mask IoU {iou.value:.3f} of {iou.n} fakes, {least:g} is asked": iou.value >= least,
        f"clean balanced accuracy {right.value:.3f} on {first}, {TRUSTED:g} is asked": right.value >= TRUSTED,
    }
    words = "competent" if all(asked.values()) else "detector not competent"
    console.print(escape(f"{'; '.join(asked)}: {words}.\n"), highlight=False, soft_wrap=True)
    return "; ".join(what for what, met in asked.items() if not met)


def _verdict(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    table = _of_verdicts("1. The verdict fabricated: called wrongly, of those called rightly (n)", {"": found}, cells)
    told = [_rise(found, cell, side, VERDICT) for cell in cells for side in NAMES]
    most = [
        f"{NAMES[side]} {_points(gain)} (eps {cell.eps:g}, T {cell.steps}, {cell.loss}; largest of {count} cells)"
        for side in NAMES
        for cell, gain, count in [_extreme(cells, lambda c, side=side: _rise(found, c, side, VERDICT))]
        if gain
    ]
    line = f"Claim: individual perturbations fabricate the verdict. {_held(told)} Over noise of the same size, on "
    return table, line + f"these images: {'; '.join(most) or 'none'}. {UNKNOWN}"


def _sets(cells: Sequence[Cell], apart: BySet) -> tuple[Table, str]:
    table = _of_verdicts("7. Table 1 set by set", apart if len(apart) > 1 else {}, cells)
    return table, "Sets are pooled above; the margin aimed at and the mask's least area are tuned on the first alone."


def _of_verdicts(title: str, apart: BySet, cells: Sequence[Cell]) -> Table:
    kinds = [f"{NAMES[side]}: {kind}" for side in NAMES for kind in KINDS]
    table = Table("loss", "eps/255", "T", *(["set"] if any(apart) else []), title=title)
    for column in ("n", *kinds[:3], "n", *kinds[3:]):
        table.add_column(column)
    for cell in cells:
        for name, found in apart.items():
            sides = [_told_kinds(found[cell.name][side]) for side in NAMES]
            table.add_row(cell.loss, f"{cell.eps:g}", str(cell.steps), *([name] if name else []), *sides[0], *sides[1])
    return table


def _mask(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    table = _table(
        "2. The mask fabricated: mask attacked alone", "images", "wanted", "eps/255", "n", "shown as", *HEADS
    )
    for cell in cells:
        told = found[cell.name][cell.side]
        for kind in KINDS if told["n"] else ():
            first = kind == KINDS[0]
            start = (cell.side, str(cell.target), f"{cell.eps:g}", str(told["n"])) if first else ("",) * 4
            table.add_row(*start, kind, *_row(told, kind, IN_MASKS), end_section=kind == KINDS[-1])
    gains = {cell: _rise(found, cell, cell.side, "iou_wanted") for cell in cells}
    line = (
        f"Claim: individual perturbations fabricate the mask. {_held(list(gains.values()), 'IoU with the wanted mask')}"
    )
    for word, sign in (("Largest", 1), ("smallest", -1)):
        cell, gain, count = _extreme(cells, gains.get, sign)
        if gain:
            line += f" {word} of {count} cells on these images: {cell.side} to {cell.target} {_points(gain)} at eps "
            line += f"{cell.eps:g};"
    reached = [found[c.name][c.side]["is"]["attacked"]["float"]["shown"].value for c in cells if gains[c]]
    if reached:
        share = f"{100 * min(reached):.0f} to {100 * max(reached):.0f} % of images"
        line += f" over these {len(reached)}, 9 of 10 pixels as wanted on {share}."
    return table, f"{line} {UNKNOWN}"


def _joint(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    heads = ("verdict wrong", "IoU wanted", "pixels wanted", "area", "mask shown", "both at once", "front")
    table = _table(
        "3. Verdict and mask together: weight of the mask", "images", "wanted", "eps/255", "n", "weight", *heads
    )
    for (side, target, eps), sweep in sweeps(cells, found).items():
        told = [found[cell.name][side] for cell in sweep]
        for kind in KINDS[:2]:
            table.add_row(side, target, f"{eps:g}", str(told[0]["n"]), kind, *_row(told[0], kind, IN_JOINT), "")
        for cell, one, on in zip(sweep, told, front(found, sweep), strict=True):
            start = (side, target, f"{eps:g}", str(one["n"]), weight(cell))
            table.add_row(*start, *_row(one, "attacked", IN_JOINT), "on it" if on else "")
        table.add_section()
    expected = "No claim of the paper; expected (our inference): only an attack on both makes both heads lie."
    return table, f"{expected} Every weight tried is shown; the front is that of the values on these images."


IN_JOINT = ("wrong", "iou_wanted", "pixels_wanted", "area", "shown", "both")


def _gate(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    heads = ("IoU wanted, its own gate", "IoU wanted, as deployed", "area", "verdict wrong", *HEADS[-2:])
    table = _table("4. The gate in the attacker's hands", "images", "attacked", "wanted", "n", "shown, or gate", *heads)
    scenes: dict[tuple, dict[str, Estimate]] = {}
    for cell in cells:
        told = found[cell.name][cell.side]
        attacked = "mask" if cell.weight == ALONE else f"both, {weight(cell)}"
        scene = (cell.side, attacked, str(cell.target))
        if not told["n"]:
            continue
        if scene not in scenes:
            for kind in KINDS[:2]:
                table.add_row(*scene, str(told["n"]), f"{kind} images", "", *_row(told, kind, IN_GATE))
        own = told.get("own", {}).get("attacked", told["is"]["attacked"]["float"])["iou_wanted"]
        table.add_row(
            *scene, str(told["n"]), f"gate: {cell.gate}", metrics.percent(own), *_row(told, "attacked", IN_GATE)
        )
        scenes.setdefault(scene, {})[cell.gate] = told["is"]["attacked"]["float"]["iou_wanted"]
    lines = [
        f"{side}, {attacked}, to {target}: {', '.join(f'{gate} {metrics.percent(e)}' for gate, e in gates.items())}"
        for (side, attacked, target), gates in scenes.items()
    ]
    what = "IoU with the wanted mask as deployed, by the attacker's gate: "
    return table, f"No claim of the paper, which does not say how its gate was handled. {what}{'; '.join(lines)}."


IN_GATE = ("iou_wanted", "area", "wrong", "shown", "both")


def _storage(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    """Of every verdict and mask cell, what is left of it as a file, noise in brackets."""
    shown = list(by_class(cells, found))
    forms = tuple(shown[0][2]["is"]["clean"]) if shown else ()
    table = _table("5. Survival as a file: attacked (noise)", "images", "attack", "eps/255", "n", "measure", *forms)
    gains: dict[str, dict[str, list[float]]] = {}
    for cell, side, told in shown:
        measure = VERDICT if cell.target is None else "iou_wanted"
        by_kind = {kind: told["is"][kind] for kind in ("attacked", "noise")}
        texts = [
            f"{metrics.percent(by_kind['attacked'][f][measure])} ({100 * by_kind['noise'][f][measure].value:.0f})"
            for f in forms
        ]
        attack = cell.target or f"{cell.loss}, T {cell.steps}"
        words = "verdict wrong" if measure == VERDICT else "IoU wanted"
        table.add_row(side, attack, f"{cell.eps:g}", str(told["n"]), words, *texts)
        for form in forms:
            gain = by_kind["attacked"][form][measure].value - by_kind["noise"][form][measure].value
            gains.setdefault(words, {}).setdefault(form, []).append(gain)
    means = [
        f"{words} {', '.join(f'{form} {100 * float(np.mean(values)):+.0f}' for form, values in kept.items())}"
        for words, kept in gains.items()
    ]
    what = "Mean gain over noise, in points:"
    return table, f"No claim of the paper, which tests no recompression. {what} {'; '.join(means)}."


def _disagree(cells: Sequence[Cell], found: Found) -> tuple[Table, str]:
    table = _table("6. Heads that disagree, a detector that costs nothing", "images", "attacked", "eps/255", "n")
    for column in ("clean", "noise", "attacked", "attacked, as png", "attacked minus clean"):
        table.add_column(column)
    gains: dict[str, list[Estimate]] = {"verdict": [], "mask": [], "joint": []}
    for cell, side, told in by_class(cells, found):
        at, over = told["is"], told["over"]["clean"]["disagree"]
        values = [at[kind]["float"]["disagree"] for kind in KINDS] + [at["attacked"]["png"]["disagree"]]
        what = {"verdict": f"verdict, {cell.loss}, T {cell.steps}", "mask": f"mask, {cell.target}"}
        attack = what.get(cell.part, f"both, {cell.target}, {weight(cell)}")
        table.add_row(side, attack, f"{cell.eps:g}", str(told["n"]), *map(metrics.percent, values), _points(over))
        if cell.part != "joint" or cell.weight not in (0, ALONE):
            gains[cell.part].append(over)
    seen = [
        f"{part} attacks: more than clean on {sum(e.low > 0 for e in found)} of {len(found)}, the largest of "
        f"these {len(found)} on these images {_points(max(found, key=lambda e: e.value))}"
        for part, found in gains.items()
        if found
    ]
    return table, f"No claim of the paper; expected (our inference): a lone attack shows. {'; '.join(seen)}."


TABLES: dict[str, tuple[Callable[[Sequence[Cell], Found], tuple[Table, str]], tuple[str, ...]]] = {
    "verdict": (_verdict, ("verdict",)),
    "mask": (_mask, ("mask",)),
    "joint": (_joint, ("joint",)),
    "gate": (_gate, ("gate",)),
    "storage": (_storage, ("verdict", "mask")),
    "disagree": (_disagree, ("verdict", "mask", "joint")),
}
"""How each is drawn, and of which parts of the plan."""


def front(found: Found, sweep: Sequence[Cell]) -> np.ndarray:
    """(N,) bool: on the Pareto front of verdicts turned and IoU with the wanted mask."""
    told = [found[cell.name][cell.side]["is"]["attacked"]["float"] for cell in sweep]
    return masks.front(np.array([[one["wrong"].value, one["iou_wanted"].value] for one in told]))


def front_figure(cells: Sequence[Cell], found: Found, competent: bool) -> Figure:
    """A panel a sweep: verdicts turned over IoU with the wanted mask, the weight at each point, the front joined."""
    groups = sweeps(cells, found)
    fig = Figure(figsize=(5.6 * max(1, len(groups)), 5), layout="constrained")
    axes = fig.subplots(1, max(1, len(groups)), squeeze=False)[0]
    for ax, ((side, target, eps), sweep) in zip(axes, groups.items(), strict=False):
        told = [found[cell.name][side] for cell in sweep]
        for kind, colour in (("clean", "clean"), ("noise", "noise")):
            _cross(ax, told[0]["is"][kind]["float"], figures.COLOURS[colour], figures.MARKERS[colour], kind)
        words: dict[tuple[float, float], list[str]] = {}
        for one, cell in zip(told, sweep, strict=True):
            at = one["is"]["attacked"]["float"]
            _cross(ax, at, figures.COLOURS["uap"], figures.MARKERS["uap"], "attacked" if cell is sweep[0] else None)
            word = {0: "verdict", ALONE: "mask"}.get(cell.weight, f"{cell.weight:g}")
            words.setdefault((round(at["iou_wanted"].value, 2), round(at["wrong"].value, 2)), []).append(word)
        for point, found_there in words.items():
            ax.annotate(", ".join(found_there), point, (4, 5), textcoords="offset points", size=9, rotation=25)
        edge = np.array([
            [one["is"]["attacked"]["float"][name].value for name in ("iou_wanted", "wrong")]
            for one, on in zip(told, front(found, sweep), strict=True) if on
        ])  # fmt: skip
        edge = edge[np.argsort(edge[:, 0])]
        ax.plot(edge[:, 0], edge[:, 1], color=figures.COLOURS["uap"], lw=1.5, alpha=0.5, zorder=1)
        ax.set_title(f"{side} to {target}, eps {eps:g}/255, n = {told[0]['n']}")
        ax.set_xlabel("mean IoU with the wanted mask")
        ax.set_ylabel(NAMES[side])
        ax.set_xlim(-0.04, 1.2)
        ax.set_ylim(-0.04, 1.2)
        ax.grid(True)
        ax.legend(loc="center", fontsize=9)
    head = "" if competent else "detector not competent: "
    fig.suptitle(f"{head}Verdict and mask attacked together, by the weight of the mask", x=0.01, ha="left", size=12)
    return fig


def _cross(ax: Any, at: Mapping[str, Estimate], colour: str, marker: str, label: str | None) -> None:
    x, y = at["iou_wanted"], at["wrong"]
    ax.hlines(y.value, x.low, x.high, color=colour, lw=1)
    ax.vlines(x.value, y.low, y.high, color=colour, lw=1)
    ax.plot([x.value], [y.value], marker, color=colour, ms=6, ls="", label=label)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title)


def _counts(cells: Sequence[Cell], found: Found) -> list[int]:
    return [told["n"] for _, _, told in by_class(cells, found)]


def _few(counts: Sequence[int]) -> str:
    """A line of its own where shares rest on too few images; else nothing."""
    few = [n for n in counts if n < ENOUGH]
    said = f"\nFewer than {ENOUGH} images a class in {len(few)} of {len(counts)} cases: n = "
    return f"{said}{min(few)} to {max(few)}." if few else ""


def _row(told: Mapping[str, Any], kind: str, measures: Sequence[str]) -> list[str]:
    return [metrics.percent(told["is"][kind]["float"][name]) for name in measures]


def _told_kinds(told: Mapping[str, Any]) -> list[str]:
    if not told["n"]:
        return ["0", "", "", ""]
    return [str(told["n"]), *(metrics.percent(told["is"][kind]["float"][VERDICT]) for kind in KINDS)]


def _rise(found: Found, cell: Cell, side: str, measure: str) -> Estimate | None:
    told = found[cell.name][side]
    return told["over"]["noise"][measure] if told["n"] else None


def _extreme(cells: Sequence[Cell], gain: Callable[[Cell], Estimate | None], sign: int = 1) -> tuple[Any, Any, int]:
    """The cell of the largest gain (sign -1: the smallest), it, and of how many cells; of equals the first."""
    known = [(cell, e) for cell in cells if (e := gain(cell)) is not None]
    cell, most = max(known, key=lambda pair: sign * pair[1].value) if known else (None, None)
    return cell, most, len(known)


def _held(gains: Sequence[Estimate | None], what: str = "wrong verdicts") -> str:
    """In how many cells the interval of the gain over noise lies above nothing."""
    known = [e for e in gains if e is not None]
    held = sum(e.low > 0 for e in known)
    word = "Held" if known and held == len(known) else "Held in part" if held else "Not held"
    return f"{word}: more {what} than noise in {held} of {len(known)} cells."


def _points(e: Estimate) -> str:
    return f"{100 * e.value:+.0f} points [{100 * e.low:+.0f}, {100 * e.high:+.0f}]"
