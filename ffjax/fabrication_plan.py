"""Which cells `experiments.huang_iap` fills: bounds, steps, wanted masks, weights and gates; and how its tables
group them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ffjax.errors import InputError
from ffjax.fabrication import ALONE, LOSSES, SIDES, Cell, Found
from ffjax.targets import TARGETS

LONG = 20
"""Steps past which a run takes the smaller number of images."""
WAYS = ("clean", "current", "target")
SCENES = (("fakes:shifted", ALONE), ("fakes:all_real", 1.0), ("reals:disc", 1.0))
"""What each of the gate's ways is tried on, and the weight of the mask: one mask alone, and both lies that agree."""


@dataclass(frozen=True, kw_only=True)
class IapConfig:
    """How thoroughly. None of it is known of the paper (PAPERS.md 1.2): bounds and steps are those of 1.3, the rest is
    ours."""

    attack: Literal["bim", "pgd"] = "bim"
    """Projected sign steps from the clean image (PAPERS.md 1.3), or from a random start."""
    losses: tuple[str, ...] = ("activation", "target_ce")
    """Of the verdict: ClassNSeg's training loss, and cross-entropy to the wanted class; also margin, ce."""
    eps: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Bounds in 1/255."""
    steps: tuple[int, ...] = (10, 100)
    step: float = 0.25
    """Of the bound, a step."""
    sure: float = 1.0
    """The verdict is pushed on until as sure as this many times the median clean image is (validation)."""
    long_images: int = 40
    """A class, for runs of more than 20 steps."""
    targets: tuple[str, ...] = ("all_real", "all_fake", "inverted", "shifted", "another", "disc")
    """Masks wanted of fakes; also square, cross."""
    real_targets: tuple[str, ...] = ("all_fake", "disc")
    """Masks wanted of reals, whose own is empty."""
    mask_eps: tuple[float, ...] = (1.0, 4.0)
    mask_steps: int = 20
    weights: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Of the mask beside the verdict; the mask alone comes by itself."""
    joint: tuple[str, ...] = ("fakes:all_real", "fakes:shifted", "reals:disc")
    """Sweeps of the weight, SIDE:TARGET."""
    joint_eps: float = 1.0
    joint_images: int = 40
    """A class, for each weight and each gate."""


def plan(config: IapConfig, images: int, gates: bool) -> list[Cell]:
    """Every cell, in the order of the tables. images: at most, of each class. gates: whether the detector has one."""

    def verdict(loss: str, steps: int, eps: float) -> Cell:
        most = images if steps <= LONG else min(images, config.long_images)
        return Cell("verdict", "both", most, loss, 0, None, eps, steps, config.step)

    def masked(part: str, scene: tuple[str, float], eps: float, most: int, gate: str = "current") -> Cell:
        side, target = scene[0].split(":")
        loss = "none" if scene[1] == ALONE else config.losses[0]
        return Cell(part, side, most, loss, scene[1], target, eps, config.mask_steps, config.step, gate=gate)

    verdicts = [verdict(loss, steps, eps) for loss in config.losses for steps in config.steps for eps in config.eps]
    alone = [f"fakes:{target}" for target in config.targets] + [f"reals:{target}" for target in config.real_targets]
    few, bound = min(images, config.joint_images), config.joint_eps
    cells = verdicts + [masked("mask", (scene, ALONE), eps, images) for scene in alone for eps in config.mask_eps]
    weights = (*config.weights, ALONE)
    cells += [masked("joint", (scene, weight), bound, few) for scene in config.joint for weight in weights]
    ways = WAYS if gates else ()
    return cells + [masked("gate", scene, bound, few, way) for scene in SCENES for way in ways]


def check(config: IapConfig) -> None:
    """InputError, in one line, for what no detector could be attacked with."""
    for name, words in (("losses", LOSSES), ("targets", TARGETS), ("real_targets", TARGETS)):
        given = getattr(config, name)
        for word in given:
            if word not in words:
                raise InputError(f"{name}: unknown {word!r}; known: {', '.join(words)}")
    for scene in config.joint:
        side, _, target = scene.partition(":")
        if side not in ("fakes", "reals") or target not in TARGETS:
            raise InputError(f"joint: {scene!r} is neither fakes:TARGET nor reals:TARGET, of {', '.join(TARGETS)}")
    for name in ("losses", "eps", "steps", "mask_eps", "weights"):
        given = getattr(config, name)
        if not given or len(set(given)) < len(given):
            raise InputError(f"{name}: at least one is needed, and none twice")
    for name, least in (("eps", 0), ("mask_eps", 0), ("weights", 0), ("steps", 1)):
        if min(getattr(config, name)) < least:
            raise InputError(f"{name}: must be at least {least}, got {min(getattr(config, name)):g}")
    for name, least in (("mask_steps", 1), ("long_images", 1), ("joint_images", 1), ("joint_eps", 0), ("sure", 0)):
        if getattr(config, name) < least:
            raise InputError(f"{name}: must be at least {least}, got {getattr(config, name):g}")
    if not 0 < config.step <= 2:
        raise InputError(f"step: a share of the bound in (0, 2], got {config.step:g}")


def by_class(cells: Sequence[Cell], found: Found) -> Iterator[tuple[Cell, str, Mapping[str, Any]]]:
    """Each cell once a class that it has images of: cell, fakes or reals, `fabrication.measured`."""
    for cell in cells:
        for side in ("fakes", "reals"):
            if set(SIDES[side]) <= set(SIDES[cell.side]) and found[cell.name][side]["n"]:
                yield cell, side, found[cell.name][side]


def sweeps(cells: Sequence[Cell], found: Found) -> dict[tuple[str, str, float], list[Cell]]:
    """(side, target, eps) -> its joint cells in order of weight; those without an image left out."""
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in sorted((cell for cell in cells if cell.part == "joint"), key=lambda cell: cell.weight):
        if found[cell.name][cell.side]["n"]:
            groups.setdefault((cell.side, str(cell.target), cell.eps), []).append(cell)
    return groups


def weight(cell: Cell) -> str:
    """Of the mask, in words."""
    return "mask alone" if cell.weight == ALONE else "verdict alone" if cell.weight == 0 else f"weight {cell.weight:g}"
