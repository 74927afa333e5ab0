"""Purifiers under attack as they are printed, drawn and written down."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from ffjax import metrics
from ffjax.figures import COLOURS, FAINT
from ffjax.purifying import FRESH, named
from ffjax.purifying_sums import FORMS, LATE, WHITE, Entry, Level

SHOWN = ("clean", "noise", "unaware", "aware")
COLOUR = {kind: COLOURS[key] for kind, key in zip(SHOWN, ("clean", "noise", "fixed", "uap"), strict=True)}
MARKER = dict(zip(SHOWN, "osDX", strict=True))
SIDES = {"fake": "fakes", "real": "reals"}
RULE = (
    f"A random purifier is right on an image where most of {FRESH} draws are that no attacker saw; all images share "
    "them, and intervals are over images, not over draws. An image called wrongly as it is counts as wrong everywhere. "
    "Each purifier has a threshold of its own, of best balanced accuracy on validation images, by draws of which none "
    "judges. aware: of each image the strongest of all attackers, also of those that do not know of the "
    "purifier. soft is PGD by a derivative of the same value that is better climbed, where one is known; low moves low "
    "frequencies alone; longer is soft, else exact, with twice the steps, on all that stands, in memory or stored, "
    "under those named before it; Square comes last, and only to images that stand under longer too: each leaves so "
    "many of those that it was tried on. untried: those that stand and that Square did not come to; so many of the "
    "aware may be too many."
)

Flags = Mapping[str, Mapping[str, str]]
"""Purifier -> flag -> what was seen."""

Levels = Mapping[str, Level]
"""Of each purifier."""


def show(console: Console, entries: Sequence[Entry], levels: Levels, flags: Flags, eps: float, few: int) -> None:
    """A table a form, every attacker alone beside the strongest, and every flag on the line of its purifier. eps in
    1/255; few: standing images of a class that Square was tried on, at most."""
    for form, told in zip(FORMS, ("in memory", "as 8-bit PNG"), strict=True):
        console.print(_table([e for e in entries if e.form == form], levels, flags, eps, told, few))
    console.print(RULE, highlight=False, soft_wrap=True)
    for purifier, found in flags.items():
        for flag, told in found.items():
            console.print(f"[bold red]flag {flag}[/] ({purifier}): {told}", highlight=False)


def _table(entries: Sequence[Entry], levels: Levels, flags: Flags, eps: float, told: str, few: int) -> Table:
    title = f"called rightly (%), l_inf {eps:g}/255, {told}; square on up to {few} of either class that still stand"
    alone = (*WHITE, "transfer")
    heads = (*SHOWN, "untried", *(f"{kind}\nalone" for kind in alone), *(f"{kind}\nleaves" for kind in LATE), "flags")
    table = Table("purifier", "threshold,\nclean AUC (%)", "of", *heads, title=title)
    for purifier in dict.fromkeys(e.purifier for e in entries):
        mine = {e.kind: e for e in entries if e.purifier == purifier}
        raised, level = ", ".join(flags[purifier]), levels[purifier]
        placed = {"fake": f"{level.threshold:.3g}", "real": metrics.percent(level.auc)}
        for side, words in SIDES.items():
            cells = {k: metrics.percent(getattr(mine[k], side)) if k in mine else "" for k in (*SHOWN, *alone)}
            cells |= {kind: _leaves(getattr(mine[kind], side)) for kind in LATE}
            untried = str(level.untried[mine["clean"].form][side])
            who = f"{getattr(mine['clean'], side).n} {words}"
            first = (purifier, f"[red]{raised}[/]" if raised else "none") if side == "fake" else ("", "")
            shown, rest = ([cells[k] for k in kinds] for kinds in (SHOWN, (*alone, *LATE)))
            table.add_row(first[0], placed[side], who, *shown, untried, *rest, first[1])
        table.add_section()
    return table


def _leaves(tried: metrics.Estimate) -> str:
    return f"{round(tried.n * tried.value)} of {tried.n}" if tried.n else ""


def plain(entries: Sequence[Entry], levels: Levels, flags: Flags) -> dict[str, Any]:
    """For results.json."""
    names = dict.fromkeys(e.purifier for e in entries)
    return {
        "rule": RULE,
        "purifiers": {
            name: {k: v for k, v in named(name)._asdict().items() if k not in ("transform", "soft")} for name in names
        },
        "levels": {name: metrics.plain(level._asdict()) for name, level in levels.items()},
        "entries": [metrics.plain(e._asdict()) for e in entries],
        "flags": {name: dict(found) for name, found in flags.items()},
    }


def figure(entries: Sequence[Entry], detector: str, eps: float, form: str = "float") -> Figure:
    """Share called rightly, a panel a class, a line a purifier, one mark for clean, noise, unaware and aware, with 95 %
    intervals."""
    names = list(dict.fromkeys(e.purifier for e in entries))
    found = {(e.purifier, e.kind): e for e in entries if e.form == form}
    fig = Figure(figsize=(10.5, 1.7 + 0.55 * len(names)), layout="constrained")
    for ax, (side, words) in zip(fig.subplots(1, 2, sharey=True), SIDES.items(), strict=True):
        for k, kind in enumerate(SHOWN):
            shares = [getattr(found[name, kind], side) for name in names]
            at = np.arange(len(names)) + 0.18 * (k - 1.5)
            ax.hlines(at, [100 * s.low for s in shares], [100 * s.high for s in shares], color=COLOUR[kind], lw=1.2)
            ax.plot([100 * s.value for s in shares], at, MARKER[kind], color=COLOUR[kind], ms=6, clip_on=False)
        ax.set(title=f"{words} ({getattr(found[names[0], 'clean'], side).n})", xlabel="called rightly (%)")
        ax.set(xlim=(-3, 103), ylim=(len(names) - 0.5, -0.5))
        for edge in np.arange(len(names) - 1) + 0.5:
            ax.axhline(edge, color="#e3e6e9", lw=0.8)
        ax.grid(axis="x")
    fig.axes[0].set_yticks(range(len(names)), names)
    marks = [Line2D([], [], color=COLOUR[k], marker=MARKER[k], ls="", ms=7, label=k) for k in SHOWN]
    marks.append(Line2D([], [], color=FAINT, lw=1, label="95 % interval"))
    fig.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    fig.suptitle(f"{detector} behind purifiers, l_inf {eps:g}/255", x=0.01, ha="left", weight="bold")
    return fig
