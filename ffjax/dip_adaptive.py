"""What Deep Image Prior is worth against an attacker who knows of it: the attacks, and what the judges say. What that
amounts to: dip_adaptive_sums.

The defended detector says of an image what the bare one says of the running mean that a network has drawn of it after
T iterations, against a threshold of its own. The attacker knows all of it, and the key (dip_gradients.Secret: the code,
the noise, the first parameters); what he made is also judged under a key that he does not know.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import attempts, goals, individual, ledger
from ffjax.attacks.descent import descent
from ffjax.attacks.fast_gradient import low_pgd
from ffjax.attempts import Runner
from ffjax.data import codecs
from ffjax.defences import dip_gradients
from ffjax.defences.dip import Prior
from ffjax.defences.dip_gradients import Secret, Trace
from ffjax.dip_adaptive_sums import CONTROLS, Row
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.gradients import Estimator, Slope
from ffjax.objectives import margin
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, ImageSet, Process

ATTACKS = {
    "pgd": "PGD on the detector, unaware of DIP",
    "exact": "PGD, exact gradients through DIP",
    "late": "PGD, gradients through all but DIP's first iterations",
    "truncated": "PGD, gradients through DIP's last iterations",
    "eot": "PGD, gradients through DIP's last iterations, mean over keys (EOT)",
    "bpda": "PGD, DIP forward, identity backward (BPDA)",
    "low": "PGD on the detector, low frequencies only",
    "low-truncated": "PGD, low frequencies only, gradients through DIP's last iterations",
    "transfer": "PGD on another detector",
    "square": "Square through DIP, scores alone",
}
LEAST = 2
"""Iterations that a gradient must go back through: the last one alone has no say."""


class Setting(NamedTuple):
    """prior: the defence. eps: l_inf, in [0, 1] image units. steps: of every PGD. skip: iterations at the beginning,
    where Adam's first steps make gradients explode, that the late one leaves out. last: that the truncated ones go
    through. cells: low frequencies are what is linear between cells x cells values. queries: Square's. draws: keys
    over which EOT's gradients are averaged, the defender's among them. batch: images at once."""

    prior: Prior
    eps: float
    steps: int = 20
    skip: int = 15
    last: int = 10
    cells: int = 8
    queries: int = 100
    draws: int = 4
    batch: int = 8
    seed: int = 0


def secrets(seed: int, draws: int = 1) -> tuple[list[Secret], Secret]:
    """The keys that EOT averages over, the defender's first; and the fresh one, which is none of them."""

    def secret(number: int) -> Secret:
        return Secret((seed + number) % (1 << 32), (seed + number) % (1 << 32))

    return [secret(2 * k) for k in range(draws)], secret(1)


def cropped(data: ImageSet, size: int) -> ImageSet:
    """The central size x size pixels of each image. InputError if there are fewer."""
    side = data.images.shape[1]
    if not 0 < size <= side:
        raise InputError(f"size: the middle {size} px of images of {side} px cannot be cut out")
    first = (side - size) // 2
    part = slice(first, first + size)
    masks = None if data.masks is None else np.ascontiguousarray(data.masks[:, part, part])
    return data._replace(images=np.ascontiguousarray(data.images[:, part, part]), masks=masks)


def by_hand(process: Process, forward: Forward, watch: Callable[[int], None] = lambda done: None) -> Runner:
    """A process driven outside jit, whose forward (and estimator) may themselves be loops of the host: `defended`,
    `through`. The results are those of engine.run; rows that are done go along until all are."""

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        batch = jax.tree.map(jnp.asarray, batch)
        seeds = jnp.full(len(eps), seed, jnp.uint32)
        state = process.init(forward, batch, jnp.asarray(eps, jnp.float32), seeds)
        for i in range(process.steps):
            if bool(jnp.all(state.done)):
                break
            state = process.step(jnp.int32(i), state, forward)
            watch(i + 1)
        return jax.tree.map(np.asarray, process.finish(state, forward))

    return run


