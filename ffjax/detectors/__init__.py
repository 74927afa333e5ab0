"""Networks by name and weights by a short spec: the only part of ffjax that knows Flax."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ffjax.detectors import capsule, classnseg, efficientnet, mesonet_port, minifasnet, resnet, vgg, xception
from ffjax.detectors.forensics import bayar, bondi, laplacian
from ffjax.detectors.layers import at_size
from ffjax.detectors.layout import Layout
from ffjax.detectors.mesonet import meso4, mesoinception4
from ffjax.errors import InputError
from ffjax.types import Detector, Outputs, Variables

__all__ = ["DETECTORS", "LAYOUTS", "Loaded", "all_options", "at_size", "build", "chosen", "default_size"]
__all__ += ["layers", "load", "shipped", "starting_from"]

DETECTORS: dict[str, Callable[..., Detector]] = {
    "meso4": meso4,
    "mesoinception4": mesoinception4,
    "resnet10": resnet.resnet10,
    "meso4_port": mesonet_port.meso4_port,
    "mesoinception4_port": mesonet_port.mesoinception4_port,
    "xception": xception.xception,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "efficientnet_b4": efficientnet.efficientnet_b4,
    "capsule_v1": capsule.capsule_v1,
    "capsule_v2": capsule.capsule_v2,
    "classnseg": classnseg.classnseg,
    "minifasnet_v1se": minifasnet.minifasnet_v1se,
    "minifasnet_v2": minifasnet.minifasnet_v2,
    "vgg16": vgg.vgg16,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "laplacian": laplacian,
    "bondi": bondi,
    "bayar": bayar,
}
"""Name -> builder(size, dropout, *, options) -> Detector. A new entry is held to tests/detectors/test_detectors.py as a
whole."""

LAYOUTS: dict[str, Callable[..., Layout]] = {
    "meso4_port": mesonet_port.meso4_layout,
    "mesoinception4_port": mesonet_port.mesoinception4_layout,
    "xception": xception.torch_layout,
    "efficientnet_b0": functools.partial(efficientnet.torch_layout, "efficientnet_b0"),
    "efficientnet_b4": functools.partial(efficientnet.torch_layout, "efficientnet_b4"),
    "capsule_v1": capsule.torch_layout_v1,
    "capsule_v2": capsule.torch_layout_v2,
    "classnseg": classnseg.torch_layout,
    "minifasnet_v1se": minifasnet.torch_layout_v1se,
    "minifasnet_v2": minifasnet.torch_layout_v2,
    "vgg16": vgg.torch_layout,
    "resnet18": functools.partial(resnet.torch_layout, "resnet18"),
    "resnet50": functools.partial(resnet.torch_layout, "resnet50"),
}
"""Name -> layout(*, options) of its published PyTorch weights. It is given those of the builder's options, and the
size, that it names; what else it names, such as the order of the classes, a spec may say too."""

SHARES = ("dropout", "stochastic_depth")
"""Options that are a share of what is dropped in training."""

SHIPPED = Path(__file__).parent / "shipped"

# Nothing here imports weights, keras, pytorch or loading before it is asked to load: `import ffjax.detectors` stays
# cheap, and `python -m ffjax.detectors.weights` does not find itself imported already.


class Loaded(NamedTuple):
    """A detector with its weights. name: the shipped name, or the weight files' stems. meta: arch, size, options (every
    one, so that a report can say which quirks were in force) and whatever the file says of itself."""

    name: str
    detector: Detector
    variables: Variables
    meta: dict[str, Any]


def build(arch: str, size: int, dropout: float | None = None, **options: Any) -> Detector:
    """The detector of that name for size x size images; the same functions each time, so that two sets of weights share
    a compilation.

    dropout: the share dropped before its dense layers in training; None for the architecture's own. options: what else
    the builder takes. InputError: no such name, an option it does not know, or a size or value it refuses.
    """
    if type(size) is not int:
        raise InputError(f"{arch}: image size must be a whole number of pixels, got {size!r}")
    _check_number("dropout", dropout or 0.0, 0.0, arch)
    return _build(arch, size, dropout, _hashable(all_options(arch, options)))


def all_options(arch: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a builder, as given or its default. InputError: no such name, or an option that it does not know
    or that is of another type than its default."""
    known = {p.name: p.default for p in _parameters(arch).values() if p.kind is p.KEYWORD_ONLY}
    return chosen(known, options, arch)


