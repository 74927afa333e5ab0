"""The figures of a universal-perturbation report, drawn from what results.json and the log hold. No files are read.

One colour and one marker for one kind of image everywhere (Okabe and Ito's palette: told apart by colour-blind eyes,
and by shape in grey print). A thick pale bar is always a range over draws or seeds, a thin line a 95 % interval.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from ffjax.data.codecs import to_float
from ffjax.findings import DIRECTIONS, KINDS, claim, condition, estimate, storages, verdict

INK, FAINT = "#1f2933", "#8a939c"
COLOURS = {"clean": "#6b7280", "noise": "#0072B2", "fixed": "#E69F00", "uap": "#D55E00"}
MARKERS = {"clean": "o", "noise": "s", "fixed": "D", "uap": "o"}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#e3e6e9",
    "legend.frameon": False,
}
VERDICTS = {
    "held": "#00724f",
    "beats noise only": "#8a6d00",
    "not held": INK,
    "no claim": FAINT,
}
"""What may be said of a claim (`findings.verdict`), each in its colour."""


def save(figure: Figure, path) -> None:
    """PNG at 150 dpi; the same bytes for the same figure."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=150, facecolor="white")


def styled(draw, *args) -> Figure:
    """draw(*args) in the style of the report, whatever the caller's matplotlib settings."""
    with matplotlib.rc_context(STYLE):
        return draw(*args)


def amplified(delta: np.ndarray) -> tuple[np.ndarray, float]:
    """delta (H, W, 3) about mid grey, stretched to the full range [0, 1], and the factor it was stretched by."""
    peak = float(np.abs(delta).max())
    factor = 0.5 / peak if peak else 1.0
    return np.clip(0.5 + factor * delta, 0, 1), factor


def examples(shots: dict[str, np.ndarray], said: dict[str, np.ndarray], detector: str) -> Figure:
    """Triples clean + perturbation = attacked, fakes on the left and reals on the right, each with the verdict.

    shots: images (k, H, W, 3) uint8, labels (k,), delta (H, W, 3). said: clean and attacked -> (k,) margins.
    """
    sides = [np.flatnonzero(shots["labels"] == label) for label in (1, 0)]
    rows = max(len(side) for side in sides)
    fig = Figure(figsize=(13.4, 0.8 + 2.25 * rows), layout="constrained")
    axes = fig.subplots(rows, 7, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1, 0.12, 1, 1, 1]})
    for ax in axes.flat:
        ax.axis("off")
    shown, factor = amplified(shots["delta"])
    for side, name, left in zip(sides, ("Fake", "Real"), (0, 4), strict=True):
        for row, k in enumerate(side):
            clean = to_float(shots["images"][k])
            for j, image in enumerate((clean, shown, np.clip(clean + shots["delta"], 0, 1))):
                axes[row, left + j].imshow(image, interpolation="nearest" if len(clean) < 64 else "antialiased")
            for j, key, sign in ((0, "clean", "+"), (2, "attacked", "=")):
                ax = axes[row, left + j]
                _caption(ax, said[key][k], shots["labels"][k])
                ax.text(
                    1.045 if j == 0 else -0.045, 0.5, sign, transform=ax.transAxes, ha="center", va="center", size=15
                )
        for j, title in enumerate((f"{name}, clean", f"perturbation ×{factor:.0f}", "attacked")):
            axes[0, left + j].set_title(title, fontsize=11, loc="center")
    fig.suptitle(f"What {detector} says (margin: positive means fake)", x=0.01, ha="left", weight="bold", size=12)
    return fig


def _caption(ax: Axes, margin: float, label: int) -> None:
    says, right = ("fake" if margin > 0 else "real"), (margin > 0) == (label == 1)
    words = f"says {says} ({margin:+.1f}) {'✓' if right else '✗ wrong'}".replace("-", "−")
    colour = INK if right else COLOURS["uap"]
    weight = "normal" if right else "bold"
    ax.text(0.5, -0.035, words, transform=ax.transAxes, ha="center", va="top", size=10, color=colour, weight=weight)


