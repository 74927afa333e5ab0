"""One attack, all contenders: at the bound where the best peer breaks about half of the validation images, who breaks
which test images, how far, how fast, in how much memory."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import PEERS, Answer, Contender, Task, field, judged, opened
from ffjax import metrics
from ffjax.attempts import rows_of
from ffjax.engine import Compute
from ffjax.types import Batch, Forward

TASKS: dict[str, Task] = {
    "fgsm-linf": Task("fgsm", "linf", {}),
    "fgsm-l2": Task("fgsm", "l2", {}),
    "bim-linf": Task("bim", "linf", {"steps": 10, "step": 0.25}),
    "pgd-linf": Task("pgd", "linf", {"steps": 40, "step": 0.1}),
    "pgd-l2": Task("pgd", "l2", {"steps": 40, "step": 0.1}),
    "pgd-l1": Task("pgd", "l1", {"steps": 40, "step": 0.1}),
    "adam_pgd-linf": Task("adam_pgd", "linf", {"steps": 40, "rate": 0.1}),
    "apgd_ce-linf": Task("apgd_ce", "linf", {"steps": 40}),
    "apgd_ce-l2": Task("apgd_ce", "l2", {"steps": 40}),
    "apgd_ce-l1": Task("apgd_ce", "l1", {"steps": 40}),
    "mi_fgsm-linf": Task("mi_fgsm", "linf", {"steps": 10, "decay": 1.0}),
    "ni_fgsm-linf": Task("ni_fgsm", "linf", {"steps": 10, "decay": 1.0}),
    "di_fgsm-linf": Task("di_fgsm", "linf", {"steps": 10, "smallest": 0.9}),
    "ti_fgsm-linf": Task("ti_fgsm", "linf", {"steps": 10, "size": 15}),
    "si_fgsm-linf": Task("si_fgsm", "linf", {"steps": 10, "copies": 5}),
    "vmi_fgsm-linf": Task("vmi_fgsm", "linf", {"steps": 10, "count": 5, "reach": 1.5}),
    "deepfool-linf": Task("deepfool", "linf", {"steps": 50, "overshoot": 0.02}),
    "deepfool-l2": Task("deepfool", "l2", {"steps": 50, "overshoot": 0.02}),
    "ddn-l2": Task("ddn", "l2", {"steps": 100, "initial": 1.0, "gamma": 0.05}),
    "fmn-linf": Task("fmn", "linf", {"steps": 100, "rate": 1.0, "gamma": 0.05}),
    "fmn-l2": Task("fmn", "l2", {"steps": 100, "rate": 1.0, "gamma": 0.05}),
    "fmn-l1": Task("fmn", "l1", {"steps": 100, "rate": 1.0, "gamma": 0.05}),
    "fmn-l0": Task("fmn", "l0", {"steps": 100, "rate": 1.0, "gamma": 0.05}),
    "fab-linf": Task("fab", "linf", {"steps": 100}),
    "fab-l2": Task("fab", "l2", {"steps": 100}),
    "fab-l1": Task("fab", "l1", {"steps": 100}),
    "cw-l2": Task("cw", "l2", {"searches": 9, "inner": 1000, "rate": 0.01, "initial": 1e-3}, most=32),
    "cw-l2-near": Task("cw", "l2", {"searches": 9, "inner": 1000, "rate": 1e-3, "initial": 1e-3}, most=32),
    "square-linf": Task("square", "linf", {"steps": 1000, "share": 0.8}, most=96),
    "square-l2": Task("square", "l2", {"steps": 1000, "share": 0.8}, most=96),
    "boundary-l2": Task("boundary", "l2", {"steps": 2000}, most=32),
    "hop_skip_jump-l2": Task("hop_skip_jump", "l2", {"steps": 2000}, most=32),
    "hop_skip_jump-linf": Task("hop_skip_jump", "linf", {"steps": 2000}, most=32),
}
"""What every contender runs with the same numbers; each attack of ffjax that some peer has. cw-l2-near: at a rate that
suits boundaries as near as the shipped detectors', so that no peer is behind for its learning rate, as all are at the
published one, which ffjax takes for the longest it may step."""

FIRST = {"linf": 1 / 255, "l2": 0.25, "l1": 5.0, "l0": 20.0}
"""Where the search for the bound begins."""

BETWEEN = (0.3, 0.7)
"""What share of validation images the best peer shall break at the bound."""

Shares = Callable[[float], float]


def shortened(task: Task, steps: int | None) -> Task:
    """The task at another number of steps (cw: of each constant); None: as it is."""
    given = [key for key in ("steps", "inner") if key in task.options and steps is not None]
    return task._replace(options={**task.options, **dict.fromkeys(given, steps)})


def compare(
    task: Task,
    spec: str,
    forward: Forward,
    held: Batch,
    test: Batch,
    groups: np.ndarray,
    *,
    rows: int,
    repeats: int,
    restarts: int,
    seed: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every contender on the same images: what `_found` says, the bound, and ffjax minus each peer, image by image.

    held, test: validation and test images, all called rightly. groups: of the test images, for the bootstrap. repeats:
    timed rounds, in which the contenders take turns; an attack worth few images (task.most) gets one, and no warm-up.
    """
    compute = Compute(batch=rows, devices=1)
    slow, count = task.most is not None, min(len(test.labels), task.most or len(test.labels))
    chosen = np.linspace(0, len(test.labels) - 1, count).astype(int)
    test, groups = rows_of(test, chosen), groups[chosen]
    with opened(names or field(task), spec, task, rows, restarts) as contenders:
        peers = {peer: one for peer, one in contenders.items() if peer in PEERS}
        some = rows_of(held, np.arange(min(len(held.labels), task.most or len(held.labels))))
        share = _best_share(peers, task, forward, some, compute, seed)
        eps, reached = bound(share, FIRST[task.norm], whole=task.norm == "l0")
        if not slow:  # a whole batch and the last one, which is shorter: all sizes that have to be compiled
            for one, batch in itertools.product(contenders.values(), (_batches(count, rows)[k] for k in (0, -1))):
                one.attack(rows_of(test, batch), eps, seed)
        rounds = [
            {name: _whole(one, test, eps, seed, rows) for name, one in contenders.items()}
            for _ in range(1 if slow else repeats)
        ]
        bare = {name: one.gradient(test.images[: min(rows, count)]) for name, one in contenders.items()}
        found = {}
        for who, one in contenders.items():
            answers = [turn[who] for turn in rounds]
            broken = judged(forward, task, test, answers[0].images, eps, compute)[0]
            anywhere, distance = judged(forward, task, test, answers[0].images, np.inf, compute)
            among = distance[anywhere if task.minimal else broken]
            found[who] = _found(answers, broken, among, one.memory(), bare[who], not slow)
    fell = {who: np.array(one.pop("broken")) for who, one in found.items()}
    return {
        "attack": task.attack, "norm": task.norm, "options": dict(task.options), "eps": eps,
        "best_peer_on_validation": reached, "images": count, "rows": rows, "contenders": found,
        "ours_minus_peer": {
            who: paired(fell["ffjax"], fell[who], groups)
            for who in found if who in PEERS and not found[who]["error"]
        },
    }  # fmt: skip