def chosen(known: Mapping[str, Any], given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """`known` with the values of `given` in place of defaults. InputError: an unknown name, another type, a whole
    number below 1, a fraction that is negative or not finite, or a share of 1 or more."""
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown option {name!r} of {owner}; known: {', '.join(known) or 'none'}")
        if not _alike(value, known[name]):
            raise InputError(f"option {name!r} of {owner} must be of the kind of {known[name]!r}, got {value!r}")
        _check_number(name, value, known[name], owner)
    return {**known, **given}


def default_size(arch: str) -> int:
    """The image side in pixels that a builder takes of itself. InputError: no such name."""
    return _parameters(arch)["size"].default


def layers(detector: Detector) -> tuple[str, ...]:
    """The names of a detector's activations in order of depth. Nothing is computed."""
    variables = jax.eval_shape(detector.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *detector.shape), "float32")
    outputs: Outputs = jax.eval_shape(detector.apply, variables, images)
    return tuple(outputs.acts)


def starting_from(detector: Detector, spec: str) -> Detector:
    """The detector with the weights of `load(spec)` as its init. InputError if they are not of its shapes."""
    variables = load(spec).variables
    template = jax.eval_shape(detector.init, jax.random.key(0))
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, template):
        raise InputError(f"{spec}: holds weights of another network, size or option than is to be trained")
    return detector._replace(init=lambda key: variables)


def shipped() -> tuple[str, ...]:
    """Names of the weights that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


def load(spec: str) -> Loaded:
    """A detector with its weights, from a spec of one of these forms.

    * 'meso4-a0': weights that come with the package.
    * 'meso4:weights/Meso4_DF.h5': architecture and file.
    * 'meso4_port[size=128,shared_norm=as_released,classes=fake_first]:best.pth': with the image size, options of the
      architecture, and options of its published layout.
    * 'classnseg:encoder_46.pt+decoder_46.pt': one network in several PyTorch files.

    A file that ends in .h5 is published Keras weights; .safetensors are ours where they say so, with their own size and
    options, which the spec overrides; these, .npz and every other file are PyTorch state dicts (see pytorch.read_state;
    torch is needed for all but the first two). The name of a file is its stem, or for a plain 'weights' the folder it
    lies in. InputError, in one line, for an unknown name, architecture or option, and for a file that is missing,
    damaged, hostile, or of another architecture.
    """
    from ffjax.detectors import loading

    return loading.load(spec)


@functools.lru_cache(maxsize=64)
def _build(arch: str, size: int, dropout: float | None, options: tuple[tuple[str, Any], ...]) -> Detector:
    chosen = dict(options) if dropout is None else {"dropout": dropout, **dict(options)}
    return DETECTORS[arch](size, **chosen)


def _parameters(arch: str) -> Mapping[str, inspect.Parameter]:
    if arch not in DETECTORS:
        raise InputError(f"unknown detector {arch!r}; known: {', '.join(DETECTORS)}")
    return inspect.signature(DETECTORS[arch]).parameters


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of its default's type; a list may stand for a tuple, and a whole number for a fraction."""
    if isinstance(value, list | tuple) and isinstance(default, tuple):
        return all(any(_alike(one, two) for two in default) for one in value)
    kinds = type(value), type(default)
    return default is None or kinds[0] is kinds[1] or kinds == (int, float)


def _check_number(name: str, value: Any, default: Any, owner: str) -> None:
    if isinstance(default, list | tuple):
        for one in value:
            _check_number(name, one, one, owner)
    elif type(default) is int and value < 1 and name != "size":  # each builder knows which sizes it takes
        raise InputError(f"option {name!r} of {owner} must be at least 1, got {value}")
    elif type(default) is float and not 0 <= value < (1 if name in SHARES else math.inf):
        raise InputError(
            f"option {name!r} of {owner} must be 0 or more{', and below 1' * (name in SHARES)}, got {value}"
        )


def _hashable(value: Any) -> Any:
    """Lists, as JSON has them, as tuples, and named values as pairs."""
    if isinstance(value, dict):
        return tuple((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
