"""The authors' Keras files of Meso-4 and MesoInception-4, as flat numbers under our names."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ffjax.detectors import mesonet
from ffjax.detectors.layout import Numbers
from ffjax.detectors.weights import as_float32, misfits, refuse, refusing, strangers
from ffjax.errors import InputError
from ffjax.types import Variables

AFFINE = {"kernel": "params/{}/kernel", "bias": "params/{}/bias"}
NORM = {
    "gamma": "params/{}/scale",
    "beta": "params/{}/bias",
    "moving_mean": "batch_stats/{}/mean",
    "moving_variance": "batch_stats/{}/var",
}
LEAVES = {"conv2d": AFFINE, "batch_normalization": NORM, "dense": AFFINE}
"""Kind of layer -> Keras' name of a number -> ours, but for the layer."""

BRANCHES = ("a", "b1", "b2", "c1", "c2", "d1", "d2")
CONVOLUTIONS = {
    "meso4": ("conv1", "conv2", "conv3", "conv4"),
    "mesoinception4": (*(f"inception{i}/{branch}" for i in (1, 2) for branch in BRANCHES), "conv3", "conv4"),
}
"""Architecture -> its convolutions in the order the authors' code creates, and therefore numbers, them."""

BUILDERS = {"meso4": mesonet.meso4, "mesoinception4": mesonet.mesoinception4}


def read_keras(path: str | Path, arch: str, size: int | None = None) -> tuple[Numbers, int]:
    """A published .h5 file of 'meso4' or 'mesoinception4' (Keras 2, TensorFlow order): flat numbers, and image size.

    Layers are found by kind and number in their names: their order in the file differs. The published output says REAL,
    so the last layer changes sign and z_fake = -logit. The image size is implied by the first dense layer
    (mesonet.input_size) unless given. Of a whole saved model the weights are taken. InputError, in one line and under
    the file's names, if it is no such file, holds anything else, or does not fit the size.
    """
    if arch not in BUILDERS:
        raise InputError(f"{path}: no Keras layout is known for {arch!r}; known: {', '.join(BUILDERS)}")
    # opened by Python too, which tells plainly what is no file
    with refusing(path), open(path, "rb"), refusing(path, "cannot be read as HDF5"), h5py.File(path) as file:
        stored = _datasets(file.get("model_weights", file))
        names = _names(stored, arch, path)
        refuse(strangers(stored, names), path)
        ours = {name: stored[key] for key, name in names.items()}
        size = _implied(ours, path) if size is None else size
        want: dict[str, Any] = flatten_dict(_template(arch, size, path), sep="/")
        numbers = {name: _values(ours[name], want[name].shape) for name in ours}
        keys = ((key, numbers[name], want[name]) for key, name in names.items())
        refuse([fault for key, values, like in keys for fault in misfits(key, values, like.shape, like.dtype)], path)
    for key in ("params/dense2/kernel", "params/dense2/bias"):
        numbers[key] = -numbers[key]
    return numbers, size


def _datasets(group: Any) -> dict[str, Any]:
    """Path in the file -> dataset, unread."""
    found: dict[str, Any] = {}
    group.visititems(lambda name, node: found.update({name: node} if isinstance(node, h5py.Dataset) else {}))
    return found


def _names(stored: Iterable[str], arch: str, path: str | Path) -> dict[str, str]:
    """The keys that a file with these layers must have -> our flat keys; lower numbers were created earlier."""
    layers = {key.partition("/")[0] for key in stored}
    found = [re.fullmatch(r"([a-z0-9_]+?)(?:_([0-9]+))?", layer) for layer in layers]
    names: dict[str, str] = {}
    for kind, ours in _layers(arch).items():
        theirs = sorted((int(one[2] or 0), one[0]) for one in found if one and one[1] == kind)
        if len(theirs) != len(ours):
            raise InputError(f"{path}: wrong architecture: {len(theirs)} {kind} layers where {len(ours)} are expected")
        for (_, layer), name in zip(theirs, ours, strict=True):
            names |= {f"{layer}/{layer}/{leaf}:0": form.format(name) for leaf, form in LEAVES[kind].items()}
    return names


def _layers(arch: str) -> dict[str, tuple[str, ...]]:
    return {
        "conv2d": CONVOLUTIONS[arch],
        "batch_normalization": ("bn1", "bn2", "bn3", "bn4"),
        "dense": ("dense1", "dense2"),
    }


def _implied(stored: Mapping[str, Any], path: str | Path) -> int:
    try:
        return mesonet.input_size({"params": {"dense1": {"kernel": stored["params/dense1/kernel"]}}})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _values(dataset: Any, shape: tuple[int, ...]) -> Any:
    """The numbers, where the shape is right: a header may claim more than any memory holds."""
    if tuple(dataset.shape) != tuple(shape):
        return dataset
    held = dataset.id.get_storage_size()
    if dataset.compression is None and held < dataset.nbytes:
        raise ValueError(f"{dataset.name} claims {dataset.nbytes} bytes and holds {held}")
    return as_float32(np.asarray(dataset[()]))


def _template(arch: str, size: int, path: str | Path) -> Variables:
    try:
        detector = BUILDERS[arch](size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return jax.eval_shape(detector.init, jax.random.key(0))
