"""What a training step costs with each defence, over a plain step, and beside the same in PyTorch.

    python -m benchmarks.training --out benchmarks/results/training_cpu.json

One Adam step of 32 images on Meso-4 with two logits and on a VGG-16 of a quarter of its width, all programs of a
network in turns, medians of each round's ratios. Held to, over a plain step, on the VGG (on Meso-4): the gradient norm
2.2 (2.8), the Lipschitz penalty of two logits 3.3 (4), its random projection 2.3 (2.8); a step on PGD-k images 1.10
times k input gradients and a plain step. Needs the extra `bench`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.detectors import peers
from benchmarks.subjects import machine
from ffjax import defences, detectors, run, train
from ffjax.objectives import cross_entropy
from ffjax.types import Batch, Detector, LossFn

NARROW = {"width": 16, "hidden": 256, "pooled": 1, "normalise": "none"}
"""Options of the VGG-16."""
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {"meso4_port": ("meso4_port", {}), "vgg16_narrow": ("vgg16", NARROW)}
"""A network of benchmarks.torch_networks -> ours."""
HELD = {
    "meso4_port": {"gradient norm": 2.8, "lipschitz": 4.0, "lipschitz, projected": 2.8},
    "vgg16_narrow": {"gradient norm": 2.2, "own gradient norm": 2.2, "lipschitz": 3.3, "lipschitz, projected": 2.3},
}
"""Over a plain step."""
OVER_PARTS = 1.10
"""A step on attacked images over its k gradients and a plain step."""
EPS, WEIGHT = 2 / 255, 0.1
TURNS = 3
"""Steps between two looks at the clock."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the measurement."""

    networks: tuple[Literal["meso4_port", "vgg16_narrow"], ...] = ("meso4_port", "vgg16_narrow")
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
    figures = {name: measured(cfg, name, images, labels) for name in cfg.networks}
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(cfg.out, {"machine": machine(), "settings": run.as_json(cfg), "networks": figures})


def measured(cfg: Config, network: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Seconds and ratios of one network, printed and returned."""
    mine, other = ours(cfg, network, images, labels), theirs(cfg, network, images, labels)
    times = taken(
        {f"ffjax {n}": f for n, f in mine.items()} | {f"PyTorch {n}": f for n, f in other.items()}, cfg.repeats
    )
    print(f"{network}: a step on {cfg.rows} images of {cfg.size} px")
    found: dict[str, Any] = {"seconds": times, "over plain": {}}
    for side in ("ffjax", "PyTorch"):
        for name in mine if side == "ffjax" else other:
            ratio = over(times[f"{side} {name}"], times[f"{side} plain"])
            found["over plain"][f"{side} {name}"] = ratio
            held = f"   held to {HELD[network][name]}" if side == "ffjax" and name in HELD[network] else ""
            seconds = statistics.median(times[f"{side} {name}"])
            print(f"{side:8s} {name:24s} {1e3 * seconds:8.1f} ms   {ratio:5.2f} x plain{held}")
    both = [cfg.steps * g + p for g, p in zip(times["ffjax input gradient"], times["ffjax plain"], strict=True)]
    found["pgd over parts"] = over(times["ffjax pgd"], both)
    told = f"a step on PGD-{cfg.steps} images over its gradients and a plain step"
    print(f"{told}: {found['pgd over parts']:.2f}   held to {OVER_PARTS}")
    return found


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


def ours(cfg: Config, network: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Name -> one step, always from the same state."""
    detector = built(network, cfg.size)
    plain, adam = train.cross_entropy(detector), optax.adam(1e-3)
    state = train._start(detector, adam, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, Batch(images, labels, np.arange(cfg.rows, dtype=np.int32)))
    attacker = defences.climb(EPS, cfg.steps, 2 / cfg.steps, "uniform")
    losses: dict[str, LossFn] = {
        "plain": plain,
        "gradient norm": defences.gradient_norm(plain, detector, WEIGHT),
        "own gradient norm": defences.own_gradient_norm(plain, WEIGHT),
        "lipschitz": defences.lipschitz(plain, detector, WEIGHT),
        "lipschitz, projected": defences.lipschitz(plain, detector, WEIGHT, 1),
        "mixed, FGSM": defences.mixed(plain, detector, defences.climb(EPS)),
        "pgd": defences.adversarial(plain, detector, attacker),
    }

    if "batch_stats" in state.variables:
        del losses["own gradient norm"]

    def stepped(loss: LossFn) -> Callable[[], object]:
        step = jax.jit(train.make_step(loss, adam))
        return lambda: jax.block_until_ready(step(jnp.int32(0), state, batch, jax.random.key(1)))

    slope = jax.jit(jax.grad(lambda x, v: jnp.sum(cross_entropy(detector.apply(v, x), batch))))
    bare = {"input gradient": lambda: jax.block_until_ready(slope(batch.images, state.variables))}
    return {name: stepped(loss) for name, loss in losses.items()} | bare


def built(network: str, size: int) -> Detector:
    """Ours of that name."""
    arch, options = NETWORKS[network]
    return detectors.build(arch, size, **options)


def theirs(cfg: Config, name: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """The same by autograd, channels_last: cross-entropy in training mode, penalties with running statistics."""
    networks = peers()
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy, softplus  # pyright: ignore[reportMissingImports]

    variables = jax.jit(built(name, cfg.size).init)(jax.random.key(0))
    network = networks.build(name, cfg.size, sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))
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
