"""ffjax and its peers as contenders: each in a process of its own, which holds one attack on one network and answers
batch after batch, so that memory is its own and rounds of several contenders can be interleaved."""

import inspect
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import attempts, balls, detectors, devices, goals
from ffjax.attacks import ATTACKS
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.objectives import margin
from ffjax.types import Array, Batch, Forward

OURS = ("ffjax", "ffjax_all_steps")
"""As a user runs it, where a row that has reached the goal leaves; and every step on every row, as the peers do."""

PEERS = ("foolbox", "torchattacks", "art")


class Task(NamedTuple):
    """One attack as all contenders run it. attack, norm, options: of ffjax.attacks.ATTACKS; the peers read steps,
    lengths and rates from the same options. most: how many images it is worth."""

    attack: str
    norm: str
    options: Mapping[str, Any]
    most: int | None = None

    @property
    def minimal(self) -> bool:
        return ATTACKS[self.attack].bound == "minimal"


class Answer(NamedTuple):
    """Of one batch. images: what became of it, float32. seconds: from images on the host to images on the host.
    queries: forward passes, summed over its images. error: what the contender stumbled over; its images are then the
    clean ones."""

    images: np.ndarray
    seconds: float
    queries: int
    error: str = ""


class Contender(NamedTuple):
    """attack(batch, eps, seed) -> Answer. gradient(images) -> seconds of one bare value-and-gradient of that batch.
    memory() -> (largest, idle) resident MB of its process; idle: with the network loaded, before the first attack."""

    attack: Callable[[Batch, float, int], Answer]
    gradient: Callable[[np.ndarray], float]
    memory: Callable[[], tuple[float, float]]


def field(task: Task) -> tuple[str, ...]:
    """Who has this attack."""
    from benchmarks import peers

    can_stop = "stop" in inspect.signature(ATTACKS[task.attack].build).parameters
    return OURS[: 1 + can_stop] + tuple(name for name in PEERS if peers.has(name, task.attack, task.norm))


def versions() -> dict[str, str]:
    """Of the peers and of what they run on."""
    return {name: version(name) for name in ("torch", "foolbox", "torchattacks", "adversarial-robustness-toolbox")}


