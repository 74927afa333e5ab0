"""THE loop. Drives anything of the form `step(i, state, inputs, *args) -> (state, info)`: universal perturbations and
training now, per-example attacks and purifiers later.

Two executions of one definition: *fused* runs a chunk of steps as one XLA scan (accelerators); *stepped* calls the
jitted step from the host (on CPU XLA runs convolutions inside loops on one thread: reference/PERFORMANCE.md).
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import devices


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How, never what: no field here changes a result beyond rounding.

    execution: `auto` takes `stepped` on CPU and `fused` elsewhere. chunk: steps between two visits of the host
    (progress, log). snapshot: steps between two snapshots on disk. devices: how many to use; all by default.
    batch: images per forward pass in evaluation.
    """

    execution: Literal["auto", "fused", "stepped"] = "auto"
    chunk: int = 20
    snapshot: int = 100
    devices: int | None = None
    batch: int = 32


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
      state: pytree of arrays. DONATED: neither it nor a yielded state may be used after the next chunk has begun.
      inputs: step number -> pytree of arrays, a pure function, so that a resumed run sees the same inputs.
    Guarantee: the same states whatever `chunk` and `start` (a run cut at any yield and driven on from there is
      bit-equal under `stepped`); `fused` and `stepped` agree to rounding.
    """
    on = devices.mesh(compute.devices)
    fused = compute.execution == "fused" or (compute.execution == "auto" and jax.default_backend() != "cpu")
    run = _fused if fused else functools.partial(_stepped, wait=devices.needs_blocking(on))
    while start < steps:
        end = min(steps, (start // compute.chunk + 1) * compute.chunk)
        state, infos = run(step, state, args, inputs, range(start, end))
        start = end
        yield start, state, infos


def _stepped(step, state, args, inputs, numbers, wait):
    """The host calls one jitted step at a time, and prepares the next inputs while it runs; infos are fetched once."""
    infos = []
    for i in numbers:
        state, info = _one(step, jnp.int32(i), state, inputs(i), args)
        if wait:
            jax.block_until_ready(state)
        infos.append(info)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(infos))


def _fused(step, state, args, inputs, numbers):
    """One XLA program per chunk length (at most two: the usual one and a last, shorter one)."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[inputs(i) for i in numbers])
    state, infos = _chunk(step, len(numbers), jnp.int32(numbers[0]), state, stacked, args)
    return state, jax.device_get(infos)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _one(step, i, state, x, args):
    return step(i, state, x, *args)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk(step, count, first, state, stacked, args):
    def body(state, ix):
        i, x = ix
        return step(i, state, x, *args)

    return jax.lax.scan(body, state, (first + jnp.arange(count), stacked))
