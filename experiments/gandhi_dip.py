"""The second paper's Deep Image Prior defence (Gandhi and Jain 2020): every image drawn by a network of its own, the
detector's score followed along the iterations, and its 100-image table with the published figures beside ours.

    python -m experiments.gandhi_dip

Fakes perturbed by FGSM and Carlini-Wagner, on the detector itself (white) and on VGG-16 (black), are drawn beside clean
reals and fakes, ten of each stratum; iteration, threshold and image looked at are chosen on images of the validation
split, and the paper's thresholds 0.25 and 0.5 stand beside, each with the iteration and image chosen for it. Expected:
clean reals come back as real, perturbed fakes mostly as fake; seen: that did not come back (README). Cost: 17 to
35 ms an image and iteration on 2 CPU cores at 128 px, so 50 to 105 s an image, some two hours in all; less with --each,
--calibrate and --prior.steps. Killed and started again it goes on. Result: OUT/results.json,
OUT/figures/trajectories.png, OUT/drawn/ledger.jsonl (one line an image)
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from ffjax import (
    devices,
    figures,
    gandhi,
    gandhi_dip,
    gandhi_dip_rates,
    gandhi_dip_rules,
    gandhi_dip_table,
    gandhi_table,
    individual,
    metrics,
    run,
    study,
)
from ffjax.data import sets
from ffjax.defences import dip
from ffjax.defences.dip import Prior
from ffjax.defences.skip_network import NETWORKS, Params
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.gandhi import Cell, Setting
from ffjax.gandhi_dip import Subject
from ffjax.gandhi_dip_rules import Row
from ffjax.progress import stage, step
from ffjax.types import Forward, ImageSet

LARGEST = 256
"""Side in pixels that is drawn on a CPU: the paper's 512 px takes hours an image there."""
DETECTOR, OTHER = "resnet18", "vgg16"
THRESHOLDS = (0.25, 0.5)
"""The paper's."""
WARM = " Every network begins where one stood that had drawn another image for {} iterations; theirs at random."


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How images are drawn."""

    network: str = "paper"
    """One of ffjax.defences.skip_network.NETWORKS."""
    steps: int = 3000
    """Iterations. The paper: 10,000, at 512 px."""
    rate: float = 0.01
    look: int = 10
    """Iterations between two looks of the detector."""
    window: int = 5
    """Looks of which a score is the mean."""
    batch: int | None = None
    """Images drawn at once; by default 8 on a CPU, where more are no faster and fewer round otherwise, and elsewhere as
    many as three quarters of the memory hold that the device says it may give, if it does."""
    early: bool = False
    """Test images are drawn only as far as the rules look, and so is the figure: with the same verdicts."""
    canvas: int | None = None
    """Side in pixels to which images are enlarged before they are drawn, and shrunk back from for the detector; by
    default they are drawn as they are. The paper: 512, of images of 368 x 300."""
    warm: int = 0
    """Iterations that one network draws another image for, a clean real of the validation split, before all begin where
    it stands; 0 for a random beginning of each, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which detectors, which images, how drawn."""

    resnet: str = "resnet18-a0"
    """The detector that is defended: a shipped name, or weights of ResNet-18."""
    vgg: str = "vgg16-a0"
    """What black-box images are made on: a shipped name, or weights of VGG-16."""
    data: str = "a"
    size: int = 128
    """Image side in pixels; above 256 on a GPU only."""
    each: int = 10
    """Images a stratum, at most."""
    pool: int = 48
    """Fakes of the test split that are attacked, from which the strata are filled."""
    calibrate: int = 20
    """Images of the validation split by which the rule is chosen: a quarter each of clean reals, clean fakes, FGSM's
    and Carlini-Wagner's in white box."""
    eps: float = Setting().eps
    """Of FGSM, in [0,1] image units."""
    multiple: float = 1.0
    """Carlini-Wagner's kappa in medians of the source's margin."""
    inner: int = 100
    """Adam steps a constant, at most."""
    prior: Draw = field(default_factory=Draw)
    seed: int = 0
    out: Path = Path("runs/gandhi_dip")
    compute: Compute = field(default_factory=lambda: Compute(snapshot=250))


