"""A detector's verdict and its mask fabricated, image by image: the cells of `experiments.huang_iap`, how each is run,
and what its rows amount to.

Huang et al. (ICIP 2020) publish neither losses nor bounds (PAPERS.md 1.2): what stands here is our formulation of 1.3.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ffjax import attempts, detectors, evaluate, goals, individual, masks, metrics
from ffjax.attempts import Runner
from ffjax.data import sets
from ffjax.detectors import Loaded
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.individual import KINDS, Row
from ffjax.metrics import Estimate
from ffjax.targets import TARGETS
from ffjax.types import Batch, Forward, Goal, ImageSet

SIDES = {"both": (0, 1), "fakes": (1,), "reals": (0,)}
LOSSES = ("activation", *goals.VERDICT_LOSSES)
ACTIVATED = 0.5
"""The confidence asked of the activation loss at most: its targets, 1 and 0, are a margin of 1, past which it pulls
back."""
ALONE = float("inf")
"""The weight of a mask that is attacked alone."""
GATES = {"clean": {"fakes": "fake", "reals": "real"}, "target": {"fakes": "real", "reals": "fake"}}
"""What the attacker's network lets its decoder see (PAPERS.md 1.3, trap 2), as classnseg's option `gate`: the half of
the clean verdict, or of the one that is wanted. All images of a cell are of one class and called rightly, so each is
one setting. The third way, current, is the network as it is deployed."""


Found = Mapping[str, Mapping[str, Any]]
"""Cell's name -> fakes, reals -> `measured`."""
BySet = Mapping[str, Found]


class Cell(NamedTuple):
    """One attack on one list of images. side: a key of SIDES. images: at most, of each class. loss: of the verdict, one
    of LOSSES. weight: of the mask beside it: 0, the verdict alone; ALONE, the mask alone. target: a key of TARGETS, or
    None. eps in 1/255. gate: clean, current or target. Every row goes its steps to the end: one halted where it has
    just arrived would lie at the boundary, and what a file leaves of it would say so, not how strong the attack is."""

    part: str
    side: str
    images: int
    loss: str
    weight: float
    target: str | None
    eps: float
    steps: int
    step: float
    gate: str = "current"

    @property
    def name(self) -> str:
        """Of its ledger; no two cells of a plan share one."""
        kind = f"{self.loss}-" * (self.weight != ALONE) + (f"{self.target}-w{self.weight:g}-" if self.target else "")
        return f"{self.part}-{self.side}-{kind}eps{self.eps:g}-T{self.steps}-{self.gate}"


class Victim(NamedTuple):
    """What is attacked. forward: as deployed. through(gate): as the attacker's gate makes it. threshold: where it says
    fake. confidence: how far past it an attack on the verdict alone goes. least: the share of an image above which its
    mask says fake."""

    forward: Forward
    through: Callable[[str], Forward]
    threshold: float
    confidence: float
    least: float


def victim(loaded: Loaded, held: ImageSet, sure: float, compute: Compute) -> Victim:
    """The detector and what is tuned on the validation images `held`: confidence is `sure` times the median |margin| of
    those called rightly, and `least` the area at which the mask alone tells fakes best. InputError for a detector
    without a mask, or whose mask tells no fake from a real by its area."""
    deployed = forward(loaded)
    if jax.eval_shape(deployed, np.zeros((1, *loaded.detector.shape), np.float32)).mask is None:
        raise InputError(f"{loaded.name}: has no mask, which this experiment attacks; classnseg has")
    said = evaluate.margins(deployed, held.images, compute)
    right = (said > 0) == (held.labels == 1)
    if not right.any() or len(np.unique(held.labels)) < 2:
        raise InputError("validation needs images of both classes, and some that are called rightly")
    areas = evaluate.forged(deployed, held.images, compute).mean(axis=(1, 2))
    least = metrics.calibrated(areas, held.labels)
    if not np.isfinite(least):
        raise InputError(f"{loaded.name}: no area of its mask tells validation's fakes from reals better than chance")
    confidence = sure * float(np.median(np.abs(said[right])))
    return Victim(deployed, cache(lambda gate: forward(loaded, gate)), 0.0, confidence, least)


def has_gate(loaded: Loaded) -> bool:
    return "gate" in (loaded.meta.get("options") or {})


def forward(loaded: Loaded, gate: str = "current") -> Forward:
    """The detector as loaded, or with another setting of its gate."""
    if gate == "current":
        return jax.tree_util.Partial(loaded.detector.apply, loaded.variables)
    options = {**loaded.meta["options"], "gate": gate}
    network = detectors.build(loaded.meta["arch"], loaded.detector.shape[0], **options)
    return jax.tree_util.Partial(network.apply, loaded.variables)


