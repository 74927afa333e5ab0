"""Zhao et al.'s two defences ("Security Consideration for Deep Learning-Based Image Forensics", 2018; PAPERS.md 3) and
their combination beside plain training: how each is tested, and what the ledgers amount to.

The paper's attack, data, network, weights and figures are not public: nothing here is a replication of its table.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import campaign, crossed, individual
from ffjax.campaign import Plan
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.findings import TRUSTED
from ffjax.individual import Row
from ffjax.metrics import Estimate
from ffjax.objectives import cross_entropy
from ffjax.types import Array, Batch, Forward, ImageSet

Defence = Literal["plain", "penalty", "mix", "both"]
DEFENCES: tuple[Defence, ...] = ("plain", "penalty", "mix", "both")
CLAIM = "pgd-100"
"""The test by which a defence is held or not."""
LIFT, BALANCED, WORST, LOSS = 0.25, 0.60, 0.50, 0.05
"""What 'held' means, of PGD-100, in medians over training seeds: so much more called rightly than after plain training,
so much of both classes together and of the worse one, and less than so much of clean accuracy lost."""
SURFACE = 32
"""Images whose mean loss surface is drawn, at most."""
TRAININGS = 3
"""Without so many nothing is held."""


class Look(NamedTuple):
    """One way to test a detector. eps: in 1/255, l_inf. few: on the first images of either class alone."""

    name: str
    plan: Plan
    eps: float
    few: bool = False

    @property
    def cell(self) -> str:
        return f"{self.name.replace(' ', '')}-{self.eps:g}"


class Entry(NamedTuple):
    """What a defence came to under one look, over its training seeds: shares of all images called rightly, each class
    alone, and the gain over plain training on the same images. matched: what plain training and the defence keep of the
    images that every training of both calls rightly clean. form: float, or png as stored. None: not to be had."""

    defence: Defence
    look: str
    eps: float
    form: str
    clean: Estimate
    noise: Estimate
    accuracy: Estimate
    fake: Estimate
    real: Estimate
    lift: Estimate | None
    matched: tuple[Estimate, Estimate] | None


def looks(bounds: Sequence[float], strong: float, full: bool) -> list[Look]:
    """FGSM, PGD-20 and PGD-100 at every bound; PGD-100 from five starts and the ensemble without parameters at `strong`
    (at every bound in full), on few images. PGD climbs the margin, since in float32 the cross-entropy of a detector
    that is sure has no gradient, and goes on past the boundary: what stops there neither carries over nor survives
    a file."""
    found = []
    for eps in bounds:
        found += [Look("fgsm", Plan("fgsm", "linf", {}), eps)]
        found += [Look(f"pgd-{steps}", Plan("pgd", "linf", _whole(steps)), eps) for steps in (20, 100)]
    for eps in bounds if full else (strong,):
        found += [Look("pgd-100 x 5", Plan("pgd", "linf", _whole(100), restarts=5), eps, few=True)]
        found += [auto(eps)]
    return found


def auto(eps: float) -> Look:
    """The ensemble without parameters."""
    return Look("auto", Plan("auto", "linf", {}), eps, few=True)


def _whole(steps: int) -> dict[str, Any]:
    return {"steps": steps, "stop": False}


def settings(looks: Sequence[Look]) -> dict[str, str]:
    """Of every attack, for study.check_inputs: what no flag of the driver says."""
    return {f"{look.name}: {key}": told for look in looks for key, told in campaign.settings(look.plan).items()}


def attack(
    folder: Path,
    look: Look,
    data: ImageSet,
    forward: Forward,
    others: Mapping[str, Forward],
    compute: Compute,
    seed: int,
    tell: Callable[[int, str], None],
) -> list[Row]:
    """The rows of folder/ledger.jsonl, made as far as they are not there. transfer[kind][form][other]: the margins of
    the others on the same images."""
    job = campaign.job(look.plan, forward, compute, folder, tell)

    def shown(batch: Batch, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: margins(other, images, compute) for name, other in others.items()}

    return individual.attack(
        folder / "ledger.jsonl", data, forward, job.attack, job.noise, look.eps / 255, minimal=False, threshold=0.0,
        qualities=(), seed=seed, compute=compute, looks={"transfer": shown} if others else {}, note=job.note,
        tell=job.tell,
    )  # fmt: skip


def flags(
    look: Look, data: ImageSet, forward: Forward, rows: Sequence[Row], compute: Compute, seed: int
) -> dict[str, str]:
    """Signs of robustness that is none: in what a look's ledger holds, and by more effort on eight images."""
    found = campaign.flags(look.plan, forward, data, rows, compute)
    return found | campaign.effort(look.plan, forward, data, rows, compute, look.eps / 255, seed, 8)


