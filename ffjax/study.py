"""The stages of a universal-perturbation study on a run folder. Each reads what an interrupted run left and goes on."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from ffjax import evaluate, run, summary, uap
from ffjax.data.codecs import to_float
from ffjax.detectors import Loaded, at_size, layers
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import Condition
from ffjax.imagequality import psnr, ssim
from ffjax.progress import Tell
from ffjax.run import Run
from ffjax.types import ImageSet, UapInfo
from ffjax.uap import Source
from ffjax.universal import UapConfig, fixed
from ffjax.universal.patterns import Patterns
from ffjax.universal.shapes import shape as shape_of


def networks(loaded: Sequence[Loaded], size: int) -> dict[str, Source]:
    """Name -> detector fed size x size images. Raises InputError if one is named twice."""
    names = [one.name for one in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"detector {twice[0]}: named more than once among source and unseen")
    return {
        one.name: Source(
            one.name, jax.tree_util.Partial(at_size(one.detector, size).apply, one.variables), layers(one.detector)
        )
        for one in loaded
    }


def save_networks(folder: Run, loaded: Sequence[Loaded]) -> list[str]:
    """networks.json: architecture, image size and every option of each detector. Returns a warning for each that runs
    with a quirk of its release: such a network may have dead gradients, or rows that depend on their place."""
    known = {one.name: {key: one.meta.get(key) for key in ("arch", "size", "options")} for one in loaded}
    run.write_json(folder / "networks.json", known)
    quirks = {
        name: [k for k, v in (told["options"] or {}).items() if v == "as_released"] for name, told in known.items()
    }
    return [
        f"{name}: {', '.join(found)} as released, not fit to be attacked" for name, found in quirks.items() if found
    ]


def check_inputs(
    folder: Run,
    networks: dict[str, Source],
    sets: dict[str, dict[str, ImageSet]],
    settings: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """inputs.json: a digest of every detector's weights and every set's images and masks, at the first start; at later
    ones InputError if any has changed, since what an earlier start left would no longer fit. sets: split -> name ->
    images. settings: what else must be as it was, such as defaults, which config.json does not hold.
    """
    found = {f"weights of {name}": digest(jax.tree.leaves(source.forward)) for name, source in networks.items()}
    for split, data in sets.items():
        found |= {f"{split} images of {name}": digest(_content(x)) for name, x in data.items()}
    found |= settings
    path = folder / "inputs.json"
    before = json.loads(path.read_text()) if path.exists() else found
    changed = [name for name in found if before.get(name) != found[name]]
    if changed:
        raise InputError(f"{folder.folder}: the {changed[0]} have changed since this run began; give another --out")
    run.write_json(path, found)


def _content(data: ImageSet) -> list[np.ndarray]:
    return [x for x in (data.images, data.labels, data.groups, data.masks) if x is not None]


def digest(arrays: Sequence) -> str:
    """The first 16 digits of `sha256`."""
    return sha256(arrays)[:16]


def sha256(arrays: Sequence) -> str:
    """Of shapes, types and bytes."""
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def logger(folder: Run, tell: Tell) -> Callable[[int, UapInfo], None]:
    """watch(step, infos) for uap.make: one row a step in metrics.jsonl, and the bar."""
    write = run.logbook(folder)

    def watch(done: int, infos: UapInfo) -> None:
        count, fields = len(infos.objective), infos._asdict()
        write([{"step": done - count + j + 1} | {k: v[j] for k, v in fields.items()} for j in range(count)])
        tell(done, f"objective {np.median(infos.objective[-1]):.2f}")

    return watch


def save_patterns(folder: Run, patterns: Patterns, deltas: np.ndarray, scores: np.ndarray) -> None:
    """perturbations.npy, all (S, H, W, 3), perturbation.npy, the chosen (H, W, 3), and patterns.json, what they are."""
    best = uap.chosen(patterns, scores)
    for name, array in (("perturbations", deltas), ("perturbation", deltas[best[0]])):
        run.save_array(folder / f"{name}.npy", array)
    rows = [
        {"name": name, "group": group, "eps": float(eps), "score": float(score), "chosen": k in best}
        | {"linf": float(np.abs(delta).max()), "l2": float(np.linalg.norm(delta))}
        for k, (name, group, eps, score, delta) in enumerate(
            zip(patterns.names, patterns.groups, patterns.eps, scores, deltas, strict=True)
        )
    ]
    run.write_json(folder / "patterns.json", rows)


def save_examples(folder: Run, data: ImageSet, delta: np.ndarray, count: int = 4) -> None:
    """examples.npz, for the figure: images (k, H, W, 3) uint8, half fake and half real, spread evenly over each class
    whatever a detector says of them, with rows (their places in data), labels and names, and delta (H, W, 3)."""
    classes = [np.flatnonzero(data.labels == label) for label in (1, 0)]
    spread = [np.linspace(0, len(rows) - 1, min(count // 2, len(rows))).astype(int) for rows in classes]
    rows = np.concatenate([rows[places] for rows, places in zip(classes, spread, strict=True)])
    arrays = {"images": data.images[rows], "labels": data.labels[rows], "names": np.array(data.names)[rows]}
    run.save_arrays(folder / "examples.npz", arrays | {"rows": rows, "delta": np.asarray(delta, np.float32)})


def fixed_count(patterns: Patterns, shape: tuple[int, int, int]) -> int:
    """How many fixed patterns `fixed_conditions` tries."""
    return len(set(patterns.groups)) * fixed.count(shape)


def fixed_conditions(
    folder: Run,
    config: UapConfig,
    patterns: Patterns,
    sources: Sequence[Source],
    validation: ImageSet,
    compute: Compute,
    tell: Tell,
) -> list[Condition]:
    """The strongest fixed patterns per bound and direction, as found once by uap.pick_fixed and kept in fixed.json, cut
    to the region or band of the config; a filter has none."""
    path, shape = folder / "fixed.json", validation.images.shape[1:]
    if config.shape == "filter":
        run.write_json(path, {})
        return []
    picked = json.loads(path.read_text()) if path.exists() else {}
    rows = []
    for g, group in enumerate(dict.fromkeys(patterns.groups)):
        eps = patterns.eps[patterns.groups.index(group)]
        names, bank = fixed.bank(shape, float(eps), config.norm)
        bank = jax.vmap(lambda v, eps=eps: shape_of(config).project(v, eps))(bank)
        if group not in picked:
            before = g * len(names)
            found = uap.pick_fixed(bank, sources, validation, compute, lambda n, before=before: tell(before + n))
            picked[group] = {way: names[k] for way, k in found.items()}
            run.write_json(path, picked)
        for way, name in picked[group].items():
            pattern = np.asarray(bank[names.index(name)])
            rows.append(Condition(f"fixed-{group}-{way}-float", "fixed", group, pattern))
    return rows


def score(
    folder: Run,
    rows: Sequence[Condition],
    sources: dict[str, Source],
    data: dict[str, ImageSet],
    split: str,
    compute: Compute,
    tell: Callable[[], None],
) -> None:
    """scores/SET-SPLIT/CONDITION.npz, detector -> (N,) margins, for every set; tell() after each condition."""
    forwards = {name: source.forward for name, source in sources.items()}
    for name, images in data.items():
        place = f"scores/{name}-{split}"

        def known(condition: str, place: str = place) -> dict[str, np.ndarray]:
            return _arrays(folder.folder / place / f"{condition}.npz")

        def save(condition: str, scores: dict[str, np.ndarray], place: str = place) -> None:
            run.save_arrays(folder / f"{place}/{condition}.npz", scores)

        for _ in evaluate.score(images, rows, forwards, compute, known, save):
            tell()


def refitted(rows: Sequence[Condition], patterns: Patterns, scores: np.ndarray) -> list[Condition]:
    """The conditions that are also scored on validation images, to refit the threshold: clean, one noise and the
    chosen pattern of each group, in float."""
    names = {f"uap-{patterns.names[k]}-float" for k in uap.chosen(patterns, scores)}
    return [
        c
        for c in rows
        if c.storage == "float" and (c.kind == "clean" or c.name in names or c.name.endswith("-0-float"))
    ]


def results(
    folder: Run,
    rows: Sequence[Condition],
    refit: Sequence[Condition],
    sources: Sequence[Source],
    tests: dict[str, ImageSet],
    helds: dict[str, ImageSet],
    compute: Compute,
    began: float,
) -> None:
    """results.json: cells, claims, image quality, activations, the sets with their counts, and the environment."""
    tables = {name: _labelled(folder, name, "test", data, rows) for name, data in tests.items()}
    held = {name: _labelled(folder, name, "validation", data, refit) for name, data in helds.items()}
    first = next(iter(tests.values()))
    seen = [c for c in refit if c.kind in ("clean", "noise", "uap")]
    value = {
        "conditions": [{"name": c.name, "kind": c.kind, "group": c.group, "storage": c.storage} for c in rows],
        "sources": [source.name for source in sources],
        "networks": json.loads((folder / "networks.json").read_text()),
        "detectors": list(next(iter(tables.values())).scores),
        "data": [_counts(name, data) for name, data in tests.items()],
        "patterns": json.loads((folder / "patterns.json").read_text()),
        "fixed": json.loads((folder / "fixed.json").read_text()),
        "cells": [row for name in tests for row in summary.cells(tables[name], held[name], rows)],
        "claims": [row for name in tests for row in summary.claims(tables[name], rows)],
        "quality": [quality(name, data, c) for name, data in tests.items() for c in _stored(rows, refit)],
        "activations": [_activation(source, first, c, compute) for source in sources for c in seen],
        "environment": environment() | {"seconds_this_start": round(time.monotonic() - began, 1)},
    }
    run.write_json(folder / "results.json", value)


def environment() -> dict[str, str]:
    """What made the figures: versions and the kind of device, no names of machines."""
    device = jax.devices()[0]
    versions = {name: version(name) for name in ("ffjax", "jax", "jaxlib", "numpy")}
    versions["python"] = platform.python_version()
    return versions | {"device": f"{len(jax.devices())} x {device.platform} {device.device_kind}"}


def _labelled(folder: Run, name: str, split: str, data: ImageSet, rows: Sequence[Condition]) -> summary.Labelled:
    scores: dict[str, dict[str, np.ndarray]] = {}
    for condition in rows:
        for detector, margins in _arrays(folder / f"scores/{name}-{split}/{condition.name}.npz").items():
            scores.setdefault(detector, {})[condition.name] = margins
    return summary.Labelled(name, data.labels, data.groups, scores)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def _counts(name: str, data: ImageSet) -> dict:
    fakes = int(data.labels.sum())
    counts = {"real": len(data.labels) - fakes, "fake": fakes, "groups": len(np.unique(data.groups))}
    return {"name": name, "size": data.images.shape[1]} | counts


def _stored(rows: Sequence[Condition], refit: Sequence[Condition]) -> list[Condition]:
    """Those whose picture quality is measured: clean, the first noise and the chosen patterns, however stored."""
    shown = {condition.name for condition in refit}
    return [c for c in rows if c.storage != "float" or c.name in shown]


def quality(name: str, data: ImageSet, condition: Condition, most: int = 40) -> dict:
    """Median PSNR (dB) and SSIM over `most` images spread over the set, against the images as they were."""
    rows = np.linspace(0, len(data.labels) - 1, min(most, len(data.labels))).astype(int)
    clean, seen = to_float(data.images[rows]), evaluate.shown(data.images[rows], condition)
    decibels = float(np.median(psnr(clean, seen)))
    values = {"psnr": decibels if np.isfinite(decibels) else None, "ssim": float(np.median(ssim(clean, seen)))}
    return {"data": name, "condition": condition.name, "n": len(rows)} | values


def _activation(source: Source, data: ImageSet, condition: Condition, compute: Compute) -> dict:
    fired = evaluate.activations(source.forward, evaluate.shown(data.images, condition), compute)
    return {"detector": source.name, "condition": condition.name, "kind": condition.kind, "layers": fired}
