"""What ffjax's attacks cost beside their floor: time over bare gradients, memory over steps and images, and what the
rules that end Carlini and Wagner's attack early save."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import Task, bare, opened
from benchmarks.detectors import interleaved
from ffjax import attempts, goals
from ffjax.attacks import ATTACKS
from ffjax.engine import Compute
from ffjax.types import AttackResult, Batch, Forward

FLOORED: tuple[tuple[str, str], ...] = (("pgd", "linf"), ("pgd", "l2"), ("apgd", "linf"), ("apgd_ce", "l2"))
"""Attacks of one gradient a step that can be told to make every step."""


def overhead(
    forward: Forward, batch: Batch, eps: dict[str, float], rows: Sequence[int], steps: int, repeats: int
) -> list[dict[str, Any]]:
    """Attack time over `steps` bare value-and-gradients of the same batch, taking turns in one process; every step on
    every row. eps: norm -> bound."""
    found = []
    for name, norm in FLOORED:
        process = ATTACKS[name].build(goals.verdict(ATTACKS[name].loss), norm, steps=steps, stop=False)
        for count in rows:
            some = first(batch, count)
            runner = attempts.once(process, forward, Compute(batch=count, devices=1))
            step = bare(forward, some.images)

            def floor(step=step) -> None:
                for _ in range(steps):
                    step()

            def attack(runner=runner, some=some, norm=norm) -> AttackResult:
                return runner(some, np.full(len(some.labels), eps[norm], np.float32), 0)

            times = interleaved(attack, floor, repeats)
            ratios = [a / b for a, b in zip(*times, strict=True)]
            found.append(
                {"attack": name, "norm": norm, "rows": count, "steps": steps, "ratio": statistics.median(ratios)}
                | {"ratios": ratios, "attack_seconds": statistics.median(times[0])}
                | {"floor_seconds": statistics.median(times[1])}
            )
    return found


def memory(spec: str, batch: Batch, eps: float, rows: int, steps: Sequence[int], batches: int) -> list[dict[str, Any]]:
    """Largest resident MB of PGD's process after one batch and after `batches` of them, for each number of steps."""
    found = []
    for count in steps:
        task = Task("pgd", "linf", {"steps": count, "step": 0.1})
        with opened(("ffjax_all_steps",), spec, task, rows) as one:
            contender, some = one["ffjax_all_steps"], first(batch, rows)
            contender.attack(some, eps, 0)
            after_one = contender.memory()[0]
            for seed in range(1, batches):
                contender.attack(some, eps, seed)
            peak, idle = contender.memory()
        found.append(
            {"steps": count, "rows": rows, "idle_mb": idle, "after_1_mb": after_one, f"after_{batches}_mb": peak}
        )
    return found


def carlini_wagner(forward: Forward, batch: Batch, rows: int, searches: int, inner: int) -> dict[str, Any]:
    """The attack as it is, and our own without abort and compaction: gradients an image, success, median distance,
    seconds. Both see the same images; a row's result depends on neither its batch-mates nor compaction, so what differs
    is the abort. Seconds include compiling."""
    told: dict[str, Any] = {"images": len(batch.labels), "budget": searches * inner}
    for name, options, compute in (
        ("abridged", {}, Compute(batch=rows, devices=1)),
        ("unabridged", {"abort": -np.inf}, Compute(batch=rows, least=rows, devices=1)),
    ):
        process = ATTACKS["cw"].build(goals.verdict(), "l2", searches=searches, inner=inner, **options)
        runner = attempts.once(process, forward, compute)
        began = time.perf_counter()
        parts = [_rows(runner, batch, start, rows) for start in range(0, len(batch.labels), rows)]
        seconds = time.perf_counter() - began
        success, distance, gradients = (
            np.concatenate([getattr(p, field) for p in parts]) for field in ("success", "distance", "gradients")
        )
        told[name] = {
            "success": float(np.mean(success)),
            "median_distance": float(np.median(distance[success])) if success.any() else None,
            "gradients": float(np.mean(gradients)),
            "seconds": seconds,
        }
    a, b = told["abridged"], told["unabridged"]
    told["fewer_than_budget"] = told["budget"] / a["gradients"]
    told["faster"] = b["seconds"] / a["seconds"]
    if a["median_distance"] and b["median_distance"]:
        told["distance_ratio"] = a["median_distance"] / b["median_distance"]
    return told


def _rows(runner: attempts.Runner, batch: Batch, start: int, rows: int) -> AttackResult:
    part = attempts.rows_of(batch, np.arange(start, min(start + rows, len(batch.labels))))
    return runner(part, np.full(len(part.labels), np.inf, np.float32), 0)


def first(batch: Batch, count: int) -> Batch:
    """The first `count` rows, over again where there are fewer."""
    return attempts.rows_of(batch, np.arange(count) % len(batch.labels))


def overhead_lines(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"  {f['attack']}-{f['norm']:5s} {f['rows']:3d} rows x {f['steps']} steps: "
        f"{f['ratio']:.3f} x the bare gradients "
        f"(rounds {min(f['ratios']):.3f} to {max(f['ratios']):.3f}; {f['attack_seconds']:.2f} s)"
        for f in found
    ]


def memory_lines(found: list[dict[str, Any]]) -> list[str]:
    return [f"  {f['steps']:4d} steps: " + ", ".join(f"{k} {v:.0f}" for k, v in f.items() if "mb" in k) for f in found]


def cw_lines(found: dict[str, Any]) -> list[str]:
    told = [
        f"  {name}: {one['gradients']:.0f} gradients an image of {found['budget']}, "
        f"success {100 * one['success']:.1f} % "
        f"of {found['images']}, median l_2 {one['median_distance'] or float('nan'):.5g}, {one['seconds']:.1f} s"
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    return [
        *told,
        f"  {found['fewer_than_budget']:.2f} x fewer gradients than the budget, {found['faster']:.2f} x faster",
    ]