def right(rows: Sequence[Row], kind: str, form: str) -> np.ndarray:
    """(N,) whether each image is called rightly clean, under noise or attacked; one that is called wrongly as it is
    counts as wrong in all."""
    return np.array(["margins" in row and _called(row, row["margins"][kind][form]) for row in rows], float)


def carried(rows: Sequence[Row], clean: np.ndarray, other: str, form: str) -> np.ndarray:
    """(N,) whether `other` calls rightly what was attacked on the rows' own detector. clean (N,): whether it calls the
    image rightly as it is, which is how it meets what that detector called wrongly and nobody attacked."""
    told = [
        clean[k] and ("transfer" not in row or _called(row, row["transfer"]["attacked"][form][other]))
        for k, row in enumerate(rows)
    ]
    return np.array(told, float)


def _called(row: Row, margin: float) -> bool:
    return (margin > 0) == (row["label"] == 1)


Seen = Mapping[tuple[Defence, int], Mapping[str, Sequence[Row]]]
"""(defence, training seed) -> cell of a look -> its ledger."""


def entries(seen: Seen, looks: Sequence[Look], seeds: Sequence[int]) -> list[Entry]:
    """Every defence under every look, in memory and as PNG; then PGD-100 carried over from a plain detector, to plain
    training from another seed's, which one seed alone has not."""
    found = []
    for look in looks:
        for form in ("float", "png"):
            found += _compared(look.name, look, form, partial(_own, seen, look, form), seen, seeds)
        if look.name == CLAIM and len(seeds) > 1:
            found += _compared("transfer", look, "float", partial(_transferred, seen, look), seen, seeds)
    return found


def _own(seen: Seen, look: Look, form: str, defence: Defence, seed: int, kind: str) -> np.ndarray:
    return right(seen[defence, seed][look.cell], kind, form)


def _transferred(seen: Seen, look: Look, defence: Defence, seed: int, kind: str) -> np.ndarray:
    """Under PGD on the plain detector of the same seed; for plain training, on that of the seed before."""
    rows, made = seen[defence, seed][look.cell], seen["plain", seed]
    if defence == "plain":
        seeds = [s for d, s in seen if d == "plain"]
        made = seen["plain", seeds[seeds.index(seed) - 1]]
    own = right(rows, "clean" if kind == "attacked" else kind, "float")
    return carried(made[look.cell], own, defence, "float") if kind == "attacked" else own


def _compared(
    name: str,
    look: Look,
    form: str,
    called: Callable[[Defence, int, str], np.ndarray],
    seen: Seen,
    seeds: Sequence[int],
) -> list[Entry]:
    """One entry a defence. called(defence, seed, kind) -> (N,)."""
    rows = next(iter(seen.values()))[look.cell]
    labels, groups = (np.array([row[field] for row in rows]) for field in ("label", "group"))

    def over_seeds(defence: Defence, kind: str) -> np.ndarray:
        return np.stack([called(defence, seed, kind) for seed in seeds])

    plain_clean, plain = (over_seeds("plain", kind) for kind in ("clean", "attacked"))
    found = []
    for defence in DEFENCES:
        clean, noise, attacked = (over_seeds(defence, kind) for kind in ("clean", "noise", "attacked"))
        fake, real = (crossed.mean(attacked[:, labels == label], groups[labels == label]) for label in (1, 0))
        whole, noisy, left = (crossed.mean(values, groups) for values in (clean, noise, attacked))
        lift, matched = None, None
        if defence != "plain":
            lift = crossed.difference(attacked, plain, groups)
            both = plain_clean.all(axis=0) & clean.all(axis=0)
            if both.any():
                matched = (crossed.mean(plain[:, both], groups[both]), crossed.mean(attacked[:, both], groups[both]))
        found.append(Entry(defence, name, look.eps, form, whole, noisy, left, fake, real, lift, matched))
    return found


class Verdict(NamedTuple):
    """Medians over training seeds at the bound of the claim, in [0, 1]. every: both classes together on the few images
    that all attacks at that bound were tried on, transfer among them, the strongest of each image counting. trainings:
    how many of them meet all that is asked. held: the medians do, and most of three trainings or more, of a data set on
    which plain training is competent."""

    lift: float
    balanced: float
    worst: float
    clean_loss: float
    every: float
    trainings: int
    held: bool


