"""The cells of a study of Huang et al.'s claims: what is kept of each, and what they amount to, row by row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjax import crossed, evaluate, huang, study, transfer
from ffjax.data import sets
from ffjax.data.codecs import STORAGE
from ffjax.engine import Compute
from ffjax.huang import Said
from ffjax.metrics import Estimate
from ffjax.run import Run
from ffjax.transfer import CLEAN, Cell, Sheet
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import UapConfig

NOISE = "noise"
"""The method of the cells that hold all draws of sign noise."""


def scored(
    shown: Sequence[np.ndarray],
    networks: Mapping[str, Source],
    data: ImageSet,
    stored: Sequence[str],
    compute: Compute,
) -> dict[str, np.ndarray]:
    """TARGET|STORAGE -> (P, N) margins; and of a target with a mask, where the set has true ones, iou|TARGET|STORAGE
    and area|TARGET|STORAGE, (P, N)."""
    found: dict[str, list[np.ndarray]] = {}
    for images in shown:
        for storage in ("float", *stored):
            seen = STORAGE[storage](images)
            for name, one in networks.items():
                key = f"{name}|{storage}"
                found.setdefault(key, []).append(evaluate.margins(one.forward, seen, compute))
                if data.masks is not None and study.has_mask(one, data.images.shape[1]):
                    overlap = evaluate.mask_overlap(one.forward, seen, data.masks, compute)
                    area = evaluate.forged(one.forward, seen, compute).mean(axis=(1, 2))
                    found.setdefault(f"iou|{key}", []).append(overlap)
                    found.setdefault(f"area|{key}", []).append(area)
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
        clean, noise = (transfer.read(transfer.path(folder, Cell(name, "", kind))) for kind in (CLEAN, NOISE))
        sheet = Sheet(data.labels, data.groups, {key: values[0] for key, values in clean.items()}, [])
        able = {target: huang.competent(sheet, target) for target in networks}
        rungs: dict[str, dict[str, Said]] = {}
        for cell in [c for c in every if c.data == name and c.source]:
            scores = transfer.read(transfer.path(folder, cell))
            for target in networks:
                for storage in ("float", *stored):
                    said = Said(scores[f"{target}|{storage}"], noise[f"{target}|{storage}"])
                    place = {"data": name, "source": cell.source, "method": cell.method, "target": target}
                    place |= {"storage": storage, "competent": able[target]}
                    rows += [
                        place | {"measure": measure, "found": huang.row(sheet, target, storage, said, measure)}
                        for measure in huang.MEASURES
                    ]
                    if target == cell.source and storage == "float":
                        rungs.setdefault(cell.source, {})[cell.method] = said
            masks += [row | {"competent": able[cell.source]} for row in _masks(sheet, cell, scores, noise, clean)]
        for source, said in rungs.items():
            place = {"data": name, "source": source, "competent": able[source]}
            ladder += [place | rung for rung in huang.rungs(sheet, source, said)]
    return rows, ladder, masks


def _masks(sheet: Sheet, cell: Cell, scores: dict, noise: dict, clean: dict) -> list[dict]:
    """IoU with the true mask and area shown forged, on fakes that the source calls rightly clean."""
    key = f"{cell.source}|float"
    rows = (sheet.labels == 1) & (sheet.clean[key] > 0)
    if f"iou|{key}" not in scores or not rows.any():
        return []
    found, groups = [], sheet.groups[rows]
    for measure, name in (("iou", "IoU with the true mask"), ("area", "area shown forged")):
        values, draws, before = (one[f"{measure}|{key}"][:, rows] for one in (scores, noise, clean))
        told = {"rate": crossed.mean(values, groups), "noise": crossed.mean(draws, groups)}
        told |= {"clean": crossed.mean(before, groups), "over_noise": crossed.difference(values, draws, groups)}
        found.append({"data": cell.data, "source": cell.source, "method": cell.method, "measure": name, "found": told})
    return found


def quality(folder: Run, config: UapConfig, cell: Cell, data: ImageSet) -> dict[str, Any]:
    """PSNR and SSIM of the first seed's pattern on 40 images spread over the set."""
    few = sets.taken(data, np.linspace(0, len(data.labels) - 1, min(40, len(data.labels))).astype(int))
    delta = np.load(folder / f"patterns/{cell.name}/patterns.npy")[0]
    shown = transfer.universally(few, delta, config)
    place = {"data": cell.data, "source": cell.source, "method": cell.method}
    return place | huang.quality(few.images, shown)


def plain(value: Any) -> Any:
    """For JSON: estimates as objects, NaN as null."""
    if isinstance(value, Estimate):
        return {k: None if v != v else v for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
