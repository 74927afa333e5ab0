"""The loop: the same states however it is cut, in order, with one trace for all weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax import engine
from ffjax.engine import Compute, drive

STEPS = 11


def step(i, state, x, weights, eps):
    """Depends on everything it is given, and on the order of it."""
    new = jnp.tanh(state["v"] @ weights + x[None]) * eps + jnp.float32(i) / 100
    return {"v": new, "n": state["n"] + 1}, {"i": i, "top": jnp.max(new)}


def start_state():
    return {"v": jax.random.normal(jax.random.key(0), (3, 8)), "n": jnp.int32(0)}


def args(seed: int = 1, eps: float = 0.7):
    return jax.random.normal(jax.random.key(seed), (8, 8)), jnp.float32(eps)


def inputs(i: int):
    return jnp.sin(jnp.arange(8.0) * (i + 1))


def host(tree):
    """Copies: on CPU a device array and its numpy view share memory, which donation may overwrite."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def whole(execution="stepped", chunk=4, start=0, state=None, steps=STEPS, fn=step):
    """-> [(done, state, infos)], on the host."""
    run = drive(
        fn,
        start_state() if state is None else jax.tree.map(jnp.array, state),
        args(),
        steps,
        Compute(execution=execution, chunk=chunk, devices=1),
        inputs=inputs,
        start=start,
    )
    return [(done, host(state), infos) for done, state, infos in run]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 11, 50])
def test_stepped_states_do_not_depend_on_chunk(chunk):
    reference = {done: state for done, state, _ in whole(chunk=1)}
    cut = whole(chunk=chunk)
    assert [done for done, _, _ in cut] == sorted({*range(chunk, STEPS, chunk), STEPS})
    assert all(same(state, reference[done]) for done, state, _ in cut)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_a_run_cut_at_any_step_and_driven_on_is_bit_equal(chunk):
    end = whole(chunk=chunk)[-1][1]
    for done, state, _ in whole(chunk=1)[:-1]:
        assert same(whole(chunk=chunk, start=done, state=state)[-1][1], end)


def test_visits_fall_on_multiples_of_chunk_whatever_the_start():
    assert [done for done, _, _ in whole(chunk=4, start=3, state=start_state())] == [4, 8, 11]
    assert whole(start=STEPS, state=start_state()) == []


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_fused_and_stepped_agree_to_rounding(chunk):
    for (d1, s1, i1), (d2, s2, i2) in zip(whole(chunk=chunk), whole("fused", chunk), strict=True):
        assert d1 == d2
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (s1, i1), (s2, i2))


@pytest.mark.parametrize("execution", ["stepped", "fused"])
def test_infos_have_a_step_axis_in_order(execution):
    rows = whole(execution, chunk=4)
    assert [infos["i"].tolist() for _, _, infos in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert all(isinstance(leaf, np.ndarray) for _, _, infos in rows for leaf in jax.tree.leaves(infos))
    assert [infos["top"].shape for _, _, infos in rows] == [(4,), (4,), (3,)]
    for _, state, infos in rows:
        np.testing.assert_allclose(infos["top"][-1], state["v"].max(), rtol=1e-6)


@pytest.mark.parametrize("execution", ["stepped", "fused"])
def test_inputs_are_asked_once_a_step_in_order(execution):
    asked = []

    def record(i):
        asked.append(i)
        return inputs(i)

    compute = Compute(execution=execution, chunk=4, devices=1)
    for _ in drive(step, start_state(), args(), STEPS, compute, inputs=record, start=2):
        pass
    assert asked == list(range(2, STEPS))
    assert all(type(i) is int for i in asked)


@pytest.mark.parametrize("execution", ["stepped", "fused"])
def test_the_state_is_donated(execution, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "an accelerator")
    first = start_state()
    kept = []
    for _, state, _ in drive(
        step, first, args(), STEPS, Compute(execution=execution, chunk=4, devices=1), inputs=inputs
    ):
        kept.append(state["v"])
    assert first["v"].is_deleted()
    assert [v.is_deleted() for v in kept] == [True, True, False]


def test_on_cpu_a_state_that_is_stepped_is_not_copied_to_be_written_over():
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator is here")
    first = start_state()
    for _ in drive(step, first, args(), STEPS, Compute(execution="stepped", chunk=4, devices=1), inputs=inputs):
        pass
    assert not first["v"].is_deleted()


@pytest.mark.parametrize("execution", ["stepped", "fused"])
def test_one_trace_for_many_weights_and_bounds(execution):
    traces = []

    def counted(i, state, x, weights, eps):
        traces.append(1)
        return step(i, state, x, weights, eps)

    ends = []
    for seed, eps in itertools.product((1, 2, 3), (0.1, 0.7)):
        compute = Compute(execution=execution, chunk=4, devices=1)
        *_, (_, state, _) = drive(counted, start_state(), args(seed, eps), 12, compute, inputs=inputs)
        ends.append(np.array(state["v"]))
    assert len(traces) == 1
    assert len({end.tobytes() for end in ends}) == 6


def test_a_last_shorter_chunk_costs_one_more_trace_when_fused():
    traces = []

    def counted(i, state, x, weights, eps):
        traces.append(1)
        return step(i, state, x, weights, eps)

    whole("fused", chunk=4, fn=counted)
    assert len(traces) == 2
    whole("fused", chunk=4, fn=counted)
    assert len(traces) == 2


def test_auto_is_stepped_on_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("about the CPU")
    assert same(whole("auto", chunk=4)[-1][1], whole("stepped", chunk=4)[-1][1])
    before = engine._chunk._cache_size()
    whole("auto", chunk=4)
    assert engine._chunk._cache_size() == before


def test_a_step_without_inputs():
    def plain(i, state, x):
        assert x is None
        return state + i, state

    for execution in ("stepped", "fused"):
        *_, (_, state, infos) = drive(plain, jnp.float32(0), (), 5, Compute(execution=execution, chunk=5, devices=1))
        assert float(state) == 10.0
        assert infos.tolist() == [0, 0, 1, 3, 6]


def test_as_many_rows_fit_as_were_asked_for_or_as_are_kept_at_least():
    for batch, least, rows in ((32, 8, 32), (5, 8, 8), (33, 8, 33)):
        assert engine.capacity(Compute(batch=batch, least=least, devices=1)) == rows
