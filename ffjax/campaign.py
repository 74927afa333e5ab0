"""From what a user asks for by name to runners: the attack, its baseline, and the threshold that both are held to."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import attempts, goals, individual, metrics, sanity
from ffjax.attacks import ATTACKS
from ffjax.attempts import Runner
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.individual import Row
from ffjax.metrics import Estimate
from ffjax.types import AttackResult, Batch, Forward, Goal, ImageSet

AUTO = ("apgd_ce", "apgd", "fab", "square")
"""The ensemble that has no parameters, after AutoAttack (Croce and Hein, ICML 2020), whose own members need three or
four classes: for two, its DLR loss is the margin, and targeted is untargeted."""


class Plan(NamedTuple):
    """How to attack. attack: name in ATTACKS, or auto. loss: 'published' for the entry's own. The other fields are
    those of experiments.attack_eval."""

    attack: str
    norm: str
    options: Mapping[str, Any]
    loss: str = "published"
    threshold: float = 0.0
    restarts: int = 1
    smallest: int = 0
    grid: bool = False


def check(plan: Plan) -> None:
    """InputError for what no detector could be attacked with."""
    if plan.attack == "auto" and (plan.options or plan.loss != "published" or plan.smallest):
        raise InputError("attack auto has no options, loss or search: it is the ensemble without parameters")
    if plan.attack in ATTACKS and ATTACKS[plan.attack].bound == "minimal" and (plan.smallest or plan.restarts > 1):
        raise InputError(f"{plan.attack} looks for the smallest distance itself: no restarts or smallest with it")
    if minimal(plan) and plan.loss == "ce" and not plan.smallest:
        raise InputError(f"{plan.attack} needs the margin, whose zero is the boundary; loss ce has none")
    for name, value, least in (("restarts", plan.restarts, 1), ("smallest", plan.smallest, 0)):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")


def minimal(plan: Plan) -> bool:
    """Whether the distance is what is looked for, rather than the strongest image inside the bound."""
    return plan.smallest > 0 or (plan.attack in ATTACKS and ATTACKS[plan.attack].bound == "minimal")


def runners(
    plan: Plan, forward: Forward, compute: Compute, broken: Callable[[str, np.ndarray], None]
) -> tuple[Runner, Runner]:
    """The attack, and noise of its norm. broken(name, ids): called as members of an ensemble break images. InputError
    as `attempts.named`, and as `check`."""
    check(plan)
    goal = partial(_goal, plan)
    build = partial(attempts.named, norm=plan.norm, goal=goal, forward=forward, compute=compute, grid=plan.grid)
    if plan.attack == "auto":
        members = {name: build(name) for name in AUTO if plan.norm in ATTACKS[name].norms}
        if not members:
            raise InputError(f"attack auto knows no {plan.norm}")
        return attempts.ensemble(members, broken), build("noise")
    attack = build(plan.attack, options=plan.options)
    if plan.restarts > 1:
        attack = attempts.restarts(attack, plan.restarts)
    return (attempts.smallest(attack, plan.smallest) if plan.smallest else attack), build("noise")


def _goal(plan: Plan, loss: str) -> Goal:
    return goals.verdict(loss if plan.loss == "published" else plan.loss, threshold=plan.threshold)


def calibrated(forward: Forward, held: ImageSet, compute: Compute) -> float:
    """The margin threshold of best balanced accuracy on held-out images."""
    said = margins(forward, held.images, compute)
    curve = metrics.roc(said, held.labels, np.ones((len(said), 1)))
    best = float(metrics.best_threshold(curve)[0])
    if not np.isfinite(best):
        raise InputError("no threshold can be calibrated: the validation images are of one class")
    return best


def flags(plan: Plan, forward: Forward, data: ImageSet, rows: Sequence[Row], compute: Compute) -> dict[str, str]:
    """Signs of robustness that is none, of the detector on the first images and of what the attack left standing."""
    first = slice(0, compute.batch)
    ids = np.arange(len(data.labels))[first].astype(np.int32)
    batch = Batch(codecs.to_float(data.images[first]), data.labels[first].astype(np.int32), ids)
    found = sanity.of_forward(forward, _goal(plan, "margin"), batch)
    tried = [row for row in rows if "success" in row]
    if tried:
        found |= sanity.of_rows(tried)
    blind = [name for name in AUTO if ATTACKS[name].needs != "gradients"]
    return found | sanity.of_ensemble(Counter(row["by"] for row in tried if "by" in row), blind)


def saver(folder: Path) -> Callable[[np.ndarray, AttackResult], None]:
    """keep(ids, result) for individual.attack: each image that was attacked as 8-bit PNG, named by its number."""

    def keep(ids: np.ndarray, result: AttackResult) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in zip(ids, codecs.to_uint8(result.images), strict=True):
            (folder / f"{i:06d}.png").write_bytes(codecs.png_bytes(image))

    return keep


def show(console: Console, found: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """The table at the end of a run: shares called wrongly, clean, with noise and attacked, by how images were
    stored."""
    counts = found["counts"]
    told = f"{counts['attacked']} of {counts['images']} images were called rightly, and attacked"
    console.print(told, highlight=False)
    if not counts["attacked"]:
        return
    table = Table(
        "stored as", "clean", "noise", "attacked", "fakes called real", "reals called fake", title="called wrongly (%)"
    )
    every, fakes, reals = (found[direction].get("wrong") for direction in individual.DIRECTIONS)
    for form in every["clean"]:
        cells = [every[kind][form] for kind in individual.KINDS]
        cells += [side["attacked"][form] if side else None for side in (fakes, reals)]
        table.add_row(form, *map(_told, cells))
    console.print(table)
    distance, cost = found["of_successes"]["distance"], found["cost"]
    if distance:
        console.print(f"distance of successes: median {distance[1]:.4g} ({distance[0]:.4g} to {distance[2]:.4g})")
    if cost["gradients"] is not None:
        told = f"{cost['gradients']:.0f} gradients, {cost['queries']:.0f} queries, {cost['seconds']:.3f} s"
        console.print(f"an image: {told}", highlight=False)
    told = f"{_told(found['clean_accuracy'])} % clean, {_told(found['robust_accuracy'])} % under attack"
    console.print(f"accuracy on all {counts['images']}: {told}", highlight=False)
    for name, told in flags.items():
        console.print(f"[bold red]flag {name}:[/] {told}", highlight=False)


def _told(e: Estimate | None) -> str:
    """In per cent, with its interval."""
    return "" if e is None else f"{100 * e.value:.0f} \\[{100 * e.low:.0f}, {100 * e.high:.0f}]"
