"""Gandhi and Jain's regularisation table (IJCNN 2020, arXiv 2003.10596; PAPERS.md 2.6) as it is printed and written
down, their figures beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import gandhi, gandhi_table, metrics
from ffjax.gandhi import Cell, Line
from ffjax.individual import Row
from ffjax.metrics import Estimate

COLUMNS = ("clean fake", "FGSM black", "FGSM white", "CW black", "CW white")
PUBLISHED = {
    "none": (95.4, 20.8, 7.5, 4.6, 0.0),
    "mean over the four weights": (93.9, 31.5, 12.5, 14.3, 0.5),
    "best weight of each column": (99.3, 53.2, 26.5, 19.8, 2.2),
}
"""Fakes still called fake by ResNet-18, in per cent, in the order of COLUMNS (tag S: read from a secondary source)."""
FORMS = {"float": "in memory", "png": "as 8-bit PNG"}


class Network(NamedTuple):
    """One trained network. weight: of the penalty; 0: none. clean: as gandhi.clean. slope: mean norm of the loss
    gradient on test images. flags: signs of robustness that is none. chosen: on validation images, among the weights
    above 0. l2: quartiles of Carlini-Wagner's distances, white box."""

    name: str
    weight: float
    clean: Mapping[str, Estimate]
    slope: float
    flags: Mapping[str, str]
    chosen: bool
    l2: list[float] | None = None


Figures = Mapping[tuple[str, str, str], tuple[Estimate, Estimate]]
"""(network, column, form) -> the share of attacked fakes that it still calls fake, and the same under noise of the
same norm."""


def figures(ledgers: Sequence[tuple[Cell, Sequence[Row]]], networks: Sequence[str]) -> Figures:
    """Of white cells, whose source is one of the networks, and black ones, whose source is another."""
    found = {}
    for cell, rows in ledgers:
        box = "white" if cell.source in networks else "black"
        attack = "FGSM" if cell.name == "fgsm" else "CW"
        for network in [cell.source] if box == "white" else networks:
            for form in FORMS:
                shares = [
                    gandhi.accuracy(rows, cell, Line(cell.name), network, kind, form) for kind in ("attacked", "noise")
                ]
                found[network, f"{attack} {box}", form] = tuple(shares)
    return found


def show(
    console: Console, networks: Sequence[Network], found: Figures, differs: str, wanting: Sequence[str] = ()
) -> None:
    """A table in each storage, the flags, and a line on what the chosen weight changed. wanting: of VGG-16 and the
    network without a penalty, on which all rests, those that are not competent."""
    for form, kept in FORMS.items():
        console.print(_table(networks, found, form, gandhi_table.head(wanting), kept))
    for one in networks:
        for flag, told in one.flags.items():
            console.print(f"[bold red]flag {flag}[/] ({one.name}): {told}", highlight=False)
    for line in (*([] if wanting else claims(networks, found)), differs):
        console.print(line, highlight=False, soft_wrap=True)


def claims(networks: Sequence[Network], found: Figures) -> list[str]:
    """What the weight chosen on validation images does to each column, over no penalty; in memory."""
    none = next(one for one in networks if one.weight == 0)
    chosen = next((one for one in networks if one.chosen), None)
    if chosen is None:
        return ["no network with a penalty is competent: no claim is made"]
    lines = []
    for column in COLUMNS[1:]:
        before, after = (found[one.name, column, "float"][0] for one in (none, chosen))
        apart = "above" if after.low > before.high else "below" if after.high < before.low else "not apart from"
        lines.append(
            f"{column}: {chosen.name} leaves {metrics.percent(after)} % of {after.n} fakes called fake, {apart} none's "
            f"{metrics.percent(before)}"
        )
    return lines


def differs(data: str, size: int, own: str, fakes: tuple[int, int], multiple: float, inner: int) -> str:
    """One line on why ours and the published figures are no replication of each other. own: what ResNet-18 is here.
    fakes: attacked, and called rightly by all networks."""
    return (
        f"What differs. Data: {data} at {size} px; theirs CelebA faces and few-shot translations of them [S, C]. "
        f"Network: ResNet-18, {own}; theirs from ImageNet's weights [C]. Penalty: on running statistics; theirs in "
        f"training mode [C]. Fakes: {fakes[0]} of {fakes[1]} that all networks call rightly; theirs are not known. "
        f"Carlini-Wagner: kappa of {multiple:g} median margins, {inner} steps a constant; theirs 200, 1000 [C]. One "
        "training each; intervals over identities alone."
    )


def _table(networks: Sequence[Network], found: Figures, form: str, head: str, kept: str) -> Table:
    count = next(iter(found.values()))[0].n
    title = f"{head}still called fake (%) of {count} fakes that all competent networks call rightly, {kept}"
    table = Table("penalty", "all clean fakes", "all clean reals", *COLUMNS[1:], title=title)
    for name in ("CW white l2", "mean loss gradient", "flags"):
        table.add_column(name)
    competent = [one for one in networks if (one.name, COLUMNS[1], form) in found]
    for one in networks:
        clean = [metrics.percent(one.clean[f"{side}_accuracy"]) for side in ("fake", "real")]
        if one not in competent:
            table.add_row(one.name, *clean, *["not competent"] * 4, "", f"{one.slope:.3g}", "")
            continue
        shares = [found[one.name, column, form] for column in COLUMNS[1:]]
        cells = [f"{metrics.percent(attacked)}\nnoise {metrics.percent(noise)}" for attacked, noise in shares]
        name, far = one.name + "\nchosen on validation" * one.chosen, f"{one.l2[1]:.3g}" if one.l2 else "-"
        table.add_row(name, *clean, *cells, far, f"{one.slope:.3g}", ", ".join(one.flags) or "none")
    points = np.array([_points(one, found, form) for one in competent if one.weight])
    if len(points):
        for name, of in (("mean", points.mean(0)), ("best of each column, no one model", points.max(0))):
            first, *rest = (f"{x:.0f}" for x in of)
            table.add_row(f"{name}, of the competent with a penalty", first, "-", *rest, "", "", "")
    for name, published in PUBLISHED.items():
        first, *rest = (f"{x:.1f}" for x in published)
        table.add_row(f"[dim]published: {name} \\[S][/]", first, "not told", *rest, "", "", "")
    return table


def _points(one: Network, found: Figures, form: str) -> list[float]:
    attacked = [found[one.name, column, form][0].value for column in COLUMNS[1:]]
    return [100 * value for value in (one.clean["fake_accuracy"].value, *attacked)]


def plain(networks: Sequence[Network], found: Figures) -> dict[str, Any]:
    """For results.json."""
    return {
        "networks": [one._asdict() | {"clean": metrics.plain(dict(one.clean))} for one in networks],
        "figures": [
            {
                "network": network,
                "column": column,
                "form": form,
                "attacked": metrics.plain(a),
                "noise": metrics.plain(n),
            }
            for (network, column, form), (a, n) in found.items()
        ],
        "published": {name: list(values) for name, values in PUBLISHED.items()},
    }
