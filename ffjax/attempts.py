"""Attempts at a batch: one attack, or several one after another, each only on the rows that still stand.

A Runner is `(batch, eps (B,), seed) -> AttackResult`, all on the host: what `engine.run` does with one process.
Restarts, ensembles and the search for the smallest bound are functions from runners to runners.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import numpy as np

from ffjax import engine
from ffjax.attacks import ATTACKS, Attack
from ffjax.attacks.lattice import on_grid
from ffjax.detectors import chosen
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.gradients import Estimator
from ffjax.types import AttackResult, Batch, Forward, Goal, Process

Rows = TypeVar("Rows", Batch, AttackResult)
Runner = Callable[[Batch, np.ndarray, int], AttackResult]
Watch = Callable[[int, int, int], None]
"""(steps done, steps in all, rows still at work), after each chunk."""


class Stage(NamedTuple):
    """One run of one process, as an earlier start may have left it. found: its result, if that start came so far.
    restore, save: for engine.run. finish(result): what comes of it."""

    found: AttackResult | None = None
    restore: Callable[[Any], tuple[int, Any]] = lambda state: (0, state)
    save: Callable[[int, Any], None] | None = None
    finish: Callable[[AttackResult], None] = lambda result: None


Keep = Callable[[Batch, np.ndarray, int], Stage]
"""(batch, eps (B,), seed) -> the stage that these begin or take up again."""

TOLERANCE = 1e-5
"""By how much, relatively, rounding may take a distance past its bound."""

APART = 1 << 20
"""Between the seeds of restarts, so that no restart of one seed is the first attempt of the next."""


def unwatched(done: int, steps: int, active: int) -> None:
    """Nobody looks."""


def unkept(batch: Batch, eps: np.ndarray, seed: int) -> Stage:
    """Nothing is kept."""
    return Stage()


def named(
    name: str,
    norm: str,
    goal: Callable[[str], Goal],
    forward: Forward,
    compute: Compute,
    options: Mapping[str, Any] | None = None,
    grid: bool = False,
    watch: Watch = unwatched,
    keep: Keep = unkept,
) -> Runner:
    """The attack of that name in ATTACKS, held to its bound. watch, keep: as of `once`. The other arguments and
    InputError as `built`."""
    runner = once(built(name, norm, goal, options, grid), forward, compute, watch, keep)
    return within(runner) if ATTACKS[name].bound == "minimal" else runner


def built(
    name: str,
    norm: str,
    goal: Callable[[str], Goal],
    options: Mapping[str, Any] | None = None,
    grid: bool = False,
) -> Process:
    """The process of that name in ATTACKS. goal: what it is after, for the loss that its entry names. grid: its images
    are brought to the 8-bit grid (attacks.lattice). InputError: no such attack, norm or option."""
    if name not in ATTACKS:
        raise InputError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    entry = ATTACKS[name]
    if norm not in entry.norms:
        raise InputError(f"{name} knows no {norm}; it knows {', '.join(entry.norms)}")
    return _built(entry, norm, goal(entry.loss), tuple(chosen_options(name, options or {}).items()), grid)


@functools.lru_cache(maxsize=256)
def _built(entry: Attack, norm: str, aim: Goal, options: tuple[tuple[str, Any], ...], grid: bool) -> Process:
    """One process for the same words, so that attacks on several detectors share a compilation."""
    process = entry.build(aim, norm, **dict(options))
    if not grid:
        return process
    guide = "gradient" if entry.needs == "gradients" else "displacement"
    return on_grid(process, aim, norm, bound=entry.bound, guide=guide)


def chosen_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of an attack that can be typed, as given or its default. InputError as `detectors.chosen`, and for a
    word that is none of those that the option takes."""
    parameters = inspect.signature(ATTACKS[name].build).parameters.values()
    typed = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation != Estimator | None}
    options = chosen({key: p.default for key, p in typed.items()}, given, name)
    for key, value in options.items():
        words = get_args(typed[key].annotation) if get_origin(typed[key].annotation) is Literal else (value,)
        if value not in words:
            raise InputError(f"option {key!r} of {name}: unknown {value!r}; known: {', '.join(words)}")
    return options


