"""Gandhi and Jain's table of the Deep Image Prior defence (IJCNN 2020; PAPERS.md 2.7): which images, what the detector
said of them while they were drawn, and what comes of the verdicts (gandhi_dip_rules).

Their 100 images are ten of each stratum: clean reals, clean fakes, and fakes perturbed by {FGSM, Carlini-Wagner} in
{black, white} box that {fooled, did not fool} the detector. Strata are no population: how often an attack fools decides
what a defence against it is worth, so rates over all attacked fakes stand beside (gandhi_dip_rates).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import campaign, checkpoint, engine, gandhi, ledger, metrics, run, underway
from ffjax.data import codecs
from ffjax.defences import dip
from ffjax.defences.dip import Drawn, Prior
from ffjax.defences.skip_network import Params
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.gandhi import Cell
from ffjax.gandhi_dip_rules import Row, Rule, called_fake, rightly, scores
from ffjax.metrics import Estimate, Scores
from ffjax.study import digest
from ffjax.types import Batch, Forward, ImageSet, Outputs, Process

CLEAN = ("clean real", "clean fake")
FEW = 10
"""Images a stratum has in the paper; one with fewer is shown with its count."""


class Subject(NamedTuple):
    """An image to be drawn. number: of the image in its split. image (H, W, 3): as shown, in 8 bits. margin: what the
    detector says of it undefended."""

    stratum: str
    number: int
    name: str
    label: int
    group: int
    image: np.ndarray
    margin: float


def attacked(
    folder: Path,
    cells: Sequence[Cell],
    fakes: ImageSet,
    forwards: Mapping[str, Forward],
    compute: Compute,
    seed: int,
    stage: Callable[[str, int], Any],
) -> dict[str, list[Row]]:
    """Cell -> its ledger (gandhi.attack); the attacked images lie as PNG in folder/CELL/images."""
    found = {}
    for cell in cells:
        name = f"{cell.source}-{cell.name}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        with stage(name, len(fakes.labels)) as tell:
            keep = campaign.saver(folder / name / "images")
            found[name] = gandhi.attack(folder / name, cell, fakes, forwards, compute, seed, tell, keep)
    return found


def subjects(
    folder: Path, ledgers: Mapping[str, Sequence[Row]], fakes: ImageSet, detector: str, each: int, split: bool
) -> list[Subject]:
    """Of every attack up to `each` fakes that fool `detector` and as many that do not (split), or `each` of any
    outcome."""
    found = []
    for name, rows in ledgers.items():
        label, said = spoken_of(name, rows, detector)
        outcomes = [(" fooled", [m <= 0 for m in said]), (" not fooled", [m > 0 for m in said])]
        for outcome, among in outcomes if split else [("", [True] * len(said))]:
            chosen = [k for k in range(len(rows)) if among[k]][:each]
            for k in chosen:
                i, path = rows[k]["id"], folder / name / "images" / f"{rows[k]['id']:06d}.png"
                image = codecs.to_float(codecs.decode(path.read_bytes()))
                one = Subject(label + outcome, i, fakes.names[i], 1, int(fakes.groups[i]), image, said[k])
                found.append(one)
    return found


def spoken_of(name: str, rows: Sequence[Row], detector: str) -> tuple[str, list[float]]:
    """The attack of a cell as the table names it, and what the detector says of each image of it, as PNG."""
    source, _, attack = name.partition("-")
    kind = "FGSM" if attack == "fgsm" else "CW"
    if source == detector:
        return f"{kind} white", [row["margins"]["attacked"]["png"] for row in rows]
    return f"{kind} black", [row["transfer"]["attacked"]["png"][detector] for row in rows]


def clean_subjects(data: ImageSet, said: np.ndarray, each: int, seed: int) -> list[Subject]:
    """`each` reals and as many fakes that the detector calls rightly, drawn at random."""
    found = []
    for label, stratum in ((0, CLEAN[0]), (1, CLEAN[1])):
        right = np.flatnonzero((data.labels == label) & ((said > 0) == (label == 1)))
        for i in np.random.default_rng([seed, label]).permutation(right)[:each]:
            image = codecs.to_float(data.images[i])
            found.append(Subject(stratum, int(i), data.names[i], label, int(data.groups[i]), image, float(said[i])))
    return found


def warmed(path: Path, prior: Prior, image: Any, steps: int, seed: int) -> Params:
    """dip.stood, kept at `path` (.npz) and read from there, so that a run taken up again, be it elsewhere, goes on from
    the same."""
    if not path.exists():
        made = dip.stood(prior, jnp.asarray(image, jnp.float32), steps, jax.random.key(seed))
        run.save_arrays(path, {name: np.asarray(x) for name, x in made.items()})
    with np.load(path) as kept:
        return {name: jnp.asarray(x) for name, x in kept.items()}


def draw(
    folder: Path,
    prior: Prior,
    these: Sequence[Subject],
    forward: Forward,
    compute: Compute,
    seed: int,
    tell: Callable[[int, str], None],
    start: Params | None = None,
    canvas: int | None = None,
) -> list[Row]:
    """The rows of folder/ledger.jsonl, one an image in order, made as far as they are not there: who it is, and at each
    look the detector's margins on what was drawn (said) and on the running mean (said_average), and the PSNR.

    start: parameters of one network that all begin at; random ones by default. canvas: side in pixels to which images
    are enlarged before they are drawn, and shrunk back from for the detector, linear both ways; as they are by default.

    Images are drawn compute.batch at a time, whatever compute.least; a killed run goes on inside the batch after its
    last snapshot, if as many are drawn at a time as there.
    """
    compute = replace(compute, least=min(compute.least, compute.batch))
    path = folder / "ledger.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = ledger.read(path)
    for known, one in zip(rows, these, strict=False):
        if (known.get("name"), known.get("stratum")) != (one.name, one.stratum):
            raise InputError(f"{path}: holds {known.get('name')}, where {one.name} was to be drawn")
    size, process = engine.capacity(compute), dip.dip(prior, start)
    begun = digest(jax.tree.leaves(start))
    while len(rows) < len(these):
        some = these[len(rows) : len(rows) + size]
        found = _drawn(
            folder / "underway", prior, process, some, forward, compute, seed, partial(tell, len(rows)), begun, canvas
        )
        new = [
            {"stratum": s.stratum, "number": s.number, "name": s.name, "label": s.label, "group": s.group}
            | {"margin": s.margin, "restored": int(found.restored[k])}
            | {key: _short(getattr(found, key)[k]) for key in ("said", "said_average", "psnr")}
            for k, s in enumerate(some)
        ]
        ledger.append(path, new)
        underway.clear(folder / "underway")
        rows += new
        tell(len(rows), "")
    return rows[: len(these)]


def _drawn(
    place: Path,
    prior: Prior,
    process: Process,
    some: Sequence[Subject],
    forward: Forward,
    compute: Compute,
    seed: int,
    note: Callable[[str], None],
    begun: str,
    canvas: int | None,
) -> Drawn:
    images = np.stack([one.image for one in some]).astype(np.float32)
    if canvas is not None:
        images, forward = np.asarray(resized(images, canvas)), jax.tree_util.Partial(_shown(images.shape[1]), forward)
    labels = np.array([one.label for one in some], np.int32)
    batch = Batch(images, labels, np.array([one.number for one in some], np.int32))
    shape = (prior, seed, begun, engine.capacity(compute))  # of the state, by its rows: another does not fit
    shots = checkpoint.snapshots(place / digest([images, np.array([str(x) for x in shape])]), keep=1)
    try:
        return engine.run(
            process, forward, batch, 0.0, seed, compute, restore=shots.restore, save=shots.save,
            watch=lambda done, left: note(f"iteration {done} of {prior.steps}"),
        )  # type: ignore[return-value]  # fmt: skip
    finally:
        shots.close()


def resized(images: Any, side: int) -> jax.Array:
    """(B, H, W, C) in [0, 1] -> (B, side, side, C), linear, smoothed first where it shrinks."""
    shape = (images.shape[0], side, side, images.shape[3])
    return jnp.clip(jax.image.resize(images, shape, "linear", precision=jax.lax.Precision.HIGHEST), 0, 1)


@cache
def _shown(side: int) -> Callable[[Forward, jax.Array], Outputs]:
    """One object a size, so that it is compiled once."""
    return lambda forward, images: forward(resized(images, side))


def _short(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]


def figures(rows: Sequence[Row], rule: Rule) -> dict[str, Estimate]:
    """The paper's columns under a rule: accuracy, auc, precision and recall of fakes and of reals."""
    real = scores(rows, rule.form, rule.window)[:, rule.look]
    return _columns(rows, -real, called_fake(real, rule.threshold))