def main(cfg: Config) -> None:
    """Attacks, draws what the ledgers lack, calibrates, lays out."""
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    console.print(f"ffjax: Deep Image Prior against perturbed fakes of {cfg.data} -> {cfg.out}", highlight=False)
    prior, setting = _checked(cfg)
    compute = replace(cfg.compute, batch=_batch(cfg, prior))
    loaded = [gandhi.network(DETECTOR, cfg.resnet), gandhi.network(OTHER, cfg.vgg)]
    networks = study.networks(loaded, cfg.size)
    forwards = {name: source.forward for name, source in networks.items()}
    with step(console, "loading images (the embedded sets are generated at first use)"):
        test, held = (sets.load(cfg.data, split, cfg.size) for split in ("test", "validation"))
    folder = run.open_run(cfg.out, cfg)
    settings = gandhi.settings() | {"prior": str(prior)}
    study.check_inputs(folder, networks, {"test": {"data": test}, "validation": {"data": held}}, settings)
    said = {name: margins(forward, held.images, cfg.compute) for name, forward in forwards.items()}
    cells = _cells({name: gandhi.median_margin(m, held) for name, m in said.items()}, setting)
    shown = {name: margins(forward, test.images, cfg.compute) for name, forward in forwards.items()}
    quarter = cfg.calibrate // 4
    attack = partial(_attacked, cfg, console, forwards)
    fakes, _ = gandhi.both_right(said, held, quarter, cfg.seed)
    pool, _ = gandhi.both_right(shown, test, cfg.pool, cfg.seed)
    tuned_on = gandhi_dip.clean_subjects(held, said[DETECTOR], quarter, cfg.seed)
    tested = gandhi_dip.clean_subjects(test, shown[DETECTOR], cfg.each, cfg.seed)
    gandhi_dip_rules.check_classes([one.label for one in tuned_on])  # before anything is attacked or drawn
    gandhi_dip_rules.check_classes([one.label for one in tested], "nothing can be told of the test split")
    start = _warmed(cfg, console, folder.folder / "warm.npz", prior, held, said[DETECTOR])
    white = attack(folder.folder / "calibration", [cell for cell in cells if cell.source == DETECTOR], fakes)
    tuned_on += gandhi_dip.subjects(folder.folder / "calibration", white, fakes, DETECTOR, quarter, split=False)
    ledgers = attack(folder.folder / "attacked", cells, pool)
    tested += gandhi_dip.subjects(folder.folder / "attacked", ledgers, pool, DETECTOR, cfg.each, split=True)
    draw = partial(_drawn, console, forwards[DETECTOR], start, compute, cfg.seed, cfg.prior.canvas)
    tuned = draw(prior, folder.folder / "calibrating", tuned_on)
    wanted: dict[str, float | None] = {"calibrated": None} | {f"threshold {t:g}": t for t in THRESHOLDS}
    rules = {name: gandhi_dip_rules.calibrated(tuned, cfg.prior.window, t) for name, t in wanted.items()}
    held_by = {name: gandhi_dip_rules.left_out(tuned, cfg.prior.window, t) for name, t in wanted.items()}
    prior = gandhi_dip_rules.shortened(prior, rules.values()) if cfg.prior.early else prior
    rows = draw(prior, folder.folder / "drawn", tested)
    figures.save(figures.styled(gandhi_dip_table.trajectories, rows, prior, rules), folder / "figures/trajectories.png")
    whole = gandhi.clean(shown[DETECTOR], test)
    alone = {name: whole[f"{name.removeprefix('clean ')}_accuracy"] for name in gandhi_dip.CLEAN}
    found = gandhi_dip_rates.tables(rows, rules, ledgers, DETECTOR, alone)
    own = f"ResNet-18, {' '.join(f'{k}={v}' for k, v in loaded[0].meta['options'].items())}, {gandhi_table.UNTRAINED}"
    filled, canvas = list(found["strata"]), cfg.prior.canvas
    told = gandhi_dip_table.differs(cfg.data, cfg.size, prior, own, rules, len(tuned), filled, canvas)
    told += WARM.format(cfg.prior.warm) if cfg.prior.warm else ""
    stood = gandhi_dip_table.stands_on(alone, held_by)
    chosen = rules["calibrated"]
    early = gandhi_dip_rules.hastened(rows, chosen, prior, gandhi_dip_rules.hasty(tuned, chosen))
    stood += "\n" + gandhi_dip_table.along_the_way(early, prior)
    plain = {key: {name: metrics.plain(one) for name, one in table.items()} for key, table in found.items()}
    run.write_json(
        folder / "results.json",
        plain | {"rules": {name: rule._asdict() | metrics.plain(held_by[name]) for name, rule in rules.items()}}
        | {"early": metrics.plain(early), "differs": told, "stands_on": stood, "alone": metrics.plain(alone)}
        | {"environment": study.environment()},
    )  # fmt: skip
    gandhi_dip_table.show(console, found["table"], found["strata"], found["rates"], f"{told}\n{stood}")


