"""What every attack promises, over the whole table: a new one is held to it the day it is added."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from cases import ALONE, CASES, EPS, ROWS

from ffjax import balls, checkpoint, engine, goals
from ffjax.attacks import ATTACKS, trail
from ffjax.data import codecs
from ffjax.objectives import margin
from ffjax.types import Batch

every = pytest.mark.parametrize(("name", "norm"), CASES, ids=[f"{name}-{norm}" for name, norm in CASES])


@pytest.fixture(scope="module")
def attacked():
    """(name, norm) -> (process, batch, result), each made once."""
    made = {}

    def get(name, norm):
        if (name, norm) not in made:
            process, batch = cases.process(name, norm), cases.batch()
            made[name, norm] = process, batch, engine.run(process, toys.forward(), batch, EPS[norm], 0, ALONE)
        return made[name, norm]

    return get


@every
def test_results_lie_in_ball_and_box_and_say_what_is_so(name, norm, attacked):
    _, batch, result = attacked(name, norm)
    assert result.images.min() >= 0 and result.images.max() <= 1
    distance = jax.vmap(balls.BALLS[norm](1.0).norm)(jnp.asarray(result.images - batch.images))
    np.testing.assert_allclose(result.distance, distance, rtol=1e-5, atol=1e-7)
    if ATTACKS[name].bound == "fixed":
        assert np.all(result.distance <= EPS[norm] * (1 + 1e-5) + 1e-7)
    goal = goals.verdict(ATTACKS[name].loss)
    outputs = toys.forward()(result.images)
    lead = np.asarray(margin(outputs)) * np.where(batch.labels == 1, -1, 1)
    sure = np.abs(lead) > 1e-5
    np.testing.assert_array_equal(result.success[sure], lead[sure] > 0)
    np.testing.assert_allclose(result.loss, goal.objective(outputs, batch), rtol=1e-4, atol=1e-5)
    stored = np.asarray(margin(toys.forward()(codecs.to_float(codecs.to_uint8(result.images)))))
    stored = stored * np.where(batch.labels == 1, -1, 1)
    sure = np.abs(stored) > 1e-5
    np.testing.assert_array_equal(result.success_8bit[sure], stored[sure] > 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_another_seed_gives_another_result_where_the_table_says_so(name, attacked):
    process, batch, result = attacked(name, ATTACKS[name].norms[0])
    other = engine.run(process, toys.forward(), batch, EPS[ATTACKS[name].norms[0]], 1, ALONE)
    assert np.array_equal(result.images, other.images) != ATTACKS[name].seeded


@pytest.mark.parametrize("norm", ATTACKS["noise"].norms)
def test_noise_has_the_size_it_is_said_to_have(norm, attacked):
    """Of an image that it does not turn too: what is shown beside an attack must not be the clean image."""
    _, batch, result = attacked("noise", norm)
    said = np.asarray(margin(toys.forward()(batch.images))) > 0
    right = said == (batch.labels == 1)
    assert right.any() and not result.success.all()
    np.testing.assert_allclose(result.distance[right], cases.EPS[norm], rtol=0.01)


def test_what_is_judged_as_stored_is_bit_for_bit_what_the_file_holds():
    levels = np.arange(256, dtype=np.uint8)
    near = np.clip(codecs.to_float(levels)[:, None] + np.linspace(-0.49, 0.49, 5, dtype=np.float32) / 255, 0, 1)
    held = np.asarray(jax.jit(trail.rounded)(near))
    np.testing.assert_array_equal(held, np.broadcast_to(codecs.to_float(levels)[:, None], near.shape))


@every
def test_it_does_something_and_failures_are_no_worse_than_clean(name, norm, attacked):
    _, batch, result = attacked(name, norm)
    if name == "noise":  # which is no attack
        return
    assert 0.05 < result.success.mean() <= 1, "choose another bound in cases.EPS"
    clean = goals.verdict(ATTACKS[name].loss).objective(toys.forward()(batch.images), batch)
    if ATTACKS[name].bound == "fixed":
        assert np.all(result.loss[~result.success] >= np.asarray(clean)[~result.success] - 1e-5)
    else:  # fault 1: what failed is the clean image, not a black one
        np.testing.assert_array_equal(result.images[~result.success], batch.images[~result.success])


@every
def test_rows_are_their_own_under_subset_order_padding_batch_size_chunk_and_compaction(name, norm, attacked):
    process, batch, whole = attacked(name, norm)
    for chosen, compute in (
        (np.arange(ROWS)[::-1], dataclasses.replace(ALONE, least=64)),
        (np.arange(3, ROWS, 2), dataclasses.replace(ALONE, batch=32, chunk=1)),
        (np.array([7]), dataclasses.replace(ALONE, chunk=50)),
    ):
        part = engine.run(process, toys.forward(), cases.rows(batch, chosen), EPS[norm], 0, compute)
        assert cases.same(part, cases.rows(whole, chosen))


@every
def test_fault_21_a_run_cut_anywhere_goes_on_bit_equal(name, norm, attacked):
    process, batch, whole = attacked(name, norm)
    kept = []
    often = dataclasses.replace(ALONE, chunk=2, snapshot=2)

    def save(step, state):
        kept.append((step, jax.tree.map(np.copy, state)))

    assert cases.same(engine.run(process, toys.forward(), batch, EPS[norm], 0, often, save=save), whole)
    for step, state in kept[:: max(1, len(kept) // 3)]:

        def restore(like, step=step, state=state):
            assert [x.shape for x in jax.tree.leaves(like)] == [x.shape for x in jax.tree.leaves(state)]
            return step, jax.tree.map(np.copy, state)

        assert cases.same(engine.run(process, toys.forward(), batch, EPS[norm], 0, often, restore=restore), whole)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("noise", "fgsm")])  # of one step
def test_a_run_goes_on_from_orbax_snapshots(name, attacked, tmp_path):
    norm = ATTACKS[name].norms[0]
    process, batch, whole = attacked(name, norm)
    often = dataclasses.replace(ALONE, chunk=2, snapshot=2)

    def stopped(done, left):
        if done == 4:
            raise KeyboardInterrupt

    first = checkpoint.snapshots(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        engine.run(process, toys.forward(), batch, EPS[norm], 0, often, save=first.save, watch=stopped)
    first.close()
    shots, seen = checkpoint.snapshots(tmp_path), []
    often = dataclasses.replace(ALONE, chunk=2, snapshot=1000)
    again = engine.run(
        process, toys.forward(), batch, EPS[norm], 0, often, restore=shots.restore, save=shots.save,
        watch=lambda done, left: seen.append(done),
    )  # fmt: skip
    shots.close()
    assert seen[0] == 4 and cases.same(again, whole)  # the first two steps were done


@pytest.mark.parametrize(
    ("name", "norm"), [(n, norm) for n, norm in CASES if ATTACKS[n].bound == "fixed" and n != "noise"]
)
def test_faults_11_and_27_every_iterate_of_an_attack_inside_a_bound_lies_in_ball_and_box(name, norm, attacked):
    """PEERS.md 4a, 11 and 27: steps that are not projected, a clip at the very end. Looked at every second step."""
    process, batch, _ = attacked(name, norm)
    often, size = dataclasses.replace(ALONE, chunk=2, snapshot=2), jax.vmap(balls.BALLS[norm](1.0).norm)
    seen = []

    def save(step, state):
        iterate = jax.tree.leaves(state.own)[0]
        assert iterate.shape == batch.images.shape and iterate.min() >= 0 and iterate.max() <= 1
        assert np.all(np.asarray(size(jnp.asarray(iterate - batch.images))) <= EPS[norm] * (1 + 2e-5) + 1e-7)
        seen.append(step)

    engine.run(process, toys.forward(), batch, EPS[norm], 0, often, save=save)
    assert seen


LONGER = [(name, word) for name, attack in ATTACKS.items() for word in ("steps", "inner")
          if word in inspect.signature(attack.build).parameters]  # fmt: skip


@pytest.mark.parametrize(("name", "word"), LONGER)
def test_what_is_kept_of_an_image_does_not_grow_with_the_steps(name, word):
    norm, batch = ATTACKS[name].norms[0], cases.batch(4)

    def kept(steps: int) -> list:
        init = cases.process(name, norm, **{word: steps}).init
        given = (toys.forward(), batch, np.zeros(4, np.float32), np.zeros(4, np.uint32))
        return [(x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(init, *given))]

    assert kept(20) == kept(2000)


@pytest.mark.parametrize("name", ["pgd", "apgd", "cw"])
def test_the_compiled_step_needs_no_more_memory_for_more_steps_or_longer_chunks(name):
    """As XLA itself counts it: arguments, results and what it needs in between."""
    norm, batch = ATTACKS[name].norms[0], cases.batch(32)
    word = "inner" if name == "cw" else "steps"

    def needs(steps: int, chunk: int) -> int:
        process = cases.process(name, norm, **{word: steps})
        given = toys.forward(), batch, np.zeros(32, np.float32), np.zeros(32, np.uint32)
        state = jax.eval_shape(process.init, *given)
        step = engine._informed(process.step)
        if chunk == 1:
            lowered = engine._changed.lower(step, jnp.int32(0), state, None, (toys.forward(),))
        else:
            lowered = engine._chunk.lower(step, chunk, jnp.int32(0), state, None, (toys.forward(),))
        told = lowered.compile().memory_analysis()
        return told.temp_size_in_bytes + told.output_size_in_bytes + told.argument_size_in_bytes

    few, many = needs(20, 1), needs(2000, 1)
    assert few > 32 * 4 * np.prod(toys.SHAPE)
    assert many <= few + 16 * 2000  # the schedule of APGD: a number a step
    short, long = needs(2000, 5), needs(2000, 500)
    assert long <= short + 500 * (32 + 4) + 1024  # of each step its number, and of each row whether it is done


@every
def test_eps_zero_is_the_identity(name, norm, attacked):
    if ATTACKS[name].bound == "minimal":
        pytest.skip("a minimal-norm attack has no bound")
    process, batch, _ = attacked(name, norm)
    result = engine.run(process, toys.forward(), batch, 0.0, 0, ALONE)
    np.testing.assert_array_equal(result.images, batch.images)
    assert not result.success.any()


@every
def test_finite_on_black_white_and_constant_images_and_on_a_dead_detector(name, norm, attacked):
    process, _, _ = attacked(name, norm)
    pictures = np.stack([np.full(toys.SHAPE, v, np.float32) for v in (0, 1, 0.5, 0.25, 0.75, 0, 1, 0.5)])
    batch = Batch(pictures, np.arange(8) % 2, np.arange(8, dtype=np.int32))  # type: ignore[arg-type]
    dead = jax.tree.map(jnp.zeros_like, toys.TOY.init(jax.random.key(0)))
    for forward in (toys.forward(), jax.tree_util.Partial(toys.TOY.apply, dead)):
        result = engine.run(process, forward, batch, EPS[norm], 0, ALONE)
        assert all(np.all(np.isfinite(x)) for x in result)
        assert result.images.min() >= 0 and result.images.max() <= 1


@every
def test_a_constant_added_to_the_logits_changes_nothing(name, norm, attacked):
    process, batch, whole = attacked(name, norm)
    variables = toys.TOY.init(jax.random.key(0))
    variables["params"]["shift"] += 16
    moved = engine.run(process, jax.tree_util.Partial(toys.TOY.apply, variables), batch, EPS[norm], 0, ALONE)
    assert np.mean(moved.success == whole.success) >= 0.95  # rounding of logits near 16 decides the rest


@every
def test_one_trace_for_all_bounds_weights_and_seeds(name, norm, attacked):
    process, batch, _ = attacked(name, norm)
    before = len(toys.TRACES)
    engine.run(process, toys.forward(1), batch, EPS[norm] / 2, 1, dataclasses.replace(ALONE, least=64))
    assert len(toys.TRACES) == before


@every
def test_fused_and_stepped_agree(name, norm, attacked):
    process, batch, stepped = attacked(name, norm)
    fused = engine.run(process, toys.forward(), batch, EPS[norm], 0, dataclasses.replace(ALONE, execution="fused"))
    sure = np.abs(stepped.loss - (np.log(2) if ATTACKS[name].loss == "ce" else 0)) > 1e-3
    sure |= ATTACKS[name].bound == "minimal"  # whose successes all end at the boundary
    assert np.mean(fused.success[sure] == stepped.success[sure]) >= 0.95


@pytest.fixture(scope="module")
def spread() -> dict:
    """What on_devices.py says of every attack on 8 devices, in a process of its own."""
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-W", "error", str(here.parent / "on_devices.py"), "attacks"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    return found["attacks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_on_8_devices_results_are_those_of_one_and_nothing_travels_between_them(name, spread):
    """Bit for bit, with one exception: the program for several devices rounds a norm of HopSkipJump's otherwise."""
    found = spread[name]
    assert found["collectives"] == [] and (found["broken"] or name == "noise")
    if name == "hop_skip_jump":
        assert set(found["differ"]) <= {"images", "loss", "distance"} and found["apart"] < 1e-6
    else:
        assert found["differ"] == []


