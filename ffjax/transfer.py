"""How far a break carries: what perturbations made on one detector do to others, on sets and in files of all kinds.

A cell is (data set, source, method): the images of the set, perturbed for that source, once with every seed; every
target says of them what they are, in every storage. Margins are kept, so that tables are made anew without a detector.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ffjax import attempts, crossed, goals, metrics, run, uap
from ffjax.attacks import ATTACKS
from ffjax.checkpoint import snapshots
from ffjax.data.codecs import STORAGE, to_float
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import Condition, margins, shown
from ffjax.individual import batch_of
from ffjax.metrics import Estimate
from ffjax.run import Run
from ffjax.summary import DIRECTIONS
from ffjax.types import Forward, ImageSet
from ffjax.uap import Source
from ffjax.universal import METHODS, UapConfig
from ffjax.universal.fixed import sign_noise
from ffjax.universal.patterns import lay_out
from ffjax.universal.shapes import Size, kind, resized

COMPETENT = 0.75
"""Clean AUC of a target on a set below which its wrong verdicts are no success of anybody's."""
CLEAN = "clean"
NOISE = "noise"
TOGETHER = "all-"
"""Begins the name of a row that is made on all sources at once, before the way they are joined."""
Says = Callable[[np.ndarray], np.ndarray]
"""images (N, H, W, 3), float32 in [0, 1] -> margins (N,), positive = fake."""


class Cell(NamedTuple):
    """The images of `data` perturbed for `source` by `method`; noise and clean have no source."""

    data: str
    source: str
    method: str

    @property
    def name(self) -> str:
        return "--".join(part for part in (self.source, self.method) if part)


class Told(NamedTuple):
    """What one target says of one cell in one storage, of the images it calls rightly as they are.

    rates: direction (fake_called_real, real_called_fake) -> the share now called wrongly. over_noise: the same minus
    sign noise's, on the same images. shift: mean change of being called fake over all images, in [-1, 1]: what is left
    to say where the target is not competent. All are means over pattern seeds and noise draws; their intervals are over
    identities, seeds and draws.
    """

    rates: Mapping[str, Estimate]
    over_noise: Mapping[str, Estimate]
    shift: Estimate


def says(forward: Forward, compute: Compute) -> Says:
    """A network as a target."""
    return lambda images: margins(forward, images, compute)


def baselines(data: Sequence[str]) -> list[Cell]:
    """The clean cells and the noisy ones, beside which all others are read."""
    return [Cell(name, "", method) for method in (CLEAN, NOISE) for name in data]


def cells(data: Sequence[str], sources: Sequence[str], methods: Sequence[str]) -> list[Cell]:
    """Every source and method on every set."""
    return [Cell(name, source, method) for method in methods for source in sources for name in data]


def check_methods(methods: Sequence[str]) -> None:
    """InputError for a name that is neither a universal method nor an attack inside a bound, or is named twice."""
    fixed = [name for name, entry in ATTACKS.items() if entry.bound == "fixed" and name != "noise"]
    unknown = [name for name in methods if name not in METHODS and name not in fixed]
    if unknown:
        raise InputError(
            f"method {unknown[0]}: unknown; universal: {', '.join(METHODS)}; individual: {', '.join(fixed)}"
        )
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"methods: needs at least one and none twice, got {', '.join(methods) or 'none'}")


