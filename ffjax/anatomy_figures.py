"""The figures of `anatomy`, drawn from the dictionaries that it returns, as read back from JSON. No files are read.

Colours and style are those of `figures`. A pattern goes by its name: the first word of it (noise, fixed, uap) says its
colour and, where it is the whole name, what it is called.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from ffjax.figures import COLOURS, FAINT, INK, MARKERS, save, styled
from ffjax.findings import DIRECTIONS, KINDS

OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#7a5195")
"""For a second pattern of a kind, and for names that are of no kind."""


def save_all(folder: Path, detector: str, found: Mapping[str, Any]) -> list[Path]:
    """anatomy-NAME.png in the folder for each of push, firing, jacobian, spectra, response and needs that `found`
    holds: what the function of that name draws."""
    draws = {"push": push, "firing": firing, "jacobian": jacobian, "spectra": spectra, "response": response}
    draws["needs"] = needs
    paths = []
    for name in (name for name in draws if name in found):
        paths.append(folder / f"anatomy-{name}.png")
        save(styled(draws[name], found[name], detector), paths[-1])
    return paths


def push(found: dict, detector: str) -> Figure:
    """anatomy.push -> for each class the margin of every image, clean and under each pattern, with mean and sd."""
    names, labels = list(found["margins"]), np.array(found["labels"])
    fig = Figure(figsize=(13, 1.9 + 0.85 * len(names)), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(labels))  # so that equal margins stay apart
    for ax, (part, label) in zip(axes, (("fake", 1), ("real", 0)), strict=True):
        rows = labels == label
        for y, (name, (colour, marker)) in enumerate(_looks(names).items()):
            values = np.array(found["margins"][name])[rows]
            ax.scatter(values, y + spread[rows], s=9, color=colour, alpha=0.35, lw=0)
            ax.errorbar(
                values.mean(), y, xerr=values.std(), fmt=marker, color=colour, mec="white", ms=9, lw=3, zorder=4
            )
            if name in found["changes"]:
                words = _moved(found["changes"][name][part])
                box = {"color": "white", "pad": 1.5}
                ax.text(0.012, y - 0.33, words, transform=ax.get_yaxis_transform(), va="center", size=9, bbox=box)
        ax.axvline(0, color=INK, lw=1.2, zorder=1.5)
        ax.set_title(f"{part.capitalize()}s (n = {np.sum(rows)})")
        _grid(ax, "x")
        ax.set_xlabel("margin $z_{fake} - z_{real}$ (logits): below 0 called real, above 0 called fake")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), [KINDS.get(name, name) for name in names])
    axes[0].set_ylim(len(names) - 0.55, -0.6)
    _heading(fig, f"How far patterns push {detector}: every image, mean and standard deviation (scales differ)")
    return fig


def _moved(change: dict) -> str:
    agreement = "–" if change["agreement"] is None else f"{change['agreement']:.2f}"
    return f"change {change['mean']:+.2g} ± {change['sd']:.2g}, agreement {agreement}".replace("-", "−")


def firing(found: dict, detector: str) -> Figure:
    """anatomy.firing_change -> per layer: mean |activation| as a multiple of clean, and the cosine of the change with
    the way from real to fake."""
    layers = list(found["firing"]["clean"])
    looks = _looks(found["direction"])
    fig = Figure(figsize=(max(9, 1.5 + 0.75 * len(layers)), 7), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.3, 1]})
    clean = _column(found["firing"]["clean"], layers, "mean_abs")
    at, ratios = np.arange(len(layers)), []
    for name, (colour, marker) in looks.items():
        fired = _column(found["firing"][name], layers, "mean_abs")
        ratios.append(fired / np.where(clean > 0, clean, np.nan))
        top.plot(at, ratios[-1], marker=marker, color=colour, lw=2, label=KINDS.get(name, name))
        bottom.plot(at, _column(found["direction"][name], layers, "cosine"), marker=marker, color=colour, lw=2)
    top.axhline(1, color=COLOURS["clean"], lw=1.5, zorder=1)
    _powers(top, np.concatenate(ratios))
    top.set_title("Mean |activation|, clean = 1")
    bottom.axhline(0, color=COLOURS["clean"], lw=1.5, zorder=1)
    bottom.set_title("Direction of the change: cosine with (mean fake − mean real)")
    bottom.set_ylim(-1.1, 1.1)
    bottom.set_yticks((-1, 0, 1), ("to reals  −1", "0", "to fakes  +1"))
    bottom.set_xticks(at, layers, rotation=0 if len(layers) < 8 else 40, ha="center" if len(layers) < 8 else "right")
    bottom.set_xlabel("layer, in order of depth")
    for ax in (top, bottom):
        _grid(ax)
    fig.legend(loc="outside lower left", ncols=4)
    _heading(fig, f"What patterns do to the layers of {detector}")
    return fig


def _column(rows: dict, layers: Iterable[str], field: str) -> np.ndarray:
    """One field of every layer, NaN where it is undefined."""
    return np.array([rows[layer][field] for layer in layers], float)


def _powers(ax: Axes, ratios: np.ndarray) -> None:
    """A log axis with ticks at powers of two, that spans at least a halving and a doubling."""
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    ax.set_yscale("log", base=2)
    ax.set_ylim(min(0.5, *ratios, 1) / 1.15, max(2, *ratios, 1) * 1.15)
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=9))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"×{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def jacobian(found: dict, detector: str) -> Figure:
    """values and random of anatomy.Jacobian, and alignment, anatomy.alignment's -> the singular values beside those of
    random rows, and how much of each pattern the first k directions hold beside sign noise."""
    values, aligned = found["values"], found["alignment"]
    fig = Figure(figsize=(13, 5.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    rows = {
        "gradients of the images": (values, "uap"),
        "random directions of the same lengths": (found["random"], "noise"),
    }
    for label, (row, kind) in rows.items():
        left.plot(np.arange(1, len(row) + 1), row, ".-", color=COLOURS[kind], lw=2, label=label)
    k = np.arange(1, len(aligned["expected"]) + 1)
    share = np.sum(np.square(values[: len(k)])) / np.sum(np.square(values))
    left.set_title(f"Singular values (first {len(k)} of {len(values)}: {100 * share:.0f}% of the energy)")
    left.set_xlabel("number of the singular value")
    left.set_ylabel("singular value")
    left.set_ylim(bottom=0)
    left.legend(title="rows of the matrix", alignment="left")

    for name, (colour, marker) in _looks(aligned["patterns"]).items():
        right.plot(k, aligned["patterns"][name], marker=marker, ms=5, color=colour, lw=2, label=KINDS.get(name, name))
    noise = aligned["noise"]
    words = f"sign noise, 95% of {noise['draws']} draws"
    right.fill_between(k, noise["low"], noise["high"], color=COLOURS["noise"], alpha=0.2, lw=0, label=words)
    right.plot(k, aligned["expected"], color=INK, lw=1.2, ls=":", label=r"any random direction, $\sqrt{k/D}$")
    right.set_yscale("log")
    right.set_ylim(min(aligned["expected"]) / 4, 1.3)
    right.yaxis.set_major_formatter(_percent)
    right.set_title("Part of each pattern inside the first k directions")
    right.set_xlabel("first k singular vectors")
    right.set_ylabel("projection, share of the pattern's $l_2$ norm")
    for ax in (left, right):
        _grid(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    _heading(fig, f"Directions that the gradients of {detector} share")
    return fig


def spectra(found: dict, detector: str) -> Figure:
    """Name -> anatomy.spectrum, sign noise among them -> share of energy by radial frequency, and its running sum."""
    fig = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = fig.subplots(1, 2, sharex=True)
    for name, (colour, _) in _looks(found).items():
        shares, edges = np.array(found[name]["shares"]), found[name]["edges"]
        label = f"{KINDS.get(name, name)} (centroid {found[name]['centroid']:.2f})"
        left.stairs(np.maximum(shares, 1e-9), edges, color=colour, lw=2, label=label, baseline=None)
        right.plot(edges, np.concatenate([[0], np.cumsum(shares)]), color=colour, lw=2)
    left.set_yscale("log")
    left.set_ylim(1e-4, 1.5)
    left.set_title("Share of energy per frequency bin")
    right.set_title("Energy up to this frequency")
    right.set_ylim(-0.02, 1.02)
    left.yaxis.set_major_formatter(_percent)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for ax in (left, right):
        ax.set_xlabel("radial frequency (cycles per pixel; 0.5 = lines of period 2)")
        _grid(ax)
        ax.margins(x=0)
    fig.legend(loc="outside lower left", ncols=3)
    _heading(fig, f"Where the energy of the patterns for {detector} lies")
    return fig


def response(found: dict, detector: str) -> Figure:
    """anatomy.response_curve -> share called wrongly against the bound, each direction apart, with intervals."""
    fig = Figure(figsize=(13, 4.8), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True, sharey=True)
    linf = found["norm"] == "linf"
    bounds = np.array(found["bounds"]) * (255 if linf else 1)
    for ax, (way, title) in zip(axes, DIRECTIONS.items(), strict=True):
        for name, kind, label in (("noise", "noise", KINDS["noise"]), ("pattern", "uap", "the pattern")):
            value, low, high = (_field(found[name][way], field) for field in ("value", "low", "high"))
            ax.fill_between(bounds, low, high, color=COLOURS[kind], alpha=0.2, lw=0)
            ax.plot(bounds, value, marker=MARKERS[kind], color=COLOURS[kind], lw=2, label=label)
        if 1.0 in found["sizes"]:
            own = bounds[found["sizes"].index(1.0)]
            ax.axvline(own, color=FAINT, lw=1.2, ls="--", zorder=1, label="the pattern's own bound")
        ax.set_title(f"{title.capitalize()} (of {found['pattern'][way][0]['n']})")
        ax.set_xlabel("largest change of a component, in 1/255" if linf else "$l_2$ norm of the pattern")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
        _grid(ax)
    axes[0].set_ylim(-0.02, 1.02)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    _heading(fig, f"Success on {detector} against the bound, with 95% intervals over identities")
    return fig


def needs(found: dict, detector: str) -> Figure:
    """needs.curves -> share of fakes called real against the images and the steps that a pattern was made with."""
    fig = Figure(figsize=(13, 4.8), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    words = {"images": "training fakes it is made of", "steps": "steps it is given"}
    for ax, (what, label) in zip(axes, words.items(), strict=True):
        tried = found[what]["tried"]
        value, low, high = (_field(found[what]["rates"], field) for field in ("value", "low", "high"))
        ax.fill_between(tried, low, high, color=COLOURS["uap"], alpha=0.2, lw=0)
        ax.plot(tried, value, marker=MARKERS["uap"], color=COLOURS["uap"], lw=2, label="the pattern")
        ax.axhline(found["noise"]["value"], color=COLOURS["noise"], lw=2, ls="--", label=KINDS["noise"])
        ax.set_xscale("log")
        ax.set_xticks(tried, [str(count) for count in tried])
        ax.minorticks_off()
        ax.set_xlabel(label)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        _grid(ax)
    axes[0].set_ylim(-0.02, 1.02)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    _heading(fig, f"Fakes called real by {detector} (of {found['fakes']}), by what the pattern was made with")
    return fig


def _field(rows: Iterable[dict], field: str) -> np.ndarray:
    return np.array([row[field] for row in rows], float)


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Name -> colour and marker: its kind's, or where another has that already or it is of no kind, the next other."""
    found: dict[str, tuple[str, str]] = {}
    others = iter(OTHERS * 8)
    for name in names:
        kind = name.replace("-", " ").split(" ")[0]
        own = (COLOURS.get(kind), MARKERS.get(kind, "^"))
        taken = own[0] is None or own in found.values()
        found[name] = (next(others), own[1]) if taken else own  # pyright: ignore[reportArgumentType]
    return found


@FuncFormatter
def _percent(y: float, _: int) -> str:
    return f"{100 * y:g}%"


def _grid(ax: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Behind everything that is drawn."""
    ax.grid(axis=axis)
    ax.set_axisbelow(True)


def _heading(fig: Figure, words: str) -> None:
    fig.suptitle(words, x=0.01, ha="left", weight="bold", size=13)
