"""Huang et al.'s claims laid out as tables, a line under each that says whether it holds here, and by how much."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ffjax import huang, metrics
from ffjax.metrics import Estimate

Row = Mapping[str, Any]
"""One measured cell: data, source, method, target, storage, measure, competent, and huang.row's estimates."""


def show(console: Console, rows: Sequence[Row], ladder: Sequence[Row], masks: Sequence[Row], quality: Sequence[Row],
         first: str) -> dict[str, str]:  # fmt: skip
    """Prints every table and returns claim -> its line. first: the set that patterns were tuned on."""
    told = {}
    white = [r for r in rows if r["source"] == r["target"] and r["storage"] == "float"]
    seen = [r for r in white if r["data"] == first]
    told["without data"] = _claim(console, f"1. On the detector it was made on, on {first}", seen, huang.LADDER[:2])
    told["with data"] = _line([r for r in seen if r["method"] not in huang.LADDER[:2]])
    console.print(f"With images: {told['with data']}.\n", highlight=False, soft_wrap=True)
    told["rungs"] = _rungs(console, ladder)
    unseen = [r for r in white if r["data"] != first]
    told["unseen data"] = _claim(console, "3. On data it has not seen", unseen)
    carried = [r for r in rows if r["source"] != r["target"] and r["storage"] == "float"]
    told["unseen detectors"] = _claim(console, "4. On detectors it has not seen", carried)
    kept = [r for r in rows if r["source"] == r["target"] and r["storage"] != "float"]
    told["stored"] = _claim(console, "5. From a file", kept)
    told["mask"] = _masks(console, masks)
    told["visible"] = _quality(console, quality)
    return told


def _claim(console: Console, title: str, rows: Sequence[Row], methods: Sequence[str] = ()) -> str:
    """A table of rows and the line of its claim: verdicts changed, more than by noise. methods: those that the line is
    about; none: all that see no image."""
    table = Table("made on", "method", "shown to", "set", "stored as", *MEASURED, title=title)
    cells: dict[tuple, dict[str, str]] = {}
    for row in rows:
        mark = "" if row["competent"] else " (not competent)"
        place = (row["source"], row["method"], row["target"] + mark, row["data"], row["storage"])
        cells.setdefault(place, {})[row["measure"]] = _told(row["found"])
    for place, told in cells.items():
        table.add_row(*place, *(told[measure] for measure in huang.MEASURES))
    if not table.row_count:
        return "not examined here"
    console.print(table)
    line = _line([r for r in rows if r["method"] in (methods or huang.LADDER[:2])])
    console.print(f"Without data: {line}.\n", highlight=False, soft_wrap=True)
    return line


MEASURED = [f"{name}: noise -> pattern (%), difference" for name in huang.MEASURES.values()]


def _told(found: Mapping[str, Estimate] | None) -> str:
    """'23 -> 57, +34 [+9, +74]'; '-' where no image can go that way."""
    if found is None:
        return "-"
    return f"{100 * found['noise'].value:.0f} -> {100 * found['rate'].value:.0f}, {points(found['over_noise'])}"


def _line(rows: Sequence[Row]) -> str:
    chosen = [r for r in rows if r["measure"] == "fooling" and r["found"] is not None]
    if not chosen:
        return "not examined here"
    return huang.verdict([r["found"]["over_noise"] if r["competent"] else None for r in chosen])


def _rungs(console: Console, ladder: Sequence[Row]) -> str:
    table = Table("made on", "set", "rung", "over", "verdicts changed, in points", "asked", "",
                  title="2. Rungs: each with what the one below lacks")  # fmt: skip
    for row in ladder:
        asked = f"> {100 * row['least']:.0f}"
        held = "no claim (not competent)" if not row["competent"] else "held" if row["held"] else "not held"
        table.add_row(row["source"], row["data"], row["method"], row["over"], points(row["gain"]), asked, held)
    if not table.row_count:
        return "not examined here"
    console.print(table)
    able = [row["held"] for row in ladder if row["competent"]]
    line = f"held in {sum(able)} of {len(able)} steps" if able else "no claim: no detector here is competent"
    console.print(f"GD-UAP's order (noise < no data < range prior < images): {line}.\n", highlight=False)
    return line


def _masks(console: Console, masks: Sequence[Row]) -> str:
    if not masks:
        console.print("6. No detector with a mask among the sources: its claim is not examined here.\n")
        return "not examined here"
    table = Table("made on", "method", "set", "measure", "clean", "noise", "pattern", "over noise (points)",
                  title="6. The mask, on fakes called rightly")  # fmt: skip
    for row in masks:
        shares = [metrics.percent(row["found"][k]) for k in ("clean", "noise", "rate")]
        table.add_row(row["source"], row["method"], row["data"], row["measure"], *shares,
                      points(row["found"]["over_noise"]))  # fmt: skip
    console.print(table)
    known = [row for row in masks if row["competent"]]
    falls = [row["found"]["over_noise"] for row in known if row["measure"] == "IoU with the true mask"]
    if not falls:
        console.print("No claim: no detector here is competent.\n")
        return "no claim: no detector here is competent"
    held = sum(e.high < 0 for e in falls)
    low, high = (100 * f(e.value for e in falls) for f in (min, max))
    line = (
        f"IoU falls further than under noise by a whole interval in {held} of {len(falls)}; {low:+.0f} to {high:+.0f}"
    )
    console.print(f"{line} points.\n", highlight=False, soft_wrap=True)
    return line


def _quality(console: Console, quality: Sequence[Row]) -> str:
    if not quality:
        return "not examined here"
    table = Table("made on", "method", "set", "PSNR (dB)", "SSIM", title="7. How visible (medians over images)")
    for row in quality:
        table.add_row(row["source"], row["method"], row["data"], f"{row['psnr']:.1f}", f"{row['ssim']:.3f}")
    console.print(table)
    line = (
        f"PSNR {min(r['psnr'] for r in quality):.1f} to {max(r['psnr'] for r in quality):.1f} dB, SSIM"
        f" {min(r['ssim'] for r in quality):.3f} to {max(r['ssim'] for r in quality):.3f}; nobody was asked, so the"
        " paper's subjective test is neither held nor not held here (experiments.uap_overfire exports blind pairs)"
    )
    console.print(f"{line}\n", highlight=False, soft_wrap=True)
    return line


def points(e: Estimate) -> str:
    """'+12 [+3, +20]'."""
    if e.low != e.low:
        return f"{100 * e.value:+.0f}"
    return f"{100 * e.value:+.0f} [{100 * e.low:+.0f}, {100 * e.high:+.0f}]"
