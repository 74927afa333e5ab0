"""Gandhi and Jain's attacks on two detectors (IJCNN 2020, arXiv 2003.10596; PAPERS.md 2): which fakes, which cells, and
what each amounts to.

A cell is one attack on one network, the source; its images are shown to both: to the source in white box, to the other
in black box by transfer. Only fakes are perturbed, to be called real.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ffjax import campaign, detectors, goals, gradients, individual, metrics
from ffjax.attacks import lattice
from ffjax.campaign import Plan
from ffjax.data import sets
from ffjax.detectors import Loaded
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.findings import TRUSTED
from ffjax.individual import Row
from ffjax.metrics import Estimate, Scores
from ffjax.types import Array, AttackResult, Batch, Forward, ImageSet

FORMS = ("float", "png", "greedy", "jpeg75")
"""How images are kept before they are shown. Which of float, PNG and JPEG the paper's table stands on is not known;
greedy is its own rounding (see `greedy`)."""
QUALITY = 75
FULL = 1 - 1e-4
"""Share of kappa at which a margin counts as full: the result is computed anew, in another program, after the search
has settled right at kappa."""


class Recipe(NamedTuple):
    """How a detector is made for the table. options: the architecture's. dropout: None for its own."""

    options: tuple[str, ...]
    dropout: float | None
    rate: float
    epochs: int


RECIPES = {
    "vgg16": Recipe(("width=16", "hidden=128", "norm=batch", "pooled=1"), 0.0, 5e-4, 6),
    "resnet18": Recipe(("width=16",), None, 1e-3, 16),
}
"""The two networks, from random weights, at a quarter of the paper's width; vgg16-a0 and resnet18-a0 are made so."""
FULL_WIDTH = {
    "vgg16": Recipe(("norm=batch",), None, 1e-4, 6),
    "resnet18": Recipe((), None, 3e-4, 8),
}
"""As wide as there. Nobody has trained VGG-16 so here: its rate and epochs are a guess."""


class Setting(NamedTuple):
    """What is varied of the attacks. eps: of FGSM, in [0,1] units. kappa: the literal one. multiples: of the median
    clean margin, for the others. inner, searches: Adam steps a constant, and constants, of Carlini-Wagner."""

    eps: float = 0.02
    kappa: float = 200.0
    multiples: tuple[float, ...] = (0.0, 1.0, 5.0, 20.0)
    inner: int = 1000
    searches: int = 5


class Cell(NamedTuple):
    """One attack on one network. name: 'fgsm', 'cw-k200', 'cw-5m' (kappa = 5 median clean margins). kappa: None for
    FGSM."""

    source: str
    name: str
    plan: Plan
    eps: float
    kappa: float | None = None


class Line(NamedTuple):
    """One way to read a cell. published: as the paper's code returns it, the clean image where no iterate reached all
    of kappa; else the best image, which need only be called real."""

    cell: str
    published: bool = False

    @property
    def name(self) -> str:
        return self.cell + ", full margin or nothing" * self.published


def network(name: str, weights: str | Path) -> Loaded:
    """Weights of that architecture, a file or a shipped name, named after it. InputError for another's."""
    loaded = detectors.load(str(weights) if weights in detectors.shipped() else f"{name}:{weights}")
    if loaded.meta["arch"] != name:
        raise InputError(f"{weights}: weights of {loaded.meta['arch']}, not of {name}")
    return loaded._replace(name=name)


def check(setting: Setting) -> None:
    """InputError for settings that no attack can use."""
    known = {"eps": setting.eps, "kappa": setting.kappa} | {f"multiples: {k:g}": k for k in setting.multiples}
    for name, value in known.items():
        if value < 0:
            raise InputError(f"{name}: must not be negative, got {value:g}")
    if len(set(setting.multiples)) < len(setting.multiples):
        raise InputError("multiples: no two alike")
    for name, value in (("inner", setting.inner), ("searches", setting.searches)):
        if value < 1:
            raise InputError(f"{name}: must be at least 1, got {value}")