def test_a_stepped_attack_is_left_soon_after_its_last_row_is_done():
    """Of 40 steps, looked at every 20 if it were by `chunk`."""
    seen = []
    compute = engine.Compute(batch=cases.ROWS, chunk=20, devices=1, execution="stepped")
    attack, batch = cases.process("bim", "l2", steps=40), cases.batch()
    found = engine.run(attack, toys.forward(), batch, 10.0, 0, compute, watch=lambda done, left: seen.append(done))
    assert found.success.all()
    assert seen[-1] <= found.gradients.max() + engine.OFTEN < 20


@pytest.mark.parametrize("name", ["pgd", "apgd", "cw", "square"])
def test_on_cpu_what_a_step_does_not_touch_is_handed_on_uncopied(name):
    process, batch = cases.process(name, ATTACKS[name].norms[0]), jax.tree.map(jnp.asarray, cases.batch())
    state = process.init(toys.forward(), batch, jnp.full(cases.ROWS, 0.01), jnp.zeros(cases.ROWS, jnp.uint32))
    after, _ = engine._keeping(engine._informed(process.step), jnp.int32(0), state, None, (toys.forward(),))
    assert after.trail.batch.images is state.trail.batch.images and after.trail.eps is state.trail.eps
    assert after.trail.queries is not state.trail.queries
