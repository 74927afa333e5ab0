"""Weights on disk: the authors' Keras files in, safetensors in and out; refused in one line unless everything fits."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ffjax.detectors import mesonet
from ffjax.errors import InputError
from ffjax.types import Variables

KEYS = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
"""Keras' name of a number -> ours."""

BRANCHES = ("a", "b1", "b2", "c1", "c2", "d1", "d2")
CONVOLUTIONS = {
    "meso4": ("conv1", "conv2", "conv3", "conv4"),
    "mesoinception4": (*(f"inception{i}/{branch}" for i in (1, 2) for branch in BRANCHES), "conv3", "conv4"),
}
"""Architecture -> its convolutions in the order the authors' code creates, and therefore numbers, them."""

BUILDERS = {"meso4": mesonet.meso4, "mesoinception4": mesonet.mesoinception4}


def read_keras(path: str | Path, arch: str) -> Variables:
    """A published .h5 file of 'meso4' or 'mesoinception4' (Keras 2, TensorFlow order) as variables.

    Layers are found by kind and number in their names: their order in the file differs. The published output says REAL,
    so the last layer changes sign and z_fake = -logit. The image size is implied by the first dense layer
    (mesonet.input_size). InputError, in one line, if the file is no such file or holds anything else.
    """
    if arch not in BUILDERS:
        raise InputError(f"{path}: no Keras layout is known for {arch!r}; known: {', '.join(BUILDERS)}")
    try:
        with h5py.File(path) as file:
            stored = _keras_layers(file)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({_one_line(error)})") from None
    flat = {key: value for kind in stored for key, value in _renamed(stored[kind], _names(arch, kind), kind, path)}
    _flip_sign(flat, path)
    variables = unflatten_dict({key: jnp.asarray(value) for key, value in flat.items()}, sep="/")
    return check(variables, _template(arch, variables, path), path)


def _keras_layers(file: h5py.File) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Kind of layer -> number in its name -> Keras' name of a number -> its float32 values."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {"conv2d": {}, "batch_normalization": {}, "dense": {}}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            layer, leaf = name.split("/")[-2], name.split("/")[-1].split(":")[0]
            kind, _, number = layer.rpartition("_") if layer[-1].isdigit() else (layer, "", "0")
            found.setdefault(kind, {}).setdefault(int(number), {})[leaf] = np.asarray(node[()], np.float32)

    file.visititems(visit)
    return found


def _names(arch: str, kind: str) -> tuple[str, ...]:
    names = {
        "conv2d": CONVOLUTIONS[arch],
        "batch_normalization": ("bn1", "bn2", "bn3", "bn4"),
        "dense": ("dense1", "dense2"),
    }
    return names.get(kind, ())


def _renamed(stored: Mapping[int, Mapping[str, np.ndarray]], names: tuple[str, ...], kind: str, path: str | Path):
    """Pairs (our flat key, values) of one kind of layer; lower numbers were created earlier."""
    if len(stored) != len(names):
        raise InputError(f"{path}: wrong architecture: {len(stored)} {kind} layers where {len(names)} are expected")
    for name, number in zip(names, sorted(stored), strict=True):
        for leaf, values in stored[number].items():
            collection, ours = KEYS.get(leaf, ("unknown", leaf))
            yield f"{collection}/{name}/{ours}", values


def _flip_sign(flat: dict[str, np.ndarray], path: str | Path) -> None:
    for key in ("params/dense2/kernel", "params/dense2/bias", "params/dense1/kernel"):
        if key not in flat or flat[key].ndim == 0:
            raise InputError(f"{path}: {key} is missing")
    for key in ("params/dense2/kernel", "params/dense2/bias"):
        flat[key] = -flat[key]


def _template(arch: str, variables: Variables, path: str | Path) -> Variables:
    try:
        detector = BUILDERS[arch](mesonet.input_size(variables))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return jax.eval_shape(detector.init, jax.random.key(0))


def save(path: str | Path, variables: Variables, meta: Mapping[str, Any]) -> None:
    """Write variables as safetensors under flat keys such as 'params/conv1/kernel'.

    meta (arch, size, and whatever else is worth keeping; anything JSON can hold) goes into the header. The file
    appears whole or not at all. Folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {key: np.ascontiguousarray(value) for key, value in flatten_dict(variables, sep="/").items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(flat, partial, {key: json.dumps(value) for key, value in meta.items()})
    os.replace(partial, path)


def read_safetensors(path: str | Path) -> tuple[Variables, dict[str, Any]]:
    """The (variables, meta) that `save` wrote. InputError, in one line, if the file is missing, cut short or foreign.

    What is in it is not judged here: see `check`.
    """
    try:
        with safe_open(path, framework="np") as file:
            meta = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            flat = {key: jnp.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        return unflatten_dict(flat, sep="/"), meta
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({_one_line(error)})") from None


def check(variables: Variables, template: Variables, source: str | Path = "weights") -> Variables:
    """The variables unchanged, if they have exactly the keys, shapes and types of the template and are all finite.

    template: a pytree of arrays or of jax.ShapeDtypeStruct. Otherwise InputError in one line: source, then what is
    missing, unexpected, of a wrong shape or type, or not finite.
    """
    have, want = (flatten_dict(tree, sep="/") for tree in (variables, template))
    faults = [f"missing {key}" for key in want if key not in have]
    faults += [f"unexpected {key}" for key in have if key not in want]
    for key in want:
        if key in have:
            faults += _faults(key, have[key], want[key])
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise InputError(f"{source}: {'; '.join(faults[:4])}{more}")
    return variables


def _faults(key: str, value: Any, expected: Any) -> list[str]:
    if value.shape != expected.shape:
        return [f"{key} has shape {tuple(value.shape)}, not {tuple(expected.shape)}"]
    if value.dtype != expected.dtype:
        return [f"{key} is {value.dtype}, not {expected.dtype}"]
    return [] if np.isfinite(value).all() else [f"{key} holds NaN or infinity"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
