"""Signs that a detector looks robust without being it: flags that are printed beside every robust accuracy.

After AutoAttack's checks (Croce and Hein, ICML 2020; PAPERS.md 5.4), the checklist of Carlini et al. (arXiv 1902.06705)
and the indicators of attack failure of Pintor et al. (arXiv 2106.09947): random outputs, probabilities in place of
logits, vanishing gradients, loops that may be optimisation at test time, an objective that did not rise, a black box
that beats the white box, steps that were too few, and images that stand with no bound at all. The thresholds are ours.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import engine, gradients
from ffjax.attempts import Runner
from ffjax.engine import Compute
from ffjax.types import Array, Batch, Forward, Goal, Process

DEAD = 0.1
"""Share of images with no gradient, or no rise, or that fall to more steps, from which the flag is raised."""

WIDER = 4
"""Factor between the bounds that are tried on the way to none."""


def of_forward(forward: Forward, goal: Goal, batch: Batch) -> dict[str, str]:
    """Flag -> what was seen, of the detector alone, on a batch of clean images. forward: a
    `jax.tree_util.Partial`."""
    found = {}
    images = jnp.asarray(batch.images)
    first, second = (np.asarray(_logits(forward, images)) for _ in range(2))
    if not np.array_equal(first, second):
        found["random"] = "two passes over the same images give two outputs: average gradients over draws (EOT)"
    if _probabilities(first):
        found["probabilities"] = "the logits are probabilities: their gradients vanish where it is sure"
    slope = np.asarray(_slope(goal, forward, batch))
    live = np.isfinite(slope).all(axis=(1, 2, 3)) & (np.abs(slope).max(axis=(1, 2, 3)) > 0)
    if np.mean(~live) >= DEAD:
        found["zero_gradient"] = f"no gradient, or none that is finite, on {np.sum(~live)} of {len(live)} images"
    loops = sorted(_loops(jax.make_jaxpr(forward)(images).jaxpr))
    if loops:
        found["test_time_optimisation"] = f"the forward holds {', '.join(loops)}: it may optimise at test time"
    return found


def of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether the objective rose on what still stands: the detector's margins before and after, of a ledger's attacked
    rows."""
    stands = [row for row in rows if not row["success"]]
    side = [1 if row["label"] == 0 else -1 for row in stands]
    said = [(row["margins"]["clean"]["float"], row["margins"]["attacked"]["float"]) for row in stands]
    idle = sum(s * after <= s * before for s, (before, after) in zip(side, said, strict=True))
    if stands and idle / len(stands) >= DEAD:
        return {"loss_not_rising": f"the margin did not move on {idle} of the {len(stands)} images that stand"}
    return {}


def of_ensemble(broken_by: Mapping[str, int], black_box: Sequence[str]) -> dict[str, str]:
    """Whether an attack without gradients broke what those with gradients had left standing. broken_by: attack ->
    images."""
    late = {name: broken_by[name] for name in black_box if broken_by.get(name, 0)}
    if not late:
        return {}
    told = ", ".join(f"{name} broke {count}" for name, count in late.items())
    return {"black_box_beats_white_box": f"{told} that no gradient attack had broken: gradients may be masked"}


def of_steps(fell: int, count: int) -> dict[str, str]:
    """Whether more steps help: the same attack with twice as many broke `fell` of the `count` images that stood."""
    if not fell or fell / count < DEAD:
        return {}
    return {"more_steps_help": f"twice the steps break {fell} of {count} images that stood: it stopped too soon"}