def _checked(cfg: Config) -> tuple[Prior, Setting]:
    run.check(cfg.out, cfg)
    individual.check_seed(cfg.seed)
    if cfg.prior.network not in NETWORKS:
        raise InputError(f"prior.network: unknown {cfg.prior.network!r}; known: {', '.join(NETWORKS)}")
    counts = {"each": cfg.each, "pool": cfg.pool, "calibrate": cfg.calibrate}
    counts |= {f"prior.{name}": getattr(cfg.prior, name) for name in ("steps", "look", "window")}
    counts |= {} if cfg.prior.batch is None else {"prior.batch": cfg.prior.batch}
    for name, value in counts.items():
        least = 4 if name == "calibrate" else 1
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    if cfg.prior.canvas is not None and cfg.prior.canvas < cfg.size:
        raise InputError(f"prior.canvas: must be at least size {cfg.size}, got {cfg.prior.canvas}")
    for name, side in (("size", cfg.size), ("prior.canvas", cfg.prior.canvas or 0)):
        if side > LARGEST and not devices.accelerated():
            raise InputError(f"{name}: above {LARGEST} px a drawing is for a GPU, and here is none; got {side}")
    if round(255 * cfg.eps) > 255 * cfg.eps + 1e-6:
        raise InputError(f"eps: images are stored in 8 bits, which takes {cfg.eps:g} past itself; give less")
    if cfg.prior.warm < 0:
        raise InputError(f"prior.warm: must not be negative, got {cfg.prior.warm}")
    if not cfg.prior.rate > 0:
        raise InputError(f"prior.rate: must be above 0, got {cfg.prior.rate:g}")
    if cfg.prior.window * cfg.prior.look > cfg.prior.steps:
        raise InputError("prior.window: that many looks do not fit into prior.steps")
    network = NETWORKS[cfg.prior.network]
    setting = Setting(cfg.eps, multiples=(cfg.multiple,), inner=cfg.inner)
    gandhi.check(setting)
    return Prior(network, cfg.prior.steps, cfg.prior.rate, look=cfg.prior.look, code=cfg.seed), setting


def _cells(medians: dict[str, float], setting: Setting) -> list[Cell]:
    wanted = ("fgsm", f"cw-{setting.multiples[0]:g}m")
    return [cell for cell in gandhi.cells(medians, setting) if cell.name in wanted]


def _attacked(
    cfg: Config, console: Console, forwards: dict[str, Forward], folder: Path, cells: list[Cell], fakes: ImageSet
) -> dict[str, list[Row]]:
    return gandhi_dip.attacked(
        folder, cells, fakes, forwards, cfg.compute, cfg.seed,
        lambda name, count: stage(console, f"{folder.name}: {name}", count, "images"),
    )  # fmt: skip


def _warmed(cfg: Config, console: Console, path: Path, prior: Prior, held: ImageSet, said: np.ndarray) -> Params | None:
    """Of a real that the rule is not calibrated on."""
    if not cfg.prior.warm:
        return None
    reals = [one for one in gandhi_dip.clean_subjects(held, said, cfg.calibrate // 4 + 1, cfg.seed) if not one.label]
    if len(reals) <= cfg.calibrate // 4:
        raise InputError("prior.warm: no real is left in the validation split beside those to calibrate on")
    with step(console, f"one network draws {reals[-1].name} for {cfg.prior.warm} iterations"):
        image = reals[-1].image
        image = gandhi_dip.resized(image[None], cfg.prior.canvas)[0] if cfg.prior.canvas else image
        return gandhi_dip.warmed(path, prior, image, cfg.prior.warm, cfg.seed)


def _batch(cfg: Config, prior: Prior) -> int:
    if cfg.prior.batch is not None:
        return cfg.prior.batch
    memory = devices.memory(devices.mesh(cfg.compute.devices))
    most, side = max(cfg.calibrate, 10 * cfg.each), cfg.prior.canvas or cfg.size
    return 8 if memory is None else min(most, dip.images_in(memory * 3 // 4, prior, side, side))


def _drawn(
    console: Console,
    forward: Forward,
    start: Params | None,
    compute: Compute,
    seed: int,
    canvas: int | None,
    prior: Prior,
    folder: Path,
    these: list[Subject],
) -> list[Row]:
    with stage(console, folder.name, len(these), "images") as tell:
        return gandhi_dip.draw(folder, prior, these, forward, compute, seed, tell, start, canvas)


if __name__ == "__main__":
    run.main(Config, main)
