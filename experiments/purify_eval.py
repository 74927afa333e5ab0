"""A detector behind purifiers (JPEG, median, fewer bits, total variation, rescaling, cropping, random ones), attacked
by who does not know of them and by who does: what of each class is left, beside clean images and noise of the bound.

    python -m experiments.purify_eval --detector meso4-a0

Behind each purifier the detector is attacked and judged at a margin threshold of its own, of best balanced accuracy
on validation images; draws of a random purifier that calibrate, that attackers ask and that judge are no two alike. The
aware attacker is the strongest, image by image, of images made on the bare detector and on another, PGD through the
purifier (averaged over draws of a random one), with the identity's derivative (BPDA), with a softer one where one is
known (of JPEG), of low frequencies alone, on all that stands under these PGD through the purifier with twice the steps
(longer) and, on some of what then stands, Square. Purifying is expected to fail against it: Athalye, Carlini and Wagner
(ICML 2018). Killed and started again it goes on. Cost: with images=15, few=5, queries=300 some twenty CPU minutes.
Result: OUT/results.json, OUT/figures/purifiers.png
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from ffjax import detectors, figures, purifying, purifying_table, run, study
from ffjax import purifying_sums as sums
from ffjax.data import sets
from ffjax.defences.purifiers import PURIFIERS
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.progress import stage, step
from ffjax.purifying import NONE, Setting
from ffjax.purifying_sums import Cells
from ffjax.run import Run
from ffjax.types import Forward, ImageSet


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to defend, with what, against how much."""

    detector: str = "meso4-a0"
    """A shipped name, or ARCHITECTURE[option=value]:WEIGHTS-FILE."""
    other: str = "resnet18-a0"
    """Where images are carried over from: another detector, undefended."""
    purifiers: tuple[str, ...] = tuple(PURIFIERS)
    """Of ffjax.defences.purifiers.PURIFIERS; the bare detector comes first in any case."""
    data: str = "a"
    images: int = 50
    """Test images per class, at most."""
    calibrate: int = 100
    """Validation images per class, at most, on which the thresholds are calibrated."""
    eps: float = 2.0
    """Bound in l_inf, in 1/255: a whole number, so that images keep it as 8-bit PNG too."""
    steps: int = 40
    """Of PGD; of longer, twice as many."""
    draws: int = 8
    """Over which attackers of a random purifier average."""
    queries: int = 1000
    """Of Square, each of which asks all draws."""
    few: int = 25
    """Images per class, of those that stand under all others, that Square is tried on."""
    seed: int = 0
    out: Path = Path("runs/purify_eval")
    compute: Compute = field(default_factory=Compute)


def main(cfg: Config) -> None:
    """Attacks what the ledgers lack, sums up."""
    console = Console()
    console = console if console.is_terminal else Console(width=230)
    console.print(f"ffjax: {cfg.detector} behind {', '.join(cfg.purifiers)} -> {cfg.out}", highlight=False)
    setting = Setting(cfg.eps / 255, cfg.steps, cfg.draws, cfg.queries, cfg.seed)
    _check(cfg, setting)
    loaded = [detectors.load(name) for name in (cfg.detector, cfg.other)]
    networks = study.networks(loaded, loaded[0].detector.shape[0])
    own, other = (networks[one.name].forward for one in loaded)
    with step(console, "loading images (the embedded sets are generated at first use)"):
        counts = {"test": cfg.images, "validation": cfg.calibrate}
        data, held = (sets.load(cfg.data, split, loaded[0].detector.shape[0], n) for split, n in counts.items())
    folder = run.open_run(cfg.out, cfg)
    study.check_inputs(
        folder, networks, {"test": {cfg.data: data}, "validation": {cfg.data: held}}, purifying.settings()
    )
    for warning in study.save_networks(folder, loaded):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    at = {name: setting._replace(threshold=t) for name, t in _thresholds(cfg, console, folder, held, own).items()}
    known = {}
    for kind, forward, to in (("unaware", own, at[NONE]), ("transfer", other, setting)):
        with stage(console, f"PGD ({kind})", len(data.labels), "images") as tell:
            known[kind] = purifying.made(folder / f"made/{kind}.npy", data, forward, to, cfg.compute, tell)
    found, levels, flags = [], {}, {}
    for name in (NONE, *cfg.purifiers):
        cells = _cells(cfg, console, folder, name, data, own, known, at[name])
        found += sums.entries(name, cells, at[name].threshold, data)
        levels[name] = sums.level(cells, at[name].threshold, data)
        with step(console, f"{name}: signs of robustness that is none"):
            flags[name] = purifying.flags(purifying.named(name), own, data, cells, at[name], cfg.compute)
    run.write_json(folder / "results.json", purifying_table.plain(found, levels, flags))
    drawn = figures.styled(purifying_table.figure, found, loaded[0].name, cfg.eps)
    figures.save(drawn, folder / "figures/purifiers.png")
    purifying_table.show(console, found, levels, flags, cfg.eps, cfg.few)


def _check(cfg: Config, setting: Setting) -> None:
    run.check(cfg.out, cfg)
    purifying.check(cfg.purifiers, setting)
    if min(cfg.images, cfg.calibrate, cfg.few) < 1:
        told = f"{cfg.images}, {cfg.calibrate} and {cfg.few}"
        raise InputError(f"images, calibrate, few: must be at least 1, got {told}")


def _thresholds(cfg: Config, console: Console, folder: Run, held: ImageSet, forward: Forward) -> dict[str, float]:
    """Of the detector behind each purifier; before anything is attacked, since one that has none ends it all."""
    found, names = {}, (NONE, *cfg.purifiers)
    with stage(console, "calibration", len(names), "detectors") as tell:
        for name in names:
            path, purifier = folder / f"calibration/{name}.jsonl", purifying.named(name)
            found[name] = purifying.calibrated(path, held, purifier, forward, cfg.seed, cfg.compute)
            tell(len(found), name)
    return found


def _cells(
    cfg: Config,
    console: Console,
    folder: Run,
    name: str,
    data: ImageSet,
    forward: Forward,
    known: dict[str, np.ndarray],
    setting: Setting,
) -> Cells:
    """Every kind of images on the detector behind that purifier; longer and Square, the last, by what those before
    leave."""
    purifier, cells = purifying.named(name), {}
    make = purifying.makers(purifier, forward, known, setting, cfg.compute)
    judged = purifying.judges(purifier, forward, cfg.seed)
    kinds = purifying.kinds(name)
    with stage(console, name, len(kinds), "attackers") as tell:
        for k, kind in enumerate(kinds):
            ids = sums.tried_on(kind, cells, setting.threshold, data, cfg.few)
            path = folder / f"cells/{name}/{kind}.jsonl"
            cells[kind] = purifying.cell(path, data, ids, make[kind], judged, cfg.compute)
            tell(k + 1, kind)
    return cells


if __name__ == "__main__":
    run.main(Config, main)
