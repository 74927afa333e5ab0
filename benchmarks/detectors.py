"""What the gradient of a verdict with respect to the image costs, beside the same network in PyTorch.

    python -m benchmarks.detectors                          # every network, at its own size: some minutes
    python -m benchmarks.detectors --only meso4 resnet18 --repeats 15

Prints medians over interleaved repeats, so that a busy machine slows both sides alike: ours is one jitted
value-and-gradient of the mean margin, theirs the same by autograd, channels_last, float32, inference mode of BatchNorm;
both with all cores. Where a network has a mask, its mean is part of the value. Held to: meso4 at most 1.0,
resnet18 at most 1.3 times PyTorch (2 CPU cores). Needs the extra `bench`.
"""

import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import detectors, run
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.study import environment
from ffjax.types import Array, Outputs


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the measurement."""

    only: tuple[str, ...] = tuple(detectors.DETECTORS)
    """Networks, of ffjax.detectors.DETECTORS."""
    size: int | None = None
    """Image side in pixels; each network's own by default."""
    rows: int = 16
    """Images a gradient."""
    repeats: int = 7
    out: Path | None = None
    """A JSON file for the figures."""


def main(cfg: Config) -> None:
    """Measures and prints, each network in a process of its own, so that none meets the memory another left behind."""
    told = {"rows": cfg.rows, "repeats": cfg.repeats, "torch": peers().VERSION}
    sizes = {name: cfg.size or detectors.default_size(name) for name in cfg.only}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in sizes.items():
            out = Path(folder) / f"{name}.json"
            process = get_context("spawn").Process(target=_one, args=(name, size, cfg, out))
            process.start()
            process.join()
            if process.exitcode:
                raise InputError(f"{name}: its measurement ended with code {process.exitcode}")
            figures[name] = json.loads(out.read_text())
    if cfg.out:
        cfg.out.parent.mkdir(parents=True, exist_ok=True)
        cfg.out.write_text(json.dumps(told | {"networks": figures} | environment(), indent=1) + "\n")


def _one(name: str, size: int, cfg: Config, out: Path) -> None:
    """Measures one network, prints its line and leaves its figures in a file."""
    times = interleaved(*both(name, size, cfg.rows), cfg.repeats)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    a, b = (1e3 * statistics.median(part) for part in times)
    line = f"{name:20s} {size:4d} px: ours {a:8.1f} ms, torch {b:8.1f} ms, ratio {a / b:5.2f}"
    print(f"{line} (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
    out.write_text(json.dumps({"size": size, "ours_ms": a, "torch_ms": b, "ratio": a / b, "pairs": ratios}))


def both(name: str, size: int, rows: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The two gradients as functions of nothing, each compiled or warmed up by its first call."""
    detector = detectors.build(name, size)
    variables = jax.jit(detector.init)(jax.random.key(0))
    network = peers().build(name, size, sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))
    images = np.random.default_rng(0).uniform(0, 1, (rows, size, size, 3)).astype(np.float32)

    def value(outputs: Outputs) -> Array:
        return margin(outputs).mean() + (0.0 if outputs.mask is None else outputs.mask.mean())

    gradient = jax.jit(jax.value_and_grad(lambda x, v: value(detector.apply(v, x))))
    given = jnp.asarray(images)
    return lambda: jax.block_until_ready(gradient(given, variables)), peers().gradient(network, images)


def interleaved(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call; two calls of each before, so that nothing compiles while it is timed."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for gradient, kept in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            gradient()
            if repeat >= 2:
                kept.append(time.perf_counter() - start)
    return times


def peers(module: str = "torch_networks") -> Any:
    """A module of benchmarks/ that is written in PyTorch. InputError where PyTorch is not installed."""
    try:
        return importlib.import_module(f"benchmarks.{module}")
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[bench]'") from None


if __name__ == "__main__":
    run.main(Config, main)
