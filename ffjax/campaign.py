"""From what a user asks for by name to runners: the attack, its baseline, and the threshold that both are held to."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import attempts, balls, engine, goals, individual, ledger, metrics, sanity, underway
from ffjax.attacks import ATTACKS
from ffjax.attempts import Keep, Runner, Watch
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.individual import Row
from ffjax.metrics import Estimate
from ffjax.types import AttackResult, Forward, Goal, ImageSet

AUTO: Mapping[str, Mapping[str, Any]] = {"apgd_ce": {}, "apgd": {}, "fab": {}, "square": {"steps": 5000}}
"""The ensemble that has no parameters, after AutoAttack (Croce and Hein, ICML 2020), whose own members need three or
four classes: for two, its DLR loss is the margin, and targeted is untargeted. Budgets are its standard version's."""


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
    """InputError for what no detector could be attacked with; as `attempts.built` for what is not known."""
    if plan.attack == "auto" and (plan.options or plan.loss != "published" or plan.smallest or plan.restarts > 1):
        raise InputError("attack auto has no options, loss, restarts or search: it is the ensemble without parameters")
    if plan.attack in ATTACKS and ATTACKS[plan.attack].bound == "minimal" and (plan.smallest or plan.restarts > 1):
        raise InputError(f"{plan.attack} looks for the smallest distance itself: no restarts or smallest with it")
    if minimal(plan) and plan.loss == "ce" and not plan.smallest:
        raise InputError(f"{plan.attack} needs the margin, whose zero is the boundary; loss ce has none")
    for name, value, least in (("restarts", plan.restarts, 1), ("smallest", plan.smallest, 0)):
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    if plan.attack != "auto":
        attempts.built(plan.attack, plan.norm, partial(_goal, plan), plan.options, plan.grid)
        if plan.restarts > 1 and not ATTACKS[plan.attack].seeded:
            raise InputError(f"{plan.attack} starts from the clean image and draws nothing: restarts would repeat it")
    elif not _members(plan):
        raise InputError(f"attack auto knows no {plan.norm}")


def minimal(plan: Plan) -> bool:
    """Whether the distance is what is looked for, rather than the strongest image inside the bound."""
    return plan.smallest > 0 or (plan.attack in ATTACKS and ATTACKS[plan.attack].bound == "minimal")


class Job(NamedTuple):
    """A plan at work in a run folder. attack, noise: the runners. note(i): for the ledger, which member of an ensemble
    broke image i. tell(done, note): so many images are in the ledger, and what was under way is over."""

    attack: Runner
    noise: Runner
    note: Callable[[int], Row]
    tell: Callable[[int, str], None]


def job(plan: Plan, forward: Forward, compute: Compute, folder: Path, tell: Callable[[int, str], None]) -> Job:
    """The runners of a plan, for individual.attack on folder/ledger.jsonl. In folder/underway lie snapshots of the
    batch that is being attacked (see underway.stage), until it is in the ledger; tell also hears of every chunk of
    steps inside a batch. InputError as `runners`."""
    broken_by: dict[int, str] = {}
    said = [(len(ledger.read(folder / "ledger.jsonl")), "")]

    def watch(name: str) -> Watch:
        def chunk(done: int, steps: int, active: int) -> None:
            tell(said[0][0], f"{said[0][1]} {name}: step {done} of {steps}, {active} at work".lstrip())

        return chunk

    def keep(name: str) -> Keep:
        known = (plan, name, attempts.chosen_options(name, _given(plan, name)), engine.capacity(compute))
        return partial(underway.stage, folder / "underway", known)

    def over(done: int, note: str) -> None:
        underway.clear(folder / "underway")
        said[0] = done, f"{note};" if note else ""
        tell(done, note)

    attack, noise = runners(
        plan, forward, compute, lambda name, ids: broken_by.update(dict.fromkeys(ids.tolist(), name)), watch, keep
    )
    return Job(attack, noise, lambda i: {"by": broken_by[i]} if i in broken_by else {}, over)


def runners(
    plan: Plan,
    forward: Forward,
    compute: Compute,
    broken: Callable[[str, np.ndarray], None],
    watch: Callable[[str], Watch] = lambda name: attempts.unwatched,
    keep: Callable[[str], Keep] = lambda name: attempts.unkept,
) -> tuple[Runner, Runner]:
    """The attack, and noise of its norm. broken(name, ids): called as members of an ensemble break images. watch, keep:
    name of the attack -> what attempts.once takes; the noise goes without. InputError as `check`."""
    check(plan)
    build = partial(
        attempts.named, norm=plan.norm, goal=partial(_goal, plan), forward=forward, compute=compute, grid=plan.grid
    )
    noise = build("noise", grid=False)  # which is stored as it is, and searches nothing
    if plan.attack == "auto":
        members = {name: build(name, options=AUTO[name], watch=watch(name), keep=keep(name)) for name in _members(plan)}
        return attempts.ensemble(members, broken), noise
    attack = build(plan.attack, options=plan.options, watch=watch(plan.attack), keep=keep(plan.attack))
    if plan.restarts > 1:
        attack = attempts.restarts(attack, plan.restarts)
    return (attempts.smallest(attack, plan.smallest) if plan.smallest else attack), noise


