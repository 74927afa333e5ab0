"""Who is attacked in the benchmarks, on which images, and on what machine."""

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import detectors
from ffjax.data import codecs, sets
from ffjax.detectors import weights
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.study import environment
from ffjax.types import Batch, Forward, ImageSet


class Subject(NamedTuple):
    """A detector and images of the embedded set a that it calls rightly. spec: from which any process loads the same
    detector. held, test: of the validation and the test split; groups: of the test images. told: what a reader should
    know of it."""

    spec: str
    forward: Forward
    held: Batch
    test: Batch
    groups: np.ndarray
    told: str


def prepare(spec: str, images: int, held: int, size: int, rows: int, folder: Path) -> Subject:
    """spec: as of detectors.load, or an architecture alone: then weights are random, written to `folder`, the verdicts
    centred on the test images, their own verdicts taken for labels, and a fifth of `images` used. InputError as
    detectors.load."""
    drawn = spec in detectors.DETECTORS
    compute = Compute(batch=rows, devices=1)
    loaded = None if drawn else detectors.load(spec)
    side = size if loaded is None else loaded.detector.shape[0]
    data = {split: sets.load("a", split, side) for split in ("validation", "test")}
    if loaded is None:
        spec = _drawn(spec, size, data["test"], compute, folder)
        loaded, images = detectors.load(spec), max(1, images // 5)
    forward = jax.tree_util.Partial(loaded.detector.apply, jax.tree.map(jnp.asarray, loaded.variables))
    (kept, _), (test, groups) = (
        _right(forward, data[split], count, drawn, compute) for split, count in (("validation", held), ("test", images))
    )
    told = f"{len(test.labels)} test images called rightly ({int(np.sum(test.labels))} fakes), {side} px"
    return Subject(spec, forward, kept, test, groups, told + (", weights at random, its verdicts its labels" * drawn))


def _drawn(arch: str, size: int, data: ImageSet, compute: Compute, folder: Path) -> str:
    detector = detectors.build(arch, size)
    variables: Any = jax.tree.map(np.array, jax.jit(detector.init)(jax.random.key(0)))
    said = margins(jax.tree_util.Partial(detector.apply, variables), data.images, compute)
    last = variables["params"]["dense" if "dense" in variables["params"] else "dense2"]["bias"]
    last[-1] -= np.median(said)
    path = folder / f"{arch}.safetensors"
    weights.save(path, variables, {"arch": arch, "size": size})
    return f"{arch}:{path}"


def _right(forward: Forward, data: ImageSet, count: int, own: bool, compute: Compute) -> tuple[Batch, np.ndarray]:
    """`count` of the images called rightly, evenly spread, and their groups; own: the verdicts are the labels."""
    fake = margins(forward, data.images, compute) > 0
    labels = fake.astype(np.int32) if own else data.labels.astype(np.int32)
    right = np.flatnonzero(fake == (labels == 1))
    ids = right[np.linspace(0, len(right) - 1, min(count, len(right))).astype(int)].astype(np.int32)
    return Batch(codecs.to_float(data.images[ids]), labels[ids], ids), data.groups[ids]


def machine() -> dict[str, str]:
    """study.environment, and the processor."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return environment() | {
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
