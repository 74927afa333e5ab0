"""A whole data set attacked image by image: which images count, what is written down of each, and what it amounts to.

Success has one meaning everywhere: among the images that the detector called rightly, the share whose verdict is wrong
afterwards, in float and after storage, fakes and reals apart.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ffjax import imagequality, ledger, metrics
from ffjax.attempts import Runner
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.metrics import Estimate
from ffjax.types import AttackResult, Batch, Forward, ImageSet

Row = dict[str, Any]
KINDS = ("clean", "noise", "attacked")
Look = Callable[[Batch, np.ndarray], dict[str, np.ndarray]]
"""(batch, images (B, H, W, C) float32 in [0, 1], as they are shown) -> measure -> (B,): what else is to be written
down beside the margin."""
DIRECTIONS = {"all": (0, 1), "fake_called_real": (1,), "real_called_fake": (0,)}


def attack(
    path: Path,
    data: ImageSet,
    forward: Forward,
    runner: Runner,
    noise: Runner,
    eps: float,
    *,
    minimal: bool,
    threshold: float,
    qualities: Sequence[int],
    seed: int,
    compute: Compute,
    wanted: np.ndarray | None = None,
    looks: Mapping[str, Look] = MappingProxyType({}),
    note: Callable[[int], Row] = lambda i: {},
    keep: Callable[[np.ndarray, AttackResult], None] = lambda ids, result: None,
    tell: Callable[[int, str], None] = lambda done, note: None,
) -> list[Row]:
    """Attacks every image that the detector calls rightly and that the ledger at `path` does not hold yet.

    Args:
      runner, noise: the attack and its baseline, which is given the same bound or, for a minimal-norm attack, each
        image's own distance. threshold: the margin above which the detector says fake.
      qualities: of real JPEG, at which each result is called again, as it is after PNG.
      wanted: (N, H, W) masks that an attack on the mask is after. looks: name -> what else to write of each image as it
      is shown, under that name: kind -> form -> measure. note(i): what else to write of image i. keep(ids, result): for
      whoever saves images.
    Returns the ledger's rows, one an image: see `_row`. Rows are a function of image, settings and seed alone.
    """
    rows = ledger.read(path)
    known = known_ids(path, rows, data)
    clean = margins(forward, data.images, compute)
    right = (clean > threshold) == (data.labels == 1)
    for ids in _batches(np.array([i for i in range(len(clean)) if i not in known], int), compute.batch, right):
        chosen = ids[right[ids]]
        new = [_untouched(data, i, clean[i]) for i in ids[~right[ids]]]
        if len(chosen):
            began = time.monotonic()
            batch = batch_of(data, chosen, wanted)
            result = runner(batch, np.full(len(chosen), eps, np.float32), seed)
            seconds = (time.monotonic() - began) / len(chosen)
            bound = np.where(result.success, result.distance, 0) if minimal else np.full(len(chosen), eps)
            drawn = noise(batch, bound.astype(np.float32), seed)
            shown = {"clean": batch.images, "noise": drawn.images, "attacked": result.images}
            stored = {kind: _stored(images, qualities) for kind, images in shown.items()}
            said = _over(stored, lambda images: margins(forward, images, compute))
            seen = {name: _over(stored, partial(look, batch)) for name, look in looks.items()}
            for k, i in enumerate(chosen):
                row = _row(data, i, _of(result, k), _at(said, k)) | {"noise_distance": float(drawn.distance[k])}
                row |= {name: _at(found, k) for name, found in seen.items()}
                new.append(row | {"seconds": round(seconds, 4)} | note(int(i)))
            keep(chosen, result)
        ledger.append(path, new)
        rows += new
        tell(len(rows), f"{sum(row.get('success', False) for row in rows)} broken")
    tell(len(rows), "")  # a kill right after the last batch has left its snapshots
    return sorted(rows, key=lambda row: row["id"])


def known_ids(path: Path, rows: Sequence[Row], data: ImageSet) -> set[int]:
    """The images that the ledger holds. InputError for a line that is of no image of the set, or of one twice."""
    known: set[int] = set()
    for number, row in enumerate(rows, start=1):
        i = row.get("id")
        if not isinstance(i, int) or not 0 <= i < len(data.labels) or row.get("name") != data.names[i]:
            raise InputError(f"{path}: line {number} is of no image of this set")
        if i in known:
            raise InputError(f"{path}: line {number} is of image {i}, which another line is of (two runs at once?)")
        known.add(i)
    return known


def check_qualities(qualities: Sequence[int]) -> None:
    """InputError for what JPEG has no such quality of."""
    wrong = [quality for quality in qualities if not 1 <= quality <= 100]
    if wrong:
        raise InputError(f"jpeg: qualities are whole numbers from 1 to 100, got {wrong[0]}")


def check_seed(seed: int) -> None:
    """InputError for what is no seed."""
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed: must be from 0 to 2^32 - 1, got {seed}")


def summary(rows: Sequence[Row], threshold: float, resamples: int = 1000) -> dict[str, Any]:
    """What the rows amount to, each share with its 95 % cluster-bootstrap interval and its denominator.

    clean_accuracy and robust_accuracy over all images. For each direction (all, fake_called_real, real_called_fake),
    over the images called rightly: success and success_8bit, by the attack's own test; and wrong[kind][form], the share
    called wrongly, kind being clean, noise or attacked, and form float, png or jpegQ. of_successes: quartiles of
    distance, psnr and ssim. cost: mean gradients, queries and seconds an attacked image.
    """
    labels, groups = (np.array([row[name] for row in rows]) for name in ("label", "group"))
    attacked = np.array(["success" in row for row in rows])
    share = partial(metrics.share, resamples=resamples)
    broken = np.array([row.get("success", False) for row in rows])
    found: dict[str, Any] = {
        "clean_accuracy": share(attacked.astype(float), groups),
        "robust_accuracy": share((attacked & ~broken).astype(float), groups),
    }
    tried = [row for row in rows if "success" in row]
    for direction, classes in DIRECTIONS.items():
        found[direction] = _direction([row for row in tried if row["label"] in classes], threshold, share)
    won = [row for row in tried if row["success"]]
    found["of_successes"] = {
        name: metrics.quartiles([row[name] for row in won]) for name in ("distance", "psnr", "ssim")
    }
    found["cost"] = {name: _mean([row[name] for row in tried]) for name in ("gradients", "queries", "seconds")}
    found["counts"] = {"images": len(rows), "attacked": len(tried), "fakes": int(np.sum(labels == 1))}
    return found


def _direction(rows: Sequence[Row], threshold: float, share: Callable[..., Estimate]) -> dict[str, Any]:
    """The shares of rows of one direction; none where there is no row."""
    if not rows:
        return {}
    groups = np.array([row["group"] for row in rows])

    def wrong(kind: str, form: str) -> Estimate:
        calls = [(row["margins"][kind][form] > threshold) != (row["label"] == 1) for row in rows]
        return share(np.array(calls, float), groups)

    flags = {name: share(np.array([row[name] for row in rows], float), groups) for name in ("success", "success_8bit")}
    forms = rows[0]["margins"]["clean"]
    return flags | {"wrong": {kind: {form: wrong(kind, form) for form in forms} for kind in KINDS}}


def _batches(ids: np.ndarray, size: int, right: np.ndarray) -> Iterable[np.ndarray]:
    """As many images at a time as hold `size` that are called rightly: the others cost nothing."""
    ends = np.flatnonzero(np.cumsum(right[ids]) % size == 0)
    cuts = [int(end) + 1 for end in ends if right[ids][end]]
    return [part for part in np.split(ids, cuts) if len(part)]


def batch_of(data: ImageSet, ids: np.ndarray, wanted: np.ndarray | None = None) -> Batch:
    """These images of the set. wanted (N, H, W): the masks that are wanted of the whole set."""
    masks = None if data.masks is None else codecs.to_float(data.masks[ids])
    labels = data.labels[ids].astype(np.int32)
    chosen = None if wanted is None else wanted[ids]
    return Batch(codecs.to_float(data.images[ids]), labels, ids.astype(np.int32), masks, chosen)


def _stored(images: np.ndarray, qualities: Sequence[int]) -> dict[str, np.ndarray]:
    """Form -> images: float as attacked, png, and jpegQ through the real encoder."""
    return {"float": images, "png": codecs.png(images)} | {f"jpeg{q}": codecs.jpeg(images, q) for q in qualities}


def _over(stored: dict[str, dict[str, np.ndarray]], look: Callable[[np.ndarray], Any]) -> dict[str, dict[str, Any]]:
    return {kind: {form: look(images) for form, images in forms.items()} for kind, forms in stored.items()}


def _untouched(data: ImageSet, i: int, margin: np.ndarray) -> Row:
    """An image that is called wrongly as it is, and so neither attacked nor counted among successes."""
    return _named(data, i) | {"margin": float(margin)}


def _named(data: ImageSet, i: int) -> Row:
    return {"id": int(i), "name": data.names[i], "label": int(data.labels[i]), "group": int(data.groups[i])}


def _row(data: ImageSet, i: int, one: AttackResult, said: dict[str, dict[str, float]]) -> Row:
    """An attacked image: who it is, what came of it, how far and how visible, at what cost; margins: kind -> form ->
    what the detector says."""
    before, after = codecs.to_float(data.images[i : i + 1]), np.asarray(one.images)[None]
    quality = float(imagequality.psnr(before, after)[0])
    return _named(data, i) | {
        "success": bool(one.success),
        "success_8bit": bool(one.success_8bit),
        "loss": float(one.loss),
        "distance": float(one.distance),
        "linf": float(np.abs(after - before).max()),
        "l2": float(np.linalg.norm((after - before).astype(np.float64))),
        "psnr": quality if np.isfinite(quality) else None,
        "ssim": float(imagequality.ssim(before, after)[0]),
        "margins": said,
        "gradients": int(one.gradients),
        "queries": int(one.queries),
    }


def _at(tree: Any, k: int) -> Any:
    """Nested dicts of arrays (B,) -> the same of the numbers in place k."""
    return {key: _at(value, k) for key, value in tree.items()} if isinstance(tree, dict) else float(tree[k])


def _of(result: AttackResult, k: int) -> AttackResult:
    return AttackResult(*(x[k] for x in result))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
