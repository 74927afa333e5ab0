"""The third paper's defences as they are printed, drawn and written down."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ffjax import metrics
from ffjax.findings import TRUSTED
from ffjax.metrics import Estimate
from ffjax.zhao import BALANCED, CLAIM, DEFENCES, LIFT, LOSS, TRAININGS, WORST, Defence, Entry, Verdict, erased


class Candidate(NamedTuple):
    """A setting that was tried, and what validation images say of it: balanced accuracies in [0, 1], and the mean norm
    of the loss gradient. chosen: by `choose`."""

    defence: Defence
    weight: float
    share: float
    clean: float
    pgd: float
    slope: float
    chosen: bool = False


class Study(NamedTuple):
    """One data set. chosen: defence -> (weight, share). slopes: defence -> mean norm of the loss gradient on test
    images, one a training seed. flags: defence -> flag -> what was seen, of any seed. history: the JPEG-history
    baseline's balanced accuracy, for patches."""

    data: str
    candidates: Sequence[Candidate]
    entries: Sequence[Entry]
    slopes: Mapping[Defence, Sequence[float]]
    flags: Mapping[Defence, Mapping[str, str]]
    verdicts: Mapping[Defence, Verdict]
    surfaces: Mapping[Defence, np.ndarray]
    history: Estimate | None = None