def of_effort(
    runner: Runner, longer: Runner | None, batch: Batch, eps: float, full: float, seed: int
) -> dict[str, str]:
    """Whether more steps or larger bounds break what stands at eps: images whose attack failed.

    runner: the attack. longer: the same with twice the steps, if it has steps. full: the bound that is none, the norm
    of the whole box. Bounds grow towards it, each tried on what still stands: without a bound any image of the other
    class is in reach, so what stands then shows that the attack fails, not that the detector is robust.
    """
    count = len(batch.labels)
    fell = 0 if longer is None else int(np.sum(longer(batch, np.full(count, eps, np.float32), seed).success))
    found, rows, bound = of_steps(fell, count), batch, eps
    while bound < full and len(rows.labels):
        bound = min(WIDER * bound, full) if bound else full
        stands = ~runner(rows, np.full(len(rows.labels), bound, np.float32), seed).success
        rows = jax.tree.map(lambda x, stands=stands: x[stands], rows)
    if len(rows.labels):
        idle = "" if longer is None or fell else ", and twice the steps break none"
        told = f"{len(rows.labels)} of {count} images stand with no bound at all{idle}: the attack fails"
        found["unbounded_fails"] = told
    return found


def of_path(
    process: Process, goal: Goal, forward: Forward, batch: Batch, eps: float, seed: int, compute: Compute
) -> dict[str, str]:
    """Whether the objective rose along the attack: of each image its mean over the second half of the iterates against
    the first half. process: of a gradient attack inside a bound, see `along`. Images whose attack failed."""
    path = np.asarray(engine.run(along(process, goal), forward, batch, eps, seed, compute))
    half = path.shape[1] // 2
    idle = int(np.sum(~(path[:, half:].mean(axis=1) > path[:, :half].mean(axis=1))))
    if idle / len(path) >= DEAD:
        return {"path_not_rising": f"along the attack the objective did not rise on {idle} of {len(path)} images"}
    return {}


def along(process: Process, goal: Goal) -> Process:
    """The same walk, which gives in place of a result (B, steps + 1) the objective of its start and of every iterate.

    Of the attack's own state the first leaf must be the iterate, as it is for all that climb inside a bound. One
    forward pass more a step; a row that is done repeats its last.
    """

    def noted(i: Array | int, path: Array, state: Any, forward: Forward) -> _Seen:
        value = goal.objective(forward(jax.tree.leaves(state.own)[0]), state.trail.batch)
        # to the end, so that it stands there if the row is done
        return _Seen(state, jnp.where(jnp.arange(process.steps + 1)[None] >= i, value[:, None], path))

    def init(forward: Forward, batch: Batch, eps: Array, seeds: Array) -> _Seen:
        path = jnp.zeros((len(batch.labels), process.steps + 1))
        return noted(0, path, process.init(forward, batch, eps, seeds), forward)

    def step(i: Array, seen: _Seen, forward: Forward) -> _Seen:
        return noted(i + 1, seen.path, process.step(i, seen.state, forward), forward)

    return Process(init, step, lambda seen, forward: seen.path, process.steps)


class _Seen(NamedTuple):
    state: Any
    path: Array

    @property
    def done(self) -> Array:
        return self.state.done


@jax.jit
def _logits(forward: Forward, images: Array) -> Array:
    return forward(images).logits


@functools.partial(jax.jit, static_argnums=0)
def _slope(goal: Goal, forward: Forward, batch: Batch) -> Array:
    nothing = jnp.zeros(len(batch.labels))  # neither keys nor bounds enter an exact gradient
    return gradients.exact(goal).at(nothing, batch.images, batch, nothing, forward).gradient


def _probabilities(logits: np.ndarray) -> bool:
    """Whether rows of logits lie in [0, 1] and sum to one."""
    return bool(np.all((logits >= 0) & (logits <= 1)) and np.allclose(logits.sum(axis=1), 1, atol=1e-3))


def _loops(jaxpr: Any) -> set[str]:
    """Names of loops anywhere inside."""
    found = {str(eqn.primitive) for eqn in jaxpr.eqns if str(eqn.primitive) in ("while", "scan")}
    inner = [leaf for eqn in jaxpr.eqns for value in eqn.params.values() for leaf in _jaxprs(value)]
    return found.union(*map(_loops, inner))


def _jaxprs(value: Any) -> list[Any]:
    """The programs among an operation's parameters, closed or open, alone or in a tuple."""
    if isinstance(value, tuple | list):
        return [found for one in value for found in _jaxprs(one)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
