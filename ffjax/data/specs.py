"""Data sets that need more than a path, in one word of a command line: 'patches:FOLDER?operation=jpeg80&patches=8'."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ffjax.errors import InputError

Settings = TypeVar("Settings")

DIGITS = 18
"""Of a whole number, at most; Python itself converts no more than some thousands."""


def parse(spec: str, kind: type[Settings]) -> Settings:
    """PREFIX:FOLDER, or PREFIX:FOLDER?key=value&key=value, as the frozen dataclass `kind`: its `folder`, and its other
    fields (text or whole numbers) by name.

    The last '?' begins the settings: a folder with one in its name is given as FOLDER?, with or without settings after
    it. A value holds neither '?' nor '&'. InputError: no folder, an unknown or repeated key, with the known ones, or a
    value that is no whole number where one is needed.
    """
    rest = spec.partition(":")[2]
    folder, _, query = rest.rpartition("?") if "?" in rest else (rest, "", "")
    if not folder.strip():
        raise InputError(f"{spec}: no folder is named")
    known = {field.name: field.type for field in fields(kind) if field.name != "folder"}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in query.split("&") if part):
        if key not in known or key in values:
            fault = "given twice" if key in values else f"unknown; known: {', '.join(known)}"
            raise InputError(f"{spec}: setting {key!r} is {fault}")
        if known[key] is int and not (value.isdecimal() and len(value) <= DIGITS):
            raise InputError(
                f"{spec[:200]}: {key} must be a whole number of at most {DIGITS} digits, got {value[:40]!r}"
            )
        values[key] = int(value) if known[key] is int else value
    return kind(**values, folder=Path(folder))  # pyright: ignore[reportCallIssue]


def differences(settings: Any, named: tuple[str, ...]) -> str:
    """'-key=value' for each setting that is not its default and not among `named`: what tells two sets' short names
    apart. Of folders and files only the last part."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in named}
    usual = {f.name: f.default for f in fields(settings)}
    return "".join(f"-{key}={Path(str(value)).name}" for key, value in values.items() if value != usual[key])
