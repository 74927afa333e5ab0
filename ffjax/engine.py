"""THE loop. Drives anything of the form `step(i, state, inputs, *args) -> (state, info)`: universal perturbations,
training, and, through `run`, everything that is done to each image on its own.

Two executions of one definition: *fused* runs a chunk of steps as one XLA scan (accelerators); *stepped* calls the
jitted step from the host (on CPU XLA runs convolutions inside loops on one thread: reference/PERFORMANCE.md).
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import devices
from ffjax.types import Array, AttackResult, Batch, Forward, Process


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How, never what: no field here changes a result beyond rounding.

    execution: `auto` takes `stepped` on CPU and `fused` elsewhere. chunk: steps between two visits of the host
    (progress, log), at most. snapshot: steps between two snapshots on disk. devices: how many to use; all by default.
    batch: images per forward pass, and rows of an attack at work at once. least: rows a device that a shrinking attack
    keeps at least; below 8 XLA:CPU picks kernels that round otherwise (on tiny detectors below some 20).
    """

    execution: Literal["auto", "fused", "stepped"] = "auto"
    chunk: int = 20
    snapshot: int = 100
    devices: int | None = None
    batch: int = 32
    least: int = 8


OFTEN = 4
"""At most so many steps lie between two visits of an attack that is stepped: the host is there anyway, and rows that
are done leave the sooner."""


