"""The authors' Keras files of Meso-4 and MesoInception-4, as variables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ffjax.detectors import mesonet
from ffjax.detectors.weights import check, one_line
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
        raise InputError(f"{path}: cannot be read as HDF5 ({one_line(error)})") from None
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
