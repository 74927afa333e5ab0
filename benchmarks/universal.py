"""ffjax's universal perturbations beside ART's UniversalPerturbation and GD-UAP in plain PyTorch: same weights, images,
bound; and what a step costs over its bare gradient, and over more sources.

    python -m benchmarks.universal --out benchmarks/results/universal_cpu.json
    python -m benchmarks.universal --parts steps

Parts: steps (one step of B carriers x S patterns over one bare value-and-gradient of as many rows, held to 1.10; of k
sources over one of one source, held to k), contest (seconds and share of changed verdicts on test images, one judge for
all, contenders in turns; ART stops by itself where it changes `--enough` of what it is given, and ffjax then as soon as
a whole check says so of the same images). Needs the extra `bench`.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.detectors import interleaved
from benchmarks.detectors import peers as torch_peers
from benchmarks.subjects import machine
from ffjax import detectors, engine, riders, run, study, transfer, uap
from ffjax.checkpoint import Snapshots
from ffjax.data import sets
from ffjax.data.codecs import to_float
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import UapConfig, named, universal
from ffjax.universal.measures import measure
from ffjax.universal.patterns import lay_out

STEPS = 10
"""Between two timings."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which detectors, how much."""

    detector: str = "meso4-a0"
    """A meso4 or a resnet18, which are restated for the peers: a shipped name, or ARCHITECTURE:WEIGHTS-FILE."""
    more: tuple[str, ...] = ("mesoinception4-a0", "resnet10-a0")
    """Further sources, in part steps."""
    parts: tuple[Literal["steps", "contest"], ...] = ("steps", "contest")
    data: str = "a"
    """Whose training images are given, and whose test images are judged."""
    eps: float = 10.0
    """Bound in 1/255."""
    train: int = 50
    """Training images per class that those with data are given."""
    images: int = 100
    """Test images per class, at most."""
    enough: float = 0.4
    """Share of changed verdicts at which ART and ffjax's deepfool and uap_pgd stop."""
    steps: int = 300
    """Of GD-UAP, ours and PyTorch's."""
    repeats: int = 3
    out: Path = Path("runs/bench_universal.json")


def main(cfg: Config) -> None:
    """Measures, prints, writes --out."""
    torch_peers()  # InputError without the extra
    loaded = [detectors.load(spec) for spec in (cfg.detector, *cfg.more)]
    networks = list(study.networks(loaded, loaded[0].detector.shape[0]).values())
    size = loaded[0].detector.shape[0]
    data = {
        split: sets.load(cfg.data, split, size, most) for split, most in (("train", cfg.train), ("test", cfg.images))
    }
    found: dict[str, Any] = {"machine": machine(), "settings": {k: str(v) for k, v in vars(cfg).items()}}
    if "steps" in cfg.parts:
        found["steps"] = [_over_floor(cfg, networks[:1], name, data["train"]) for name in ("gd_uap", "uap_pgd")]
        found["sources"] = [_over_floor(cfg, networks[:k], "uap_pgd", data["train"]) for k in (2, 3)]
        for row in (*found["steps"], *found["sources"]):
            told = ", ".join(row["sources"])
            print(f"{row['method']:10s} {row['rows']:3d} rows  {row['ratio']:.2f} x the bare gradients of {told}")
    if "contest" in cfg.parts:
        found["contest"] = _contest(cfg, loaded[0], networks[0], data)
        for row in found["contest"]:
            spread = " to ".join(f"{100 * x:.0f}" for x in row["fooling"])
            told = f"changes {spread} % of {row['images']} verdicts (noise {100 * row['noise']:.0f})"
            print(f"{row['who']:22s} {row['seconds']:7.1f} s  {told}")
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(cfg.out, found)