def objective(results: dict, log: list[dict], group: str) -> Figure:
    """The curve of every seed, the chosen one bold, and beside it the share of components at the bound."""
    members = [k for k, pattern in enumerate(results["patterns"]) if pattern["group"] == group]
    steps = [row["step"] for row in log]
    fig = Figure(figsize=(11, 4), layout="constrained")
    axes = fig.subplots(1, 2, gridspec_kw={"width_ratios": [2.2, 1]})
    for ax, field in zip(axes, ("objective", "saturation"), strict=True):
        curves = np.array([[row[field][k] for k in members] for row in log], float).reshape(-1, len(members))
        for k, curve in zip(members, curves.T, strict=True):
            bold = results["patterns"][k]["chosen"]
            # seeds often agree to a per cent: the chosen one lies beneath, broad, so that the others stay visible
            look = {"color": COLOURS["uap"], "lw": 4.5, "alpha": 0.55} if bold else {"color": INK, "lw": 0.8}
            ax.plot(steps, curve, **look, zorder=2 + (not bold))
        ax.set_xlabel("step")
        ax.grid(axis="y")
        ax.margins(x=0.02)
    seeds = f"{len(members)} seeds, broad: the chosen one" if len(members) > 1 else "one seed"
    axes[0].set_title(f"Over-firing objective of {group} ({seeds})")
    axes[1].set_title("Components at the bound")
    axes[1].set_ylim(0, 1.02)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    return fig