@contextmanager
def opened(names: Sequence[str], spec: str, task: Task, rows: int, restarts: int = 1) -> Iterator[dict[str, Contender]]:
    """Name -> contender, each waiting in its process; all end with the block. spec: as of detectors.load. rows: images
    a batch. InputError where one cannot be built."""
    context, pipes, processes = get_context("spawn"), {}, []
    try:
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, name, spec, task, rows, restarts), daemon=True)
            process.start()
            there.close()
            pipes[name], processes = here, [*processes, process]
        for name, pipe in pipes.items():
            _received(name, pipe)
        yield {name: _contender(name, pipe) for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.terminate()


def _contender(name: str, pipe: Connection) -> Contender:
    def ask(what: str, *given: Any) -> Any:
        pipe.send((what, given))
        return _received(name, pipe)

    return Contender(
        attack=lambda batch, eps, seed: ask("attack", tuple(batch[:3]), eps, seed),
        gradient=lambda images: ask("gradient", images),
        memory=lambda: ask("memory"),
    )


def _received(name: str, pipe: Connection) -> Any:
    try:
        found = pipe.recv()
    except EOFError:
        raise InputError(f"{name}: its process ended (out of memory?)") from None
    if isinstance(found, InputError):
        raise found
    return found


def _serve(pipe: Connection, name: str, spec: str, task: Task, rows: int, restarts: int) -> None:
    """The contender's process: until the pipe is closed."""
    devices.hold_memory()  # for the peers too, though nobody does it for their users
    try:
        attack, gradient = (_ours if name in OURS else _theirs)(name, spec, task, rows, restarts)
    except InputError as error:
        pipe.send(error)
        return
    idle = _resident("VmRSS")
    answers: dict[str, Callable[..., Any]] = {
        "attack": attack,
        "gradient": lambda images: _median_seconds(gradient(images)),
        "memory": lambda: (_resident("VmHWM"), idle),
    }
    pipe.send("ready")
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        pipe.send(answers[what](*given))


def _ours(name: str, spec: str, task: Task, rows: int, restarts: int) -> tuple[Callable[..., Answer], Callable]:
    loaded = detectors.load(spec)
    forward = jax.tree_util.Partial(loaded.detector.apply, jax.tree.map(jnp.asarray, loaded.variables))
    options = {**task.options, **({"stop": False} if name == "ffjax_all_steps" else {})}
    compute = Compute(batch=rows, devices=1)
    runner = attempts.named(task.attack, task.norm, goals.verdict, forward, compute, options)
    runner = attempts.restarts(runner, restarts) if restarts > 1 and not task.minimal else runner

    def attack(batch: tuple, eps: float, seed: int) -> Answer:
        began = time.perf_counter()
        bounds = np.full(
            len(batch[1]), np.inf if task.minimal else eps, np.float32
        )  # the judge cuts off, for all alike
        found = runner(Batch(*batch), bounds, seed)
        return Answer(found.images, time.perf_counter() - began, int(np.sum(found.queries)))

    return attack, lambda images: bare(forward, images)


def bare(forward: Forward, images: np.ndarray) -> Callable[[], object]:
    """The floor of every attack: one jitted value-and-gradient of the same network on that batch."""

    @jax.jit
    def step(x: Array, forward: Forward) -> Any:
        return jax.value_and_grad(lambda x: jnp.sum(margin(forward(x))))(x)

    x = jnp.asarray(images)
    return lambda: jax.block_until_ready(step(x, forward))


def _theirs(name: str, spec: str, task: Task, rows: int, restarts: int) -> tuple[Callable[..., Answer], Callable]:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks import peers, torch_networks

    loaded = detectors.load(spec)
    model = peers.restated(loaded)
    made = peers.attack(name, model, task.attack, task.norm, dict(task.options), rows)

    def attack(batch: tuple, eps: float, seed: int) -> Answer:
        clean, labels, _ = batch
        model.asked, began = 0, time.perf_counter()
        kept, error = clean.copy(), ""
        left = np.arange(len(labels))
        try:
            for start in range(1 if task.minimal else restarts):
                torch.manual_seed(seed + start)
                np.random.seed(seed + start)  # ART draws from it
                x = torch.tensor(clean[left]).permute(0, 3, 1, 2).contiguous()
                found = made(x, torch.tensor(labels[left], dtype=torch.int64), eps).detach()
                kept[left] = found.permute(0, 2, 3, 1).numpy()
                if start + 1 < restarts:
                    said = model(found).argmax(1).numpy()
                    left = left[said == labels[left]]
        except Exception as stumble:  # whatever it is, it is what a user would meet
            error = f"{type(stumble).__name__}: {stumble}"[:200]
            kept = clean.copy()
        return Answer(kept, time.perf_counter() - began, model.asked, error)

    return attack, lambda images: torch_networks.gradient(model, images)


def _median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _resident(what: str) -> float:
    """MB: VmHWM, the largest so far, or VmRSS, now. Elsewhere than on Linux the largest in either case."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(what)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def judged(
    forward: Forward, task: Task, batch: Batch, images: np.ndarray, eps: float, compute: Compute
) -> tuple[np.ndarray, np.ndarray]:
    """The one judge of all contenders, (success (N,) bool, distance (N,)): ffjax's own forward in float32 calls the
    image wrongly, and it lies in [0, 1] and inside eps, balls.SLACK relative (ten times that in l_1) and absolute."""
    delta = (images.astype(np.float64) - batch.images).reshape(len(images), -1)
    size = {
        "linf": lambda d: np.abs(d).max(axis=1),
        "l2": lambda d: np.linalg.norm(d, axis=1),
        "l1": lambda d: np.abs(d).sum(axis=1),
        "l0": lambda d: np.sum(np.abs(d) > balls.SLACK, axis=1),
    }[task.norm]
    distance = size(delta)
    slack = balls.SLACK * (10 if task.norm == "l1" else 1)
    box = (images.min(axis=(1, 2, 3)) >= -balls.SLACK) & (images.max(axis=(1, 2, 3)) <= 1 + balls.SLACK)
    inside = box & np.isfinite(delta).all(axis=1) & (distance <= eps * (1 + slack) + balls.SLACK)
    wrong = (margins(forward, np.nan_to_num(images), compute) > 0) != (np.asarray(batch.labels) == 1)
    return wrong & inside, distance
