"""From a short spec, or from published files, to a detector with its weights."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ffjax import detectors
from ffjax.detectors import Loaded, keras, pytorch, weights
from ffjax.detectors.layout import Numbers
from ffjax.errors import InputError
from ffjax.types import Detector, Variables

SPEC = re.compile(r"(?P<arch>[^:\[]+)(?:\[(?P<options>.*?)\])?:(?P<files>.+)", re.DOTALL)
OPTION = re.compile(r'\s*(?P<pair>[^=,]*=\s*(?:\[.*?\]|".*?"|[^,]*)|[^,]+)\s*(?:,|$)')
"""One key=value of a comma-separated row of them; a list or a quoted string may hold commas."""


class Spec(NamedTuple):
    """What ARCH[size=N,key=value]:FILE+FILE says."""

    arch: str
    size: int | None
    options: dict[str, Any]
    files: tuple[Path, ...]


def parse(spec: str) -> Spec:
    """'ARCH:PATH', 'ARCH[key=value,key=value]:PATH' or 'ARCH:PATH+PATH' in parts. InputError if it has another form.

    Values are JSON where they can be (3, 0.5, true, [1, 2]) and strings otherwise. The option 'size' is the image size.
    A path that exists is never cut at a '+'.
    """
    found = SPEC.fullmatch(spec)
    if found is None:
        raise InputError(
            f"unknown weights {spec!r}; give ARCH:PATH or ARCH[option=value]:PATH with one of "
            f"{', '.join(detectors.DETECTORS)}, or a shipped name: {', '.join(detectors.shipped()) or 'none here'}"
        )
    if found["arch"] not in detectors.DETECTORS:
        raise InputError(f"unknown detector {found['arch']!r} in {spec!r}; known: {', '.join(detectors.DETECTORS)}")
    options = parse_options([one["pair"].strip() for one in OPTION.finditer(found["options"] or "")])
    size = options.pop("size", None)
    if size is not None and type(size) is not int:
        raise InputError(f"{spec!r}: size must be a whole number, got {size!r}")
    whole = Path(found["files"])
    files = (whole,) if os.path.exists(whole) else tuple(map(Path, found["files"].split("+")))
    return Spec(found["arch"], size, options, files)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """['gate=target', 'widths=[1, 2]'] as {'gate': 'target', 'widths': [1, 2]}. InputError for anything else."""
    split = [pair.partition("=") for pair in pairs]
    for key, equals, _ in split:
        if not (key.strip() and equals):
            raise InputError(f"option {key!r} must have the form key=value")
    return {key.strip(): _value(key.strip(), text.strip()) for key, _, text in split}


def load(spec: str) -> Loaded:
    """See ffjax.detectors.load."""
    if spec in detectors.shipped():
        return read(None, [detectors.SHIPPED / f"{spec}.safetensors"], None, {})
    asked = parse(spec)
    return read(asked.arch, asked.files, asked.size, asked.options)


def read(arch: str | None, files: Sequence[Path], size: int | None, options: Mapping[str, Any]) -> Loaded:
    """The detector whose weights are in these files; a PyTorch state dict may be spread over several.

    arch: None if the file says. size and options: where nothing is given, the file's own, or the architecture's. The
    result's meta has arch, size, every option, and what the file says of itself. InputError, in one line, unless all of
    it fits.
    """
    if arch is not None and arch not in detectors.DETECTORS:
        raise InputError(f"unknown detector {arch!r}; known: {', '.join(detectors.DETECTORS)}")
    source = " + ".join(map(str, files))
    numbers, header = _stored(files, arch, size)
    if header is None:
        network, variables = _published(source, str(arch), numbers, size, options)
    else:
        _check_header(source, header, arch)
        wanted = header["size"] if size is None else size
        network = _network(source, header["arch"], wanted, {**(header.get("options") or {}), **options})
        variables = weights.fitted(numbers, network.template, source)
    return Loaded("+".join(map(_name, files)), network.detector, variables, (header or {}) | network.meta)


def convert(
    files: Sequence[Path], out: Path, arch: str, size: int | None = None, options: Mapping[str, Any] | None = None
) -> Loaded:
    """Published weights as one safetensors file that `load` opens without torch; what was written.

    Its header has arch, size, every option, and converted_from: name and SHA-256 of each file. InputError as `read`,
    and if `out` is no .safetensors or exists; then nothing is written.
    """
    if not files:
        raise InputError(f"{out}: one file to read at least, and the one to write, are needed")
    if out.suffix.lower() != ".safetensors":
        raise InputError(f"{out}: the last file is the one to write, and must end in .safetensors")
    if os.path.exists(out):
        raise InputError(f"{out}: exists already; remove it or name another file")
    loaded = read(arch, files, size, options or {})
    origin = [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in files]
    loaded = loaded._replace(name=out.stem, meta=loaded.meta | {"converted_from": origin})
    with weights.refusing(out, "cannot be written"):
        weights.save(out, loaded.variables, loaded.meta)
    return loaded


class _Network(NamedTuple):
    """What weights are to fit. meta: arch, size and options, as JSON gives them back."""

    detector: Detector
    template: Variables
    meta: dict[str, Any]


def _network(
    source: str, arch: str, size: int | None, options: Mapping[str, Any], reading: Mapping[str, Any] | None = None
) -> _Network:
    """What the weights are to fit. reading: options of the layout alone; they are known too, and go into meta."""
    defaults, reading = detectors.all_options(arch, {}), reading or {}
    given = options if size is None else {**options, "size": size}
    try:
        chosen = detectors.chosen({"size": detectors.default_size(arch), **defaults, **reading}, given, arch)
        detector = detectors.build(arch, chosen["size"], **{key: chosen[key] for key in defaults})
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    meta = {"arch": arch, "size": chosen["size"], "options": {key: chosen[key] for key in defaults}}
    meta |= {"read_with": {key: chosen[key] for key in reading}} if reading else {}
    return _Network(detector, jax.eval_shape(detector.init, jax.random.key(0)), json.loads(json.dumps(meta)))


def _published(
    source: str, arch: str, state: Numbers, size: int | None, options: Mapping[str, Any]
) -> tuple[_Network, Variables]:
    """A PyTorch state dict. The layout is given those of the builder's options, and the size, that it names."""
    if arch not in detectors.LAYOUTS:
        known = ", ".join(detectors.LAYOUTS)
        raise InputError(f"{source}: no PyTorch layout is known for {arch!r}; known: {known}")
    named = inspect.signature(detectors.LAYOUTS[arch]).parameters
    takes = {name: one.default for name, one in named.items() if one.kind is not one.VAR_KEYWORD}
    reading = {name: takes[name] for name in takes if name not in ("size", *detectors.all_options(arch, {}))}
    network = _network(source, arch, size, options, reading)
    given = {**network.meta["options"], **network.meta.get("read_with", {}), "size": network.meta["size"]}
    try:
        layout = detectors.LAYOUTS[arch](**{name: given[name] for name in takes})
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return network, pytorch.convert(state, layout, network.template, source)


