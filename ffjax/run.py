"""The run folder: config.json (what was asked), metrics.jsonl (what happened, step by step), results.json, arrays,
checkpoints/ and figures/. Everything a report needs is read back from here, never from live objects."""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from ffjax import devices
from ffjax.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HOW = ("compute", "out", "tensorboard")
"""Fields of a config that say how or where, not what: a run may be resumed with others."""


class Run(NamedTuple):
    """A run folder that belongs to one configuration."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        """The path of `name` in the folder, its parents made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def check(folder: Path, config: Any, more: Sequence[str] = ()) -> None:
    """Raises InputError if `folder` cannot be the run folder of these settings (fields named in HOW apart): it is a
    file, was made with other settings, or holds files of no run; or if a number among them cannot be used by anybody
    (not finite, or a field of compute below 1). Touches nothing. more: fields which may be larger than they were there,
    where what was made of fewer is the beginning of what is made of more."""
    _check_numbers(as_json(config), "")
    record = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a run folder")
    if record.exists():
        before, now = _what(_record(record)), _what(as_json(config))
        grown = {name: now[name] for name in more if isinstance(before.get(name), int) and now[name] > before[name]}
        difference = _difference(before | grown, now)
        if difference:
            raise InputError(f"{folder}: made with other settings ({difference}); give another --out or remove it")
    elif folder.exists() and any(path.name != "config.part" for path in folder.iterdir()):  # .part: killed at once
        raise InputError(f"{folder}: not empty and not a run folder (no config.json); give another --out")


def open_run(folder: Path, config: Any, more: Sequence[str] = ()) -> Run:
    """Makes the folder, or takes it up again if it was made with the same settings (fields named in `more` may have
    grown), for this process alone. InputError as `check`, and while another process has it."""
    check(folder, config, more)
    run = Run(folder)
    if devices.first_host() and not (folder / "config.json").exists():
        try:
            write_json(run / "config.json", as_json(config))
        except OSError as error:
            raise InputError(f"{folder}: cannot be made or written ({error.strerror}); give another --out") from error
    if devices.first_host():
        record = (folder / "config.json").resolve()
        _claim(record)
        _grow(record, as_json(config), more)
    return run


def _grow(record: Path, config: dict, more: Sequence[str]) -> None:
    """Notes what has grown. The record is a new file then, and is claimed as the old one was."""
    before = _record(record)
    now = before | {name: config[name] for name in more}
    if now != before:
        write_json(record, now)
        _claimed.pop(record, None)
        _claim(record)


def _claim(record: Path) -> None:
    """InputError while another process has this record; whoever is killed lets go of it."""
    if fcntl is None or record in _claimed:
        return
    file = os.open(record, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise InputError(f"{record.parent}: another run is at work there; wait for it or give another --out") from None
    except OSError:
        pass  # a file system without locks: as before there were any
    _claimed[record] = file


_claimed: dict[Path, int] = {}
"""The records of the runs of this process, and their descriptors, open as long as it lives."""


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: written beside and renamed."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n")
    os.replace(beside, path)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz, whole or not at all."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    os.replace(beside, path)


def save_array(path: Path, array: np.ndarray) -> None:
    """An .npy, whole or not at all."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.save(file, array)
    os.replace(beside, path)


def log(run: Run, rows: list[dict]) -> None:
    """Appends rows to metrics.jsonl, one JSON object a line; NaN and infinities, unknown to JSON, become null."""
    plain = [json.loads(json.dumps(row, default=_plain), parse_constant=lambda name: None) for row in rows]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in plain)


def rewind(run: Run, step: int) -> None:
    """Drops the logged rows of steps past `step` and a half-written last line: what a killed run had logged after its
    last snapshot is about to happen again."""
    path = run.folder / "metrics.jsonl"
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        beside = path.with_suffix(".part")
        beside.write_text("".join(line + "\n" for line in kept))
        os.replace(beside, path)


def logbook(run: Run) -> Callable[[list[dict]], None]:
    """`log` for a run that may have been killed: the first rows written drop those of the same and later steps."""
    begun: list[bool] = []

    def write(rows: list[dict]) -> None:
        if not begun:
            rewind(run, rows[0]["step"] - 1)
            begun.append(True)
        log(run, rows)

    return write


def as_json(config: Any) -> Any:
    """A frozen dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(config) if is_dataclass(config) else config, default=_plain))  # type: ignore[arg-type]


def main(config: type, body: Callable[[Any], object]) -> None:
    """The entry of every driver: the command line into `config`, then body(config).

    Bad input (InputError) prints one line and exits with code 2; so does a wrong command line (tyro).
    """
    try:
        asked = tyro.cli(config, description=sys.modules[body.__module__].__doc__)
        devices.start()
        devices.hold_memory()
        _cache_compilations()
        body(asked)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _cache_compilations() -> None:
    """Compiled programs are kept between runs, so the second start of a driver is quick."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(home / "ffjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _check_numbers(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: {value} is not a finite number")
    elif name.startswith("compute.") and isinstance(value, int) and value < 1:
        raise InputError(f"{name}: must be at least 1, got {value}")


def _what(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in HOW}


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first few fields that differ, as 'name: old -> new', or ''."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        parts = [_difference(old.get(k), new.get(k), f"{name}.{k}" if name else k) for k in keys]
        return ", ".join([p for p in parts if p][:3])
    return "" if old == new else f"{name}: {old} there, {new} asked"


def _record(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not the settings of a run (no JSON object)")
    return value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _plain(value: Any) -> Any:
    """What json does not know: paths and numpy scalars and arrays."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
