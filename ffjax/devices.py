"""THE device file: one mesh over all devices, and where arrays live on it. Nothing else names a sharding."""

import ctypes
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ffjax.errors import InputError

AXIS = "data"


def start() -> None:
    """Join the other hosts of a pod or cluster when FFJAX_DISTRIBUTED=1; must come before any other use of JAX.

    Coordinator, host count and rank are found by JAX itself on TPU pods and Slurm; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say them.
    """
    if os.environ.get("FFJAX_DISTRIBUTED") == "1":
        count, rank = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=int(count) if count else None, process_id=int(rank) if rank else None)


def hold_memory() -> bool:
    """This process keeps the memory it has once had, to use again, until it ends; whether that could be arranged (it
    can with glibc). Otherwise glibc hands back every buffer of over 32 MB and has it mapped page by page when the next
    one is asked for, which takes a third of the time of a large network's step."""
    no_maps, never, one_arena = (-4, 0), (-1, 2**31 - 1), (-8, 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(*option) == 1 for option in (no_maps, never, one_arena)])


def first_host() -> bool:
    """Whether this process writes files and draws progress."""
    return jax.process_index() == 0


def mesh(count: int | None = None) -> Mesh:
    """A one-axis mesh over the first `count` devices (all by default). Auto axes: XLA places the collectives.

    Raises InputError if there are fewer.
    """
    devices = jax.devices()
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"compute.devices {count}: there are {len(devices)}")
    return Mesh(np.array(devices[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def split(tree: Any, on: Mesh) -> Any:
    """Leading axis spread over the mesh, leaf by leaf; a leaf whose leading axis does not divide is replicated."""
    return jax.device_put(tree, jax.tree.map(lambda x: _leading(np.shape(x), on), tree))


def replicate(tree: Any, on: Mesh) -> Any:
    """The whole of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(on, PartitionSpec()))


def shardings(tree: Any) -> Any:
    """The sharding of every leaf that is on a device: to restore a snapshot where it was."""
    return jax.tree.map(lambda x: x.sharding, tree)


def needs_blocking(on: Mesh) -> bool:
    """On several CPU devices of one process, steps queued asynchronously can deadlock in a collective (reference/
    PERFORMANCE.md: 4 of 6 runs aborted; none with a wait after each step)."""
    return jax.default_backend() == "cpu" and on.size > 1


def memory(on: Mesh) -> int | None:
    """Bytes that arrays may take on all devices of the mesh together, as this host's say of themselves; None where they
    do not, as CPUs."""
    told = [device.memory_stats() or {} for device in on.local_devices]
    return on.size * min(one["bytes_limit"] for one in told) if all("bytes_limit" in one for one in told) else None


def accelerated() -> bool:
    """Whether programs run on anything but a CPU."""
    return jax.default_backend() != "cpu"


def _leading(shape: tuple[int, ...], on: Mesh) -> NamedSharding:
    divides = len(shape) > 0 and shape[0] > 0 and shape[0] % on.size == 0
    return NamedSharding(on, PartitionSpec(AXIS) if divides else PartitionSpec())