def pooled(tests: Mapping[str, ImageSet], most: int) -> ImageSet:
    """Images of several sets as one, at most `most` of each class, the earlier sets' first; groups and names stay
    apart. InputError where a set has no masks."""
    parts, left, base = [], {0: most, 1: most}, 0
    for name, data in tests.items():
        if data.masks is None:
            raise InputError(f"{name}: has no masks, which this experiment needs (a mask column in labels.csv)")
        rows = np.sort(np.concatenate([np.flatnonzero(data.labels == c)[: left[c]] for c in (0, 1)])).astype(int)
        left = {c: left[c] - int(np.sum(data.labels[rows] == c)) for c in (0, 1)}
        part = sets.taken(data, rows)
        groups = np.unique(part.groups, return_inverse=True)[1].astype(np.int32)
        parts.append(part._replace(groups=groups + base, names=tuple(f"{name}/{one}" for one in part.names)))
        base += len(np.unique(groups))
    images, labels, groups, truth = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels", "groups", "masks")
    )
    return ImageSet(images, labels, groups, tuple(name for part in parts for name in part.names), truth)


def subject(cell: Cell, data: ImageSet) -> ImageSet:
    """The cell's images: of its side, at most so many a class, drawn once and for all."""
    return sets.limited(data, cell.images, SIDES[cell.side])


def check_targets(cells: Sequence[Cell], data: ImageSet, seed: int) -> None:
    """InputError for a wanted mask that the images of a cell do not allow, before any is attacked."""
    for cell in cells:
        _wanted(cell, subject(cell, data), seed)


def settings(name: str) -> dict[str, str]:
    """Of that attack, for study.check_inputs: what no flag of the driver says."""
    return {f"options of {name}": str(attempts.chosen_options(name, {"stop": False}))}


def attack(
    cells: Sequence[Cell],
    folder: Path,
    data: ImageSet,
    victim: Victim,
    name: str,
    qualities: Sequence[int],
    seed: int,
    compute: Compute,
    tell: Callable[[int, str], None] = lambda done, note: None,
) -> dict[str, list[Row]]:
    """Cell's name -> its rows, which are individual.attack's and, under `masks` and, of an attacker's gate other than
    the deployed one, `own`: kind -> form -> what `masks.scores` says of the mask. folder: of the ledgers, one a cell: a
    second start goes on after their last rows. name: of the attack, one with steps inside a bound. tell(images done).
    """
    make, rows, done = _runners(victim, name, compute), {}, 0
    for cell in cells:
        chosen = subject(cell, data)
        wanted = _wanted(cell, chosen, seed)
        runner, noise = make(cell)
        looks = {"masks": _look(victim.forward, compute)}
        if cell.gate != "current":
            looks["own"] = _look(victim.through(gate(cell)), compute)
        folder.mkdir(parents=True, exist_ok=True)
        rows[cell.name] = individual.attack(
            folder / f"{cell.name}.jsonl",
            chosen,
            victim.forward,
            runner,
            noise,
            cell.eps / 255,
            minimal=False,
            threshold=victim.threshold,
            qualities=qualities,
            seed=seed,
            compute=compute,
            wanted=wanted,
            looks=looks,
            tell=lambda now, _, before=done, said=cell.name: tell(before + now, said),
        )
        done += len(chosen.labels)
    return rows


def gate(cell: Cell) -> str:
    """The setting of classnseg's option that the cell's gate means for its images."""
    return GATES[cell.gate][cell.side] if cell.gate in GATES else "current"


def images(cells: Sequence[Cell], data: ImageSet) -> int:
    """How many images all cells look at."""
    count = [int(np.sum(data.labels == label)) for label in (0, 1)]
    return sum(min(cell.images, count[label]) for cell in cells for label in SIDES[cell.side])


def _wanted(cell: Cell, data: ImageSet, seed: int) -> np.ndarray | None:
    assert data.masks is not None, "pooled refuses sets without masks"
    return None if cell.target is None else TARGETS[cell.target](data.masks, data.groups, seed)


def _look(forward: Forward, compute: Compute) -> individual.Look:
    def look(batch: Batch, images: np.ndarray) -> dict[str, np.ndarray]:
        wanted = None if batch.wanted is None else batch.wanted > 0.5
        return masks.scores(evaluate.forged(forward, images, compute), batch.masks > 0.5, wanted)

    return look


def _runners(victim: Victim, name: str, compute: Compute) -> Callable[[Cell], tuple[Runner, Runner]]:
    """cell -> its attack and noise. Cells that differ in images, bound or wanted mask alone share their programs."""

    @cache
    def made(loss: str, weight: float, steps: int, step: float, gate: str) -> Runner:
        options, aim = {"steps": steps, "step": step, "stop": False}, _goal(victim, loss, weight)
        return attempts.named(name, "linf", lambda _: aim, victim.through(gate), compute, options)

    @cache
    def noise(verdict: bool) -> Runner:
        aim = goals.verdict(threshold=victim.threshold) if verdict else goals.mask()
        return attempts.named("noise", "linf", lambda _: aim, victim.forward, compute)

    def both(cell: Cell) -> tuple[Runner, Runner]:
        attack = made(cell.loss, cell.weight, cell.steps, cell.step, gate(cell))
        return attack, noise(cell.target is None)

    return both


