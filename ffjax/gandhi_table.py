"""Gandhi and Jain's table as it is printed and written down: their layout, their figures beside ours, and what
differs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffjax import metrics
from ffjax.findings import TRUSTED
from ffjax.gandhi import FORMS, Entry, Line, Setting, lines
from ffjax.metrics import Estimate

UNTRAINED = "no ImageNet pre-training"
COLUMNS = ("clean fake", "FGSM black", "FGSM white", "CW black", "CW white")
PUBLISHED = {
    "vgg16": (99.7, 8.9, 0.0, 26.6, 0.0),
    "resnet18": (95.4, 20.8, 7.5, 4.6, 0.0),
}
"""Accuracy on fakes in per cent, in the order of COLUMNS (PAPERS.md 2.5, tag S: read from a secondary source)."""
PUBLISHED_CLEAN = {"vgg16": (99.7, 99.9, 99.7, 99.8), "resnet18": (93.2, 97.9, 95.4, 91.1)}
"""Accuracy, AUC, accuracy on fakes and on reals, in per cent (PAPERS.md 2.3, tag S)."""
KEPT = {
    "float": "in memory",
    "png": "as 8-bit PNG, rounded to the nearest level",
    "greedy": "in 8 bits, rounded along the gradient as the paper does",
    "jpeg75": "as JPEG, quality 75",
}


def head(wanting: Sequence[str]) -> str:
    """What stands above every table if a detector is not there to be broken; else ''."""
    return f"detector not competent ({', '.join(wanting)}): " if wanting else ""


def differs(data: str, size: int, fakes: tuple[int, int, int], setting: Setting, own: Mapping[str, str]) -> str:
    """One line on why ours and the published figures are no replication of each other. fakes: attacked, called rightly
    by both, in the test split. own: network -> what it is."""
    attacked, right, every = fakes
    told = (
        f"What differs. Data: {data} at {size} px; the paper has 10,000 CelebA faces and few-shot translations of them "
        "at 368 x 300 [S, C]. Networks: " + "; ".join(f"{name} {told}" for name, told in own.items()) + f"; {UNTRAINED}"
        " (theirs start from ImageNet's weights [C]). Training: Adam, cosine decay, epoch selected on validation; "
        "theirs SGD 1e-3, 5 epochs, selected on test [C]. "
        f"Fakes: {attacked} attacked, of {right} that both networks call rightly, of {every} in the test split (clean "
        "fake: all of these); which the paper attacked is not known, the clean column suggests all. "
    )
    paper = Setting()
    if (setting.inner, setting.searches) != (paper.inner, paper.searches):
        told += (
            f"Carlini-Wagner: {setting.searches} constants of at most {setting.inner} steps; "
            f"theirs {paper.searches} of {paper.inner} [C], and may reach further or nearer. "
        )
    told += (
        "Intervals are over identities; one training, one attack seed and one noise draw. An FGSM step that lowers the "
        "source's own loss is taken back, here alone. "
    )
    return told + "Storage behind the published figures: not known; their code writes JPEG [C]."


def show(
    console: Console,
    clean: Mapping[str, Mapping[str, Estimate]],
    entries: Sequence[Entry],
    costs: Sequence[Mapping[str, Any]],
    setting: Setting,
    wanting: Sequence[str],
    difference: str,
) -> None:
    """All tables: the detectors clean, the paper's table in each storage, and what the attacks took."""
    above = head(wanting)
    console.print(_clean(clean, above))
    for form in FORMS:
        console.print(_accuracies(clean, [e for e in entries if e.form == form], setting, above, KEPT[form]))
    console.print(_costs(costs, above))
    if wanting:
        told = f"{', '.join(wanting)}: clean balanced accuracy below {100 * TRUSTED:.0f} %, so no claim is made."
        console.print(f"[bold red]detector not competent:[/] {told}", highlight=False)
    console.print(escape(difference), highlight=False, soft_wrap=True)


