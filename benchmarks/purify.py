"""What Deep Image Prior costs an image, beside the same network in PyTorch: one image at a time, as the paper's code
runs it, and batched by torch.func's vmap.

    python -m benchmarks.purify --out benchmarks/results/purify_cpu.json

The same network, images and iterations on the same hardware, all contenders in turns in one run (but ours draws one
noise an iteration for all images, theirs one an image, as the paper does: at most a tenth of its time); then the
seconds an image that each needs for the PSNR which all of them reach in --steps iterations. Held to: 1.5 times the
images a second of PyTorch's one at a time on 2 CPU cores at 128 px (aimed at: 2.5), 4 times on a GPU, and there 10 s an
image at 512 px (`--size 512`). Needs the extra `bench`. Where there is no GPU, what is said of one is an extrapolation
and says so.
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

from benchmarks.detectors import peers
from benchmarks.subjects import machine
from ffjax import run
from ffjax.data import codecs, sets
from ffjax.defences import dip, skip_network
from ffjax.defences.dip import Prior
from ffjax.defences.skip_network import NETWORKS, Params, Skip
from ffjax.errors import InputError

HELD = {"cpu": "held to 1.5, aimed at 2.5", "gpu": "held to 4"}
MOVED, BANDWIDTH = 2e9, 3.35e12
"""Bytes that an iteration of the paper's network moves of an image of 512 px, and that an H100 moves a second at best:
both by their data sheets, and neither measured here."""


Maker = Callable[[np.ndarray], Callable[[], Any]]
"""images (B, H, W, 3) -> what does one iteration of them all: PSNR in dB, or errors, (B,)."""


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
    """Iterations in which PSNR is compared; 0 for no comparison."""
    warm: int = 0
    """Iterations on another image after which four networks begin, beside four that begin at random; 0: not asked."""
    out: Path = Path("runs/bench_purify.json")


def main(cfg: Config) -> None:
    """Measures, prints, writes --out."""
    if cfg.network not in NETWORKS:
        raise InputError(f"network: unknown {cfg.network!r}; known: {', '.join(NETWORKS)}")
    for name, least in (("images", 1), ("turns", 1), ("repeats", 1), ("steps", 0), ("warm", 0)):
        if getattr(cfg, name) < least:
            raise InputError(f"{name}: must be at least {least}, got {getattr(cfg, name)}")
    if cfg.warm and (cfg.images < 5 or not cfg.steps):
        raise InputError("warm: needs five images, of which the last is drawn first, and steps")
    skip = NETWORKS[cfg.network]
    if skip_network.canvas(skip, cfg.size, cfg.size) != (cfg.size, cfg.size):
        raise InputError(f"size: the twin in PyTorch draws no image of {cfg.size} pixels a side")
    torch_skip = peers("torch_skip")
    images = codecs.to_float(sets.load("a", "test", cfg.size).images[: cfg.images])
    prior, backend = Prior(skip), jax.default_backend()
    contenders = {name: (made(images[:1] if alone else images), 1 if alone else cfg.images)
                  for name, (made, alone) in makers(prior, torch_skip, backend).items()}  # fmt: skip
    times = taken(contenders, cfg.turns, cfg.repeats)
    work = operations(skip, cfg.size)
    found: dict[str, Any] = {"machine": machine(), "settings": run.as_json(cfg), "seconds": times, "operations": work}
    floor = times["PyTorch, one at a time"]
    for name, seconds in times.items():
        each = statistics.median(seconds)
        ratios = sorted(a / b for a, b in zip(floor, seconds, strict=True))
        found.setdefault("throughput over one at a time", {})[name] = ratios
        held = f"   {HELD.get(backend, '')}" if name == "ffjax" else ""
        speed = f"{1e3 * each:7.1f} ms an image and iteration   {work / each / 1e9:6.1f} GFLOP/s"
        told = f"{statistics.median(ratios):5.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f} in {cfg.repeats} rounds)"
        print(f"{name:24s} {speed}   {told}{held}")
    if backend == "cpu":
        found["extrapolated"] = extrapolated()
        print(found["extrapolated"])
    if cfg.steps:
        found["psnr"] = paths(makers(prior, torch_skip, backend), images[:2], cfg.steps)
        found["to equal PSNR"] = equal = to_equal(found["psnr"], times)
        for name, one in equal.items():
            both = zip(one["dB"], one["iterations"], one["seconds"], strict=True)
            told = "; ".join(f"{dB:.1f} dB after {i} iterations, {s:.1f} s" for dB, i, s in both)
            print(f"{name:24s} {told} an image")
    if cfg.warm:
        found["warm"] = warm = beginnings(prior, images[:4], images[-1], cfg.warm, cfg.steps)
        for name, path in warm.items():
            told = "; ".join(f"{np.mean(path[i - 1]):.1f} dB after {i}" for i in (25, 50, 100, 200) if i <= cfg.steps)
            print(f"ffjax, begun {name:10s} {told}; {np.mean(path[-1]):.1f} dB after {cfg.steps}")
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(cfg.out, found)


def extrapolated() -> str:
    """What is to be said of a GPU where there is none."""
    floor = MOVED / BANDWIDTH
    return (
        f"no GPU was measured; an extrapolation from memory traffic alone: no less than {1e3 * floor:.1f} ms an image "
        f"and iteration at 512 px on an H100, {6000 * floor:.1f} s for the paper's 6,000"
    )


def beginnings(prior: Prior, images: np.ndarray, other: np.ndarray, warm: int, steps: int) -> dict[str, list]:
    """(steps, images) PSNR in dB of what is drawn of the images, begun at random and where a network stood that had
    drawn the other image."""
    start = dip.stood(prior, jnp.asarray(other), warm, jax.random.key(1))
    found = {}
    for name, begun in (("at random", None), ("warm", start)):
        step = ours(prior, images, begun)
        found[name] = [np.asarray(step()).tolist() for _ in range(steps)]
    return found


def ours(prior: Prior, images: np.ndarray, start: Params | None = None) -> Callable[[], Any]:
    """One iteration of all images, the guard and the running mean included. start: where all networks begin."""
    keys = jax.random.split(jax.random.key(0), len(images))
    advance = jax.jit(lambda i, at: dip.advance(prior, i, at))
    state, count = [dip.begin(prior, jnp.asarray(images), keys, start)], [0]

    def step() -> Any:
        state[0] = advance(jnp.int32(count[0]), state[0])
        count[0] += 1
        return jax.block_until_ready(state[0].psnr)

    return step


def makers(prior: Prior, torch_skip: Any, backend: str) -> dict[str, tuple[Maker, bool]]:
    """Contender -> images -> one iteration, and whether it takes them one at a time; torch_skip: the module."""
    skip, rate, noise, device = prior.network, prior.rate, prior.noise, torch_skip.device(backend)
    return {
        "ffjax": (lambda images: ours(prior, images), False),
        "PyTorch, one at a time": (lambda one: torch_skip.one_at_a_time(skip, one[0], rate, noise, device), True),
        "PyTorch, batched": (lambda images: torch_skip.batched(skip, images, rate, noise, device), False),
    }


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


def paths(contenders: dict[str, tuple[Maker, bool]], images: np.ndarray, steps: int) -> dict[str, list[list[float]]]:
    """Contender -> PSNR in dB of each image after each iteration, each from a random start of its own."""
    found = {}
    for name, (made, alone) in contenders.items():
        stacks = [made(images[k : k + 1]) for k in range(len(images))] if alone else [made(images)]
        told = np.concatenate([np.stack([np.asarray(step()) for _ in range(steps)]) for step in stacks], axis=1)
        found[name] = (told if name == "ffjax" else -10 * np.log10(told)).T.tolist()
    return found


def to_equal(paths: dict[str, list[list[float]]], times: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Contender -> of each image the PSNR that all contenders reach, the iterations to it, and the seconds."""
    best = {name: np.maximum.accumulate(np.array(path), axis=1) for name, path in paths.items()}
    shared = np.min([path[:, -1] for path in best.values()], axis=0)
    found = {}
    for name, path in best.items():
        needed = 1 + np.argmax(path >= shared[:, None], axis=1)
        seconds = needed * statistics.median(times[name])
        found[name] = {"dB": shared.tolist(), "iterations": needed.tolist(), "seconds": seconds.tolist()}
    return found


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
