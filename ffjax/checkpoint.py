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
    manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler())

    def save(step: int, state: Any) -> None:
        manager.save(step, args=ocp.args.StandardSave(state))

    def restore(like: Any) -> tuple[int, Any]:
        step = manager.latest_step()
        if step is None:
            return 0, like
        try:
            # asked first: where orbax itself refuses, reads under way in its threads print tracebacks of their own
            misfit = _difference(_named(manager.item_metadata(step)), _named(like))
            if misfit:
                raise ValueError(misfit)
            return step, manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{folder / str(step)}: cannot resume from this snapshot: {reason}") from error

    return Snapshots(save, restore, manager.close)


def _named(tree: Any) -> dict[str, str]:
    """Leaf by leaf, path -> type and shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _difference(there: dict[str, str], asked: dict[str, str]) -> str:
    """The first leaf in which two trees differ, or ''."""
    for name in [*asked, *there]:
        if there.get(name) != asked.get(name):
            return f"{name} is {there.get(name, 'missing')} there, {asked.get(name, 'missing')} asked"
    return ""


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
