"""ffjax's attacks beside those of Foolbox, torchattacks and ART: same weights, images, bound, steps and restarts.

    python -m benchmarks.attacks                                              # everything: hours on 2 CPU cores
    python -m benchmarks.attacks --only pgd-linf --images 20 --held 20        # a look: two minutes
    python -m benchmarks.attacks --detectors meso4-a0 --parts costs

Every contender runs in a process of its own, and they take turns, so that a busy machine slows all alike; ffjax runs
twice: as a user has it, and with every step on every row, as the peers work. One judge, ffjax's forward in float32,
says of all images whether they are called wrongly and lie inside the bound. Parts: contest (speed, success, distance,
memory, and ffjax minus each peer image by image), costs (time over bare gradients, held to 1.05; memory over steps and
images), cw (gradients that Carlini and Wagner's attack saves, held to 5 times). The peers run on CPU. Killed and
started again with the same settings, it goes on after the last part in --out. Needs the extra `bench`.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console

from benchmarks import contenders, contest, costs
from benchmarks.detectors import peers as torch_peers
from benchmarks.subjects import Subject, machine, prepare
from ffjax import run
from ffjax.errors import InputError
from ffjax.progress import step


@dataclass(frozen=True, kw_only=True)
class Config:
    """Who is attacked, with what, on how many images."""

    detectors: tuple[str, ...] = ("meso4-a0", "resnet18")
    """meso4 or resnet18: a shipped name, ARCHITECTURE:WEIGHTS-FILE, or an architecture alone, at random weights."""
    only: tuple[str, ...] = tuple(contest.TASKS)
    """Attacks of the contest, of benchmarks.contest.TASKS."""
    parts: tuple[Literal["contest", "costs", "cw"], ...] = ("contest", "costs", "cw")
    images: int = 200
    """Test images that the detector calls rightly, at most; a detector at random weights gets a fifth of them."""
    held: int = 60
    """Validation images on which the bound is found."""
    steps: int | None = None
    """Instead of each attack's own number (cw: steps of a constant), for a look."""
    restarts: int = 1
    """Starts of each attack inside a bound, each on what still stands."""
    rows: int = 32
    """Images a batch."""
    repeats: int = 3
    """Timed rounds."""
    size: int = 128
    """Image side of a detector at random weights."""
    cw_images: int = 32
    """Images of part cw, whose unabridged run takes 9,000 gradients each."""
    seed: int = 0
    out: Path = Path("runs/bench_attacks.json")
    """A JSON file for the figures."""


def main(cfg: Config) -> None:
    """Measures what --out lacks, prints it, and adds it there."""
    console = Console()
    unknown = [name for name in cfg.only if name not in contest.TASKS]
    if unknown:
        raise InputError(f"unknown attack {unknown[0]!r}; known: {', '.join(contest.TASKS)}")
    small = [name for name in ("images", "held", "rows", "repeats", "restarts", "cw_images") if getattr(cfg, name) < 1]
    if small or (cfg.steps is not None and cfg.steps < 1):
        raise InputError(f"{(small or ['steps'])[0]}: must be at least 1")
    if jax.default_backend() != "cpu":
        raise InputError("the peers run on CPU here: set JAX_PLATFORMS=cpu")
    torch_peers()  # InputError without the extra
    found = _taken_up(cfg)
    with tempfile.TemporaryDirectory() as folder:
        for spec in cfg.detectors:
            with step(console, f"{spec}: loading"):
                subject = prepare(spec, cfg.images, cfg.held, cfg.size, cfg.rows, Path(folder))
            console.print(f"{spec}: {subject.told}", highlight=False)
            for name, measure in _measures(cfg, subject).items():
                key = f"{spec} {name}"
                if key not in found:
                    with step(console, key):
                        found[key] = measure()
                    _keep(cfg, found)
                for line in _told(name, found[key]):
                    console.print(line, highlight=False, markup=False)
    console.print(f"figures: {cfg.out}", highlight=False)


def _measures(cfg: Config, subject: Subject) -> dict[str, Callable[[], Any]]:
    """Name -> what measures it, in the order in which they are made."""
    compare: dict[str, Any] = {"rows": cfg.rows, "repeats": cfg.repeats, "restarts": cfg.restarts, "seed": cfg.seed}
    images = (subject.held, subject.test, subject.groups)
    made: dict[str, Callable[[], Any]] = {}
    for name in cfg.only if "contest" in cfg.parts else ():
        task = contest.shortened(contest.TASKS[name], cfg.steps)
        made[name] = lambda name=name, task=task: contest.compare(
            task, subject.spec, subject.forward, *images, **compare
        )
    test, steps = subject.test, cfg.steps or 40
    if "costs" in cfg.parts:
        eps = {"linf": 2 / 255, "l2": 0.5}
        made["overhead"] = lambda: costs.overhead(
            subject.forward, test, eps, (cfg.rows, 2 * cfg.rows), steps, cfg.repeats
        )
        made["memory"] = lambda: costs.memory(subject.spec, test, 2 / 255, cfg.rows, (steps // 4 or 1, 4 * steps), 4)
    if "cw" in cfg.parts:
        inner = cfg.steps or 1000
        some = costs.first(test, min(cfg.cw_images, len(test.labels)))
        made["cw"] = lambda: costs.carlini_wagner(subject.forward, some, cfg.rows, 9, inner)
    return made


def _told(name: str, found: Any) -> list[str]:
    lines = {"overhead": costs.overhead_lines, "memory": costs.memory_lines, "cw": costs.cw_lines}
    return lines[name](found) if name in lines else contest.lines(name, found)


def _settings(cfg: Config) -> dict[str, Any]:
    """What the figures depend on; the other fields say which of them are wanted."""
    return {k: v for k, v in run.as_json(cfg).items() if k not in ("detectors", "only", "parts", "out")}


def _taken_up(cfg: Config) -> dict[str, Any]:
    """The figures that --out holds. InputError if it was made with other settings."""
    if not cfg.out.exists():
        return {}
    try:
        before = json.loads(cfg.out.read_text())
        same, figures = before["settings"] == _settings(cfg), before["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{cfg.out}: holds no figures of this benchmark; give another --out") from None
    if not same:
        raise InputError(f"{cfg.out}: made with other settings; give another --out or remove it")
    return figures


def _keep(cfg: Config, figures: dict[str, Any]) -> None:
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    value = {"settings": _settings(cfg), "machine": machine() | contenders.versions(), "figures": figures}
    run.write_json(cfg.out, value)


if __name__ == "__main__":
    run.main(Config, main)