def paired(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Mean of ours - theirs over the same images, with its 95 % cluster-bootstrap interval; below: the whole interval
    lies below zero."""
    found = metrics.gain(ours.astype(float) - theirs.astype(float), groups)
    told = metrics.plain(found)
    only = {"only_ours": int(np.sum(ours & ~theirs)), "only_theirs": int(np.sum(theirs & ~ours))}
    return told | only | {"below": bool(found.high < 0)}


def bound(share: Shares, first: float, *, whole: bool = False, tries: int = 16) -> tuple[float, float]:
    """(eps, share(eps)) with share(eps) inside BETWEEN, by doubling or halving from `first` and then halving between,
    on a logarithmic scale; where no try lands inside, the one nearest to a half. share: not falling. whole: eps is a
    whole number."""
    low, high, eps, seen = 0.0, math.inf, first, {}
    for _ in range(tries):
        eps = max(1.0, round(eps)) if whole else eps
        if eps in seen:
            break
        seen[eps] = share(eps)
        if BETWEEN[0] <= seen[eps] <= BETWEEN[1]:
            break
        low, high = (eps, high) if seen[eps] < BETWEEN[0] else (low, eps)
        eps = 2 * low if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
    nearest = min(seen, key=lambda eps: abs(seen[eps] - 0.5))
    return nearest, seen[nearest]


def _best_share(
    peers: Mapping[str, Contender], task: Task, forward: Forward, held: Batch, compute: Compute, seed: int
) -> Shares:
    """eps -> the largest share of the held images that a peer breaks. An attack after the least distance runs once."""
    known: dict[str, np.ndarray] = {}

    def share(eps: float) -> float:
        for name, one in peers.items():
            if name not in known or not task.minimal:
                known[name] = _whole(one, held, eps, seed, compute.batch).images
        broken = (judged(forward, task, held, images, eps, compute)[0] for images in known.values())
        return max(float(np.mean(rows)) for rows in broken)

    return share


def _whole(one: Contender, batch: Batch, eps: float, seed: int, rows: int) -> Answer:
    """All images, `rows` at a time, as one answer."""
    parts = [one.attack(rows_of(batch, some), eps, seed) for some in _batches(len(batch.labels), rows)]
    errors = [part.error for part in parts if part.error]
    images = np.concatenate([part.images for part in parts])
    return Answer(images, sum(p.seconds for p in parts), sum(p.queries for p in parts), errors[0] if errors else "")


def _batches(count: int, rows: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + rows, count)) for start in range(0, count, rows)]


def _found(
    answers: Sequence[Answer],
    broken: np.ndarray,
    among: np.ndarray,
    memory: tuple[float, float],
    bare: float,
    warm: bool,
) -> dict[str, Any]:
    """success: share broken inside the bound. median_distance: of those, or, of an attack after the least distance, of
    all it broke anywhere (among), which are found. rates: images a second, each round.
    forwards: passes an image. attack_mb: what the attack came to hold over the idle process. gradient_seconds: of one
    bare value-and-gradient of a batch. warm: whether compiling was over before the clock ran."""
    rates = [len(broken) / answer.seconds for answer in answers]
    return {
        "success": float(np.mean(broken)),
        "broken": broken.tolist(),
        "found": len(among) / len(broken),
        "median_distance": float(np.median(among)) if len(among) else None,
        "images_per_second": statistics.median(rates),
        "rates": rates,
        "forwards": answers[0].queries / len(broken),
        "peak_mb": memory[0],
        "attack_mb": memory[0] - memory[1],
        "gradient_seconds": bare,
        "warm": warm,
        "error": answers[0].error,
    }


def lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """What a person reads of `compare`'s result."""
    share = found["best_peer_on_validation"]
    head = f"{name}: eps {found['eps']:.5g}, where the best peer breaks {100 * share:.0f} % of the validation images"
    told = [head if BETWEEN[0] <= share <= BETWEEN[1] else f"{head}, not 30 to 70 %"]
    for who, one in found["contenders"].items():
        far = "-" if one["median_distance"] is None else f"{one['median_distance']:.4g}"
        told.append(
            f"  {who:16s} {100 * one['success']:5.1f} % of {found['images']}, "
            f"median of {100 * one['found']:3.0f} % {far:>9s}, "
            f"{one['images_per_second']:8.2f} images/s{'' if one['warm'] else ' with compiling'}, "
            f"{one['forwards']:7.0f} forwards, {one['attack_mb']:6.0f} MB over idle"
            + (f"  {one['error']}" if one["error"] else "")
        )
    for who, one in found["ours_minus_peer"].items():
        ends = "" if one["low"] is None else f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
        flag = "  BELOW" if one["below"] else ""
        told.append(f"  ffjax - {who:13s} {100 * one['value']:+5.1f} points{ends}{flag}")
    return told