def patterns(
    folder: Path,
    config: UapConfig,
    sources: Sequence[Source],
    size: int,
    compute: Compute,
    train: ImageSet | None,
    held: ImageSet | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The universal patterns of a method for sources, one a seed, (S, ...), and their own scores (S,), by which one is
    chosen; made in `folder` as far as they are not yet."""
    laid = lay_out(config, [(source.name, source.layers) for source in sources])
    shots = snapshots(folder)
    try:
        state = uap.make(config, laid, sources, (size, size, 3), compute, shots, lambda done, infos: None, train, held)
    finally:
        shots.close()
    return np.asarray(state.best), np.asarray(state.best_score)


def pattern(
    file: Path,
    config: UapConfig,
    sources: Sequence[Source],
    size: int,
    compute: Compute,
    train: ImageSet | None,
    held: ImageSet,
) -> np.ndarray:
    """The one of `patterns` with the highest score of its own: made once, and kept as `file`."""
    if not file.exists():
        deltas, scores = patterns(file.parent / "snapshots", config, sources, size, compute, train, held)
        run.save_array(file, deltas[np.argmax(scores)])
    return np.load(file)


class Workshop(NamedTuple):
    """What perturbed images are made with. networks: name -> detector; sources: those that patterns are made on, fed
    images of the size of held's; configs: universal method -> config; eps: in [0,1] units; noises: draws; train, held:
    what a method may see."""

    folder: Run
    networks: Mapping[str, Source]
    sources: Sequence[Source]
    configs: Mapping[str, UapConfig]
    eps: float
    noises: int
    compute: Compute
    train: ImageSet | None
    held: ImageSet


def perturbed(shop: Workshop, cell: Cell, data: ImageSet) -> Iterator[np.ndarray]:
    """(N, H, W, 3) the set's images as the cell has them, uint8 where clean, else float32: once with each seed of a
    universal method, whose patterns are made once, in shop.folder/patterns, or each draw of noise; else once."""
    if cell.method == CLEAN:
        yield data.images
    elif cell.method == NOISE:
        yield from (noisy(data, draw, shop.eps) for draw in range(shop.noises))
    elif cell.method not in METHODS:
        yield individually(cell.method, shop.networks[cell.source], data, shop.eps, shop.compute)
    else:
        config, made_on = shop.configs[cell.method], [one for one in shop.sources if one.name == cell.source]
        if cell.source.startswith(TOGETHER):
            config, made_on = replace(config, join=cell.source.removeprefix(TOGETHER)), shop.sources  # pyright: ignore
        file, size = place(shop.folder, cell), shop.held.images.shape[1]
        if not file.exists():
            made = patterns(file.parent / "snapshots", config, made_on, size, shop.compute, shop.train, shop.held)
            run.save_array(file, made[0])
        for delta in np.load(file):
            yield universally(data, delta, config)


def individually(name: str, source: Source, data: ImageSet, eps: float, compute: Compute) -> np.ndarray:
    """(N, H, W, 3) float32: every image attacked on its own, whatever the source calls it, to the last step where the
    attack has that option, since what stops at one detector's boundary carries nowhere."""
    follows = "stop" in attempts.chosen_options(name, {})
    runner = attempts.named(name, "linf", goals.verdict, source.forward, compute, {"stop": False} if follows else {})
    made, full = [], np.full(compute.batch, eps, np.float32)
    for start in range(0, len(data.labels), compute.batch):
        ids = np.arange(start, min(start + compute.batch, len(data.labels)))
        made.append(np.asarray(runner(batch_of(data, ids), full[: len(ids)], 0).images))
    return np.concatenate(made)


def universally(data: ImageSet, delta: np.ndarray, config: UapConfig) -> np.ndarray:
    """(N, H, W, 3) float32: the pattern, resized where it is of another size, on every image."""
    delta = np.asarray(resized(kind(config), jnp.asarray(delta), *data.images.shape[1:3]))
    return shown(data.images, Condition("", "uap", "", delta, shape=kind(config)))


def noisy(data: ImageSet, draw: int, eps: float) -> np.ndarray:
    """(N, H, W, 3) float32: one draw of sign noise, +-eps, on every image."""
    return shown(data.images, Condition("", "noise", "", noise((*data.images.shape[1:3], 3), draw, eps)))


def noise(size: Size, draw: int, eps: float) -> np.ndarray:
    """(H, W, 3): that draw."""
    return np.asarray(sign_noise(uap.noise_key(draw), size, eps))


def score(every: Iterable[np.ndarray], targets: Mapping[str, Says], stored: Sequence[str]) -> dict[str, np.ndarray]:
    """TARGET|STORAGE -> (P, N) margins of P times images (N, H, W, 3) in [0, 1]; uint8 is x / 255."""
    found: dict[str, list[np.ndarray]] = {}
    for images in every:
        for storage in ("float", *stored):
            seen = STORAGE[storage](to_float(images) if images.dtype == np.uint8 else images)
            for name, say in targets.items():
                found.setdefault(f"{name}|{storage}", []).append(np.asarray(say(seen), np.float32))
    return {key: np.stack(margins) for key, margins in found.items()}


def place(folder: Run, cell: Cell) -> Path:
    """Where a cell's patterns lie, (S, ...), one a seed; alike for all sets."""
    return folder / f"patterns/{cell.name}/patterns.npy"


def path(folder: Run, cell: Cell) -> Path:
    """Where a cell's margins lie."""
    return folder / f"scores/{cell.data}/{cell.name}.npz"


class Sheet(NamedTuple):
    """A set's labels and identities, and TARGET|STORAGE -> margins of its clean images (N,) and of each draw of noise
    on them (Q, N)."""

    labels: np.ndarray
    groups: np.ndarray
    clean: Mapping[str, np.ndarray]
    noise: Mapping[str, np.ndarray]


def competent(sheet: Sheet, target: str) -> bool:
    """Whether the target tells the set's clean images apart well enough to be broken (COMPETENT)."""
    said = sheet.clean[f"{target}|float"]
    every = metrics.summary(metrics.Scores(sheet.labels, sheet.groups, said, said))
    return every["clean_auc"].value >= COMPETENT


def told(sheet: Sheet, target: str, storage: str, said: np.ndarray) -> Told:
    """What margins `said` (P, N), of the images perturbed with each of P seeds, amount to."""
    fake, key = sheet.labels == 1, f"{target}|{storage}"
    right = (sheet.clean[f"{target}|float"] > 0) == fake
    wrong, noisy = ((margins > 0) != fake for margins in (said, sheet.noise[key]))
    rates, over = {}, {}
    for direction, label in DIRECTIONS.items():
        rows = right & (sheet.labels == label)
        if not rows.any():
            continue
        groups = sheet.groups[rows]
        rates[direction] = crossed.mean(wrong[:, rows].astype(float), groups)
        over[direction] = crossed.difference(wrong[:, rows].astype(float), noisy[:, rows].astype(float), groups)
    before = (sheet.clean[key] > 0).astype(float)
    return Told(rates, over, crossed.difference((said > 0).astype(float), before[None], sheet.groups))


def entries(
    folder: Run, data: Mapping[str, ImageSet], every: Sequence[Cell], targets: Sequence[str], stored: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One entry a (cell, target, storage), with its own clean and noise rows among them, ready for results.json."""
    sheets = {name: sheet(folder, one, name) for name, one in data.items()}
    able = {(name, target): competent(one, target) for name, one in sheets.items() for target in targets}
    for cell in every:
        said = read(path(folder, cell))
        for target in targets:
            for storage in ("float", *stored):
                found = told(sheets[cell.data], target, storage, said[f"{target}|{storage}"])
                yield {
                    "data": cell.data, "source": cell.source, "method": cell.method, "target": target,
                    "storage": storage, "competent": able[cell.data, target],
                } | metrics.plain(found._asdict())  # fmt: skip


def sheet(folder: Run, data: ImageSet, name: str) -> Sheet:
    """What all cells of a set are read beside."""
    clean, noise = (read(path(folder, cell)) for cell in baselines([name]))
    return Sheet(data.labels, data.groups, {key: said[0] for key, said in clean.items()}, noise)


def read(file: Path) -> dict[str, np.ndarray]:
    """A cell's margins, as of `score`."""
    with np.load(file) as found:
        return dict(found)