def unchanged(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
    """The attack that is none."""
    none = np.zeros(len(batch.labels), np.int32)
    return AttackResult(np.asarray(batch.images), none > 0, none > 0, none, none, none, none)


def runners(
    setting: Setting,
    thresholds: Mapping[str, float],
    detector: Forward,
    other: Forward,
    compute: Compute,
    watch: Callable[[int], None] = lambda done: None,
) -> dict[str, Runner]:
    """Control or attack -> its runner. thresholds: judge -> the margin above which it says fake; attacks that know
    nothing of DIP are after the bare detector's, the others after the defended one's under the attacker's key.

    Whatever the goal, every PGD goes on after it is reached: a verdict that has just turned would turn back under
    another key. Those through DIP, and of low frequencies, start from the clean image. Whoever asks the defended
    detector asks it of 8-bit images, as it will be judged: to DIP another rounding is another image.
    """
    bare, behind = (partial(goals.verdict, threshold=thresholds[judge]) for judge in ("undefended", "own"))
    known, _ = secrets(setting.seed, setting.draws)
    front = stored(dip_gradients.defended(setting.prior, known[0], detector))
    pgd = attempts.built("pgd", "linf", bare, {"steps": setting.steps, "stop": False})
    square = attempts.built("square", "linf", behind, {"steps": setting.queries, "stop": False})

    def aware(last: int | None = None, draws: int = 1, shape: Callable[..., Process] = climb, **how: Any) -> Runner:
        goal = behind("margin")
        slopes = dip_gradients.through(goal, setting.prior, known[:draws], detector, last, **how)
        return by_hand(shape(setting, goal, at_stored(slopes)), front, watch)

    return {
        "clean": unchanged,
        # a goal that nothing reaches: else an image that the bare detector calls wrongly would be handed in as it is
        "noise": attempts.once(attempts.built("noise", "linf", partial(bare, confidence=1e9)), detector, compute),
        "noises": by_hand(attempts.built("noise", "linf", behind, {"draws": setting.steps}), front, watch),
        "pgd": attempts.once(pgd, detector, compute),
        "exact": aware(),
        "late": aware(max(LEAST, setting.prior.steps - setting.skip)),
        "truncated": aware(setting.last),
        "eot": aware(setting.last, setting.draws),
        "bpda": aware(straight=True),
        "low": attempts.once(climb_low(setting, bare("margin")), detector, compute),
        "low-truncated": aware(setting.last, shape=climb_low),
        "transfer": attempts.once(pgd, other, compute),
        "square": by_hand(square, front, watch),
    }


def climb(setting: Setting, goal: Goal, slopes: Estimator) -> Process:
    """PGD from the clean image along an estimator's gradients."""
    return descent(goal, steps=setting.steps, step=_stride(setting, 0.1), start="zero", estimator=slopes, stop=False)


def climb_low(setting: Setting, goal: Goal, slopes: Estimator | None = None) -> Process:
    """The same of low frequencies alone; along the detector's own gradients by default."""
    step = _stride(setting, 0.25)
    return low_pgd(goal, steps=setting.steps, cells=setting.cells, step=step, estimator=slopes, stop=False)


def _stride(setting: Setting, share: float) -> float:
    """That share of the bound, but a level at least: less is lost when the image is stored."""
    return max(share, 1 / (255 * setting.eps))


def stored(forward: Forward) -> Forward:
    """The same of images as 8 bits hold them; called from the host."""
    return lambda images: forward(jnp.asarray(codecs.png(np.asarray(images))))


def at_stored(slopes: Estimator) -> Estimator:
    """Slopes at images as 8 bits hold them; the derivative of that rounding is taken to be 1."""

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        return slopes.at(keys, jnp.asarray(codecs.png(np.asarray(images))), batch, eps, forward)

    return slopes._replace(at=at)


def judges(setting: Setting, detector: Forward) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Judge -> images (B, H, W, 3) -> margins (B,)."""
    known, fresh = secrets(setting.seed, setting.draws)
    forwards = {
        "undefended": jax.jit(lambda x: detector(x)),
        "own": dip_gradients.defended(setting.prior, known[0], detector),
        "fresh": dip_gradients.defended(setting.prior, fresh, detector),
    }
    return {name: partial(_margins, forward) for name, forward in forwards.items()}


def _margins(forward: Forward, images: np.ndarray) -> np.ndarray:
    return np.asarray(margin(forward(jnp.asarray(images))))


def attack(
    path: Path,
    data: ImageSet,
    ids: Sequence[int],
    runner: Runner,
    said: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    setting: Setting,
    tell: Callable[[int, str], None] = lambda done, note: None,
) -> list[Row]:
    """The rows of the ledger at `path`, one for each of `ids` in order, made as far as they are not there: who it is,
    what every judge says of the attacked image (JUDGES), its l_inf distance in 8 bits, what it cost.

    Always setting.batch images at once, the last of them repeated where there are fewer, and always the same together:
    a row does not depend on where an earlier start was killed. InputError for a line that is of none of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[int, Row] = {}
    for row in ledger.read(path):
        i = row.get("id")
        if not isinstance(i, int) or i not in ids or row.get("name") != data.names[i]:
            raise InputError(f"{path}: holds a line of {row.get('name')}, which is no image of this run")
        rows[i] = row
    for first in range(0, len(ids), setting.batch):
        block = list(ids[first : first + setting.batch])
        if any(i not in rows for i in block):
            new = _attacked(data, block, runner, said, setting)
            ledger.append(path, [row for row in new if row["id"] not in rows])
            rows |= {row["id"]: row for row in new if row["id"] not in rows}
        tell(first + len(block), "")
    return [rows[i] for i in ids]


def _attacked(
    data: ImageSet,
    block: Sequence[int],
    runner: Runner,
    said: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    setting: Setting,
) -> list[Row]:
    began = time.monotonic()
    batch = padded(data, block, setting.batch)
    result = runner(batch, np.full(setting.batch, setting.eps, np.float32), setting.seed)
    images = codecs.png(np.asarray(result.images))
    far = np.abs(images - batch.images).max(axis=(1, 2, 3))
    told = {name: judge(images) for name, judge in said.items()}
    seconds = round((time.monotonic() - began) / len(block), 2)
    return [
        {"id": int(i), "name": data.names[i], "label": int(data.labels[i]), "group": int(data.groups[i])}
        | {"margins": {name: round(float(values[k]), 5) for name, values in told.items()}}
        | {"linf": round(float(far[k]), 6), "gradients": int(result.gradients[k])}
        | {"queries": int(result.queries[k]), "seconds": seconds}
        for k, i in enumerate(block)
    ]


def padded(data: ImageSet, block: Sequence[int], size: int) -> Batch:
    """These images, the last repeated up to `size` rows."""
    return individual.batch_of(data, np.array([*block, *[block[-1]] * (size - len(block))]))


def traced(setting: Setting, threshold: float, data: ImageSet, ids: Sequence[int], detector: Forward) -> Trace:
    """The exact gradient's way back through DIP, at these clean images (setting.batch of them at most)."""
    (secret, *_), _ = secrets(setting.seed, setting.draws)
    batch = jax.tree.map(jnp.asarray, padded(data, ids, setting.batch))
    states = dip_gradients.walk(setting.prior, secret, batch.images)
    goal = goals.verdict(threshold=threshold)
    slope = dip_gradients.sloped(goal, detector, states[-1].average, batch)
    trace = dip_gradients.pulled(setting.prior, secret, states, slope.gradient)[1]
    return Trace(trace.steps, *(np.asarray(x)[:, : len(ids)] for x in trace[1:]))  # type: ignore[arg-type]


def settings(setting: Setting) -> dict[str, str]:
    """For study.check_inputs: what no flag of the driver says."""
    told = {"prior": str(setting.prior), "keys": str(secrets(setting.seed, setting.draws))}
    return told | {"attacks": "; ".join(f"{k}: {v}" for k, v in ATTACKS.items()), "controls": ", ".join(CONTROLS)}
