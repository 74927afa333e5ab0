"""Detectors behind purifiers, attacked by those who do not know of the purifier and by those who do: what each attacker
makes of an image, and what the defended detector says of it. What that amounts to: purifying_sums.

A random purifier is judged by FRESH draws, which no attacker has seen and by which nothing is calibrated; a fixed one
by its one call. All images share these draws, and the draws that calibrate: intervals are over images and do not
contain that others might have been drawn. After Athalye et al. (ICML 2018) and Tramer et al. (NeurIPS 2020), the
strongest attacker of each image counts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import attempts, goals, individual, ledger, purifying_sums, run, sanity
from ffjax.attacks.descent import descent
from ffjax.attacks.fast_gradient import low_pgd
from ffjax.attempts import Runner
from ffjax.data import codecs
from ffjax.defences.purifiers import PURIFIERS, Purifier, around, pooled, purified, unchanged
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.gradients import Estimator, Slope, Transform, exact
from ffjax.individual import Row
from ffjax.purifying_sums import AWARE, FORMS, MADE, WHITE, Cells, before, share_right
from ffjax.types import Array, AttackResult, Batch, Forward, Goal, ImageSet, Outputs, Process

FRESH = 15
"""Draws by which a random purifier is judged, and as many others by which it is calibrated; odd, so that none is
undecided."""

MOST = 8
"""Images that stand and are attacked again, with larger bounds up to none."""

NONE = "none"
"""The row of the detector as it is."""

JUDGED, ASKED, CALIBRATED = ((1 << 32) - k for k in (1, 2, 3))
"""Folded into the seed's key for the draws that judge, those that attackers ask and those by which thresholds are
calibrated; past the number of any example."""

DERIVATIVES = {"bpda": "the identity's derivative", "soft": "a softer derivative"}

Maker = Callable[[Batch], np.ndarray]
"""batch -> images (B, H, W, C) float32 in [0, 1]."""


class Setting(NamedTuple):
    """eps: bound in l_inf, [0,1] units. steps: of PGD, of which longer takes twice as many. draws: over which attackers
    of a random purifier average. queries: of Square, each of which asks all of them. threshold: the margin above which
    whoever is attacked says fake."""

    eps: float
    steps: int
    draws: int
    queries: int
    seed: int
    threshold: float = 0.0


def check(names: Sequence[str], setting: Setting) -> None:
    """InputError for what cannot be evaluated."""
    unknown = [name for name in names if name not in PURIFIERS]
    if unknown:
        raise InputError(f"unknown purifier {unknown[0]!r}; known: {', '.join(PURIFIERS)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"purifiers: needs at least one and no two alike, got {', '.join(names) or 'none'}")
    if not 0 <= setting.eps <= 1:
        raise InputError(f"eps: must be from 0 to 255 (in 1/255), got {255 * setting.eps:g}")
    if 255 * setting.eps % 1:
        why = "else rounding to 8 bits may take a stored image past the bound"
        raise InputError(f"eps: must be a whole number (in 1/255), {why}, got {255 * setting.eps:g}")
    for field in ("steps", "draws", "queries"):
        if getattr(setting, field) < 1:
            raise InputError(f"{field}: must be at least 1, got {getattr(setting, field)}")
    individual.check_seed(setting.seed)


def settings() -> dict[str, str]:
    """For study.check_inputs: what no flag of the driver says."""
    told = {f"options of {name}": str(attempts.chosen_options(name, {})) for name in ("pgd", "square", "noise")}
    told |= {"attackers": ", ".join(AWARE), "draws that judge": str(FRESH)}
    return told | {"draws that calibrate": f"{FRESH}, none of which judges"}


def named(name: str) -> Purifier:
    """That of the table, or none."""
    return Purifier(unchanged(), False, True, "") if name == NONE else PURIFIERS[name]


def judges(purifier: Purifier, forward: Forward, seed: int, purpose: int = JUDGED) -> list[Forward]:
    """The defended detector, once a draw; each draw is that of every image. purpose: JUDGED, or CALIBRATED for draws of
    which none judges."""
    keys = _keys(purpose, FRESH if purifier.random else 1, seed)
    return [purified(purifier.transform, key, forward) for key in keys]


def calibrated(path: Path, held: ImageSet, purifier: Purifier, forward: Forward, seed: int, compute: Compute) -> float:
    """Where the detector behind that purifier says fake (purifying_sums.calibrated), by what it says of clean
    validation images in FRESH draws of which none judges; kept in a ledger at `path`. InputError where no threshold can
    be calibrated."""
    everything, judged = np.arange(len(held.labels)), judges(purifier, forward, seed, CALIBRATED)
    rows = cell(path, held, everything, lambda batch: np.asarray(batch.images), judged, compute)
    return purifying_sums.calibrated(rows, path.stem)


def made(
    path: Path, data: ImageSet, forward: Forward, setting: Setting, compute: Compute, tell: Callable[[int, str], None]
) -> np.ndarray:
    """(N, H, W, C) float32: PGD on a detector as it is, past the boundary to the last step, so that the threshold of
    setting makes no difference. Kept at `path`."""
    if not path.exists():
        attack = _climb(unchanged(), False, forward, setting, compute)
        parts = []
        for ids in _parts(np.arange(len(data.labels)), compute):
            parts.append(_images(attack, setting)(individual.batch_of(data, ids)))
            tell(int(ids[-1]) + 1, "")
        run.save_array(path, np.concatenate(parts))
    return np.load(path)


def makers(
    purifier: Purifier, forward: Forward, known: Mapping[str, np.ndarray], setting: Setting, compute: Compute
) -> dict[str, Maker]:
    """Kind -> what makes its images. known: those of MADE, of the whole set. Attackers of a random purifier see `draws`
    draws at a time: gradients through ever new ones (EOT), scores by draws of their own that do not change. longer is
    soft, or exact where there is none, gone on with for as many steps again."""
    asked = _asked(purifier, forward, setting)
    build = partial(attempts.named, norm="linf", goal=_goal(setting), forward=asked, compute=compute)
    # past the boundary of draws that it saw an image may still be short of others'
    square = build("square", options={"steps": setting.queries, "stop": not purifier.random})
    own, best, twice = purifier.transform, _climbed(purifier), setting._replace(steps=2 * setting.steps)
    climb = partial(_climb, random=purifier.random, forward=forward, compute=compute)
    runners = {"noise": build("noise"), "exact": climb(own, setting=setting), "longer": climb(best, setting=twice)}
    runners |= {"bpda": climb(around(own), setting=setting), "soft": climb(best, setting=setting)}
    runners |= {"low": climb(best, setting=setting, shape=low_pgd), "square": square}
    found: dict[str, Maker] = {"clean": lambda batch: np.asarray(batch.images)}
    found |= {kind: lambda batch, images=images: images[batch.ids] for kind, images in known.items()}
    return found | {kind: _images(runner, setting) for kind, runner in runners.items()}


def kinds(name: str) -> list[str]:
    """Of the images shown to a detector behind that purifier; without one, PGD that does not know of it is exact."""
    known = PURIFIERS.get(name)
    lacking = set(WHITE) if name == NONE else {"soft"} if known is None or known.soft is None else set()
    return ["clean", "noise", *(kind for kind in AWARE if kind not in lacking)]


def cell(
    path: Path,
    data: ImageSet,
    ids: np.ndarray,
    make: Maker,
    judged: Sequence[Forward],
    compute: Compute,
    tell: Callable[[], None] = lambda: None,
) -> list[Row]:
    """The rows of the ledger at `path`, of these images of the set, made as far as they are not there: id, name, label,
    group and margins, form -> one a draw. tell(): after each batch. InputError for a ledger of another set."""
    rows = ledger.read(path)
    there = individual.known_ids(path, rows, data)
    for part in _parts(np.array([i for i in ids if i not in there], int), compute):
        images = make(individual.batch_of(data, part))
        forms = {"float": images, "png": codecs.png(images)}
        said = {form: np.stack([margins(one, x, compute) for one in judged], axis=1) for form, x in forms.items()}
        new = [_row(data, int(i), {form: said[form][k].tolist() for form in FORMS}) for k, i in enumerate(part)]
        ledger.append(path, new)
        rows += new
        tell()
    return sorted(rows, key=lambda row: row["id"])


def flags(
    purifier: Purifier, forward: Forward, data: ImageSet, cells: Cells, setting: Setting, compute: Compute
) -> dict[str, str]:
    """Signs of robustness that is none: of the defended detector on its first images (sanity.of_forward), where an
    attacker that knows less breaks more, and whether more steps (by the ledgers) or larger bounds break what stands."""
    (first, *_) = judges(purifier, forward, setting.seed)
    some = individual.batch_of(data, np.arange(len(data.labels))[: compute.batch])
    found = sanity.of_forward(first, _goal(setting)(), some)
    white = [kind for kind in WHITE if kind in cells] or ["unaware"]
    stands = {kind: _right(cells, [kind], data, setting) for kind in cells if kind in AWARE}
    left = {kind: float(right.mean()) for kind, right in stands.items()}
    under = _right(cells, white, data, setting)
    best = float(under.mean())
    for kind in MADE:
        if kind not in white and left[kind] < best:
            found[f"{kind}_beats_white_box"] = f"{kind} images leave {left[kind]:.0%}, gradients {best:.0%}"
    for kind, told in DERIVATIVES.items():
        if kind in left and "exact" in left and left[kind] < left["exact"]:
            found[f"{kind}_beats_exact"] = f"{told} leaves {left[kind]:.0%}, the purifier's own {left['exact']:.0%}"
    under &= stands["longer"]
    found |= sanity.of_ensemble({"square": int(np.sum(under & ~stands["square"]))}, ["square"])
    stood = _right(cells, before("longer", cells), data, setting)
    found |= sanity.of_steps(int(np.sum(stood & ~stands["longer"])), int(np.sum(stood)))
    return found | _unbounded(purifier, forward, data, under, setting, compute)


def _unbounded(
    purifier: Purifier, forward: Forward, data: ImageSet, stands: np.ndarray, setting: Setting, compute: Compute
) -> dict[str, str]:
    """By gradients through the purifier, on the first MOST images that stand (N,); nothing where none does. What falls
    is told as what stands is, by fresh draws: those that an attacker asked may be wrong where most others are right."""
    ids = np.flatnonzero(stands)[:MOST]
    if not len(ids):
        return {}
    climb = _climb(_climbed(purifier), purifier.random, forward, setting, compute)
    runner = _judged(climb, judges(purifier, forward, setting.seed), setting, compute)
    return sanity.of_effort(runner, None, individual.batch_of(data, ids), setting.eps, 1.0, setting.seed)


def _judged(runner: Runner, judged: Sequence[Forward], setting: Setting, compute: Compute) -> Runner:
    """The same images, a success where at least half of the draws that judge call them wrongly."""

    def run(batch: Batch, eps: np.ndarray, seed: int) -> AttackResult:
        found = runner(batch, eps, seed)
        said = np.stack([margins(one, np.asarray(found.images), compute) for one in judged], axis=1)
        right = (said > setting.threshold) == (np.asarray(batch.labels) == 1)[:, None]
        return found._replace(success=right.mean(axis=1) <= 0.5)

    return run


def _right(cells: Cells, kinds: Sequence[str], data: ImageSet, setting: Setting) -> np.ndarray:
    return share_right(cells, kinds, "float", len(data.labels), setting.threshold) > 0.5


def _goal(setting: Setting) -> Callable[..., Goal]:
    return partial(goals.verdict, threshold=setting.threshold)


def _climbed(purifier: Purifier) -> Transform:
    return purifier.transform if purifier.soft is None else purifier.soft


def _climb(
    transform: Transform,
    random: bool,
    forward: Forward,
    setting: Setting,
    compute: Compute,
    shape: Callable[..., Process] = descent,
) -> Runner:
    """PGD through a purifier; of a random one by EOT, of another whatever the key. shape: descent, or low_pgd."""
    goal, count = _goal(setting)(), setting.draws if random else 1
    keys = _keys(ASKED, count, setting.seed)
    asked = pooled(transform, keys, forward) if random else purified(transform, keys[0], forward)
    process = _process(shape, goal, setting.steps, transform if random else None, count)
    return attempts.once(process, asked, compute)


@cache
def _process(shape: Callable[..., Process], goal: Goal, steps: int, drawn: Transform | None, draws: int) -> Process:
    """One object for the same words, so that it is compiled once."""
    return shape(goal, steps=steps, estimator=anew(goal, drawn, draws) if drawn else None, stop=False)


def anew(goal: Goal, transform: Transform, draws: int) -> Estimator:
    """EOT for a forward made by `pooled`: asks its detector through draws of its own at every step in place of those,
    each image through others, and follows what the mean over draws says, as that forward does. A peer of
    gradients.averaged, which on CPU takes five times as long, since XLA convolves slowly inside loops there: here the
    draws pass side by side, and memory grows with them."""
    inner = exact(goal)

    def at(keys: Array, images: Array, batch: Batch, eps: Array, forward: Forward) -> Slope:
        detector = forward.args[-1]  # pyright: ignore[reportFunctionMemberAccess]
        rows = len(images)
        each = jax.vmap(lambda key: jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(draws)))(keys)

        def mean(x: Array) -> Outputs:
            cleaned = jax.vmap(jax.vmap(transform, (0, None)))(each, x)
            said = detector(cleaned.reshape(rows * draws, *x.shape[1:]))
            return jax.tree.map(lambda a: jnp.mean(a.reshape(rows, draws, *a.shape[1:]), axis=1), said)

        return inner.at(keys, images, batch, eps, mean)

    return Estimator(at, gradients=draws, queries=draws)


def _asked(purifier: Purifier, forward: Forward, setting: Setting) -> Forward:
    keys = _keys(ASKED, setting.draws, setting.seed)
    return (
        pooled(purifier.transform, keys, forward) if purifier.random else purified(purifier.transform, keys[0], forward)
    )


def _keys(purpose: int, count: int, seed: int) -> Array:
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), np.uint32(purpose)), count)


def _images(runner: Runner, setting: Setting) -> Maker:
    def make(batch: Batch) -> np.ndarray:
        eps = np.full(len(batch.labels), setting.eps, np.float32)
        return np.asarray(runner(batch, eps, setting.seed).images)

    return make


def _parts(ids: np.ndarray, compute: Compute) -> list[np.ndarray]:
    return [ids[k : k + compute.batch] for k in range(0, len(ids), compute.batch)]


def _row(data: ImageSet, i: int, said: dict[str, list[float]]) -> Row:
    who = {"id": i, "name": data.names[i], "label": int(data.labels[i]), "group": int(data.groups[i])}
    return who | {"margins": said}