def settings(plan: Plan) -> dict[str, str]:
    """What a run folder is not to mix, for study.check_inputs: every option of every attack, defaults too, and the
    threshold."""
    names = _members(plan) if plan.attack == "auto" else [plan.attack]
    told = {f"options of {name}": str(attempts.chosen_options(name, _given(plan, name))) for name in names}
    return told | {"threshold": repr(plan.threshold)}


def _given(plan: Plan, name: str) -> Mapping[str, Any]:
    return AUTO[name] if plan.attack == "auto" else plan.options


def _members(plan: Plan) -> list[str]:
    return [name for name in AUTO if plan.norm in ATTACKS[name].norms]


def _goal(plan: Plan, loss: str) -> Goal:
    return goals.verdict(loss if plan.loss == "published" else plan.loss, threshold=plan.threshold)


def calibrated(forward: Forward, held: ImageSet, compute: Compute) -> float:
    """The margin threshold of best balanced accuracy on held-out images."""
    said = margins(forward, held.images, compute)
    best = metrics.calibrated(said, held.labels)
    if not np.isfinite(best):
        raise InputError(
            "no threshold can be calibrated: the validation images are of one class, or no threshold parts them better "
            "than chance"
        )
    return best


def flags(plan: Plan, forward: Forward, data: ImageSet, rows: Sequence[Row], compute: Compute) -> dict[str, str]:
    """Signs of robustness that is none, of the detector on the first images and of what the attack left standing."""
    found = sanity.of_forward(
        forward, _goal(plan, "margin"), individual.batch_of(data, np.arange(len(data.labels))[: compute.batch])
    )
    tried = [row for row in rows if "success" in row]
    if tried:
        found |= sanity.of_rows(tried)
    blind = [name for name in AUTO if ATTACKS[name].needs != "gradients"]
    return found | sanity.of_ensemble(Counter(row["by"] for row in tried if "by" in row), blind)


def effort(
    plan: Plan,
    forward: Forward,
    data: ImageSet,
    rows: Sequence[Row],
    compute: Compute,
    eps: float,
    seed: int,
    most: int,
) -> dict[str, str]:
    """More such signs, from attacking again `most` of the images that stand: sanity.of_effort and of_path.

    By the plan's attack from one start, off the grid; of the ensemble by APGD on the margin. Only attacks that climb a
    gradient inside a bound can be tried so: of others, and where nothing stands, there is nothing to tell.
    """
    name, options = ("apgd", {}) if plan.attack == "auto" else (plan.attack, plan.options)
    entry = ATTACKS[name]
    ids = np.array([row["id"] for row in rows if not row.get("success", True)], int)[
        : min(most, engine.capacity(compute))
    ]
    if name == "noise" or entry.bound != "fixed" or entry.needs != "gradients" or not len(ids):
        return {}
    goal, batch = partial(_goal, plan), individual.batch_of(data, ids)
    process, longer = attempts.built(name, plan.norm, goal, options), None
    if "steps" in inspect.signature(entry.build).parameters:
        twice = attempts.built(name, plan.norm, goal, {**options, "steps": 2 * process.steps})
        longer = attempts.once(twice, forward, compute)
    full = float(balls.BALLS[plan.norm](1.0).norm(jnp.ones(data.images.shape[1:])))
    found = sanity.of_effort(attempts.once(process, forward, compute), longer, batch, eps, full, seed)
    return found | sanity.of_path(process, goal(entry.loss), forward, batch, eps, seed, compute)


def saver(folder: Path) -> Callable[[np.ndarray, AttackResult], None]:
    """keep(ids, result) for individual.attack: each image that was attacked as 8-bit PNG, named by its number."""

    def keep(ids: np.ndarray, result: AttackResult) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in zip(ids, codecs.to_uint8(result.images), strict=True):
            (folder / f"{i:06d}.png").write_bytes(codecs.png_bytes(image))

    return keep


def show(console: Console, found: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """The table at the end of a run: shares called wrongly, clean, with noise and attacked, by how images were stored;
    then the accuracies, the robust one with the name of every flag on its own line, and what each flag says."""
    counts = found["counts"]
    told = f"{counts['attacked']} of {counts['images']} images were called rightly, and attacked"
    console.print(told, highlight=False)
    if counts["attacked"]:
        _show_attacked(console, found)
    raised = f" [bold red](flagged: {', '.join(flags)})[/]" if flags else ""
    told = f"{_told(found['clean_accuracy'])} % clean, {_told(found['robust_accuracy'])} % under attack{raised}"
    console.print(f"accuracy on all {counts['images']}: {told}", highlight=False, soft_wrap=True)
    for name, told in flags.items():
        console.print(f"[bold red]flag {name}:[/] {told}", highlight=False)


def _show_attacked(console: Console, found: Mapping[str, Any]) -> None:
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
    told = f"{cost['gradients']:.0f} gradients, {cost['queries']:.0f} queries, {cost['seconds']:.3f} s"
    console.print(f"an image: {told}", highlight=False)


def _told(e: Estimate | None) -> str:
    return "" if e is None else metrics.percent(e)
