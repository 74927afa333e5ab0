"""What a kill must not lose of the batch that is being attacked: a long attack goes on from its last snapshot.

A batch is attacked in one stage (a plain attack) or in several: the members of an ensemble, restarts, halvings of the
bound. Each stage has a folder of its own, named after a digest of everything that its result follows from, so that
nothing made of other images, bounds, seeds or settings is ever taken up: a stage that is asked for anew is either this
one or unknown. The stages that were through are read back and not run again.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffjax import checkpoint, run
from ffjax.attempts import Stage
from ffjax.study import digest
from ffjax.types import AttackResult, Batch


def stage(folder: Path, settings: Sequence[Any], batch: Batch, eps: np.ndarray, seed: int) -> Stage:
    """The stage of `folder` with these inputs. settings: whatever else decides the result, by its str(), and the shape
    of the state (how many rows it is padded to). Touches nothing until it saves."""
    inputs = [np.zeros(0) if x is None else x for x in batch]
    place = folder / digest([np.array([str(x) for x in (*settings, seed)]), eps, *inputs])
    result = place / "result.npz"

    def restore(like: Any) -> tuple[int, Any]:
        if not place.exists():
            return 0, like
        shots = checkpoint.snapshots(place / "snapshots")
        try:
            return shots.restore(like)
        finally:
            shots.close()

    opened: list[checkpoint.Snapshots] = []

    def save(done: int, state: Any) -> None:
        if not opened:
            opened.append(checkpoint.snapshots(place / "snapshots"))
        opened[0].save(done, state)

    def finish(found: AttackResult) -> None:
        place.mkdir(parents=True, exist_ok=True)
        run.save_arrays(result, {name: np.asarray(x) for name, x in found._asdict().items()})
        for shots in opened:
            shots.close()
        shutil.rmtree(place / "snapshots", ignore_errors=True)

    return Stage(_result(result) if result.exists() else None, restore, save, finish)


def clear(folder: Path) -> None:
    """Once the batch is in the ledger: nothing of it is needed any more."""
    shutil.rmtree(folder, ignore_errors=True)


def _result(path: Path) -> AttackResult:
    with np.load(path) as file:
        return AttackResult(**{name: file[name] for name in AttackResult._fields})