def verdict(seen: Seen, looks: Sequence[Look], eps: float, defence: Defence, seeds: Sequence[int]) -> Verdict:
    """Of one defence, seed by seed against plain training of the same seed, under PGD-100 inside eps (1/255)."""
    there = [look for look in looks if look.eps == eps]
    claim = next(look for look in there if look.name == CLAIM)
    found = []
    for seed in seeds:
        rows, plain = seen[defence, seed][claim.cell], seen["plain", seed][claim.cell]
        labels = np.array([row["label"] for row in rows])
        attacked, before = right(rows, "attacked", "float"), right(plain, "attacked", "float")
        sides = [attacked[labels == label].mean() for label in (1, 0)]
        lost = right(plain, "clean", "float").mean() - right(rows, "clean", "float").mean()
        left = _standing(_tries(seen, there, claim, defence, seed))
        found.append((attacked.mean() - before.mean(), np.mean(sides), min(sides), lost, left))
    lift, balanced, worst, lost, every = middle = [float(x) for x in np.median(found, axis=0)]
    met = sum(_met(one) for one in found)
    clean = np.mean([right(seen["plain", seed][claim.cell], "clean", "float").mean() for seed in seeds])
    sound = len(found) >= TRAININGS and clean >= TRUSTED
    return Verdict(lift, balanced, worst, lost, every, met, bool(sound and _met(middle) and 2 * met > len(found)))


def _met(one: Sequence[float]) -> bool:
    lift, balanced, worst, lost, every = one
    return lift >= LIFT and min(balanced, every) >= BALANCED and worst >= WORST and lost < LOSS


def _tries(seen: Seen, looks: Sequence[Look], claim: Look, defence: Defence, seed: int) -> list[dict[str, bool]]:
    """Image -> whether it is called rightly, one a look, and one of what is carried over from the plain detector."""
    ledgers = [seen[defence, seed][look.cell] for look in looks]
    calls = [right(rows, "attacked", "float") for rows in ledgers]
    ledgers.append(seen["plain", seed][claim.cell])
    calls.append(carried(ledgers[-1], right(seen[defence, seed][claim.cell], "clean", "float"), defence, "float"))
    named = zip(ledgers, calls, strict=True)
    return [{row["name"]: bool(ok) for row, ok in zip(rows, told, strict=True)} for rows, told in named]


def _standing(tries: Sequence[Mapping[str, bool]]) -> float:
    """The share that nothing has broken, of the images on which all was tried."""
    shared = set.intersection(*(set(one) for one in tries))
    return float(np.mean([all(one[name] for one in tries) for name in sorted(shared)]))


def odd(found: Sequence[Entry], defence: Defence, eps: float) -> dict[str, str]:
    """Flags that only several attacks together show: one that should be the weaker leaves less standing."""
    left = {e.look: e.accuracy.value for e in found if (e.defence, e.eps, e.form) == (defence, eps, "float")}
    weaker = {"fgsm": "single_step_beats_iterated", "transfer": "transfer_beats_white_box"}
    return {
        flag: f"{name} leaves {left[name]:.0%}, {CLAIM} {left[CLAIM]:.0%}"
        for name, flag in weaker.items()
        if name in left and left[name] < left[CLAIM]
    }


def surface(forward: Forward, data: ImageSet, eps: float, side: int = 13) -> np.ndarray:
    """(side, side) mean cross-entropy in nats of SURFACE images, or all, at x + a eps sign(gradient) + b eps r, a and b
    from -2 to 2, r random signs. Where gradients are masked it is flat or falls along the gradient, and rises along
    r."""
    count = min(SURFACE, len(data.labels))
    batch = individual.batch_of(data, np.linspace(0, len(data.labels) - 1, count).astype(int))
    across = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), batch.images.shape)
    along, ways = _uphill(forward, batch), np.linspace(-2, 2, side, dtype=np.float32)
    return np.array([[_loss(forward, batch, eps * (a * along + b * across)) for b in ways] for a in ways])


@jax.jit
def _uphill(forward: Forward, batch: Batch) -> Array:
    return jnp.sign(jax.grad(lambda x: jnp.sum(cross_entropy(forward(x), batch)))(jnp.asarray(batch.images)))


@jax.jit
def _loss(forward: Forward, batch: Batch, delta: Array) -> Array:
    return jnp.mean(cross_entropy(forward(jnp.clip(batch.images + delta, 0, 1)), batch))


def erased(eps: float) -> bool:
    """Whether storage in 8 bits undoes all that fits in the bound: below half a level."""
    return eps < 0.5


def even(data: ImageSet, count: int) -> ImageSet:
    """As many images of either class, `count` at most: accuracy is balanced accuracy then."""
    return sets.limited(data, min(count, *(int(np.sum(data.labels == label)) for label in (0, 1))))