def undefended(rows: Sequence[Row]) -> dict[str, Estimate]:
    """The same of the detector alone."""
    said = np.array([row["margin"] for row in rows])
    return _columns(rows, said, said > 0)


def _columns(rows: Sequence[Row], fake: np.ndarray, says: np.ndarray) -> dict[str, Estimate]:
    """fake (N,): a score, the larger the more so. says (N,) bool: called fake."""
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    right = (says == (labels == 1)).astype(float)
    found = {"accuracy": metrics.share(right, groups)}
    if len(np.unique(labels)) == 2:
        found["auc"] = metrics.summary(Scores(labels, groups, fake, fake))["clean_auc"]
    for name, label in (("fake", 1), ("real", 0)):
        called, is_so = says == (label == 1), labels == label
        for what, among in (("precision", called), ("recall", is_so)):
            if among.any():
                found[f"{name}_{what}"] = metrics.share(right[among], groups[among])
    return found


def by_stratum(rows: Sequence[Row], rule: Rule) -> dict[str, Estimate]:
    """Stratum -> share called rightly under the rule."""
    right = rightly(rows, rule)
    groups = np.array([row["group"] for row in rows])
    names = np.array([row["stratum"] for row in rows])
    return {
        name: metrics.share(right[names == name].astype(float), groups[names == name]) for name in dict.fromkeys(names)
    }
