"""The cells of a study of Huang et al.'s claims: what is kept of each, and what they amount to, row by row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ffjax import crossed, evaluate, huang, study, transfer
from ffjax.data.codecs import STORAGE, to_float
from ffjax.engine import Compute
from ffjax.evaluate import Condition
from ffjax.huang import Said
from ffjax.masks import iou
from ffjax.run import Run
from ffjax.transfer import Cell, Sheet
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import UapConfig
from ffjax.universal.shapes import kind


def scored(
    shown: Iterable[np.ndarray],
    networks: Mapping[str, Source],
    data: ImageSet,
    stored: Sequence[str],
    compute: Compute,
) -> dict[str, np.ndarray]:
    """TARGET|STORAGE -> (P, N) margins; and of a target with a mask, where the set has true ones, iou|TARGET|STORAGE
    and area|TARGET|STORAGE, (P, N)."""
    found: dict[str, list[np.ndarray]] = {}
    size, true = data.images.shape[1], data.masks
    masked = {name for name, one in networks.items() if evaluate.has_mask(one.forward, size)}
    for images in shown:
        for storage in ("float", *stored):
            seen = STORAGE[storage](to_float(images) if images.dtype == np.uint8 else images)
            for name, one in networks.items():
                key = f"{name}|{storage}"
                found.setdefault(key, []).append(evaluate.margins(one.forward, seen, compute))
                if true is not None and name in masked:
                    forged = evaluate.forged(one.forward, seen, compute)
                    found.setdefault(f"iou|{key}", []).append(iou(forged, true > 0))
                    found.setdefault(f"area|{key}", []).append(forged.mean(axis=(1, 2)))
    return {key: np.stack(values).astype(np.float32) for key, values in found.items()}


def measured(
    folder: Run,
    tests: Mapping[str, ImageSet],
    every: Sequence[Cell],
    networks: Mapping[str, Source],
    stored: Sequence[str],
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of verdicts, of rungs and of masks, as huang_tables.show takes them."""
    rows, ladder, masks = [], [], []
    for name, data in tests.items():
        sheet = transfer.sheet(folder, data, name)
        able = {target: transfer.competent(sheet, target) for target in networks}
        rungs: dict[str, dict[str, Said]] = {}
        for cell in [c for c in every if c.data == name and c.source]:
            scores = transfer.read(transfer.path(folder, cell))
            for target in networks:
                for storage in ("float", *stored):
                    said = Said(scores[f"{target}|{storage}"], sheet.noise[f"{target}|{storage}"])
                    place = {"data": name, "source": cell.source, "method": cell.method, "target": target}
                    place |= {"storage": storage, "competent": able[target]}
                    rows += [
                        place | {"measure": measure, "found": huang.row(sheet, target, storage, said, measure)}
                        for measure in huang.MEASURES
                    ]
                    if target == cell.source and storage == "float":
                        rungs.setdefault(cell.source, {})[cell.method] = said
            masks += [row | {"competent": able[cell.source]} for row in _masks(sheet, cell, scores)]
        for source, said in rungs.items():
            place = {"data": name, "source": source, "competent": able[source]}
            ladder += [place | rung for rung in huang.rungs(sheet, source, said)]
    return rows, ladder, masks


def _masks(sheet: Sheet, cell: Cell, scores: Mapping[str, np.ndarray]) -> list[dict]:
    """IoU with the true mask and area shown forged, on fakes that the source calls rightly clean."""
    key = f"{cell.source}|float"
    rows = (sheet.labels == 1) & (sheet.clean[key] > 0)
    if f"iou|{key}" not in scores or not rows.any():
        return []
    found, groups = [], sheet.groups[rows]
    for measure, name in (("iou", "IoU with the true mask"), ("area", "area shown forged")):
        values, draws = (one[f"{measure}|{key}"][:, rows] for one in (scores, sheet.noise))
        before = sheet.clean[f"{measure}|{key}"][None, rows]
        told = {"rate": crossed.mean(values, groups), "noise": crossed.mean(draws, groups)}
        told |= {"clean": crossed.mean(before, groups), "over_noise": crossed.difference(values, draws, groups)}
        found.append({"data": cell.data, "source": cell.source, "method": cell.method, "measure": name, "found": told})
    return found


def quality(folder: Run, config: UapConfig, cell: Cell, data: ImageSet) -> dict[str, Any]:
    """study.quality of the first seed's pattern."""
    delta = np.load(transfer.place(folder, cell))[0]
    seen = Condition(cell.name, "uap", "", delta, shape=kind(config))
    return {"source": cell.source, "method": cell.method} | study.quality(cell.data, data, seen)
