"""What a training step costs with each defence, over a plain step, and beside the same in PyTorch.

    python -m benchmarks.training --out benchmarks/results/training_cpu.json

One Adam step of 32 images on Meso-4 with two logits, all programs in turns, medians of each round's ratios. Held to,
over a plain step: the gradient norm 2.2, the Lipschitz penalty of two logits 3.3, its random projection 2.3; a step on
PGD-k images 1.10 times k input gradients and a plain step. Needs the extra `bench`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.detectors import peers
from benchmarks.subjects import machine
from ffjax import defences, detectors, run, train
from ffjax.objectives import cross_entropy
from ffjax.types import Batch, LossFn

HELD = {"gradient norm": 2.2, "lipschitz": 3.3, "lipschitz, projected": 2.3}
"""Over a plain step."""
OVER_PARTS = 1.10
"""A step on attacked images over its k gradients and a plain step."""
EPS, WEIGHT = 2 / 255, 0.1
TURNS = 3
"""Steps between two looks at the clock."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the measurement."""

    arch: str = "meso4_port"
    """A network of benchmarks.torch_networks."""
    size: int = 128
    rows: int = 32
    """Images a step."""
    steps: int = 7
    """Of PGD."""
    repeats: int = 7
    out: Path = Path("runs/bench_training.json")


def main(cfg: Config) -> None:
    """Measures, prints, writes --out."""
    images = np.random.default_rng(0).uniform(0, 1, (cfg.rows, cfg.size, cfg.size, 3)).astype(np.float32)
    labels = np.arange(cfg.rows, dtype=np.int32) % 2
    mine, other = ours(cfg, images, labels), theirs(cfg, images, labels)
    times = taken(
        {f"ffjax {n}": f for n, f in mine.items()} | {f"PyTorch {n}": f for n, f in other.items()}, cfg.repeats
    )
    found: dict[str, Any] = {"machine": machine(), "settings": run.as_json(cfg), "seconds": times, "over plain": {}}
    for side in ("ffjax", "PyTorch"):
        for name in mine if side == "ffjax" else other:
            ratio = over(times[f"{side} {name}"], times[f"{side} plain"])
            found["over plain"][f"{side} {name}"] = ratio
            held = f"   held to {HELD[name]}" if side == "ffjax" and name in HELD else ""
            seconds = statistics.median(times[f"{side} {name}"])
            print(f"{side:8s} {name:24s} {1e3 * seconds:8.1f} ms   {ratio:5.2f} x plain{held}")
    both = [cfg.steps * g + p for g, p in zip(times["ffjax input gradient"], times["ffjax plain"], strict=True)]
    found["pgd over parts"] = over(times["ffjax pgd"], both)
    told = f"a step on PGD-{cfg.steps} images over its gradients and a plain step"
    print(f"{told}: {found['pgd over parts']:.2f}   held to {OVER_PARTS}")
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(cfg.out, found)


def over(some: list[float], floor: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(some, floor, strict=True))


def taken(programs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of one call of each, in rounds; each is called before, so that nothing compiles while it is timed."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            for _ in range(TURNS):
                program()
            if repeat:
                times[name].append((time.perf_counter() - start) / TURNS)
    return times


def ours(cfg: Config, images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Name -> one step, always from the same state."""
    detector = detectors.build(cfg.arch, cfg.size)
    plain, adam = train.cross_entropy(detector), optax.adam(1e-3)
    state = train._start(detector, adam, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, Batch(images, labels, np.arange(cfg.rows, dtype=np.int32)))
    attacker = defences.climb(EPS, cfg.steps, 2 / cfg.steps, "uniform")
    losses: dict[str, LossFn] = {
        "plain": plain,
        "gradient norm": defences.gradient_norm(plain, detector, WEIGHT),
        "lipschitz": defences.lipschitz(plain, detector, WEIGHT),
        "lipschitz, projected": defences.lipschitz(plain, detector, WEIGHT, 1),
        "mixed, FGSM": defences.mixed(plain, detector, defences.climb(EPS)),
        "pgd": defences.adversarial(plain, detector, attacker),
    }

    def stepped(loss: LossFn) -> Callable[[], object]:
        step = jax.jit(train.make_step(loss, adam))
        return lambda: jax.block_until_ready(step(jnp.int32(0), state, batch, jax.random.key(1)))

    slope = jax.jit(jax.grad(lambda x, v: jnp.sum(cross_entropy(detector.apply(v, x), batch))))
    bare = {"input gradient": lambda: jax.block_until_ready(slope(batch.images, state.variables))}
    return {name: stepped(loss) for name, loss in losses.items()} | bare


def theirs(cfg: Config, images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """The same by autograd, channels_last: cross-entropy in training mode, penalties with running statistics."""
    networks = peers()
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy, softplus  # pyright: ignore[reportMissingImports]

    detector = detectors.build(cfg.arch, cfg.size)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.jit(detector.init)(jax.random.key(0))["params"]))
    network = networks.build(cfg.arch, cfg.size, count)
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    x = torch.tensor(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    y = torch.tensor(labels.astype(np.int64))

    def losses(logits: Any) -> Any:
        if logits.shape[1] == 2:
            return cross_entropy(logits, y, reduction="none")
        return softplus(logits[:, 0] * (1 - 2 * y))

    def asked() -> tuple[Any, Any]:
        """Images that know their gradient, and what the deployed network says of them."""
        network.eval()
        given = x.clone().requires_grad_()
        return given, network(given)

    def gradient_norm() -> Any:
        given, logits = asked()
        (slope,) = torch.autograd.grad(losses(logits).sum(), given, create_graph=True)
        return WEIGHT * (slope.square().sum((1, 2, 3)) + 1e-12).sqrt().mean()

    def lipschitz() -> Any:
        given, logits = asked()
        ways = [logits[:, k].sum() for k in range(logits.shape[1])]
        slopes = [torch.autograd.grad(way, given, create_graph=True)[0] for way in ways]
        return WEIGHT * sum(slope.square().mean() for slope in slopes)

    def projected() -> Any:
        given, logits = asked()
        signs = torch.randint(0, 2, logits.shape) * 2.0 - 1
        (slope,) = torch.autograd.grad((signs * logits).sum(), given, create_graph=True)
        return WEIGHT * slope.square().mean()

    def stepped(penalty: Callable[[], Any] | None) -> Callable[[], object]:
        def step() -> None:
            adam.zero_grad()
            network.train()
            loss = losses(network(x)).mean()
            (loss if penalty is None else loss + penalty()).backward()
            adam.step()

        return step

    penalties = {
        "plain": None,
        "gradient norm": gradient_norm,
        "lipschitz": lipschitz,
        "lipschitz, projected": projected,
    }
    return {name: stepped(penalty) for name, penalty in penalties.items()}


if __name__ == "__main__":
    run.main(Config, main)
