"""A universal pattern as it is handed on: NAME.npy, and beside it NAME.card.json, which says what it is, how large, by
what it was made and what was seen on the way. Who reads it checks every figure of the card that the array can prove.

No date and no path stands in a card: the same run writes the same bytes."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from ffjax import riders, run, uap
from ffjax.detectors import Loaded
from ffjax.errors import InputError
from ffjax.study import digest, sha256
from ffjax.types import ImageSet
from ffjax.universal import UapConfig, shapes
from ffjax.universal.patterns import Patterns

SLACK: Mapping[str, float] = MappingProxyType({"additive": 1e-5, "filter": 2e-5})
"""By kind, by how much of itself a bound may be passed: what float32 makes of a norm. A filter's own projection allows
an l_1 norm 1e-5, in sums that round once more."""

CARD = ".card.json"
NO_CARD = "no card"
SMALLEST = 32
"""An odd square of fewer pixels a side may be a filter as well as a picture: without a card somebody must say."""


class Maker(NamedTuple):
    """A detector that a pattern was made on. digest: of its weights, as inputs.json of a run folder has it."""

    name: str
    arch: str
    digest: str


class Seen(NamedTuple):
    """Images that may have had a say in it. data: none, noise (generated), or the set's short name, with its split and
    how many images."""

    data: str
    split: str = ""
    images: int = 0


class Card(NamedTuple):
    """What a pattern is.

    kind: additive, (H, W, 3) added to the image, or filter, (k, k, 3) (universal.shapes). eps: bound in [0, 1] image
    units, of a filter on the l_1 norm of each channel; bound: the same as printed, 10/255. sha256: of the array
    (`sha256`). config: the UapConfig, for all patterns of the job; seed and score: this one's. about: anything, or
    NO_CARD where an array was found alone, its bound measured.
    """

    name: str
    kind: str
    size: tuple[int, int, int]
    norm: str
    eps: float
    bound: str
    sha256: str
    sources: tuple[Maker, ...]
    config: dict[str, Any]
    seed: int | None
    score: float | None
    seen: tuple[Seen, ...]
    version: str
    about: str = ""


def cards_of(
    config: UapConfig,
    patterns: Patterns,
    deltas: np.ndarray,
    scores: np.ndarray,
    sources: Sequence[Maker],
    seen: Sequence[Seen],
) -> dict[str, tuple[np.ndarray, Card]]:
    """Name -> the pattern and its card, for the chosen pattern of each group. deltas (S, H, W, 3) or (S, k, k, 3),
    scores (S,): of all patterns of the job."""
    found = {}
    for k in uap.chosen(patterns, scores):
        array, name, eps, score = np.asarray(deltas[k]), patterns.names[k], float(patterns.eps[k]), float(scores[k])
        found[name] = (
            array,
            Card(
                name,
                kind=shapes.kind(config),
                size=array.shape,
                norm=config.norm,
                eps=eps,
                bound=printed(eps, config.norm),
                sha256=sha256([array]),
                sources=tuple(sources),
                config=run.as_json(config),
                seed=int(name.rpartition("-seed")[2]),
                score=score if math.isfinite(score) else None,
                seen=tuple(seen),
                version=version("ffjax"),
            ),
        )
    return found


def maker(loaded: Loaded) -> Maker:
    """A detector as the card names it."""
    return Maker(loaded.name, loaded.meta["arch"], digest(jax.tree.leaves(loaded.variables)))


def seen(config: UapConfig, name: str, train: ImageSet | None, validation: ImageSet | None) -> tuple[Seen, ...]:
    """What a job of this config rides on and selects by (ffjax.riders); name: the short name of the data set."""
    blank = config.mode == "no_data" and config.score == "objective"
    found = []
    if config.mode == "range_prior" or (config.bank == "noise" and not blank):
        found.append(Seen("noise"))
    splits = {
        "train": train if config.mode == "with_data" else None,
        "validation": validation if config.bank == "data" else None,
    }
    for split, data in splits.items():
        if data is not None:
            asked = config if split == "train" else replace(config, images=None)
            found.append(Seen(name, split, len(riders.of_side(asked, data).labels)))
    return tuple(found) or (Seen("none"),)


def printed(eps: float, norm: str) -> str:
    """A bound in [0, 1] units as people write it: 10/255 under l_inf, 2.5 under l_2."""
    return f"{eps * 255:.6g}/255" if norm == "linf" else f"{eps:.6g}"


def measured(kind: str, norm: str, array: np.ndarray) -> float:
    """The norm that the bound is on, in float64."""
    size = np.abs(array.astype(np.float64))
    if kind == "filter":
        return float(size.sum(axis=(0, 1)).max())
    return float(size.max() if norm == "linf" else np.sqrt((size**2).sum()))


def write(path: Path, array: np.ndarray, card: Card) -> None:
    """path (.npy) and its card, each whole or not at all; killed between the two, it leaves an array that its old card
    does not fit, which `read` refuses. InputError if it could not be read again."""
    if path.suffix != ".npy":
        raise InputError(f"{path}: a pattern is written as .npy")
    value = card._asdict() | {"sources": _dicts(card.sources), "seen": _dicts(card.seen), "size": list(card.size)}
    _check(path, _usable(path, array), _parsed(_beside(path), value))
    path.parent.mkdir(parents=True, exist_ok=True)
    run.save_array(path, array)
    run.write_json(_beside(path), value)


def write_all(folder: Path, cards: Mapping[str, tuple[np.ndarray, Card]]) -> None:
    """folder/NAME.npy and NAME.card.json for each of `cards_of`."""
    for name, (array, card) in cards.items():
        write(folder / f"{name}.npy", array, card)


def read(path: Path, *, need_card: bool = False, kind: str | None = None) -> tuple[np.ndarray, Card]:
    """(H, W, 3) or (k, k, 3) float32 in [0, 1] image units, and its card, checked.

    An array without a card is taken as it is, bounded by its own size, as `kind` (additive, unless it is an odd square
    of fewer than SMALLEST pixels a side, which somebody must call one or the other). InputError, one line with file and
    fault: no array of numbers (pickles are never opened), another type or shape, NaN or infinities; a card that lacks a
    field, has one that cannot be, or does not fit the array; an array larger than its bound; `kind` another than the
    card's; no card where one is needed.
    """
    array, beside = _usable(path, _loaded(path)), _beside(path)
    if beside.exists():
        card = _parsed(beside, read_json(beside))
        _check(path, array, card)
        if kind not in (None, card.kind):
            raise InputError(f"{beside}: the pattern is {card.kind}, not {kind}")
        return array, card
    if need_card:
        raise InputError(f"{path}: has no card ({beside.name}), and one is asked for")
    return array, _found_alone(path, array, kind)


def _beside(path: Path) -> Path:
    return path.with_suffix(CARD)


def _found_alone(path: Path, array: np.ndarray, kind: str | None) -> Card:
    height, width = array.shape[:2]
    if kind is None and height == width and height % 2 and height < SMALLEST:
        raise InputError(f"{path}: no card, and {height}x{width} may be a filter; say --kind additive or --kind filter")
    kind = kind or "additive"
    eps = measured(kind, "linf", array)
    if kind == "additive" and eps > 1:
        raise InputError(f"{path}: components up to {eps:g}, so not in [0, 1] image units (divide by 255?)")
    bound, digest = printed(eps, "linf"), sha256([array])
    card = Card(path.stem, kind, array.shape, "linf", eps, bound, digest, (), {}, None, None, (), "", about=NO_CARD)
    _check(path, array, card)
    return card


def _loaded(path: Path) -> np.ndarray:
    """Mapped, not loaded: so objects are never unpickled, and a header that promises more than the file holds costs no
    memory."""
    if path.name.endswith(CARD):
        raise InputError(f"{path}: is a card; give the .npy beside it")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # a hostile header fails in many ways
        raise InputError(f"{path}: cannot be read as .npy ({_first(error)})") from None


def _usable(path: Path, array: np.ndarray) -> np.ndarray:
    """In memory and in C order. InputError if no pattern at all could be like that."""
    if array.dtype != np.float32:
        raise InputError(f"{path}: {array.dtype} numbers, where a pattern has float32")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(f"{path}: shape {array.shape}, where a pattern has (height, width, 3)")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinities")
    return np.array(array, np.float32, order="C")


def _check(path: Path, array: np.ndarray, card: Card) -> None:
    """InputError unless the card fits the array, and itself."""
    beside, found = _beside(path), measured(card.kind, card.norm, array)
    if card.size != array.shape:
        raise InputError(f"{path}: {_by(array.shape)}, but its card says {_by(card.size)}")
    if card.sha256 != sha256([array]):
        raise InputError(f"{path}: not the array of its card (sha256 {sha256([array])[:12]}, there {card.sha256[:12]})")
    if card.kind == "filter" and (card.norm != "linf" or array.shape[0] != array.shape[1] or not array.shape[0] % 2):
        raise InputError(f"{path}: a filter is an odd square bounded in linf, not {_by(card.size)} in {card.norm}")
    if card.bound != printed(card.eps, card.norm):
        raise InputError(f"{beside}: bound {card.bound!r} is not its eps, {printed(card.eps, card.norm)}")
    if found > card.eps * (1 + SLACK[card.kind]):
        raise InputError(f"{path}: larger than its bound: {printed(found, card.norm)}, not {card.bound} ({card.norm})")


def read_json(path: Path) -> dict[str, Any]:
    """InputError, one line, unless there is a JSON object in it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({_first(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: no JSON object")
    return value


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _dicts(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [row._asdict() for row in rows]


def _first(error: Exception) -> str:
    """The reason on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def _parsed(path: Path, value: dict[str, Any]) -> Card:
    """InputError unless every field is there, none else, and each of its type."""
    for wrong, fields in (("lacks", _CAN_BE.keys() - value), ("has the unknown field", value.keys() - _CAN_BE)):
        if fields:
            raise InputError(f"{path}: {wrong} {min(fields)}")
    for field, usable in _CAN_BE.items():
        if not usable(value[field]):
            raise InputError(f"{path}: {field} cannot be {json.dumps(value[field])[:60]}")
    height, width, channels = value["size"]
    rows: dict[str, Any] = {"sources": tuple(Maker(**one) for one in value["sources"])}
    rows |= {"seen": tuple(Seen(**one) for one in value["seen"]), "size": (height, width, channels)}
    return Card(**{**value, **rows})


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _rows(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A list of objects that have these fields and no others."""

    def usable(row: Any) -> bool:
        return isinstance(row, dict) and row.keys() == fields.keys() and all(fields[k](row[k]) for k in fields)

    return lambda value: isinstance(value, list) and all(map(usable, value))


_CAN_BE: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "name": _text,
        "kind": lambda value: value in ("additive", "filter"),
        "size": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_whole, value)),
        "norm": lambda value: value in ("linf", "l2"),
        "eps": lambda value: _number(value) and value >= 0,
        "bound": _text,
        "sha256": _text,
        "sources": _rows(name=_text, arch=_text, digest=_text),
        "config": lambda value: isinstance(value, dict),
        "seed": lambda value: value is None or _whole(value),
        "score": lambda value: value is None or _number(value),
        "seen": _rows(data=_text, split=_text, images=_whole),
        "version": _text,
        "about": lambda value: _text(value) and value != NO_CARD,
    }
)