def once(process: Process, forward: Forward, compute: Compute, watch: Watch = unwatched, keep: Keep = unkept) -> Runner:
    """One process over batches of at most engine.capacity rows. watch: told after each chunk. keep: where snapshots of
    each run go, so that one that was cut goes on, and one that was through is not run again."""

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        stage = keep(batch, eps, seed)
        if stage.found is not None:
            return stage.found
        result = engine.run(
            process, forward, batch, eps, seed, compute, restore=stage.restore, save=stage.save,
            watch=lambda done, left: watch(done, process.steps, left),
        )  # fmt: skip
        stage.finish(result)
        return result

    return run


def restarts(runner: Runner, count: int) -> Runner:
    """The same attack from `count` starts, each on the rows that none before has broken; of a row that stands, the
    attempt with the largest loss."""

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        starts = [_seeded(runner, seed + APART * k) for k in range(count)]
        return _in_turn(starts, lambda old, new: new.loss > old.loss)(batch, eps, seed)

    return run


def ensemble(
    runners: Mapping[str, Runner], broken: Callable[[str, np.ndarray], None] = lambda name, ids: None
) -> Runner:
    """Different attacks in turn, each on the rows that none before has broken; a row that stands keeps what the first
    made of it, since losses of different attacks cannot be compared. broken(name, ids): who broke which."""

    def told(name: str) -> Runner:
        def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
            found = runners[name](batch, eps, seed)
            broken(name, np.asarray(batch.ids)[found.success])
            return found

        return run

    return _in_turn([told(name) for name in runners], lambda old, new: np.zeros(len(old.loss), bool))


def within(runner: Runner) -> Runner:
    """A minimal-norm attack held to eps: a success farther away is a failure, and its image the clean one again."""

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        found = runner(batch, eps, seed)
        near = found.distance <= eps * (1 + TOLERANCE)
        none = found._replace(images=batch.images, distance=0 * found.distance)
        kept = _chosen(near, found, none)
        return kept._replace(success=found.success & near, success_8bit=found.success_8bit & near)

    return run


def smallest(runner: Runner, tries: int = 10) -> Runner:
    """The smallest bound at which a fixed-bound attack succeeds, row by row, by halving between 0 and eps.

    Of each row the successful image of smallest distance; where eps itself does not succeed, the clean image and a
    failure. The bound found is within eps / 2^tries of one at which this attack, with this seed, failed.
    """

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        best = runner(batch, eps, seed)
        best = _chosen(best.success, best, best._replace(images=np.asarray(batch.images), distance=0 * best.distance))
        low, high = np.zeros_like(eps), np.minimum(eps, best.distance)
        for _ in range(tries):
            rows = np.flatnonzero(best.success)
            if not len(rows):
                break
            middle = (low + high)[rows] / 2
            found = runner(rows_of(batch, rows), middle, seed)
            low[rows] = np.where(found.success, low[rows], middle)
            high[rows] = np.where(found.success, np.minimum(found.distance, middle), high[rows])
            best = _merged(best, rows, found, found.success)
        return best

    return run


def _in_turn(runners: Sequence[Runner], better: Callable[[AttackResult, AttackResult], np.ndarray]) -> Runner:
    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        best = runners[0](batch, eps, seed)
        for runner in runners[1:]:
            rows = np.flatnonzero(~best.success)
            if not len(rows):
                break
            found = runner(rows_of(batch, rows), eps[rows], seed)
            best = _merged(best, rows, found, found.success | better(rows_of(best, rows), found))
        return best

    return run


def _seeded(runner: Runner, seed: int) -> Runner:
    return lambda batch, eps, _: runner(batch, eps, seed % (1 << 32))


def _merged(best: AttackResult, rows: np.ndarray, found: AttackResult, take: np.ndarray) -> AttackResult:
    """`best` with those of its `rows` replaced that `take` says; what both have cost is added up."""
    costs = best.gradients.copy(), best.queries.copy()
    costs[0][rows] += found.gradients
    costs[1][rows] += found.queries
    merged = [np.array(x, copy=True) for x in best]
    for old, new in zip(merged, found, strict=True):
        old[rows[take]] = np.asarray(new)[take]
    return AttackResult(*merged)._replace(gradients=costs[0], queries=costs[1])


def _chosen(where: np.ndarray, first: AttackResult, second: AttackResult) -> AttackResult:
    def pick(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(where.reshape(-1, *(1,) * (np.ndim(a) - 1)), a, b)

    return AttackResult(*(pick(a, b) for a, b in zip(first, second, strict=True)))


def rows_of(tree: Rows, rows: np.ndarray) -> Rows:
    """These rows of a batch or a result, on the host."""
    return type(tree)(*(None if x is None else np.asarray(x)[rows] for x in tree))
