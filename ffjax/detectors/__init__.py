"""Networks by name and weights by a short spec: the only part of ffjax that knows Flax."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ffjax.detectors import mesonet, weights
from ffjax.detectors.layers import at_size
from ffjax.detectors.mesonet import meso4, mesoinception4
from ffjax.detectors.resnet import resnet10
from ffjax.errors import InputError
from ffjax.types import Detector, Outputs, Variables

__all__ = ["DETECTORS", "Loaded", "at_size", "build", "layers", "load", "shipped"]

DETECTORS: dict[str, Callable[..., Detector]] = {
    "meso4": meso4,
    "mesoinception4": mesoinception4,
    "resnet10": resnet10,
}
"""Name -> builder(size, dropout) -> Detector. A new entry is held to tests/detectors/test_detectors.py as a whole."""

SHIPPED = Path(__file__).parent / "shipped"


class Loaded(NamedTuple):
    """A detector with its weights. name: the shipped name, or the weight file's stem. meta: arch, size and whatever
    the file says of itself."""

    name: str
    detector: Detector
    variables: Variables
    meta: dict[str, Any]


@functools.lru_cache(maxsize=32)  # the same functions each time, so that two sets of weights share a compilation
def build(arch: str, size: int, dropout: float | None = None) -> Detector:
    """The detector of that name for size x size images. InputError: no such name, or a size it refuses.

    dropout: the share dropped before its dense layers in training; None for the architecture's own.
    """
    if arch not in DETECTORS:
        raise InputError(f"unknown detector {arch!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[arch](size) if dropout is None else DETECTORS[arch](size, dropout)


def layers(detector: Detector) -> tuple[str, ...]:
    """The names of a detector's activations in order of depth. Nothing is computed."""
    variables = jax.eval_shape(detector.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *detector.shape), "float32")
    outputs: Outputs = jax.eval_shape(detector.apply, variables, images)
    return tuple(outputs.acts)


def shipped() -> tuple[str, ...]:
    """Names of the weights that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


def load(spec: str) -> Loaded:
    """A shipped name ('meso4-a0') or 'ARCH:PATH' ('meso4:weights/Meso4_DF.h5') as a detector with its weights.

    Files that end in .h5 are read as published Keras weights, all others as safetensors. The name of a file is its
    stem, or for a plain 'weights' the folder it lies in. InputError, in one line, for an unknown name or architecture,
    and for a file that is missing, damaged, or of another architecture.
    """
    if spec in shipped():
        return _load_safetensors(spec, None, SHIPPED / f"{spec}.safetensors")
    arch, colon, file = spec.partition(":")
    if not colon:
        raise InputError(
            f"unknown weights {spec!r}; give ARCH:PATH with one of {', '.join(DETECTORS)}, "
            f"or a shipped name: {', '.join(shipped()) or 'none here'}"
        )
    if arch not in DETECTORS:
        raise InputError(f"unknown detector {arch!r} in {spec!r}; known: {', '.join(DETECTORS)}")
    path = Path(file)
    name = path.resolve().parent.name if path.stem == "weights" else path.stem
    return _load_keras(name, arch, path) if path.suffix == ".h5" else _load_safetensors(name, arch, path)


def _load_keras(name: str, arch: str, path: Path) -> Loaded:
    variables = weights.read_keras(path, arch)
    size = mesonet.input_size(variables)
    return Loaded(name, build(arch, size), variables, {"arch": arch, "size": size})


def _load_safetensors(name: str, arch: str | None, path: Path) -> Loaded:
    variables, meta = weights.read_safetensors(path)
    found, size = meta.get("arch"), meta.get("size")
    if found not in DETECTORS or not isinstance(size, int):
        raise InputError(f"{path}: the header must name arch and size, and says {found!r} and {size!r}")
    if arch not in (None, found):
        raise InputError(f"{path}: holds weights of {found}, not of {arch}")
    try:
        detector = build(found, size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    template = jax.eval_shape(detector.init, jax.random.key(0))
    return Loaded(name, detector, weights.check(variables, template, path), meta)
