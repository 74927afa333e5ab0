"""What Deep Image Prior costs an image, beside the same network in PyTorch: one image at a time, as the paper's code
runs it, and batched by torch.func's vmap.

    python -m benchmarks.purify --out benchmarks/results/purify_cpu.json

The same network, images and iterations, all contenders in turns in one run; then the PSNR that each has reached after
--steps iterations, and so the seconds an image to equal PSNR. Held to: 1.5 times the images a second of PyTorch's one
at a time on 2 CPU cores at 128 px (aimed at: 2.5), 4 times on a GPU, and there 10 s an image at 512 px. Needs the extra
`bench`. Where there is no GPU, what is said of one is an extrapolation and says so.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_skip
from benchmarks.subjects import machine
from ffjax import run
from ffjax.data import codecs, sets
from ffjax.defences import dip, skip_network
from ffjax.defences.dip import Prior
from ffjax.defences.skip_network import NETWORKS, Skip
from ffjax.errors import InputError

HELD, AIM = 1.5, 2.5


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the measurement."""

    network: str = "paper"
    size: int = 128
    images: int = 8
    """Drawn at once by ffjax, and by PyTorch batched."""
    turns: int = 4
    """Iterations between two looks at the clock."""
    repeats: int = 7
    steps: int = 300
    """Iterations after which PSNR is compared; 0 for no comparison."""
    out: Path = Path("runs/bench_purify.json")


def main(cfg: Config) -> None:
    """Measures, prints, writes --out."""
    if cfg.network not in NETWORKS:
        raise InputError(f"network: unknown {cfg.network!r}; known: {', '.join(NETWORKS)}")
    skip = NETWORKS[cfg.network]
    skip_network.check(skip, cfg.size, cfg.size)
    images = codecs.to_float(sets.load("a", "test", cfg.size).images[: cfg.images])
    prior = Prior(skip)
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "ffjax": (ours(prior, images), cfg.images),
        "PyTorch, one at a time": (torch_skip.one_at_a_time(skip, images[0], prior.rate, prior.noise), 1),
        "PyTorch, batched": (torch_skip.batched(skip, images, prior.rate, prior.noise), cfg.images),
    }
    times = taken(contenders, cfg.turns, cfg.repeats)
    work = operations(skip, cfg.size)
    found: dict[str, Any] = {"machine": machine(), "settings": run.as_json(cfg), "seconds": times, "operations": work}
    floor = times["PyTorch, one at a time"]
    for name, seconds in times.items():
        each = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(floor, seconds, strict=True))
        found.setdefault("throughput over one at a time", {})[name] = ratio
        held = f"   held to {HELD}, aimed at {AIM}" if name == "ffjax" else ""
        speed = f"{1e3 * each:7.1f} ms an image and iteration   {work / each / 1e9:6.1f} GFLOP/s"
        print(f"{name:24s} {speed}   {ratio:5.2f} x{held}")
    if cfg.steps:
        found["psnr"] = compared(prior, images, cfg.steps)
        for name, values in found["psnr"].items():
            print(f"{name:24s} PSNR after {cfg.steps} iterations: {', '.join(f'{x:.1f}' for x in values)} dB")
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(cfg.out, found)


def ours(prior: Prior, images: np.ndarray) -> Callable[[], object]:
    """One iteration of all images, the guard and the running mean included."""
    keys = jax.random.split(jax.random.key(0), len(images))
    advance = jax.jit(lambda i, at: dip.advance(prior, i, at))
    state, count = [dip.begin(prior, jnp.asarray(images), keys)], [0]

    def step() -> object:
        state[0] = advance(jnp.int32(count[0]), state[0])
        count[0] += 1
        return jax.block_until_ready(state[0].psnr)

    return step


def taken(contenders: dict[str, tuple[Callable[[], object], int]], turns: int, repeats: int) -> dict[str, list[float]]:
    """Seconds an image and iteration of each, in rounds; each is called before, so that nothing compiles while it is
    timed."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, (step, rows) in contenders.items():
            start = time.perf_counter()
            for _ in range(turns):
                step()
            if repeat:
                times[name].append((time.perf_counter() - start) / turns / rows)
    return times


def compared(prior: Prior, images: np.ndarray, steps: int) -> dict[str, list[float]]:
    """PSNR in dB of two images after so many iterations, each side from its own random start."""
    two = images[:2]
    mine = ours(prior, images)
    psnr = np.asarray([mine() for _ in range(steps)][-1])[: len(two)]
    theirs = []
    for image in two:
        step = torch_skip.one_at_a_time(prior.network, image, prior.rate, prior.noise)
        theirs.append(float(-10 * np.log10([step() for _ in range(steps)][-1])))
    return {"ffjax": [float(x) for x in psnr], "PyTorch, one at a time": theirs}


def operations(skip: Skip, size: int) -> float:
    """Floating-point operations of an iteration of one image: of its convolutions, once forward and twice back, though
    nothing goes back to the code."""
    found = 0.0
    for name, (window, given, made) in skip_network.convolutions(skip).items():
        kind, scale = name.rstrip("0123456789"), int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0)
        side = size >> (scale + (kind in ("down", "deep")))
        forward = 2.0 * window * window * given * made * side * side
        found += (2 if scale == 0 and kind in ("down", "skip") else 3) * forward
    return found


if __name__ == "__main__":
    run.main(Config, main)