def activations(results: dict, group: str) -> Figure:
    """Per layer of each source: mean |a| as a multiple of clean (log axis), and the share of active neurons."""
    sources = results["sources"]
    fig = Figure(figsize=(max(8.5, 5.5 * len(sources)), 6.4), layout="constrained")
    axes = fig.subplots(2, len(sources), squeeze=False, gridspec_kw={"height_ratios": [1.5, 1]}, sharex="col")
    for (top, bottom), source in zip(axes.T, sources, strict=True):
        fired = {
            kind: _layers(results, source, condition(results, kind, group, "float"))
            for kind in ("clean", "noise", "uap")
        }
        clean, at = fired["clean"]["mean_abs"], range(len(fired["clean"]["names"]))
        for kind in ("noise", "uap"):
            ratio = fired[kind]["mean_abs"] / np.where(clean > 0, clean, np.nan)
            top.plot(at, ratio, marker=MARKERS[kind], color=COLOURS[kind], lw=2, label=KINDS[kind])
            for x, y in zip(at, ratio, strict=True):
                if kind == "uap" and np.isfinite(y):
                    top.annotate(f"×{y:.2g}", (x, y), (0, 8), textcoords="offset points", ha="center", size=9)
        for kind in ("clean", "noise", "uap"):
            bottom.plot(at, fired[kind]["active"], marker=MARKERS[kind], color=COLOURS[kind], lw=2, label=KINDS[kind])
        top.axhline(1, color=COLOURS["clean"], lw=1.5, zorder=1)
        top.set_yscale("log", base=2)
        _times(top, clean, [fired[kind]["mean_abs"] for kind in ("noise", "uap")])
        top.set_title(f"{source}: mean |activation|, clean = 1")
        bottom.set_title("Share of active neurons")
        bottom.set_ylim(0, 1.02)
        bottom.yaxis.set_major_formatter(PercentFormatter(1))
        bottom.set_xticks(at, fired["clean"]["names"], rotation=0 if len(at) < 7 else 40)
        top.grid(axis="y")
        bottom.grid(axis="y")
    handles = axes[1, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper left", ncols=3)
    return fig


def _times(ax: Axes, clean: np.ndarray, others: list[np.ndarray]) -> None:
    """Ticks at powers of two; the axis spans at least a halving and a doubling, so that noise is not blown up."""
    ratios = np.concatenate([other[clean > 0] / clean[clean > 0] for other in others])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    ax.set_ylim(min(0.5, *ratios, 1) / 1.15, max(2, *ratios, 1) * 1.4)
    ax.yaxis.set_major_locator(LogLocator(base=2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"×{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _layers(results: dict, source: str, name: str) -> dict:
    key = {"detector": source, "condition": name}
    found = next((row["layers"] for row in results["activations"] if key.items() <= row.items()), {})
    values = {field: np.array([layer[field] for layer in found.values()], float) for field in ("mean_abs", "active")}
    return values | {"names": list(found)}


def directions(results: dict, group: str) -> Figure:
    """Both directions side by side, never a mean of them: for each detector and set, the share misread under each
    kind, and what may be said of the claim."""
    pairs = [(data["name"], detector) for data in results["data"] for detector in results["detectors"]]
    fig = Figure(figsize=(13, 1.9 + 0.72 * len(pairs)), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True, sharey=True)
    for ax, (direction, title) in zip(axes, DIRECTIONS.items(), strict=True):
        for y, (data, detector) in enumerate(pairs):
            row = claim(results, detector, data, group, direction)
            _kinds(ax, results, row, direction, y)
            said = verdict(results, row)
            look = {"color": VERDICTS[said], "weight": "bold" if said == "held" else "normal"}
            ax.text(1.015, y, said, transform=ax.get_yaxis_transform(), va="center", size=10, **look)
        for y in range(1, len(pairs)):
            edge = pairs[y][0] != pairs[y - 1][0]
            ax.axhline(y - 0.5, color=FAINT if edge else "#e3e6e9", lw=1.2 if edge else 0.8, zorder=0)
        ax.set_title(title.capitalize())
        ax.grid(axis="x")
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.tick_params(axis="y", length=0)
    sources = results["sources"]
    names = [f"{detector}{' (source)' * (detector in sources)}\nset {data}" for data, detector in pairs]
    axes[0].set_yticks(range(len(pairs)), names, size=10)
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    axes[0].set_xlim(-0.02, 1.02)
    _legend(fig, ("clean", "noise", "fixed", "uap"))
    return fig


def _kinds(ax: Axes, results: dict, row: dict, direction: str, y: float) -> None:
    """Clean and fixed are one pattern each, so they carry their interval over identities; noise and UAP their range."""
    way = "to-real" if direction == "fake_called_real" else "to-fake"
    single = {"clean": "clean-float", "fixed": f"fixed-{row['group']}-{way}-float"}
    for offset, kind in zip((-0.27, -0.09, 0.09, 0.27), KINDS, strict=True):
        if kind not in row:
            continue
        at, colour = y + offset, COLOURS[kind]
        if kind in single:
            found = estimate(results, row["detector"], row["data"], single[kind], f"attacked_{direction}")
            ax.plot(np.array(found[1:3], float), [at, at], color=colour, lw=1)
        else:
            ends = np.array([row[kind]["low"], row[kind]["high"]], float)
            ax.plot(ends, [at, at], color=colour, lw=6, alpha=0.3, solid_capstyle="round")
        ax.plot(np.array([row[kind]["median"]], float), [at], MARKERS[kind], color=colour, ms=6)


def storage(results: dict, group: str, data: dict) -> Figure:
    """Does the effect outlive a file? Changed verdicts and both directions, through every storage, with intervals."""
    files = storages(results)
    detectors = sorted(results["detectors"], key=lambda name: name not in results["sources"])
    rows = {"fooling_rate": "verdicts changed"} | {f"attacked_{way}": words for way, words in DIRECTIONS.items()}
    fig = Figure(figsize=(max(8, 2.3 * len(detectors)), 7.4), layout="constrained")
    axes = fig.subplots(3, len(detectors), squeeze=False, sharex=True, sharey=True)
    counts = (data["real"] + data["fake"], data["fake"], data["real"])
    for line, (metric, words), n in zip(axes, rows.items(), counts, strict=True):
        line[0].set_ylabel(f"{words}\n(of {n})")
        for ax, detector in zip(line, detectors, strict=True):
            for offset, kind in zip((-0.18, 0, 0.18), ("clean", "noise", "uap"), strict=True):
                found = [
                    estimate(results, detector, data["name"], condition(results, kind, group, s), metric) for s in files
                ]
                _whiskers(ax, np.array([row[:3] for row in found], float), kind, offset)
            ax.grid(axis="y")
    for ax, detector in zip(axes[0], detectors, strict=True):
        ax.set_title(detector + "\nsource" * (detector in results["sources"]), fontsize=11)
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_xlim(-0.5, len(files) - 0.5)
    axes[0, 0].set_xticks(range(len(files)), files)
    for ax in axes[-1]:
        ax.tick_params(axis="x", rotation=40 if len(files) > 3 else 0)
    _legend(fig, ("clean", "noise", "uap"))
    return fig


def _whiskers(ax: Axes, found: np.ndarray, kind: str, offset: float) -> None:
    at = np.arange(len(found)) + offset
    ax.vlines(at, found[:, 1], found[:, 2], color=COLOURS[kind], lw=1.2)
    ax.plot(at, found[:, 0], MARKERS[kind], color=COLOURS[kind], ms=5)


def _legend(fig: Figure, kinds: tuple[str, ...]) -> None:
    marks = [Line2D([], [], color=COLOURS[k], marker=MARKERS[k], ls="", ms=7, label=KINDS[k]) for k in kinds]
    lines = [Line2D([], [], color=FAINT, lw=1, label="95 % interval")]
    if "fixed" in kinds:
        lines.append(Line2D([], [], color=FAINT, lw=6, alpha=0.4, label="range over draws or seeds"))
    fig.legend(handles=marks + lines, loc="outside upper left", ncols=len(marks + lines), columnspacing=1.4)