def _goal(victim: Victim, loss: str, weight: float) -> Goal:
    """Verdict, mask, or both. A verdict alone is pushed on to the confidence; beside a mask it need only turn, or the
    mask would get nothing of the images that have turned but are not sure yet."""
    if weight == ALONE:
        return goals.mask()
    most = ACTIVATED if loss == "activation" else float("inf")
    given = {"threshold": victim.threshold, "confidence": 0.0 if weight else min(victim.confidence, most)}
    verdict = goals.activation(**given) if loss == "activation" else goals.verdict(loss, **given)
    return goals.joint(verdict, goals.mask(), weight) if weight else verdict


def measured(rows: Sequence[Row], label: int, victim: Victim) -> dict[str, Any]:
    """What the rows of one class amount to, over its images that were called rightly.

    n: how many. is: kind -> form -> measure -> Estimate, the measures being those of `masks.scores`, wrong (the share
    called wrongly), both (called wrongly and the wanted mask shown) and disagree (masks.disagree). own: the same of the
    mask as the attacker's gate makes it. over: clean or noise -> measure -> Estimate of the mean of attacked minus
    that, image by image, in float. Nothing but n where there is no image.
    """
    tried = [row for row in rows if "success" in row and row["label"] == label]
    if not tried:
        return {"n": 0}
    groups, forms = np.array([row["group"] for row in tried]), tuple(tried[0]["margins"]["clean"])

    def means(values: Mapping[str, np.ndarray], of: Callable[..., Estimate] = metrics.share) -> dict[str, Estimate]:
        return {name: of(value, groups) for name, value in values.items()}

    found = {kind: {form: _values(tried, kind, form, victim) for form in forms} for kind in KINDS}
    attacked = found["attacked"]["float"]
    over = {kind: {name: attacked[name] - found[kind]["float"][name] for name in attacked} for kind in KINDS[:2]}
    told = {
        "n": len(tried),
        "is": {kind: {form: means(found[kind][form]) for form in forms} for kind in KINDS},
        "over": {kind: means(values, metrics.gain) for kind, values in over.items()},
    }
    if "own" in tried[0]:
        told["own"] = {kind: means(_masks(tried, "own", kind, "float")) for kind in KINDS}
    return told


def _values(rows: Sequence[Row], kind: str, form: str, victim: Victim) -> dict[str, np.ndarray]:
    margins = np.array([row["margins"][kind][form] for row in rows])
    wrong = (margins > victim.threshold) != (np.array([row["label"] for row in rows]) == 1)
    seen = _masks(rows, "masks", kind, form)
    apart = masks.disagree(margins, seen["area"], victim.threshold, victim.least)
    both = {"both": wrong * seen["shown"]} if "shown" in seen else {}
    return {"wrong": wrong.astype(float), **seen, **both, "disagree": apart.astype(float)}


def _masks(rows: Sequence[Row], name: str, kind: str, form: str) -> dict[str, np.ndarray]:
    return {
        measure: np.array([row[name][kind][form][measure] for row in rows]) for measure in rows[0][name][kind][form]
    }


def clean(tests: Mapping[str, ImageSet], victim: Victim, compute: Compute) -> dict[str, dict[str, Estimate]]:
    """Set -> evaluate.clean_scores of the detector as deployed, and the share of images on which its heads disagree."""
    found = {}
    for name, data in tests.items():
        said = evaluate.margins(victim.forward, data.images, compute)
        areas = evaluate.forged(victim.forward, data.images, compute).mean(axis=(1, 2))
        apart = masks.disagree(said, areas, victim.threshold, victim.least)
        found[name] = evaluate.clean_scores(victim.forward, data, compute)
        found[name]["clean_disagree"] = metrics.share(apart.astype(float), data.groups)
    return found


def results(rows: Mapping[str, Sequence[Row]], victim: Victim) -> Found:
    """Cell's name -> fakes, reals -> `measured`."""
    return {
        name: {side: measured(found, label, victim) for side, label in (("fakes", 1), ("reals", 0))}
        for name, found in rows.items()
    }


def by_set(cells: Sequence[Cell], rows: Mapping[str, Sequence[Row]], sets: Sequence[str], victim: Victim) -> BySet:
    """Set -> `results` of those rows of the verdict cells that `pooled` took from it."""
    names = [cell.name for cell in cells if cell.part == "verdict"]
    return {
        one: results({name: [row for row in rows[name] if row["name"].startswith(f"{one}/")] for name in names}, victim)
        for one in sets
    }


def as_json(cells: Sequence[Cell], found: Mapping[str, Any], victim: Victim, **more: Any) -> dict[str, Any]:
    """What results.json holds: each cell with its settings and figures (an undefined number is null), and what the
    attacks were tuned to."""
    tuned = {name: getattr(victim, name) for name in ("threshold", "confidence", "least")}
    told = [{**cell._asdict(), "weight": None if cell.weight == ALONE else cell.weight} for cell in cells]
    named = [{"name": cell.name, **one, **found[cell.name]} for cell, one in zip(cells, told, strict=True)]
    return metrics.plain({"tuned": tuned, "cells": named, **more})
