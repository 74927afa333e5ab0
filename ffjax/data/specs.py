"""Data sets that need more than a path, in one word of a command line: 'patches:FOLDER?operation=jpeg80&patches=8'."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ffjax.errors import InputError

Settings = TypeVar("Settings")


def parse(spec: str, kind: type[Settings]) -> Settings:
    """PREFIX:FOLDER, or PREFIX:FOLDER?key=value&key=value, as the frozen dataclass `kind`: its `folder`, and its other
    fields (text or whole numbers) by name.

    InputError: an unknown or repeated key, with the known ones, or a value that is no whole number where one is needed.
    """
    folder, _, query = spec.partition(":")[2].partition("?")
    known = {field.name: field.type for field in fields(kind) if field.name != "folder"}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in query.split("&") if part):
        if key not in known or key in values:
            fault = "given twice" if key in values else f"unknown; known: {', '.join(known)}"
            raise InputError(f"{spec}: setting {key!r} is {fault}")
        if known[key] is int and not value.isdecimal():
            raise InputError(f"{spec}: {key} must be a whole number, got {value!r}")
        values[key] = int(value) if known[key] is int else value
    return kind(**values, folder=Path(folder))  # pyright: ignore[reportCallIssue]
