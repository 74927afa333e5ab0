"""Our weights on disk: safetensors in and out, whole or not at all, refused in one line unless everything fits.

    python -m ffjax.detectors.weights convert IN [IN ...] OUT.safetensors --arch NAME [--size N] [--options A=B ...]

turns published weights (Keras .h5, PyTorch .pt, .pth, .tar, .npz or .safetensors; several files are united) into one
file that `ffjax.detectors.load` opens without torch.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save as as_bytes

from ffjax.detectors.layout import Numbers
from ffjax.errors import InputError
from ffjax.types import Variables


def save(path: str | Path, variables: Variables, meta: Mapping[str, Any]) -> None:
    """Write variables as safetensors under flat keys such as 'params/conv1/kernel'.

    meta (arch, size, options, and whatever else is worth keeping; anything JSON can hold) goes into the header. The
    file appears whole or not at all. Folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {key: np.ascontiguousarray(value) for key, value in flatten_dict(variables, sep="/").items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # not safetensors' own save_file, whose files nobody but their owner may read
        partial.write_bytes(as_bytes(flat, {key: json.dumps(value) for key, value in meta.items()}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_flat(path: str | Path) -> tuple[Numbers, dict[str, Any]]:
    """The flat numbers of a safetensors file, whoever wrote it, and what `save` put in its header, {} if it did not.

    InputError, in one line, if the file is missing, cut short or foreign. The numbers are not judged: see `fitted`.
    """
    # opened by Python too, which tells plainly what is no file
    with refusing(path), open(path, "rb"), refusing(path, "cannot be read as safetensors"):
        with safe_open(path, framework="np") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            stored = file.metadata() or {}
        said = stored if "arch" in stored or ours(flat) else {}  # somebody else's header need not be JSON
        return flat, {key: json.loads(value) for key, value in said.items()}


def ours(flat: Mapping[str, Any]) -> bool:
    """Whether numbers go by our names and not by those of PyTorch."""
    return any(key.startswith("params/") for key in flat)


def nested(flat: Mapping[str, np.ndarray]) -> Variables:
    """Flat numbers under 'params/conv1/kernel' as variables on the device."""
    return unflatten_dict({key: jnp.asarray(value) for key, value in flat.items()}, sep="/")


def fitted(numbers: Mapping[str, np.ndarray], template: Variables, source: str | Path = "weights") -> Variables:
    """Flat numbers as variables, if they have exactly the keys, shapes and types of the template and are all finite.

    template: a pytree of arrays or of jax.ShapeDtypeStruct. Otherwise InputError in one line: source, then what is
    missing, unexpected, of a wrong shape or type, or not finite.
    """
    want: dict[str, Any] = flatten_dict(template, sep="/")
    faults = strangers(numbers, want)
    for key in want:
        if key in numbers:
            faults += misfits(key, numbers[key], want[key].shape, want[key].dtype)
    refuse(faults, source)
    return nested(numbers)


def strangers(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """The keys that are missing or unexpected, a line each."""
    faults = [f"missing {key}" for key in want if key not in have]
    return faults + [f"unexpected {key}" for key in have if key not in want]


def misfits(key: str, value: Any, shape: tuple[int, ...], dtype: Any) -> list[str]:
    """What is wrong with one array, as at most one line."""
    if tuple(value.shape) != tuple(shape):
        return [f"{key} has shape {tuple(value.shape)}, not {tuple(shape)}"]
    if value.dtype != dtype:
        return [f"{key} is {value.dtype}, not {dtype}"]
    return [] if np.isfinite(value).all() else [f"{key} holds NaN or infinity"]


def refuse(faults: Sequence[str], source: str | Path) -> None:
    """InputError with the source and the first four faults, if there are any."""
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise InputError(f"{source}: {'; '.join(faults[:4])}{more}")


@contextlib.contextmanager
def refusing(path: str | Path, fault: str = "cannot be read") -> Iterator[None]:
    """Whatever fails inside as InputError 'path: fault (why)', in one line; an InputError as it is.

    For what others wrote: a file can make a reader fail in any way at all, whatever its documentation says.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{path}: {fault} ({why})") from None


def as_float32(numbers: np.ndarray) -> np.ndarray:
    """Floating point as float32, the rest as it is. What is too large becomes infinite, to be refused as such."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32) if numbers.dtype.kind == "f" else numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above. Bad input prints one line and exits with code 2; so does a wrong command line."""
    from ffjax.detectors import loading  # above this file: it reads every format through it

    parser = argparse.ArgumentParser(prog="python -m ffjax.detectors.weights", description="Weights on disk.")
    command = parser.add_subparsers(required=True, metavar="convert")
    asked = command.add_parser("convert", help="published weights into one safetensors file")
    asked.add_argument("files", nargs="+", type=Path, metavar="FILE", help="IN [IN ...] OUT.safetensors")
    asked.add_argument("--arch", required=True, help="one of ffjax.detectors.DETECTORS")
    asked.add_argument("--size", type=int, help="side of an image in pixels (the architecture's own by default)")
    asked.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="options of the architecture")
    given = parser.parse_args(arguments)
    try:
        options = loading.parse_options(given.options)
        made = loading.convert(given.files[:-1], given.files[-1], given.arch, given.size, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    told = ", ".join(f"{key} {value}" for key, value in made.meta["options"].items())
    print(f"{given.files[-1]}: {made.meta['arch']} at {made.meta['size']} px{', ' if told else ''}{told}")


if __name__ == "__main__":
    main()
