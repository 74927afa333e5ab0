"""The third paper's two defences, a penalty on the gradient of the loss and training on normal and adversarial images
together, and both at once, beside plain training: what still is called rightly under each attack.

    python -m experiments.zhao_defence --start meso4-a0
    python -m experiments.zhao_defence --size 64 --data 'patches:FOLDER/bsds500-subset?operation=median3'

Faces are learned under attack only from weights that know them already: the mix alone stays at chance from random ones.
The second asks it of image forensics instead (median filter; jpeg80 and recapture are other operations), on
patches of photographs that are neither recompressed nor shifted in training, as faces are. The paper ("Security
Consideration for Deep Learning-Based Image Forensics", 2018) has no public figures: its claim, that good performance is
kept on adversarial images, is examined. Weight and share are chosen on validation images by PGD-20; all else is three
trainings a defence. Cost on 2 CPU cores: an hour for patches; faces, at 128 px, take some four times as long. Killed
and started again it goes on. Result: OUT/results.json, OUT/figures/
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from experiments import hardened, train_detector
from ffjax import defences, detectors, figures, hardness, metrics, objectives, run, study, train, zhao, zhao_table
from ffjax.data import patches, sets
from ffjax.data.augment import Augment
from ffjax.data.jpeg_history import history_scorer
from ffjax.defences import mixing
from ffjax.defences.mixing import Start
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.progress import stage, step
from ffjax.run import Run
from ffjax.train import Diverged, TrainConfig
from ffjax.types import Detector, Forward, ImageSet, LossFn
from ffjax.zhao import DEFENCES, Defence
from ffjax.zhao_table import Candidate, Study

BY = "experiments.zhao_defence"
Nets = Mapping[tuple[Defence, int], Forward]
"""(defence, training seed) -> detector."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The attack that is trained against, anew at every step; not public: FGSM with bounds drawn from 0 to eps is the
    plain reading."""

    eps: float = 4.0
    """Bound in 1/255."""
    ranged: bool = True
    """Whether each image's bound is drawn from 0 to eps, or is eps."""
    steps: int = 1
    stride: float | None = None
    """Length of a step in bounds; none for 1 of one step, 2.5 / steps of more."""
    start: Start = "clean"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which detectors, defended how, tested how."""

    arch: str = "meso4"
    options: tuple[str, ...] = ()
    """The architecture's own: key=value, such as width=16."""
    data: tuple[str, ...] = ("a",)
    """Sets with train, validation and test splits: a, b, patches of photographs, or a CSV or folder."""
    size: int = 128
    """Image side in pixels. Shrunk to 64 the embedded faces lose what gives them away (Meso-4 and ResNet-18 learn
    nothing of them); patches are told apart at 64."""
    dropout: float | None = 0.2
    """Share dropped before the dense layers in training; none for the architecture's own."""
    start: str | None = None
    """Weights that every training starts from, plain training too; random by default."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10))
    weights: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Of the penalty, of which validation chooses."""
    shares: tuple[float, ...] = (0.5, 0.8)
    """Of the adversarial images' loss, likewise."""
    mix: Mix = field(default_factory=Mix)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trainings of each defence; the choice is made on the first."""
    bounds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """Of the attacks, in 1/255."""
    eps: float = 2.0
    """The bound, one of them, by which is chosen and of which is claimed."""
    images: int = 100
    """Test images per class, at most."""
    few: int = 50
    """The same, for attacks that take long: PGD-100 from five starts, and the ensemble."""
    full: bool = False
    """Those attacks at every bound."""
    out: Path = Path("runs/zhao_defence")
    compute: Compute = field(default_factory=Compute)


class Recipe(NamedTuple):
    """weight: of the penalty. share: of adversarial images. Both 0: plain training."""

    weight: float
    share: float


def main(cfg: Config) -> None:
    """Trains what is missing, attacks what the ledgers lack, prints and draws."""
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    console.print(f"ffjax: Zhao et al.'s defences on {', '.join(cfg.data)} -> {cfg.out}", highlight=False)
    _check(cfg)
    begun = train_detector.begun(_asked(cfg, cfg.data[0], cfg.seeds[0], cfg.out))
    with step(console, "loading images (the embedded sets are generated at first use)"):
        splits = {split: sets.load_all(cfg.data, split, cfg.size) for split in ("train", "validation", "test")}
    folder = run.open_run(cfg.out, cfg)
    study.check_inputs(folder, {}, splits, zhao.settings(zhao.looks(cfg.bounds, cfg.eps, cfg.full)) | begun)
    found = {}
    for spec, name in zip(cfg.data, splits["test"], strict=True):
        one = _examined(cfg, console, folder, spec, {split: given[name] for split, given in splits.items()})
        zhao_table.show(console, one, cfg.eps, len(cfg.seeds))
        figures.save(figures.styled(zhao_table.curves, one), folder / f"figures/{name}-accuracy.png")
        drawn = figures.styled(zhao_table.landscapes, name, one.surfaces, cfg.eps)
        figures.save(drawn, folder / f"figures/{name}-loss.png")
        found[name] = zhao_table.plain(one) | {"claims": zhao_table.claims(one, cfg.eps, len(cfg.seeds))}
    run.write_json(folder / "results.json", {"data": found, "environment": study.environment()})


def _check(cfg: Config) -> None:
    run.check(cfg.out, cfg)
    for name in ("weights", "shares", "seeds", "bounds"):
        values = getattr(cfg, name)
        told = {str(v) if name == "seeds" else f"{v:g}" for v in values}  # as in names of folders
        if not values or len(told) < len(values) or min(values) < 0:
            raise InputError(f"{name}: needs at least one, none below 0 and no two alike (to six digits), got {values}")
    if not min(cfg.weights) > 0 or not 0 < min(cfg.shares) <= max(cfg.shares) <= 1:
        raise InputError("weights: above 0, and shares: above 0 and at most 1, are needed: 0 is plain training")
    if cfg.eps not in cfg.bounds or max(cfg.bounds) > 255:
        raise InputError(f"eps: must be one of the bounds, none above 255, got {cfg.eps:g} of {cfg.bounds}")
    mix = cfg.mix
    if cfg.images < 1 or cfg.few < 1 or mix.steps < 1 or not (0 < mix.eps <= 255 and mixing.length(mix.stride, 1) > 0):
        raise InputError("images, few, mix.steps: at least 1; mix.eps: above 0, at most 255; mix.stride: above 0")
    for seed in cfg.seeds:
        train.check(replace(cfg.train, seed=seed))


def _examined(cfg: Config, console: Console, folder: Run, spec: str, data: Mapping[str, ImageSet]) -> Study:
    """One data set from training to verdicts."""
    name = sets.short_name(spec)
    held = zhao.even(data["validation"], cfg.images)
    trained = partial(_trained, cfg, folder, spec)
    tried = _tried(cfg, lambda recipe: trained(recipe, cfg.seeds[0]), held)
    recipes: dict[Defence, Recipe] = {c.defence: Recipe(c.weight, c.share) for c in tried if c.chosen}
    nets: Nets = {(d, s): trained(recipe, s) for s in cfg.seeds for d, recipe in recipes.items()}
    test = zhao.even(data["test"], cfg.images)
    few, looks = zhao.even(test, cfg.few), zhao.looks(cfg.bounds, cfg.eps, cfg.full)
    seen = {}
    for (defence, seed), forward in nets.items():
        cells = {}
        for look in looks:
            others = _others(cfg, nets, seed) if (defence, look.name) == ("plain", zhao.CLAIM) else {}
            known = study.digest(jax.tree.leaves((forward, others)))  # another network is another cell
            images, cell = few if look.few else test, f"cells/{name}/{defence}-{seed}/{look.cell}-{known}"
            with stage(console, f"{name} {defence}-{seed} {look.cell}", len(images.labels), "images") as tell:
                path = (folder / f"{cell}/ledger.jsonl").parent
                cells[look.cell] = zhao.attack(path, look, images, forward, others, cfg.compute, seed, tell)
        seen[defence, seed] = cells
    with step(console, "intervals, and signs of robustness that is none"):
        entries = zhao.entries(seen, looks, cfg.seeds)
        return Study(
            name, tried, entries,
            {d: [float(hardness.slopes(nets[d, s], test, cfg.compute).mean()) for s in cfg.seeds] for d in DEFENCES},
            {d: _flags(cfg, nets, seen, few, d) | zhao.odd(entries, d, cfg.eps) for d in DEFENCES},
            {d: zhao.verdict(seen, looks, cfg.eps, d, cfg.seeds) for d in DEFENCES[1:]},
            {d: zhao.surface(nets[d, cfg.seeds[0]], test, cfg.eps / 255) for d in DEFENCES},
            _history(spec, data["train"], test),
        )  # fmt: skip


def _tried(cfg: Config, trained: Callable[[Recipe], Forward], held: ImageSet) -> list[Candidate]:
    """Plain training, every weight, every share, and the chosen two together, each scored on validation images. A
    weight or share with which training diverges counts as one that calls nothing rightly."""

    def scored(defence: Defence, recipe: Recipe) -> Candidate:
        try:
            forward = trained(recipe)
        except Diverged:
            if defence in ("plain", "both"):
                raise
            return Candidate(defence, *recipe, 0.0, 0.0, 0.0)
        clean, pgd = hardness.accuracies(forward, held, cfg.eps / 255, cfg.compute)
        return Candidate(defence, *recipe, clean, pgd, float(hardness.slopes(forward, held, cfg.compute).mean()))

    plain = scored("plain", Recipe(0, 0))._replace(chosen=True)
    penalties = zhao_table.chosen(plain, [scored("penalty", Recipe(w, 0)) for w in cfg.weights])
    mixes = zhao_table.chosen(plain, [scored("mix", Recipe(0, s)) for s in cfg.shares])
    both = Recipe(next(c.weight for c in penalties if c.chosen), next(c.share for c in mixes if c.chosen))
    return [plain, *penalties, *mixes, scored("both", both)._replace(chosen=True)]


def _trained(cfg: Config, folder: Run, spec: str, recipe: Recipe, seed: int) -> Forward:
    """The detector of OUT/models/..., trained there as far as it is not yet."""
    out = folder.folder / f"models/{sets.short_name(spec)}/penalty{recipe.weight:g}-share{recipe.share:g}-{seed}"
    if not (out / "weights.safetensors").exists():
        judge = hardened.judge(cfg.eps / 255, cfg.few, cfg.compute)
        try:
            train_detector.main(_asked(cfg, spec, seed, out), BY, partial(_defence, cfg, recipe), judge)
        except Diverged as error:
            told = f"penalty {recipe.weight:g}, share {recipe.share:g}, seed {seed}"
            raise Diverged(f"{told}: {error}; go on with other weights or shares, in another --out") from error
    loaded = detectors.load(f"{cfg.arch}:{out / 'weights.safetensors'}")
    return study.networks([loaded], cfg.size)[loaded.name].forward


def _asked(cfg: Config, spec: str, seed: int, out: Path) -> train_detector.Config:
    return train_detector.Config(
        arch=cfg.arch, options=cfg.options, data=spec, others=(), size=cfg.size, dropout=cfg.dropout, start=cfg.start,
        train=replace(cfg.train, seed=seed, augment=_augment(cfg, spec)), out=out, compute=cfg.compute,
    )  # fmt: skip


def _augment(cfg: Config, spec: str) -> Augment:
    """As asked; patches are neither recompressed nor shifted, or the traces they are told apart by would be made up."""
    return replace(cfg.train.augment, jpeg=0.0, shift=0.0) if spec.startswith(patches.PREFIX) else cfg.train.augment


def _others(cfg: Config, nets: Nets, seed: int) -> dict[str, Forward]:
    """Whom images made on the plain detector are carried to: the defended of its seed, the plain one of the next."""
    later = cfg.seeds[(cfg.seeds.index(seed) + 1) % len(cfg.seeds)]
    return {d: nets[d, seed] for d in DEFENCES[1:]} | {"plain": nets["plain", later]}


def _defence(cfg: Config, recipe: Recipe, detector: Detector) -> Callable[[LossFn], LossFn]:
    mix, of = cfg.mix, partial(objectives.cross_entropy, mask=cfg.train.mask)
    up = partial(mixing.labels, mask=cfg.train.mask)
    attacker = defences.climb(mix.eps / 255, mix.steps, mix.stride, mix.start, mix.ranged, up)

    def defend(loss: LossFn) -> LossFn:
        mixed = defences.mixed(loss, detector, attacker, recipe.share) if recipe.share else loss
        return defences.gradient_norm(mixed, detector, recipe.weight, of=of) if recipe.weight else mixed

    return defend


def _flags(cfg: Config, nets: Nets, seen: zhao.Seen, few: ImageSet, defence: Defence) -> dict[str, str]:
    """What the ensemble and attacks with more effort show, of any training."""
    auto, found = zhao.auto(cfg.eps), {}
    for seed in cfg.seeds:
        flags = zhao.flags(auto, few, nets[defence, seed], seen[defence, seed][auto.cell], cfg.compute, seed)
        found |= {flag: f"seed {seed}: {told}" for flag, told in flags.items()}
    return found


def _history(spec: str, train: ImageSet, test: ImageSet) -> metrics.Estimate | None:
    if not spec.startswith(patches.PREFIX):
        return None
    return metrics.summary(history_scorer(train)(test))["clean_balanced_accuracy"]


if __name__ == "__main__":
    run.main(Config, main)