def plain(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For results.json, with the published figure where there is one."""
    rows = []
    for entry in entries:
        attack = "FGSM" if entry.line == Line("fgsm") else "CW"
        figures: dict[str, float] = dict(zip(COLUMNS, PUBLISHED.get(entry.network, ()), strict=False))
        named = {"evaluated": entry.network, "box": entry.box, "attack": entry.line.name, "form": entry.form}
        named |= {"pretraining": UNTRAINED, "published_percent": figures.get(f"{attack} {entry.box}")}
        shares = {"accuracy": entry.attacked, "noise_accuracy": entry.noise, "clean_accuracy": entry.clean}
        rows.append(named | metrics.plain(shares))
    return rows


def _clean(clean: Mapping[str, Mapping[str, Estimate]], above: str) -> Table:
    names = ("balanced accuracy", "accuracy", "AUC", "accuracy on fakes", "accuracy on reals")
    heads = [f"{name}\n{UNTRAINED}" for name in names]
    table = Table("evaluated", *heads, title=f"{above}clean test images (%)", show_lines=True)
    for network, found in clean.items():
        keys = ("balanced_accuracy", "accuracy", "auc", "fake_accuracy", "real_accuracy")
        table.add_row(network, *(f"{metrics.percent(found[key])}\nn = {found[key].n}" for key in keys))
        if network in PUBLISHED_CLEAN:
            table.add_row("published \\[S], pre-trained", "", *(f"{x:.1f}" for x in PUBLISHED_CLEAN[network]))
    return table


def _accuracies(
    clean: Mapping[str, Mapping[str, Estimate]], entries: Sequence[Entry], setting: Setting, above: str, kept: str
) -> Table:
    """The paper's layout. FGSM stands in the first of our rows; Carlini-Wagner in all, one for each way to count."""
    counted = max((entry.attacked.n for entry in entries), default=0)
    title = f"{above}accuracy on fakes (%), {counted} attacked, kept {kept}; below each, noise of the same norm"
    table = Table("evaluated", *(f"{name}\n{UNTRAINED}" for name in COLUMNS), title=title, show_lines=True)
    at = {(entry.network, entry.box, entry.line): entry for entry in entries}

    def cell(network: str, box: str, line: Line) -> str:
        entry = at.get((network, box, line))
        return "" if entry is None else f"{metrics.percent(entry.attacked)}\nnoise {metrics.percent(entry.noise)}"

    for network, found in clean.items():
        if network in PUBLISHED:
            table.add_row(f"{network}, published \\[S], pre-trained", *(f"{x:.1f}" for x in PUBLISHED[network]))
        share = found["fake_accuracy"]
        fgsm = [cell(network, box, Line("fgsm")) for box in ("black", "white")]
        same = at.get((network, "white", Line("fgsm")))
        stored = "" if same is None else f"\nattacked ones {100 * same.clean.value:.0f}"
        first = [f"{metrics.percent(share)} of {share.n}{stored}", *fgsm]
        for line in lines(setting):
            table.add_row(f"{network}, {line.name}", *first, *(cell(network, box, line) for box in ("black", "white")))
            first = ["", "", ""]
    return table


def _costs(costs: Sequence[Mapping[str, Any]], above: str) -> Table:
    heads = ("source", "attack", "kappa", "full margin", "called real", "unmoved", "L2", "L2 full", "PSNR", "PSNR full")
    heads += ("gradients an image", "seconds")
    title = f"{above}white box, in memory: medians (quartiles) over the images called real, over the full; {UNTRAINED}"
    table = Table(*heads, title=title)
    for row in costs:
        of = f" of {row['images']}"
        table.add_row(
            row["source"],
            row["attack"],
            "" if row["kappa"] is None else f"{row['kappa']:.3g}",
            "" if row["kappa"] is None else f"{row['full']}{of}",
            f"{row['misclassified']}{of}",
            str(row["unmoved"]),
            *(_spread(row[name]) for name in ("l2", "full_l2", "psnr", "full_psnr")),
            f"{row['gradients'] / row['images']:.0f}",
            f"{row['seconds']:.0f}",
        )
    total = [sum(row[name] for row in costs) for name in ("gradients", "seconds")]
    table.add_row("all", *[""] * 9, f"{total[0]:.0f} in all", f"{total[1]:.0f}")
    return table


def _spread(quartiles: Sequence[float] | None) -> str:
    if quartiles is None:
        return "-"
    low, middle, high = quartiles
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"
