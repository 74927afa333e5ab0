"""The table and the figure of Deep Image Prior against an attacker who knows of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table

from ffjax import metrics
from ffjax.defences.dip_gradients import Trace
from ffjax.dip_adaptive import ATTACKS, Setting
from ffjax.dip_adaptive_sums import CHOSEN, JUDGES, WORST, Shares
from ffjax.figures import INK
from ffjax.findings import TRUSTED
from ffjax.metrics import Estimate

HEADS = {"undefended": "bare\ndetector", "own": "DIP, the\nattacker's key"}
HEADS |= {"fresh": "DIP,\na fresh key"}
NAMES = {"clean": "clean", "noise": "noise of the same bound", "noises": "noise, the worst of as many draws"}
NAMES |= ATTACKS | {WORST: WORST, CHOSEN: CHOSEN}
LITTLE = f"on clean test images its balanced accuracy is below {100 * TRUSTED:.0f} %, what falls had hardly stood"
COLOURS = {"fakes": "#D55E00", "reals": "#0072B2"}


def show(
    console: Console,
    found: Mapping[str, Shares],
    moved: Mapping[str, Mapping[str, Estimate]],
    knows: Mapping[str, Any],
    told: str,
    trace: Mapping[str, Any],
) -> None:
    """found: of dip_adaptive.figures. moved: of dip_adaptive.moves. knows: of dip_adaptive.competence. trace: of
    `plain_trace`."""
    for judge, of in knows.items():
        if not of["trusted"]:
            console.print(f"[bold red]no claim[/] of the {HEADS[judge].replace(chr(10), ' ')}: {LITTLE}")
    heads = [f"{HEADS[judge]}\n{kind}" for judge in JUDGES for kind in ("fakes", "reals")]
    table = Table("", "fakes\n+ reals", *heads, title="rightly called, clean and as attacked (%)", show_lines=True)
    for name, shares in found.items():
        one = shares["own"]
        cells = [metrics.percent(shares[judge][kind]) for judge in JUDGES for kind in ("fakes", "reals")]
        table.add_row(NAMES[name], f"{one['fakes'].n} + {one['reals'].n}", *cells)
    parted = [cell for judge in JUDGES for cell in (metrics.percent(knows[judge]["auc"]), "")]
    table.add_row("clean AUC", "", *parted)
    console.print(table)
    heads = [HEADS[judge] for judge in JUDGES]
    table = Table(
        "", "images", *heads, title="margin moved to the wrong side (logits), mean over all images", show_lines=True
    )
    for name, one in moved.items():
        table.add_row(NAMES[name], str(one["own"].n), *(_logits(one[judge]) for judge in JUDGES))
    console.print(table)
    console.print(told, highlight=False, soft_wrap=True)
    console.print(spoken(trace), highlight=False, soft_wrap=True)


def _logits(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"


def plain_trace(trace: Trace, ids: list[int]) -> dict[str, Any]:
    """For results.json: at each boundary of the way back, of each image."""
    values = {name: np.asarray(x, float).tolist() for name, x in trace._asdict().items() if name != "steps"}
    return {"ids": ids, "steps": [int(s) for s in trace.steps]} | values


def spoken(trace: Mapping[str, Any]) -> str:
    """The norms on the way back, as text: medians over the images."""
    params, images, cosine = (np.median(np.array(trace[name]), axis=1) for name in ("params", "images", "cosine"))
    lines = [
        f"Exact gradient on its way back through DIP, medians of {len(trace['ids'])} clean images (iterations before "
        "that point: 2-norm of the derivative by the parameters; of what has reached the image so far; cosine of that "
        "with the whole):"
    ]
    rows = zip(trace["steps"], params, images, cosine, strict=True)
    lines += [f"  {step:4d}: {p:.3g}; {x:.3g}; {c:+.2f}" for step, p, x, c in rows]
    return "\n".join(lines)


def bars(found: Mapping[str, Shares], moved: Mapping[str, Mapping[str, Estimate]], knows: Mapping[str, Any]) -> Figure:
    """Accuracy on fakes and on reals: the bare detector, then behind DIP every row; a dot where the key is fresh.
    Below, how far margins have moved to the wrong side behind DIP. Arguments: as of `show`."""
    claim = "" if knows["own"]["trusted"] else f": no claim, clean AUC {metrics.percent(knows['own']['auc'])} %"
    shown = [("bare, clean", "clean", "undefended"), ("bare, PGD", "pgd", "undefended")]
    names = {
        "clean": "DIP, clean",
        "noise": "DIP, noise",
        "noises": "many noises",
        "pgd": "unaware PGD",
        "low": "low frequencies",
    }
    names |= {"low-truncated": "low frequencies,\ntruncated"}
    names |= {"eot": "EOT", "bpda": "BPDA", WORST: "strongest\nper image"}
    shown += [(names.get(name, name), name, "own") for name in found if name != CHOSEN]
    fig = Figure(figsize=(13.4, 8.4), layout="constrained")
    ax, below = fig.subplots(2, 1)
    for kind, shift in (("fakes", -0.2), ("reals", 0.2)):
        at = np.arange(len(shown)) + shift
        own = [found[name][judge][kind] for _, name, judge in shown]
        low, high = ([_distance(e, side) for e in own] for side in ("low", "high"))
        ax.bar(at, [e.value for e in own], 0.38, color=COLOURS[kind], label=f"{kind}, key known to the attacker")
        ax.errorbar(at, [e.value for e in own], (low, high), fmt="none", ecolor=INK, lw=1)
        fresh = [found[name]["fresh"][kind].value for _, name, _ in shown[2:]]
        ax.plot(at[2:] + 0.1, fresh, "o", mfc="white", mec=COLOURS[kind], mew=2, zorder=3, label=f"{kind}, a fresh key")
    ax.axvline(1.5, color=INK, lw=1)
    ax.set_xticks(np.arange(len(shown)), [name for name, _, _ in shown], rotation=25, ha="right")
    _moved(below, shown[2:], moved)
    ax.set(ylim=(0, 1.04), ylabel="rightly called", title=f"Deep Image Prior against attackers who know of it{claim}")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.08), fontsize=10)
    return fig


def _moved(ax: Any, shown: list[tuple[str, str, str]], moved: Mapping[str, Mapping[str, Estimate]]) -> None:
    """A bar a row of `shown`, under the key known to the attacker, and a dot under a fresh one."""
    at = np.arange(len(shown))
    for judge, shift, words in (("own", -0.12, "key known to the attacker"), ("fresh", 0.12, "a fresh key")):
        some = [moved[name][judge] for _, name, _ in shown]
        low, high = ([_distance(e, side) for e in some] for side in ("low", "high"))
        style = {"mfc": INK if judge == "own" else "white", "mec": INK, "ecolor": INK, "ms": 8, "lw": 1}
        ax.errorbar(at + shift, [e.value for e in some], (low, high), fmt="o", label=words, **style)
    ax.axhline(0, color=INK, lw=1)
    ax.set_xticks(at, [name for name, _, _ in shown], rotation=25, ha="right")
    ax.set(ylabel="logits", title="margin moved to the wrong side behind DIP, mean over all images")
    ax.legend(loc="upper left", fontsize=10)


def _distance(e: metrics.Estimate, side: str) -> float:
    end = getattr(e, side)
    return 0.0 if np.isnan(end) else max(0.0, abs(end - e.value))


def differs(setting: Setting, whole: int, size: int, data: str, held: Mapping[str, tuple[float, float]], n: int) -> str:
    """What the table stands on."""
    prior = setting.prior
    known = "; ".join(f"{name} {t:+.2f} ({100 * a:.0f} % balanced there)" for name, (t, a) in held.items())
    return (
        f"Images: the central {size} px of {data} at {whole} px (shrunk to {size} px they lose what the detector goes "
        f"by), the same weights at {size} px. Defence: {prior.steps} iterations, running mean with weight "
        f"{prior.average:g}, one code, noise and start for all images. Thresholds of the margin, each calibrated for "
        f"its column on {n} validation images: {known}. l_inf bound {255 * setting.eps:g}/255; PGD {setting.steps} "
        f"steps, late: but for the first {setting.skip} iterations, truncated and EOT: the last {setting.last}, EOT: "
        f"over {setting.draws} keys, Square {setting.queries} queries; the worst of {setting.steps} draws of noise. "
        "Images are 8-bit to attackers and judges alike. Intervals are over photographs, and hold neither other keys "
        "nor seeds. An image called wrongly as it is counts as wrong everywhere; "
        "what the strongest does to a fresh key is the worst of several tries at it, 'by the attacker's key' is not."
    )
