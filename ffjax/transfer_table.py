"""The transfer tensor as it is read: matrices of source x target in words, and heat maps."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from ffjax import figures, run, study
from ffjax.figures import COLOURS, FAINT, INK
from ffjax.findings import DIRECTIONS
from ffjax.run import Run
from ffjax.transfer import CLEAN, COMPETENT, NOISE

Entry = Mapping[str, Any]
KINDS = (
    "the same detector", "the same architecture, other weights", "another architecture",
    "one of several that it was made on", "none of several that it was made on",
)  # fmt: skip
PALETTE = "Blues"
BASELINES = {NOISE: "sign noise", CLEAN: "clean"}
NOTE = (
    "per cent of the images that the target calls rightly as they are, mean over pattern seeds, 95 % intervals over"
    f" identities, seeds and noise draws (single images: one seed); ~: the target's clean AUC is below {COMPETENT}, so"
    " the change of the share called fake, in points; *: made on this detector"
)


class Tensor(NamedTuple):
    """Entries of ffjax.transfer.entries by place, and the axes in order."""

    at: Mapping[tuple[str, str, str, str, str], Entry]
    data: tuple[str, ...]
    sources: tuple[str, ...]
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    stored: tuple[str, ...]


def tensor(entries: Iterable[Entry]) -> Tensor:
    """From a results.json's entries."""
    at = {(e["data"], e["source"], e["method"], e["target"], e["storage"]): e for e in entries}

    def axis(place: int, keep=lambda key: True) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key[place] for key in at if keep(key)))

    made = lambda key: bool(key[1])  # noqa: E731
    return Tensor(at, axis(0), axis(1, made), axis(2, made), axis(3), axis(4))


def show(console: Console, folder: Run, entries: Sequence[Entry], family: Mapping[str, Any]) -> None:
    """results.json, tables.txt (every storage and direction, with intervals), a heat map a method and direction; on the
    console the matrices in float, and what they come to. family: as of `sentences`."""
    found = tensor(entries)
    told = sentences(found, family)
    value = {"entries": entries, "told": told, "family": family, "environment": study.environment()}
    run.write_json(folder / "results.json", value)
    for method in found.methods:
        for side in DIRECTIONS:
            figures.save(figures.styled(heat_map, found, method, side), folder / f"figures/{method}-{side}.png")
    with (folder / "tables.txt").open("w") as file:
        book = Console(file=file, width=200)
        book.print(f"{NOTE}\n", highlight=False)
        _matrices(book, found, found.stored, tuple(DIRECTIONS))
    _matrices(console, found, found.stored[:1], (None,))
    for line in (NOTE, *told):
        console.print(line, highlight=False, soft_wrap=True)
    places = f"all storages and directions: {folder.folder / 'tables.txt'}; heat maps: {folder.folder / 'figures'}"
    console.print(places, highlight=False, soft_wrap=True)


def _matrices(console: Console, found: Tensor, stored: Sequence[str], sides: Sequence[str | None]) -> None:
    for method, data, storage, side in itertools.product(found.methods, found.data, stored, sides):
        console.print(title(data, method, storage, side), highlight=False, soft_wrap=True)
        console.print(matrix(found, data, method, storage, side))


def rows(found: Tensor, method: str) -> list[tuple[str, str, str]]:
    """(name, source, method) of a matrix's rows: the sources that it was made on, then the baselines."""
    made = dict.fromkeys(key[1] for key in found.at if key[2] == method)
    return [(s, s, method) for s in made] + [(name, "", key) for key, name in BASELINES.items()]


def title(data: str, method: str, storage: str, side: str | None = None) -> str:
    """What stands above a matrix: a line of its own, since a table's title is broken at the table's width."""
    told = DIRECTIONS[side] if side else " | ".join(DIRECTIONS.values())
    return f"{method} on {data}, {storage}: {told} (%)"


def matrix(found: Tensor, data: str, method: str, storage: str, side: str | None = None) -> Table:
    """Source x target in words; side: a direction, with intervals; None: both, without."""
    table = Table()
    table.add_column("made on", overflow="fold")
    for target in found.targets:
        table.add_column(target, justify="right", overflow="fold")
    lines = rows(found, method)
    for name, source, how in lines:
        cells = [cell(found.at[data, source, how, target, storage], side) for target in found.targets]
        table.add_row(name, *cells, end_section=name == lines[-1 - len(BASELINES)][0])
    return table


def cell(entry: Entry, side: str | None) -> str:
    """'97 [90, 100]*' of a side, '97|3*' of both, '~+12' where the target is not competent; '-' where no image can go
    that way."""
    own = "*" if entry["source"] == entry["target"] else ""
    if not entry["competent"]:
        return f"~{100 * entry['shift']['value']:+.0f}{own}"
    if side is None:
        return "|".join(_percent(entry["rates"].get(one), bare=True) for one in DIRECTIONS) + own
    return _percent(entry["rates"].get(side)) + own


