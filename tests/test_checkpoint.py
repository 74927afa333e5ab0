"""Snapshots: whole or not at all, the newest kept, and one line when they do not fit."""

import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ffjax.checkpoint import snapshots
from ffjax.errors import InputError
from ffjax.types import UapState

SAVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from ffjax.checkpoint import snapshots
shots = snapshots(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    shots.save(step, {"a": jnp.full((300, 300), float(step))})
    print(step, flush=True)
"""


def state(fill: float = 1.0, patterns: int = 3) -> UapState:
    delta = fill * jnp.arange(patterns * 48.0).reshape(patterns, 4, 4, 3)
    optimiser = jax.vmap(optax.chain(optax.scale_by_adam(), optax.scale(1.0)).init)(delta)
    zeros = jnp.zeros(patterns)
    return UapState(delta, optimiser, delta + 1, zeros - jnp.inf, zeros, jnp.zeros(patterns, jnp.int32), zeros > 0)


@pytest.fixture
def shots(tmp_path):
    opened = snapshots(tmp_path / "checkpoints")
    yield opened
    opened.close()


def same(a, b) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.array_equal(x, y) and x.dtype == y.dtype and x.sharding == y.sharding
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_round_trip_keeps_types_shapes_places_and_infinities(shots):
    shots.save(7, state(2.0))
    step, back = shots.restore(state())
    assert step == 7
    assert isinstance(back, UapState)
    assert same(back, state(2.0))


def test_nothing_saved_gives_what_was_handed_in(shots):
    like = state()
    assert shots.restore(like) == (0, like)


def test_the_newest_are_kept(shots, tmp_path):
    for step in (1, 2, 5, 9):
        shots.save(step, state(float(step)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "9"]
    step, back = shots.restore(state())
    assert step == 9
    assert same(back, state(9.0))


def test_another_opening_finds_them(shots, tmp_path):
    shots.save(3, state(3.0))
    again = snapshots(tmp_path / "checkpoints")
    step, back = again.restore(state())
    again.close()
    assert step == 3
    assert same(back, state(3.0))


@pytest.mark.parametrize(
    "like",
    [
        state(patterns=4),
        state()._replace(delta=jnp.zeros((3, 4, 4, 3), jnp.bfloat16)),
        state()._replace(optimiser=()),
        state()._replace(stale=(jnp.zeros(3), jnp.zeros(3))),
        {"a": 0},
    ],
    ids=["shape", "type", "missing", "extra", "another tree"],
)
def test_a_snapshot_that_does_not_fit_is_refused_in_one_line(shots, like):
    shots.save(3, state())
    like = jax.tree.map(jnp.asarray, like)
    with pytest.raises(InputError, match="cannot resume from this snapshot") as caught:
        shots.restore(like)
    assert "\n" not in str(caught.value)
    assert "checkpoints/3" in str(caught.value)
    assert " there, " in str(caught.value)  # it says which leaf


def test_a_damaged_snapshot_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "checkpoints"
    first = snapshots(folder)
    first.save(3, state())
    first.close()
    for file in (folder / "3" / "default").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = snapshots(folder)
    with pytest.raises(InputError) as caught:
        again.restore(state())
    again.close()
    assert "\n" not in str(caught.value)


def test_leftovers_of_a_killed_save_do_not_matter(tmp_path):
    folder = tmp_path / "checkpoints"
    first = snapshots(folder)
    first.save(3, state(3.0))
    first.close()
    # what orbax writes beside, as it looks half-way
    for name in ("6.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp-123"):
        shutil.copytree(folder / "3", folder / name)
        (folder / name / "_CHECKPOINT_METADATA").unlink()
    again = snapshots(folder)
    step, back = again.restore(state())
    assert step == 3
    assert same(back, state(3.0))
    again.save(6, state(6.0))
    assert again.restore(state())[0] == 6
    again.close()


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_a_whole_snapshot(tmp_path):
    folder, like = tmp_path / "checkpoints", {"a": jnp.zeros((300, 300))}
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(3)][-1]
    process.send_signal(signal.SIGKILL)  # most likely amid the fourth save
    process.communicate()
    again = snapshots(folder)
    step, back = again.restore(like)
    again.close()
    assert step >= acknowledged
    np.testing.assert_array_equal(back["a"], float(step))
