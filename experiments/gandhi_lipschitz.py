"""The second paper's Lipschitz regularisation (Gandhi and Jain 2020): ResNet-18 trained with no penalty and with four
weights of it, under FGSM and Carlini-Wagner L2, white box and by transfer from VGG-16, in the paper's layout with its
figures beside ours.

    python -m experiments.gandhi_lipschitz --vgg vgg16-a0

The weight is chosen on validation images, by PGD-20; the paper's best of each column is no one model, and labelled so.
Real recall, noise of the same norm and the signs of masked gradients stand beside every figure. Cost: five trainings,
of which the four with a penalty take some three times as long, and two attacks on six networks: hours on 2 CPU cores,
less with --train.epochs, --start and --images. Killed and started again it goes on. Result: OUT/results.json,
OUT/figures/loss.png
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from experiments import hardened, train_detector
from ffjax import (
    defences,
    detectors,
    figures,
    gandhi,
    hardness,
    individual,
    lipschitz_table,
    run,
    study,
    train,
    zhao,
    zhao_table,
)
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.gandhi import Setting
from ffjax.lipschitz_table import Network
from ffjax.progress import stage, step
from ffjax.run import Run
from ffjax.train import Diverged, TrainConfig
from ffjax.types import Detector, Forward, ImageSet, LossFn
from ffjax.zhao import Look
from ffjax.zhao_table import Candidate

BY = "experiments.gandhi_lipschitz"
RECIPE = gandhi.RECIPES["resnet18"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which networks, which penalties, how attacked."""

    vgg: str = "vgg16-a0"
    """What images are carried over from: a shipped name, or weights of VGG-16."""
    options: tuple[str, ...] = RECIPE.options
    """ResNet-18's own: a quarter of the paper's width by default."""
    start: str | None = None
    """Weights that every training starts from; random by default."""
    weights: tuple[float, ...] = (5.0, 50.0, 500.0, 5000.0)
    """Of the penalty, the paper's."""
    draws: int = 0
    """Random projections in place of the two exact gradients; 0 for the exact."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=RECIPE.epochs, rate=RECIPE.rate))
    data: str = "a"
    size: int = 128
    """Image side in pixels."""
    images: int = 50
    """Fakes of the test split to attack, at most: of those that all networks call rightly. May grow."""
    few: int = 50
    """Test images per class on which the ensemble of attacks looks for masked gradients."""
    eps: float = 2.0
    """Bound in 1/255 of PGD-20, by which is chosen, and of that ensemble."""
    fgsm: float = gandhi.Setting().eps
    """FGSM's, in [0,1] image units."""
    multiple: float = 1.0
    """Carlini-Wagner's kappa, in medians of a network's own margin on validation fakes. (The paper's literal 200 says
    nothing where logits are small.)"""
    inner: int = 200
    """Adam steps a constant, at most; the paper's 1000 take some four times as long."""
    seed: int = 0
    out: Path = Path("runs/gandhi_lipschitz")
    compute: Compute = field(default_factory=Compute)


GROWS = ("images",)


def main(cfg: Config) -> None:
    """Trains what is missing, attacks what the ledgers lack, draws the table."""
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    console.print(f"ffjax: Gandhi and Jain's regularisation on {cfg.data} -> {cfg.out}", highlight=False)
    setting = Setting(cfg.fgsm, multiples=(cfg.multiple,), inner=cfg.inner)
    _check(cfg, setting)
    vgg = gandhi.network("vgg16", cfg.vgg)
    with step(console, "loading images (the embedded sets are generated at first use)"):
        test, held = (sets.load(cfg.data, split, cfg.size) for split in ("test", "validation"))
    folder = run.open_run(cfg.out, cfg, more=GROWS)
    networks = study.networks([vgg], cfg.size)
    seen = {
        "test": {"data": test},
        "validation": {"data": held},
        "train": {"data": sets.load(cfg.data, "train", cfg.size)},
    }
    start = {} if cfg.start is None else study.networks([detectors.load(cfg.start)], cfg.size)
    auto = zhao.auto(cfg.eps)
    study.check_inputs(folder, networks | start, seen, gandhi.settings() | zhao.settings([auto]))
    nets = _networks(cfg, console, folder)
    forwards = {"vgg16": networks["vgg16"].forward} | {name: forward for name, (_, forward) in nets.items()}
    said = {name: margins(forward, test.images, cfg.compute) for name, forward in forwards.items()}
    clean = {name: gandhi.clean(margin, test) for name, margin in said.items()}
    weak, needed = gandhi.incompetent(clean), ("vgg16", "none")
    fit = [name for name in forwards if name not in weak or name in needed]
    fakes, right = gandhi.both_right({name: said[name] for name in fit}, test, cfg.images, cfg.seed)
    medians = {n: gandhi.median_margin(margins(forwards[n], held.images, cfg.compute), held) for n in fit}
    ledgers = []
    for cell in gandhi.cells(medians, setting):
        if cell.name not in ("fgsm", f"cw-{cfg.multiple:g}m"):
            continue
        shown = {name: forwards[name] for name in (fit if cell.source == "vgg16" else [cell.source])}
        known = study.digest(jax.tree.leaves(shown))  # another network is another cell
        with stage(console, f"{cell.source} {cell.name}", len(fakes.labels), "images") as tell:
            path = (folder / f"cells/{cell.source}/{cell.name}-{known}/ledger.jsonl").parent
            ledgers.append((cell, gandhi.attack(path, cell, fakes, shown, cfg.compute, cfg.seed, tell)))
    found = lipschitz_table.figures(ledgers, [name for name in nets if name in fit])
    far = {cell.source: gandhi.costs(cell, rows)["l2"] for cell, rows in ledgers if cell.name != "fgsm"}
    tried = _tried(cfg, {name: nets[name] for name in nets if name in fit}, zhao.even(held, cfg.few))
    told = [
        Network(
            name, weight, clean[name], float(hardness.slopes(f, test, cfg.compute).mean()),
            _flags(cfg, console, folder, name, f, auto, zhao.even(test, cfg.few)) if name in fit else {},
            name in tried and tried[name].chosen and weight > 0, far.get(name),
        )
        for name, (weight, f) in nets.items()
    ]  # fmt: skip
    own = f"{' '.join(cfg.options) or 'as wide as theirs'}, from {cfg.start or 'random weights'}"
    differs = lipschitz_table.differs(cfg.data, cfg.size, own, (len(fakes.labels), right), cfg.multiple, cfg.inner)
    run.write_json(folder / "results.json", lipschitz_table.plain(told, found) | {"differs": differs})
    surfaces = {name: zhao.surface(f, test, cfg.eps / 255) for name, (_, f) in nets.items()}
    figures.save(figures.styled(zhao_table.landscapes, cfg.data, surfaces, cfg.eps), folder / "figures/loss.png")
    console.print(zhao_table.tried(cfg.data, list(tried.values()), cfg.eps))
    lipschitz_table.show(console, told, found, differs, [name for name in needed if name in weak])