def drive(
    step: Callable[..., tuple[Any, Any]],
    state: Any,
    args: tuple,
    steps: int,
    compute: Compute,
    *,
    inputs: Callable[[int], Any] = lambda i: None,
    start: int = 0,
) -> Iterator[tuple[int, Any, Any]]:
    """Runs steps start..steps-1 and yields (steps done, state, infos of the chunk with a leading step axis, on host).

    Args:
      step: pure; (i () int32, state, inputs(i), *args) -> (state, info). Pass the same function object to reuse its
        compilation; weights and bounds belong in `args`, so that new ones do not retrace.
      state: pytree of arrays. DONATED (but for `stepped` on CPU, where it is kept for speed): neither it nor a yielded
        state may be used after the next chunk has begun.
      inputs: step number -> pytree of arrays, a pure function, so that a resumed run sees the same inputs.
    Guarantee: the same states whatever `chunk` and `start` (a run cut at any yield and driven on from there is
      bit-equal under `stepped`); `fused` and `stepped` agree to rounding.
    """
    on = devices.mesh(compute.devices)
    run = _fused if fuses(compute) else functools.partial(_stepped, wait=devices.needs_blocking(on))
    while start < steps:
        end = min(steps, (start // compute.chunk + 1) * compute.chunk)
        state, infos = run(step, state, args, inputs, range(start, end))
        start = end
        yield start, state, infos


def fuses(compute: Compute) -> bool:
    """Which of the two executions it is on this backend."""
    return compute.execution == "fused" or (compute.execution == "auto" and jax.default_backend() != "cpu")


def capacity(compute: Compute) -> int:
    """How many rows `run` takes, and pads fewer to: as many as the devices share evenly."""
    on = devices.mesh(compute.devices).size
    return -(-max(compute.batch, compute.least * on) // on) * on


def run(
    process: Process,
    forward: Forward,
    batch: Batch,
    eps: np.ndarray | float,
    seed: int,
    compute: Compute,
    *,
    restore: Callable[[Any], tuple[int, Any]] = lambda state: (0, state),
    save: Callable[[int, Any], None] | None = None,
    watch: Callable[[int, int], None] = lambda done, active: None,
) -> AttackResult:
    """A process over the rows of a host batch, `capacity` of them or fewer -> its result, on the host.

    Rows that are done are dropped: once half are, the others go on in an array of the next smaller power of two.

    Args:
      forward: a `jax.tree_util.Partial`. eps: the bound, one for all or one a row.
      restore, save: checkpoint.Snapshots' own; the state of all rows is saved every compute.snapshot steps, or at each
        visit of the host if those are rarer.
      watch(steps done, rows still at work): after each chunk.
    Guarantee: a row's result does not depend on the others, their number or order, on chunk, or on where a run was cut
      (bit-equal on one CPU device).
    """
    on, count = devices.mesh(compute.devices), len(batch.labels)
    least, size = compute.least * on.size, capacity(compute)
    if not 0 < count <= size:
        raise ValueError(f"1 to {size} rows, got {count}")
    if not fuses(compute):
        compute = replace(compute, chunk=min(compute.chunk, OFTEN))
    padding = np.minimum(np.arange(size), count - 1)
    bounds, seeds = np.broadcast_to(np.float32(eps), count)[padding], np.full(size, seed, np.uint32)
    rows = devices.split((_take(batch, padding), bounds, seeds), on)
    done, state = restore(_init(process.init, forward, *rows))
    whole = _host(state)
    active = np.arange(count)[~np.asarray(whole.done)[:count]]
    while len(active) and done < process.steps:
        few = min(size, max(least, 1 << (len(active) - 1).bit_length()))
        state = devices.split(_take(whole, active[np.minimum(np.arange(few), len(active) - 1)]), on)
        steps = drive(_informed(process.step), state, (forward,), process.steps, compute, start=done)
        for done, state, finished in steps:
            left = int(np.sum(~finished[-1][: len(active)]))
            watch(done, left)
            if save is not None and done % compute.snapshot < compute.chunk:
                whole = _put(whole, active, state)
                save(done, whole)
            if left == 0 or 2 * max(left, least) <= few:
                break
        whole = _put(whole, active, state)
        active = active[~np.asarray(whole.done)[active]]
    result = _finish(process.finish, devices.split(whole, on), forward)
    return _take(_host(result), np.arange(count))


@functools.cache
def _informed(step: Callable[..., Any]) -> Callable[..., tuple[Any, Array]]:
    """As `drive` wants it; one object a step, so that it is compiled once."""

    def informed(i: Array, state: Any, nothing: None, forward: Forward) -> tuple[Any, Array]:
        state = step(i, state, forward)
        return state, state.done

    return informed


@functools.partial(jax.jit, static_argnums=0)
def _init(init, forward, batch, eps, seeds):
    return init(forward, batch, eps, seeds)


@functools.partial(jax.jit, static_argnums=0)
def _finish(finish, state, forward):
    return finish(state, forward)


def _host(tree: Any) -> Any:
    """Copies: a NumPy view of a CPU device's array would change under donation."""
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def _take(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[rows], tree)


def _put(whole: Any, rows: np.ndarray, state: Any) -> Any:
    """`whole` with its `rows` replaced by the first rows of `state`."""

    def put(old: np.ndarray, new: Array) -> np.ndarray:
        old[rows] = np.asarray(new)[: len(rows)]
        return old

    return jax.tree.map(put, whole, state)


def _stepped(step, state, args, inputs, numbers, wait):
    """The host calls one jitted step at a time, and prepares the next inputs while it runs; infos are fetched once."""
    one, infos = _keeping if jax.default_backend() == "cpu" else _donating, []
    for i in numbers:
        state, info = one(step, jnp.int32(i), state, inputs(i), args)
        if wait:
            jax.block_until_ready(state)
        infos.append(info)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(infos))


def _fused(step, state, args, inputs, numbers):
    """One XLA program per chunk length (at most two: the usual one and a last, shorter one)."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[inputs(i) for i in numbers])
    state, infos = _chunk(step, len(numbers), jnp.int32(numbers[0]), state, stacked, args)
    return state, jax.device_get(infos)


def _called(step, i, state, x, args):
    return step(i, state, x, *args)


_donating = jax.jit(_called, static_argnums=0, donate_argnums=2)


def _keeping(step, i, state, x, args):
    """For CPU, where a step that may write over the state it reads copies that first (half as long again for APGD on
    Meso-4), and a program also copies what it returns untouched: that stays outside."""
    changed, info = _changed(step, i, state, x, args)
    return jax.tree.map(lambda new, old: old if new is None else new, changed, state, is_leaf=lambda x: x is None), info


@functools.partial(jax.jit, static_argnums=0)
def _changed(step, i, state, x, args):
    """As `_called`, with None in the place of every leaf of the state that the step hands on as it is."""
    after, info = _called(step, i, state, x, args)
    return jax.tree.map(lambda new, old: None if new is old else new, after, state), info


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk(step, count, first, state, stacked, args):
    def body(state, ix):
        i, x = ix
        return step(i, state, x, *args)

    return jax.lax.scan(body, state, (first + jnp.arange(count), stacked))