def cells(medians: Mapping[str, float], setting: Setting) -> list[Cell]:
    """Source by source FGSM, kappa literal, and kappa in multiples of the source's own median margin."""
    found = []
    for source, median in medians.items():
        kappas = {f"cw-k{setting.kappa:g}": setting.kappa} | {f"cw-{k:g}m": k * median for k in setting.multiples}
        found.append(Cell(source, "fgsm", Plan("fgsm", "linf", {}), setting.eps))
        for name, kappa in kappas.items():
            options = {"search": "gandhi", "kappa": float(kappa), "keep": "margin"}
            options |= {"inner": setting.inner, "searches": setting.searches}
            options |= {"rate": 0.01, "patience": max(1, setting.inner // 10)}  # the paper's
            found.append(Cell(source, name, Plan("cw", "l2", options), np.inf, float(kappa)))
    return found


def settings() -> dict[str, str]:
    """Of both attacks, for study.check_inputs: what no flag of the driver says."""
    plans = [cell.plan for cell in cells({"source": 1.0}, Setting(multiples=()))]
    return {name: told for plan in plans for name, told in campaign.settings(plan).items()}


def lines(setting: Setting) -> list[Line]:
    """The rows of the table, Carlini-Wagner's: the literal kappa counted in both ways, and every multiple."""
    literal = f"cw-k{setting.kappa:g}"
    return [Line(literal, True), Line(literal), *(Line(f"cw-{k:g}m") for k in setting.multiples)]


def median_margin(said: np.ndarray, data: ImageSet) -> float:
    """Median z_fake - z_real over the fakes called rightly. InputError if there is none."""
    right = said[(data.labels == 1) & (said > 0)]
    if not len(right):
        raise InputError("no fake of the validation split is called rightly: kappa has no unit")
    return float(np.median(right))


def both_right(said: Mapping[str, np.ndarray], data: ImageSet, count: int, seed: int) -> tuple[ImageSet, int]:
    """`count` fakes, drawn once and for all, that every network calls rightly, and of how many: so all cells have one
    denominator, and what is called real was made so by the attack. Fewer images are the first of more. InputError if
    there is none."""
    right = np.logical_and.reduce([margin > 0 for margin in said.values()]) & (data.labels == 1)
    if not right.any():
        raise InputError(f"none of these {len(right)} images is a fake that all of {', '.join(said)} call rightly")
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(right))[:count]
    return sets.taken(data, rows), int(right.sum())


def clean(said: np.ndarray, data: ImageSet) -> dict[str, Estimate]:
    """A detector on a whole clean split: accuracy, balanced_accuracy, auc, and the accuracy on fakes and on reals."""
    found = metrics.summary(Scores(data.labels, data.groups, said, said))
    shares = {name: found[f"clean_{name}"] for name in ("balanced_accuracy", "accuracy", "auc")}
    sides = [(data.labels == label, name) for label, name in ((1, "fake_accuracy"), (0, "real_accuracy"))]
    return shares | {
        name: metrics.share(((said > 0) == (data.labels == 1))[side].astype(float), data.groups[side])
        for side, name in sides
    }


def incompetent(scores: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """The networks whose clean balanced accuracy is below TRUSTED."""
    return [name for name, found in scores.items() if not found["balanced_accuracy"].value >= TRUSTED]


def attack(
    folder: Path,
    cell: Cell,
    fakes: ImageSet,
    forwards: Mapping[str, Forward],
    compute: Compute,
    seed: int,
    tell: Callable[[int, str], None],
    keep: Callable[[np.ndarray, AttackResult], None] = lambda ids, result: None,
) -> list[Row]:
    """The rows of folder/ledger.jsonl, made as far as they are not there yet: as individual.attack has them for the
    source, with transfer[kind][form][network] of the others, and greedy[network] of the image rounded as the paper
    does. A killed run goes on where campaign.job left off. keep: as of individual.attack."""
    source = forwards[cell.source]
    others = {name: forward for name, forward in forwards.items() if name != cell.source}
    job = campaign.job(cell.plan, source, compute, folder, tell)
    rounded: dict[int, dict[str, float]] = {}

    def attacked(batch: Batch, eps: np.ndarray, seed: int) -> Any:
        result = job.attack(batch, eps, seed)
        images = greedy(source, batch, result.images, compute)
        said = {name: margins(forward, images, compute) for name, forward in forwards.items()}
        for k, i in enumerate(batch.ids):
            rounded[int(i)] = {name: float(margin[k]) for name, margin in said.items()}
        return result

    def transfer(batch: Batch, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: margins(forward, images, compute) for name, forward in others.items()}

    return individual.attack(
        folder / "ledger.jsonl", fakes, source, attacked, job.noise, cell.eps,
        minimal=campaign.minimal(cell.plan), threshold=0.0, qualities=(QUALITY,), seed=seed, compute=compute,
        looks={"transfer": transfer}, note=lambda i: {"greedy": rounded[i]}, keep=keep, tell=job.tell,
    )  # fmt: skip


def greedy(forward: Forward, batch: Batch, images: np.ndarray, compute: Compute) -> np.ndarray:
    """The paper's greedy rounding to n / 255: clip(255 x' + sign(grad CE) / 2, 0, 255) rounded, the gradient taken at
    x' on the source. One gradient an image; always `compute.batch` rows, so that a row does not depend on how many."""
    rows = np.minimum(np.arange(max(compute.batch, len(images))), len(images) - 1)
    padded = Batch(*(None if x is None else np.asarray(x)[rows] for x in batch))
    return np.asarray(_greedy(forward, padded, images[rows]))[: len(images)]


@jax.jit
def _greedy(forward: Forward, batch: Batch, images: Array) -> Array:
    nothing = np.zeros(len(images), np.float32)  # neither keys nor bounds enter an exact gradient
    slope = gradients.exact(goals.verdict("ce")).at(nothing, images, batch, nothing, forward).gradient  # type: ignore[arg-type]
    every = partial(lattice.rounded, 1.0, norm="l2", bound="minimal", eps=np.inf)  # type: ignore[arg-type]
    return jax.vmap(lambda x, delta, favour: every(clean=x, delta=delta, favour=favour))(
        batch.images, images - batch.images, slope
    )


def full(row: Row, kappa: float | None) -> bool:
    """Whether the margin that was asked for is there."""
    return row["success"] and (kappa is None or row["loss"] >= FULL * kappa)


def said(row: Row, cell: Cell, line: Line, network: str, kind: str, form: str) -> float:
    """The margin of `network` on the image as this line of the table has it. What is no attack has no gradient to be
    rounded along, and is rounded to the nearest level instead."""
    if line.published and not full(row, cell.kappa):
        kind = "clean"
    if form == "greedy":
        if kind == "attacked":
            return row["greedy"][network]
        form = "png"
    return row["margins"][kind][form] if network == cell.source else row["transfer"][kind][form][network]


def accuracy(rows: Sequence[Row], cell: Cell, line: Line, network: str, kind: str, form: str) -> Estimate:
    """The share of the attacked fakes that `network` still calls fake."""
    right = [said(row, cell, line, network, kind, form) > 0 for row in rows]
    return metrics.share(np.array(right, float), np.array([row["group"] for row in rows]))


class Entry(NamedTuple):
    """One figure of the table. network: the evaluated one; box: 'white', made on it, or 'black', made on the other.
    clean: of the same fakes as they were, kept in this form; noise: of the same norm, image by image."""

    network: str
    box: str
    line: Line
    form: str
    attacked: Estimate
    noise: Estimate
    clean: Estimate


def entries(ledgers: Sequence[tuple[Cell, Sequence[Row]]], setting: Setting) -> Iterator[Entry]:
    """Every figure, of whatever cells there are."""
    networks = list(dict.fromkeys(cell.source for cell, _ in ledgers))
    for cell, rows in ledgers:
        for line in (line for line in (Line("fgsm"), *lines(setting)) if line.cell == cell.name):
            for network in networks:
                for form in FORMS:
                    shares = [
                        accuracy(rows, cell, line, network, kind, form) for kind in ("attacked", "noise", "clean")
                    ]
                    yield Entry(network, "white" if network == cell.source else "black", line, form, *shares)


def costs(cell: Cell, rows: Sequence[Row]) -> dict[str, Any]:
    """How far and at what cost. full and misclassified: how many images reached all of kappa, or merely the other
    verdict, of `images`; unmoved: how many came back as they were. l2, psnr: quartiles over the misclassified; full_l2,
    full_psnr: over the full. gradients, seconds: in all."""
    reached, whole = [r for r in rows if r["success"]], [r for r in rows if full(r, cell.kappa)]
    sizes = {"l2": reached, "psnr": reached, "full_l2": whole, "full_psnr": whole}
    found = {name: metrics.quartiles([row[name.removeprefix("full_")] for row in some]) for name, some in sizes.items()}
    counts = {"images": len(rows), "full": len(whole), "misclassified": len(reached)}
    counts["unmoved"] = sum(row["l2"] == 0 for row in rows)
    spent = {name: sum(row[name] for row in rows) for name in ("gradients", "queries", "seconds")}
    return {"source": cell.source, "attack": cell.name, "kappa": cell.kappa} | counts | found | spent
