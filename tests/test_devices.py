"""Several devices give what one gives. In a process of its own, since JAX counts its CPU devices once, at its start."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax import devices
from ffjax.errors import InputError

JOBS = [f"{mode} {execution}" for mode in ("no_data", "range_prior") for execution in ("stepped", "fused")]


@pytest.fixture(scope="module", params=[2, 8])
def report(request) -> dict:
    folder = Path(__file__).parent
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={request.param}",
        "PYTHONPATH": str(folder),
    }
    command = [sys.executable, "-W", "error", str(folder / "on_devices.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == request.param
    return found


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_job_on_several_devices_is_the_job_on_one(report, job):
    """One gradient to 1e-6 of its largest component. From there on Adam's first steps are nearly signs, which turn
    rounding into whole steps where the gradient is about 0; such components hardly bear on the objective, so it is
    the objective that is compared (1e-4), and of the pattern that all but one component in a hundred are the same."""
    found = report["jobs"][job]
    if "stepped" in job:  # fused gives no state after one step
        assert found["gradient"] < 1e-6
    assert found["first"] < 1e-6
    assert found["objective"] < 1e-4
    assert found["best_score"] < 1e-4
    assert found["moved"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_the_work_is_spread_and_compiled_once(report, job):
    assert report["jobs"][job]["compiled"] == 1  # no second program when the state comes back placed otherwise
    assert report["jobs"][job]["spread"] == (report["devices"] if "no_data" in job else 1)


@pytest.mark.slow
def test_a_training_on_several_devices_is_the_training_on_one(report):
    """Batch statistics are the whole batch's; from the first step on, Adam magnifies rounding, as above."""
    found = report["training"]
    assert found["steps"] == 8 and found["first"] < 1e-6 and found["loss"] < 1e-5


@pytest.mark.slow
def test_patterns_spread_over_devices_need_no_collective(report):
    assert report["collectives"]["no_data"] == {}


@pytest.mark.slow
def test_images_spread_over_devices_need_one_all_reduce_of_the_gradient(report):
    """And one of the S scores; no images or activations travel."""
    found = report["collectives"]["range_prior"]
    assert set(found) == {"all-reduce"}
    assert len(found["all-reduce"]) <= 3
    assert sum("12,12,3" in shapes for shapes in found["all-reduce"]) == 1


@pytest.mark.slow
def test_evaluation_on_several_devices(report):
    assert report["margins"] < 1e-5


def test_split_spreads_what_divides_and_replicates_the_rest():
    on = devices.mesh(1)
    tree = {"a": jnp.zeros((4, 2)), "b": np.float32(3), "c": jnp.zeros((0, 2))}
    there = devices.split(tree, on)
    assert jax.tree.map(np.shape, there) == jax.tree.map(np.shape, tree)
    assert all(leaf.sharding.mesh == on for leaf in jax.tree.leaves(there))
    assert devices.shardings(there)["a"] == there["a"].sharding


def test_more_devices_than_there_are_is_refused():
    for count in (0, -1, len(jax.devices()) + 1):
        with pytest.raises(InputError, match=r"compute\.devices"):
            devices.mesh(count)


def test_held_memory_is_used_again_without_being_mapped_anew():
    """Of 64 MB that are freed and asked for five times over, as many pages are mapped as for one."""
    told = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=100)
    held, faults = told.stdout.split()
    if held == "False":
        pytest.skip("the C library is not glibc: there is no mallopt")
    assert int(faults) < 1.5 * (64 << 20) / resource.getpagesize()


HELD = """
import ctypes, resource
from ffjax import devices

held, libc = devices.hold_memory(), ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(held, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