def _stored(files: Sequence[Path], arch: str | None, size: int | None) -> tuple[Numbers, dict[str, Any] | None]:
    """The flat numbers, and what the file says of itself: None for a PyTorch state dict, which says nothing."""
    first, suffixes = files[0], [path.suffix.lower() for path in files]
    if suffixes == [".h5"]:
        flat, implied = keras.read_keras(first, str(arch), size)
        return flat, {"arch": arch, "size": implied}
    if ".h5" in suffixes:
        raise InputError(f"{' + '.join(map(str, files))}: Keras weights come in one file")
    if suffixes == [".safetensors"]:
        numbers, header = weights.read_flat(first)
        numbers = numbers if header or weights.ours(numbers) else pytorch.plain(numbers, first)
    else:
        numbers, header = pytorch.read_states(files), {}
    if weights.ours(numbers) and not header:
        header = {"arch": arch, "size": detectors.default_size(str(arch))}
    return numbers, header or None


def _check_header(source: str, header: Mapping[str, Any], arch: str | None) -> None:
    found, size, options = (header.get(key) for key in ("arch", "size", "options"))
    if found not in list(detectors.DETECTORS) or type(size) is not int:
        raise InputError(f"{source}: the header must name arch and size, and says {found!r} and {size!r}")
    if options is not None and not isinstance(options, dict):
        raise InputError(f"{source}: the header's options must be named, and are {options!r}")
    if arch not in (None, found):
        raise InputError(f"{source}: holds weights of {found}, not of {arch}")


def _value(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"the value of option {key!r} nests too deeply") from None
    except ValueError:
        return text


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "weights" else path.stem