def _percent(e: Mapping[str, Any] | None, bare: bool = False) -> str:
    if e is None:
        return "-"
    if bare or e["low"] is None:
        return f"{100 * e['value']:.0f}"
    return f"{100 * e['value']:.0f} [{100 * e['low']:.0f}, {100 * e['high']:.0f}]"


def sentences(found: Tensor, family: Mapping[str, Any]) -> list[str]:
    """One line a method, direction and kind of target: how often it beats noise, and by how much. family: detector ->
    its architecture (a target of none, a forest, is a family of its own), or, of a row made on several detectors at
    once, their names."""
    told = []
    for method in found.methods:
        for side, way in DIRECTIONS.items():
            for kind in KINDS:
                chosen = [e for e in _made(found, method) if e["competent"] and side in e["rates"]]
                chosen = [e for e in chosen if _kind(e, family) == kind]
                if chosen:
                    told.append(f"{method}, {way}, {kind}: {_summed(chosen, side)}")
    return told


def _summed(chosen: Sequence[Entry], side: str) -> str:
    over = [e["over_noise"][side] for e in chosen]
    above = sum(o["low"] is not None and o["low"] > 0 for o in over)
    rates = 100 * np.array([e["rates"][side]["value"] for e in chosen])
    gain = 100 * np.median([o["value"] for o in over])
    return (
        f"above noise by a whole interval in {above} of {len(over)} cells; {np.median(rates):.0f} % (median;"
        f" {rates.min():.0f} to {rates.max():.0f}), {gain:+.0f} points over noise"
    )


def _made(found: Tensor, method: str) -> list[Entry]:
    return [e for key, e in found.at.items() if key[2] == method and key[4] == "float"]


def _kind(entry: Entry, family: Mapping[str, Any]) -> str:
    made_on = family.get(entry["source"], entry["source"])
    several = isinstance(made_on, list)
    if entry["target"] in (made_on if several else [entry["source"]]):
        return KINDS[3] if several else KINDS[0]
    if several:
        return KINDS[4]
    return KINDS[1] if made_on == family.get(entry["target"], entry["target"]) else KINDS[2]


def heat_map(found: Tensor, method: str, side: str) -> Figure:
    """One panel a set and storage: colour and number the share called wrongly that way, hatched with a shift where the
    target is not competent; the baselines below a line."""
    down, across, lines = len(found.data), len(found.stored), rows(found, method)
    width, height = 0.5 * len(found.targets), 0.3 * len(lines)
    fig = Figure(figsize=(3.2 + across * (width + 0.3), 1.8 + down * (height + 0.6)), layout="constrained")
    axes = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for r, data in enumerate(found.data):
        for c, storage in enumerate(found.stored):
            _panel(axes[r, c], found, data, storage, lines, side)
            axes[r, c].set_title(f"{data}, {storage}", fontsize=10)
    colours = ScalarMappable(Normalize(0, 100), PALETTE)
    fig.colorbar(colours, ax=axes, shrink=0.6, label="of the images called rightly (%)")
    title = f"{method}: {DIRECTIONS[side]}; made on a row's detector, shown to a column's"
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    return fig


def _panel(ax: Axes, found: Tensor, data: str, storage: str, lines: Sequence[tuple[str, str, str]], side: str) -> None:
    shares = np.full((len(lines), len(found.targets)), np.nan)
    for y, (_, source, how) in enumerate(lines):
        for x, target in enumerate(found.targets):
            entry = found.at[data, source, how, target, storage]
            rate = entry["rates"].get(side)
            if entry["competent"] and rate is not None:
                shares[y, x] = 100 * rate["value"]
                colour = "white" if shares[y, x] > 55 else INK
                ax.text(x, y, f"{shares[y, x]:.0f}", ha="center", va="center", fontsize=8, color=colour)
            else:
                _incompetent(ax, x, y, entry)
            if source == target:
                ax.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=COLOURS["uap"], linewidth=1.8, zorder=3)
                )
    ax.imshow(shares, cmap=PALETTE, vmin=0, vmax=100, aspect="auto")
    ax.axhline(len(lines) - len(BASELINES) - 0.5, color=INK, linewidth=1)
    ax.set_xticks(range(len(found.targets)), found.targets, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(len(lines)), [name for name, _, _ in lines], fontsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _incompetent(ax: Axes, x: int, y: int, entry: Entry) -> None:
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#d8dce0", linewidth=0))
    told = f"{100 * entry['shift']['value']:+.0f}"
    ax.text(x, y, told, ha="center", va="center", fontsize=8, color=FAINT, style="italic")
