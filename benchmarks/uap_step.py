"""What one over-firing step costs beside its floor, a bare jitted value-and-gradient of the same objective.

    python -m benchmarks.uap_step

Prints ratios of medians over interleaved repeats in one process, so that a busy machine slows both sides alike:
    stepped_over_floor, fused_over_floor   one step of S patterns over one gradient of a batch of S rows: held to 1.10
                                           (256 px, 8 rows or more) in the execution the backend takes
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from ffjax import detectors, engine, riders
from ffjax.objectives import over_fire
from ffjax.study import environment
from ffjax.universal import UapConfig, universal
from ffjax.universal.patterns import lay_out


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the measurement."""

    arch: str = "meso4"
    size: int = 256
    patterns: int = 8
    steps: int = 10
    repeats: int = 7
    out: Path | None = None
    """A JSON file for the figures."""


def main(cfg: Config) -> None:
    """Measures and prints."""
    detector = detectors.build(cfg.arch, cfg.size)
    forward = jax.tree_util.Partial(detector.apply, detector.init(jax.random.key(0)))
    config = UapConfig(seeds=tuple(range(cfg.patterns)), steps=10**6)
    layout = lay_out(config, [(cfg.arch, detectors.layers(detector))])
    made = universal(config)
    shape = (cfg.size, cfg.size, 3)
    blank = riders.at_step(config, shape, None)(0)
    args = (layout.eps, layout.weights, (forward,), blank)
    fire = over_fire(config.statistic, config.aggregation)

    @jax.jit
    def floor(rows, forward, weights):
        return jax.value_and_grad(lambda x: jnp.sum(fire(forward(x), weights)))(rows)

    rows = made.init(layout.keys, layout.eps, shape).delta

    def bare() -> None:
        for _ in range(cfg.steps):
            last = floor(rows, forward, layout.weights[0])
        jax.block_until_ready(last)

    def driven(execution: str) -> Callable[[], None]:
        compute = engine.Compute(execution=execution, chunk=cfg.steps)  # type: ignore[arg-type]
        begin = made.init(layout.keys, layout.eps, shape)
        chunks = engine.drive(made.step, begin, args, config.steps, compute, inputs=lambda i: blank)
        return lambda: jax.block_until_ready(next(chunks)[1])

    told = {"floor": bare, "stepped": driven("stepped"), "fused": driven("fused")}
    medians = _interleaved(told, cfg.repeats)
    figures = {f"{name}_ms_per_step": 1e3 * t / cfg.steps for name, t in medians.items()}
    figures |= {f"{name}_over_floor": medians[name] / medians["floor"] for name in ("stepped", "fused")}
    for name, value in figures.items():
        print(f"{name:24s} {value:8.3f}")
    if cfg.out:
        setting = {"arch": cfg.arch, "size": cfg.size, "rows": cfg.patterns}
        cfg.out.parent.mkdir(parents=True, exist_ok=True)
        cfg.out.write_text(json.dumps(setting | figures | environment(), indent=1) + "\n")


def _interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Name -> median seconds; each is run once before, so that nothing compiles while it is timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
