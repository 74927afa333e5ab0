"""THE orbax file: snapshots of a pytree by step number, written whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from ffjax.errors import InputError


class Snapshots(NamedTuple):
    """save(step, state); restore(like) -> (step, state) of the newest snapshot, or (0, like) if there is none, with
    every leaf placed as in `like`; close()."""

    save: Callable[[int, Any], None]
    restore: Callable[[Any], tuple[int, Any]]
    close: Callable[[], None]


def snapshots(folder: Path, keep: int = 2) -> Snapshots:
    """Snapshots under `folder`, the newest `keep` of them. A process killed while saving leaves the older ones whole:
    orbax writes beside and renames. Raises InputError from `restore` if the newest does not fit `like`."""
    # synchronous: the engine donates the state to the next step, and a snapshot of a few MB costs some 30 ms
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(step: int, state: Any) -> None:
        manager.save(step, args=ocp.args.StandardSave(state))

    def restore(like: Any) -> tuple[int, Any]:
        step = manager.latest_step()
        if step is None:
            return 0, like
        try:
            return step, manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{folder / str(step)}: cannot resume from this snapshot: {reason}") from error

    return Snapshots(save, restore, manager.close)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