def _over_floor(cfg: Config, sources: list[Source], name: str, train: ImageSet) -> dict[str, Any]:
    """Steps of a method over as many bare value-and-gradients of the same rows, source by source, taking turns."""
    config = replace(named(name), eps=(cfg.eps,), seeds=tuple(range(4 if name != "gd_uap" else 32)), steps=10**6)
    laid, made = lay_out(config, [(s.name, s.layers) for s in sources]), universal(config)
    size = train.images.shape[1:]
    batch = jax.tree.map(jnp.asarray, riders.at_step(config, size, train)(0))
    forwards, what = tuple(s.forward for s in sources), measure(config)
    begin = made.init(laid.keys, laid.eps, size)
    count = batch.labels.shape[0] * len(laid.names)
    rows = jnp.clip(
        jnp.repeat(batch.images, len(laid.names), axis=0) + jnp.tile(begin.delta, (batch.labels.shape[0], 1, 1, 1)),
        0,
        1,
    )
    labels = batch._replace(images=None, labels=jnp.repeat(batch.labels, len(laid.names)), ids=None)

    @jax.jit
    def bare(x, forward, weights):
        return jax.value_and_grad(
            lambda x: jnp.sum(what(forward(x), labels, jnp.tile(weights, (count // len(laid.names), 1))))
        )(x)

    def floor() -> None:
        for _ in range(STEPS):
            last = [bare(rows, f, w) for f, w in zip(forwards, laid.weights, strict=True)]
        jax.block_until_ready(last)

    args = (laid.eps, laid.weights, forwards, batch)
    inputs, compute = riders.at_step(config, size, train), Compute(chunk=STEPS, devices=1)
    chunks = engine.drive(made.step, begin, args, config.steps, compute, inputs=inputs)
    times = interleaved(lambda: jax.block_until_ready(next(chunks)[1]), floor, cfg.repeats)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return {
        "method": name,
        "sources": [s.name for s in sources],
        "rows": count,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _contest(cfg: Config, loaded: detectors.Loaded, source: Source, data: dict[str, ImageSet]) -> list[dict[str, Any]]:
    """Every contender in turns, `repeats` times with seeds of their own; ours compile once before."""
    from benchmarks import universal_peers

    train, test = data["train"], data["test"]
    clean = margins(source.forward, test.images, Compute()) > 0
    model, eps = universal_peers.restated(loaded), cfg.eps / 255
    x = to_float(train.images)

    def ours(name: str, **fields: Any) -> Callable[[int], np.ndarray]:
        config = replace(named(name), eps=(cfg.eps,), **fields)
        return lambda seed: _made(replace(config, seeds=(seed,)), source, train, cfg.enough)

    contenders = {
        "ffjax gd_uap": ours("gd_uap", steps=cfg.steps, patience=10**6),
        "PyTorch GD-UAP": lambda seed: universal_peers.gd_uap(model, x.shape[1:], eps, cfg.steps, 1 / 255, seed),
        "ffjax deepfool": ours("deepfool", steps=20 * len(x) * 10, check=len(x) * 10),
        "ffjax uap_pgd": ours("uap_pgd", carriers=16, steps=400, check=len(x) // 16),
        "ART deepfool": lambda seed: universal_peers.art(model, x, eps, cfg.enough, seed),
    }
    found = {name: {"seconds": [], "fooling": []} for name in contenders}
    for name, make in contenders.items():
        if name.startswith("ffjax"):
            make(10**6)
    for seed in range(cfg.repeats):
        for name, make in contenders.items():
            began = time.perf_counter()
            delta = make(seed)
            found[name]["seconds"].append(time.perf_counter() - began)
            changed = (margins(source.forward, test.images, Compute(), delta) > 0) != clean
            assert np.abs(delta).max() <= eps * (1 + 1e-5), name
            found[name]["fooling"].append(float(changed.mean()))
    drawn = [margins(source.forward, test.images, Compute(), transfer.noise(x.shape[1:], k, eps)) > 0 for k in range(5)]
    noise = float(np.mean([one != clean for one in drawn]))
    return [
        {"who": name, "seconds": statistics.median(one["seconds"]), "all_seconds": one["seconds"], "noise": noise,
         "fooling": sorted(one["fooling"]), "images": len(clean)}
        for name, one in found.items()
    ]  # fmt: skip


class _Enough(Exception):
    """The bank is fooled as asked."""


def _made(config: UapConfig, source: Source, train: ImageSet, enough: float) -> np.ndarray:
    """(H, W, 3): to its end, or until `enough` of the bank's verdicts are changed."""
    laid, kept = lay_out(config, [(source.name, source.layers)]), {}

    def watch(done: int, infos: Any) -> None:
        kept["score"] = float(infos.best_score[-1][0])

    def save(step: int, state: Any) -> None:
        kept["best"] = np.asarray(state.best)[0]
        if config.score == "fooling" and kept["score"] >= enough:
            raise _Enough

    compute = Compute(devices=1, chunk=config.check, snapshot=config.check, batch=64)
    shots, size = Snapshots(save, lambda like: (0, like), lambda: None), train.images.shape[1:]
    with contextlib.suppress(_Enough):
        uap.make(config, laid, [source], size, compute, shots, watch, train, train)
    return kept["best"]


if __name__ == "__main__":
    run.main(Config, main)
