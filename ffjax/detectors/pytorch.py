"""PyTorch weights as flat NumPy arrays, and those as variables of one of our networks.

Files are only ever read with `weights_only=True`: a pickle that would run code, or that holds a whole module, is
refused unread. torch is imported when such a file is read, and not before.
"""

import importlib
import pickle
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from flax.traverse_util import flatten_dict

from ffjax.detectors.layout import Layout, Numbers
from ffjax.detectors.weights import as_float32, fitted, misfits, read_flat, refuse, refusing
from ffjax.errors import InputError
from ffjax.types import Variables

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts put the state dict beside the epoch, the optimiser and so on."""

PREFIX = "module."
"""What torch.nn.DataParallel puts before every key."""

LEAVES = {"kernel": "weight", "scale": "weight", "slope": "weight", "mean": "running_mean", "var": "running_var"}
"""Our name of a number -> PyTorch's, where they differ."""


def read_state(path: str | Path) -> Numbers:
    """A state dict on disk: key -> array; floating point becomes float32, whole numbers stay what they are.

    .npz and .safetensors hold the keys as they are; any other file is read as torch.save wrote it, before version 1.6
    or since. A wrapper ({'state_dict': ...}, {'model': ...}) and the 'module.' before every key are taken off.
    InputError, in one line, for a file that is missing, damaged, or holds anything but named numbers, and where torch
    is missing or older than 2.6, whose weights_only could be made to run code.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return plain(read_flat(path)[0], path)
    with refusing(path):
        with path.open("rb") as file:
            found = _read_npz(file, path) if suffix == ".npz" else _read_torch(file, path)
        return plain(_unwrapped(found, path), path)


def read_states(paths: Sequence[str | Path]) -> Numbers:
    """The state dicts of several files as one (a network published in parts). InputError if two share a key."""
    united: Numbers = {}
    for path in paths:
        state = read_state(path)
        refuse([f"{key} is in another of the files too" for key in state if key in united], path)
        united |= state
    return united


def plain(state: Mapping[Any, Any], source: str | Path) -> Numbers:
    """Arrays or tensors under names as NumPy arrays, without a common 'module.', floating point as float32.

    InputError if there are none, a name is no string, or a value holds no plain real numbers.
    """
    arrays = {key: _array(value) for key, value in state.items()}
    refuse([f"{key!r} is no name" for key in arrays if not isinstance(key, str)], source)
    refuse([f"{key} holds no plain real numbers" for key, value in arrays.items() if value is None], source)
    if not arrays:
        raise InputError(f"{source}: holds no numbers at all")
    cut = len(PREFIX) if all(key.startswith(PREFIX) for key in arrays) else 0
    return {key[cut:]: value for key, value in arrays.items() if value is not None}


def convert(state: Numbers, layout: Layout, template: Variables, source: str | Path = "weights") -> Variables:
    """A PyTorch state dict as variables of the template's keys, shapes and types.

    Kernels get their axes in our order: (out, in, rows, columns) becomes (rows, columns, in, out). InputError, in one
    line, lists what is missing, left over, of a wrong shape or type, or not finite, under PyTorch's names and axes.
    layout.last must keep keys and shapes.
    """
    state = _guarded(layout.first, state, source)
    want: dict[str, Any] = flatten_dict(template, sep="/")
    keys = {path: _key(path, layout) for path in want}
    used, faults = set(keys.values()), []
    for path, key in keys.items():
        turned = _to_torch if path.endswith("/kernel") else tuple
        shape = turned(want[path].shape)
        faults += misfits(key, state[key], shape, want[path].dtype) if key in state else [f"missing {key}"]
    modules = {key.rpartition(".")[0] for key in used}
    idle = {f"{module}.{leaf}" for module in modules for leaf in layout.ignored}
    left = [key for key in state if key not in used and key not in idle]
    refuse(list(dict.fromkeys(faults)) + [f"unexpected {key}" for key in left], source)
    flat = {path: _from_torch(state[key]) if path.endswith("/kernel") else state[key] for path, key in keys.items()}
    return fitted(_guarded(layout.last, flat, source), template, source)


def _key(path: str, layout: Layout) -> str:
    """PyTorch's key of 'params/block1/conv1/kernel'."""
    layer, _, leaf = path.partition("/")[2].rpartition("/")
    prefix = layout.names[layer]
    return f"{prefix}.{LEAVES.get(leaf, leaf)}" if prefix else LEAVES.get(leaf, leaf)


def _from_torch(kernel: np.ndarray) -> np.ndarray:
    return np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))


def _to_torch(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2])


def _guarded(change: Callable[[Numbers], Numbers], numbers: Numbers, source: str | Path) -> Numbers:
    try:
        return change(dict(numbers))
    except KeyError as error:
        raise InputError(f"{source}: missing {error.args[0]}") from None
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{source}: does not fit the network's layout ({error})") from None


def _read_npz(file: IO[bytes], path: Path) -> Mapping[str, Any]:
    with refusing(path, "cannot be read as npz"):
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of them")
        return {key: stored[key] for key in stored.files}


def _read_torch(file: IO[bytes], path: Path) -> Any:
    torch = _torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle can fail in any way at all
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named:
            what = f"a pickle of more than tensors ({named[1]}), which could run code; save model.state_dict() instead"
        elif tarfile.is_tarfile(file):
            what = (
                "a tar archive; unpack it, or, if PyTorch before 0.1.10 wrote it and you trust it (reading it runs "
                "code), save its state_dict() anew"
            )
        else:
            what = f"damaged, cut short, or not written by torch.save ({type(error).__name__})"
        raise InputError(f"{path}: refused: {what}") from None


def _torch(path: Path) -> ModuleType:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise InputError(
            f"{path}: PyTorch files need torch: pip install 'ffjax[torch]', or, where torch is, once: "
            "python -m ffjax.detectors.weights convert IN OUT.safetensors --arch NAME"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise InputError(f"{path}: torch {torch.__version__} reads such files unsafely; install 2.6 or later")
    return torch


def _unwrapped(found: Any, path: Path) -> Mapping[Any, Any]:
    """The state dict inside; every other part of a wrapper is left alone."""
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a state dict")
    inside = list(_wrapped(found))
    if len(inside) > 1:
        raise InputError(f"{path}: holds several state dicts: {', '.join(inside)}")
    return _unwrapped(found[inside[0]], path) if inside else found


def _wrapped(found: Mapping[Any, Any]) -> Iterator[str]:
    return (name for name in WRAPPERS if isinstance(found.get(name), Mapping))


def _array(value: Any) -> np.ndarray | None:
    """A tensor or array as NumPy, or None if it holds no plain real numbers."""
    if hasattr(value, "detach") and not value.is_quantized:
        try:
            value = (value.float() if value.is_floating_point() else value).detach().numpy()
        except (RuntimeError, TypeError):  # sparse, nested, on no device
            return None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return None
    return as_float32(value)
