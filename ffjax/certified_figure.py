"""Certified accuracy against the radius, fakes and reals apart, from what results.json holds. No files are read."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ffjax.certified import CLASSES, in_words
from ffjax.figures import COLOURS, FAINT

COLOUR_OF = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKER_OF = ("o", "s", "D", "^", "v", "P")
"""By the place of sigma, in turn (Okabe and Ito's palette, as in figures)."""


def certified(results: dict[str, Any], detector: str) -> Figure:
    """One panel a class: the share called rightly that is certified beyond each radius; at the radii asked for, its
    interval. The axis above says what a radius is in levels, were it spread evenly over all components; the legend, at
    which threshold votes were counted, and how well it parts the validation images that it was chosen on."""
    names = [name for name in CLASSES if name in results["undefended"]]
    fig = Figure(figsize=(1.5 + 5.2 * len(names), 5.4), layout="constrained")
    axes = fig.subplots(1, len(names), squeeze=False, sharey=True)[0]
    levels = 255 / math.sqrt(math.prod(results["shape"]))
    for ax, name in zip(axes, names, strict=True):
        _panel(ax, results, name)
        above = ax.secondary_xaxis("top", functions=(lambda r: r * levels, lambda v: v / levels))
        above.set_xlabel("spread evenly: levels (1/255) per component", color=FAINT)
        above.spines["top"].set_visible(True)
    axes[0].set_ylabel("called rightly and certified")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylim(-0.03, 1.03)
    told = "thresholds of verdicts, in brackets: balanced accuracy on validation images"
    fig.legend(handles=_handles(results), loc="outside lower left", ncols=len(names), title=told, alignment="left")
    fig.suptitle(
        f"What no l₂ perturbation can change: {detector} under randomised smoothing",
        x=0.01,
        ha="left",
        weight="bold",
        size=12,
    )
    return fig


def _panel(ax: Axes, results: dict[str, Any], name: str) -> None:
    widest = max(one["reach"] for one in results["sigmas"])
    ax.axhline(results["undefended"][name]["value"], color=COLOURS["clean"], lw=1.2, ls="--")
    for k, one in enumerate(results["sigmas"]):
        own, colour = one[name], COLOUR_OF[k % len(COLOUR_OF)]
        safe = np.array(own["margins_of_safety"], float)
        n = own["accuracy"]["n"]
        at = np.concatenate([[0.0], safe, [1.05 * widest]])
        share = np.append(len(safe) - np.arange(len(safe) + 1), 0) / n  # beyond the j-th radius, all but j + 1
        ax.step(at, share, where="post", color=colour, lw=2)
        for r, e in zip(results["radii"], own["certified"], strict=True):
            if r < one["reach"]:
                if e["low"] is not None:
                    ax.vlines(r, e["low"], e["high"], color=colour, lw=1.2, alpha=0.7)
                ax.plot([r], [e["value"]], MARKER_OF[k % len(MARKER_OF)], color=colour, ms=5)
    ax.set_title(f"{name.capitalize()}s ({results['undefended'][name]['n']})", pad=34)
    ax.set_xlabel("certified l₂ radius, images in [0, 1]")
    ax.set_xlim(0, 1.05 * widest)
    ax.grid(axis="y")


def _handles(results: dict[str, Any]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=COLOUR_OF[k % len(COLOUR_OF)], marker=MARKER_OF[k % len(MARKER_OF)], ms=5, lw=2,
               label=f"σ = {one['sigma']:g}, threshold {in_words(one['threshold'])}")
        for k, one in enumerate(results["sigmas"])
    ]  # fmt: skip
    bare = f"undefended, clean (certifies nothing), threshold {in_words(results['undefended_threshold'])}"
    lines.append(Line2D([], [], color=COLOURS["clean"], lw=1.2, ls="--", label=bare))
    return [*lines, Line2D([], [], color=FAINT, lw=1, label="95 % interval")]