def _check(cfg: Config, setting: Setting) -> None:
    gandhi.check(setting)
    run.check(cfg.out, cfg, more=GROWS)
    individual.check_seed(cfg.seed)
    if not cfg.weights or min(cfg.weights) <= 0 or len({f"{w:g}" for w in cfg.weights}) < len(cfg.weights):
        raise InputError(f"weights: needs at least one, all above 0, no two alike (to six digits), got {cfg.weights}")
    if cfg.images < 1 or cfg.few < 1 or cfg.draws < 0 or not 0 <= cfg.eps <= 255:
        raise InputError("images, few: at least 1; draws: at least 0; eps: from 0 to 255")
    train.check(replace(cfg.train, seed=cfg.seed))


def _trained(cfg: Config, folder: Run, weight: float) -> Forward:
    """The network of OUT/models/..., trained there as far as it is not yet; its epoch chosen on validation images by
    hardness.score (the paper's by accuracy on test images)."""
    out = folder.folder / f"models/weight{weight:g}"
    if not (out / "weights.safetensors").exists():
        asked = train_detector.Config(
            arch="resnet18", data=cfg.data, others=(), size=cfg.size, options=cfg.options, start=cfg.start,
            train=replace(cfg.train, seed=cfg.seed), out=out, compute=cfg.compute,
        )  # fmt: skip
        train_detector.main(
            asked, BY, partial(_defence, weight, cfg.draws), hardened.judge(cfg.eps / 255, cfg.few, cfg.compute)
        )
    loaded = detectors.load(f"resnet18:{out / 'weights.safetensors'}")
    return study.networks([loaded], cfg.size)[loaded.name].forward


def _defence(weight: float, draws: int, detector: Detector) -> Callable[[LossFn], LossFn]:
    return lambda loss: defences.lipschitz(loss, detector, weight, draws) if weight else loss


def _networks(cfg: Config, console: Console, folder: Run) -> dict[str, tuple[float, Forward]]:
    """Name -> weight and network, without those whose training diverges."""
    found = {}
    for weight in (0.0, *cfg.weights):
        name = f"weight {weight:g}" if weight else "none"
        try:
            found[name] = weight, _trained(cfg, folder, weight)
        except Diverged as error:
            if not weight:
                raise
            console.print(f"[yellow]warning:[/] {name}: {error}; left out", highlight=False)
    return found


def _tried(cfg: Config, nets: Mapping[str, tuple[float, Forward]], held: ImageSet) -> dict[str, Candidate]:
    """Every network on validation images, one weight chosen."""
    found = {}
    for name, (weight, forward) in nets.items():
        clean, pgd = hardness.accuracies(forward, held, cfg.eps / 255, cfg.compute)
        slope = float(hardness.slopes(forward, held, cfg.compute).mean())
        found[name] = Candidate("penalty" if weight else "plain", weight, 0.0, clean, pgd, slope)
    names = [name for name, (weight, _) in nets.items() if weight]
    if not names:
        return found
    return found | dict(zip(names, zhao_table.chosen(found["none"], [found[n] for n in names]), strict=True))


def _flags(
    cfg: Config, console: Console, folder: Run, name: str, forward: Forward, auto: Look, few: ImageSet
) -> dict[str, str]:
    """Signs of masked gradients, by the ensemble of attacks."""
    with stage(console, f"{name} auto", len(few.labels), "images") as tell:
        path = (folder / f"cells/{name}/auto-{study.digest(jax.tree.leaves(forward))}/ledger.jsonl").parent
        rows = zhao.attack(path, auto, few, forward, {}, cfg.compute, cfg.seed, tell)
    return zhao.flags(auto, few, forward, rows, cfg.compute, cfg.seed)


if __name__ == "__main__":
    run.main(Config, main)
