"""Signs that a detector looks robust without being it: flags that are printed beside every robust accuracy.

Of AutoAttack's checks (Croce and Hein, ICML 2020; PAPERS.md 5.4) and of the indicators of Pintor et al. (2021): random
outputs, probabilities in place of logits, vanishing gradients, loops that may be optimisation at test time, an
objective that did not rise, and a black box that beats the white box.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import gradients
from ffjax.types import Array, Batch, Forward, Goal

DEAD = 0.1
"""Share of images with no gradient from which the flag is raised."""


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
