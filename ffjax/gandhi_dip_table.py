"""The Deep Image Prior table and its trajectories beside the published ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ffjax import metrics
from ffjax.defences.dip import Prior
from ffjax.gandhi_dip import CLEAN, FEW
from ffjax.gandhi_dip_rules import Row, Rule, scores
from ffjax.metrics import Estimate

COLUMNS = ("accuracy", "auc", "fake_precision", "fake_recall", "real_precision", "real_recall")
PUBLISHED = {"DIP": (97.0, 99.2, 98.9, 97.8, 81.8, 90.0), "detector alone": (60.0, 41.9, 100.0, 55.5, 20.0, 100.0)}
"""In per cent, in the order of COLUMNS, on 10 reals and 90 fakes (PAPERS.md 2.7, tag S)."""
COLOURS = {"clean real": "#0072B2", "clean fake": "#6b7280", "FGSM": "#E69F00", "CW": "#D55E00"}


def show(
    console: Console,
    lines: Mapping[str, Mapping[str, Estimate]],
    strata: Mapping[str, Mapping[str, Estimate]],
    rates: Mapping[str, Mapping[str, Any]],
    told: str,
) -> None:
    """lines: name of a row -> the paper's columns. strata: stratum -> rule -> share called rightly. rates: of
    gandhi_dip_rates."""
    table = Table("", *(name.replace("_", " ") for name in COLUMNS), title="the paper's table (%)", show_lines=True)
    for name, published in PUBLISHED.items():
        table.add_row(f"{name}, published \\[S]", *(f"{x:.1f}" for x in published))
    for name, found in lines.items():
        table.add_row(name, *(metrics.percent(found[c]) if c in found else "-" for c in COLUMNS))
    console.print(table)
    rules = list(next(iter(strata.values())))
    table = Table("stratum", "images", *rules, title="called rightly, by stratum (%)")
    for name, found in strata.items():
        count = found[rules[0]].n
        few = " (fewer than there)" if count < FEW else ""
        table.add_row(name, f"{count}{few}", *(metrics.percent(found[rule]) for rule in rules))
    console.print(table)
    title = "called rightly: of all clean images that the detector alone calls rightly, of all fakes attacked so (%)"
    table = Table("", "images", "undefended", *rules, title=title)
    for name, found in rates.items():
        cells = ["-" if found[rule] is None else metrics.percent(found[rule]) for rule in rules]
        table.add_row(name, str(found["images"]), metrics.percent(found["undefended"]), *cells)
    console.print(table)
    console.print(told, highlight=False, soft_wrap=True)


def trajectories(rows: Sequence[Row], prior: Prior, rules: Mapping[str, Rule]) -> Figure:
    """P(real) along the iterations, a panel a form: a thin line an image, a thick one the mean of its kind; and the
    PSNR of what was drawn."""
    fig = Figure(figsize=(14.4, 4.2), layout="constrained")
    panels = fig.subplots(1, 3)
    rule = next(iter(rules.values()))  # the only one shown: every rule has an iteration of its own
    steps = np.minimum(prior.look * np.arange(1, len(rows[0]["said"]) + 1), prior.steps)
    kinds = {kind: [r for r in rows if r["stratum"].startswith(kind)] for kind in COLOURS}
    psnr = {kind: np.array([r["psnr"] for r in some]) for kind, some in kinds.items() if some}
    for ax, form in zip(panels[:2], ("drawn", "average"), strict=True):
        for kind, some in kinds.items():
            if some:
                _lines(ax, steps, scores(some, form, rule.window), COLOURS[kind], f"{kind} ({len(some)})")
        if rule.form == form:
            ax.axvline(steps[rule.look], color="#1f2933", linewidth=1, linestyle="--")
            ax.axhline(rule.threshold, color="#1f2933", linewidth=1, linestyle="--")
        name = "what was drawn" if form == "drawn" else "running mean of it"
        ax.set(title=name, xlabel="iteration", ylim=(-0.03, 1.03))
    panels[0].set_ylabel("P(real), mean of the last looks")
    for kind, values in psnr.items():
        _lines(panels[2], steps, values, COLOURS[kind], kind)
    panels[2].set(title="PSNR to the image (dB)", xlabel="iteration")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _lines(ax: Any, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    ax.plot(steps, values.T, color=colour, linewidth=0.5, alpha=0.35)
    ax.plot(steps, values.mean(axis=0), color=colour, linewidth=2.2, label=label)


def stands_on(alone: Mapping[str, Estimate], held: Mapping[str, Mapping[str, float]]) -> str:
    """What the figures are shares of. alone: clean stratum -> what of its class the detector alone calls rightly. held:
    rule -> gandhi_dip_rules.left_out."""
    real, fake = (metrics.percent(alone[name]) for name in CLEAN)
    one = next(iter(held.values()))
    rules = "; ".join(f"{name} {100 * x['own']:.0f} and {100 * x['left_out']:.0f}" for name, x in held.items())
    return (
        "What the figures stand on. Real recall is over reals that the detector alone already calls rightly "
        f"({real} % of all {alone[CLEAN[0]].n} of the test split), clean fakes likewise ({fake} % of "
        f"{alone[CLEAN[1]].n}), and only fakes that both networks call rightly are attacked: of other images nothing "
        "is known. Rates of attacked fakes count each stratum as often as it occurs. Rules are chosen on "
        f"{one['images']:.0f} images of {one['photographs']:.0f} photographs; balanced accuracy (%) there, and of each "
        f"photograph by the rule of the others: {rules}. Intervals are over photographs, across strata, and hold "
        "neither other training seeds nor other codes; the detector alone has none, for strata are filled by what it "
        "says."
    )


def along_the_way(early: Mapping[str, float], prior: Prior) -> str:
    """early: of gandhi_dip_rules.hastened."""
    return (
        f"Decided along the way (real after {early['patience']:.0f} looks in a row, from iteration "
        f"{prior.look * (early['first'] + 1):.0f} on; chosen on the same images as the rule): accuracy "
        f"{100 * early['accuracy']:.0f} % where the rule has {100 * early['accuracy_of_rule']:.0f}, mean "
        f"{early['iterations']:.0f} iterations, of reals {early['iterations_of_reals']:.0f}."
    )


def differs(
    data: str,
    size: int,
    prior: Prior,
    source: str,
    rules: Mapping[str, Rule],
    held: int,
    strata: Sequence[str],
    canvas: int | None = None,
) -> str:
    """One line on what is not as in the paper. canvas: as of gandhi_dip.draw."""
    there = f"enlarged to {canvas} px" if canvas else "at the size that the detector sees"
    ours = "; ".join(f"{name}: {_spoken(rule, prior)}" for name, rule in rules.items())
    empty = [name for name in (*CLEAN, *_perturbed()) if name not in strata]
    none = f" No image: {', '.join(empty)}." if empty else ""
    return (
        f"What differs. Data: {data} at {size} px, drawn {there} for {prior.steps} iterations (theirs: images of 368 x "
        "300 enlarged to 512 px, drawn there for 10,000 and shrunk back). The paper's iteration is 6,000 of 10,000 [S, "
        "C]; ours, and the image looked at, are calibrated for each threshold on "
        f"{held} images of the validation split ({ours}). Detector: {source}; theirs is called resnet_blur. Attacked "
        "images are shown as 8-bit PNG. One code and one noise for all networks; theirs one an image. Nobody here "
        "attacks the defence itself: see experiments.dip_adaptive." + none
    )


def _spoken(rule: Rule, prior: Prior) -> str:
    """Iteration, image looked at and threshold of a rule."""
    image = "what was drawn" if rule.form == "drawn" else "the running mean"
    return f"iteration {min(prior.look * (rule.look + 1), prior.steps):,}, {image}, {rule.threshold:g}"


def _perturbed() -> list[str]:
    return [f"{a} {box} {o}" for a in ("FGSM", "CW") for box in ("black", "white") for o in ("fooled", "not fooled")]