def chosen(plain: Candidate, tried: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, of which one is marked: the best under PGD of those that lose no more of clean accuracy than a
    claim allows; of none such, the one that loses least."""
    allowed = [c for c in tried if c.clean > plain.clean - LOSS]
    best = max(allowed, key=lambda c: c.pgd) if allowed else max(tried, key=lambda c: c.clean)
    return [c._replace(chosen=c is best) for c in tried]


def show(console: Console, study: Study, eps: float, seeds: int) -> None:
    """What was tried, what holds, and what is claimed. eps: bound of the claim in 1/255."""
    console.print(tried(study.data, study.candidates, eps))
    for form in ("float", "png"):
        console.print(_held(study, form, seeds))
    console.print(
        "constant classifier: 50 % of both classes together, 0 % of the worse one, at any bound", highlight=False
    )
    if study.history is not None:
        told = f"JPEG history alone tells {metrics.percent(study.history)} % of {study.history.n} test patches rightly"
        console.print(told, highlight=False)
    for defence, flags in study.flags.items():
        for flag, told in flags.items():
            console.print(f"[bold red]flag {flag}[/] ({defence}): {told}", highlight=False)
    for line in claims(study, eps, seeds):
        console.print(line, highlight=False, soft_wrap=True)


def claims(study: Study, eps: float, seeds: int) -> list[str]:
    """A line a defence: held or not held, with the four figures that decide it."""
    plain = next(e for e in study.entries if e.defence == "plain" and e.look == CLAIM)
    if plain.clean.value < TRUSTED:
        told = f"{100 * plain.clean.value:.0f} % clean, below {100 * TRUSTED:.0f} %"
        return [f"{study.data}: detector not competent ({told}): no claim is made"]
    lines = []
    for defence, found in study.verdicts.items():
        flags = f", flagged: {', '.join(study.flags[defence])}" if study.flags[defence] else ", no flag"
        flags += f", too few trainings (needs {TRAININGS})" if seeds < TRAININGS else ""
        lines.append(
            f"{study.data}, {defence}: {'held' if found.held else 'not held'}{flags}. {CLAIM} at {eps:g}/255, medians "
            f"of {seeds} trainings: lift {100 * found.lift:+.0f} points (needs {100 * LIFT:.0f}), both classes "
            f"{100 * found.balanced:.0f} % ({100 * BALANCED:.0f}), the worse one {100 * found.worst:.0f} % "
            f"({100 * WORST:.0f}), clean loss {100 * found.clean_loss:.1f} points (below {100 * LOSS:.0f}); all "
            f"attacks together leave {100 * found.every:.0f} % of the few ({100 * BALANCED:.0f}); all of it met by "
            f"{found.trainings} trainings"
        )
    return lines


def tried(data: str, candidates: Sequence[Candidate], eps: float) -> Table:
    """What was tried on validation images, and the best under attack of what costs next to no clean accuracy. eps:
    bound in 1/255."""
    title = f"{data}: settings tried, on validation images (%), PGD-20 inside {eps:g}/255"
    table = Table("defence", "weight", "share", "clean", "PGD-20", "mean loss gradient", "", title=title)
    plain = next(c for c in candidates if c.defence == "plain")
    near = [c for c in candidates if c.defence != "plain" and c.clean >= plain.clean - 0.02]
    matched = max(near, key=lambda c: c.pgd, default=None)
    for c in candidates:
        told = ["chosen"] * c.chosen + ["best at matched clean accuracy (2 points)"] * (c is matched)
        numbers = (f"{c.weight:g}", f"{c.share:g}", f"{100 * c.clean:.0f}", f"{100 * c.pgd:.0f}", f"{c.slope:.3g}")
        table.add_row(c.defence, *numbers, ", ".join(told))
    return table


def _held(study: Study, form: str, seeds: int) -> Table:
    kept = {"float": "in memory", "png": "as 8-bit PNG"}[form]
    title = f"{study.data}: called rightly (%), {kept}; {seeds} trainings, intervals over images' groups and trainings"
    table = Table("attack", "eps x 255", "defence", "clean", "noise", "attacked", "fakes", "reals", title=title)
    for name in ("over plain", "where both are right clean: plain, it", "gradient norm", "flags"):
        table.add_column(name)
    for k, e in enumerate(study.entries):
        if e.form != form:
            continue
        first = (e.look, f"{e.eps:g}") if k == 0 or study.entries[k - 1].defence != e.defence else ("", "")
        flags = ", ".join(study.flags[e.defence])
        told = [metrics.percent(x) for x in (e.clean, e.noise, e.accuracy, e.fake, e.real)]
        told += ["" if e.lift is None else _points(e.lift)]
        told += ["" if e.matched is None else ", ".join(map(metrics.percent, e.matched))]
        if form == "png" and erased(e.eps):
            told[2:] = ["erased"] * 5
        slope = f"{np.mean(study.slopes[e.defence]):.3g}"
        table.add_row(*first, e.defence, *told, slope, f"[red]{flags}[/]" if flags else "none")
    return table


def _points(e: Estimate) -> str:
    return f"{100 * e.value:+.0f} [{100 * e.low:+.0f}, {100 * e.high:+.0f}]"


def plain(study: Study) -> dict[str, Any]:
    """For results.json."""
    return {
        "candidates": [c._asdict() for c in study.candidates],
        "entries": [metrics.plain(e._asdict()) for e in study.entries],
        "slopes": {name: list(values) for name, values in study.slopes.items()},
        "flags": {name: dict(values) for name, values in study.flags.items()},
        "verdicts": {name: v._asdict() for name, v in study.verdicts.items()},
        "surfaces": {name: np.round(grid, 4).tolist() for name, grid in study.surfaces.items()},
        "jpeg_history": None if study.history is None else metrics.plain(study.history),
    }


def curves(study: Study, looks: Sequence[str] = ("fgsm", CLAIM)) -> Figure:
    """Accuracy over the bound, a panel an attack, a line a defence, with noise of the same bound dotted."""
    fig = Figure(figsize=(4.6 * len(looks), 4.2), layout="constrained")
    for ax, look in zip(fig.subplots(1, len(looks), squeeze=False, sharey=True)[0], looks, strict=True):
        for defence in DEFENCES:
            mine = [e for e in study.entries if (e.defence, e.look, e.form) == (defence, look, "float")]
            eps = [e.eps for e in mine]
            ax.plot(eps, [100 * e.accuracy.value for e in mine], color=COLOUR[defence], marker="o", label=defence)
            bars = [[100 * e.accuracy.low for e in mine], [100 * e.accuracy.high for e in mine]]
            ax.fill_between(eps, *bars, color=COLOUR[defence], alpha=0.15, linewidth=0)
            ax.plot(eps, [100 * e.noise.value for e in mine], color=COLOUR[defence], linestyle=":", linewidth=1)
        ax.axhline(50, color="#8a939c", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(eps, [f"{x:g}" for x in eps])
        ax.set(title=f"{study.data}: {look}", xlabel="bound (1/255)", ylim=(-2, 102))
    fig.axes[0].set_ylabel("called rightly (%)")
    names = fig.axes[0].get_legend_handles_labels()
    fig.legend(*names, loc="outside lower left", ncols=len(DEFENCES), fontsize=9, title_fontsize=9, alignment="left",
               title="solid: attacked; dotted: noise of the bound; grey line: a constant")  # fmt: skip
    return fig


def landscapes(data: str, surfaces: Mapping[str, np.ndarray], eps: float) -> Figure:
    """Mean loss along the gradient's signs and along random signs (see zhao.surface), a panel a network, one scale."""
    fig = Figure(figsize=(3.1 * len(surfaces), 4.1), layout="constrained")
    most = max(float(grid.max()) for grid in surfaces.values())
    panels = fig.subplots(1, len(surfaces), squeeze=False, sharey=True)[0]
    for ax, (name, grid) in zip(panels, surfaces.items(), strict=True):
        reach = 2 * eps
        shown = ax.imshow(
            grid, origin="lower", extent=(-reach, reach, -reach, reach), vmin=0, vmax=most, cmap="magma", aspect="equal"
        )
        ax.set(title=name, xlabel="random signs (1/255)")
        fig.colorbar(shown, ax=ax, shrink=0.7) if ax is panels[-1] else None
    panels[0].set_ylabel("sign of the gradient (1/255)")
    fig.suptitle(f"{data}: mean cross-entropy (nats) of test images", x=0.01, ha="left", weight="bold")
    return fig


COLOUR: Mapping[Defence, str] = {"plain": "#6b7280", "penalty": "#0072B2", "mix": "#E69F00", "both": "#D55E00"}
