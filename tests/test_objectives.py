"""Objectives against closed forms, numpy and float64 finite differences; finite on silent layers."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import SHAPE, TOY

from ffjax.objectives import AGGREGATIONS, STATISTICS, TINY, frac_active, margin, over_fire, topk_mean
from ffjax.types import Outputs

PAIRS = [(s, a) for s in STATISTICS for a in AGGREGATIONS]


def numpy_statistic(name: str, act: np.ndarray) -> np.ndarray:
    """The sentences of the docstrings, in float64 numpy, one example after the other."""
    flat = np.abs(act.astype(np.float64)).reshape(len(act), -1)
    top = max(1, flat.shape[1] // 100)
    knee = 0.1 * flat.mean(axis=1, keepdims=True) + TINY
    return {
        "l2": np.sqrt((flat**2).sum(axis=1)),
        "sq_l2": (flat**2).sum(axis=1),
        "mean_abs": flat.mean(axis=1),
        "topk_mean": np.sort(flat, axis=1)[:, -top:].mean(axis=1),
        "frac_active": (flat / (flat + knee)).mean(axis=1),
    }[name]


def numpy_aggregate(name: str, stats: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return {
        "sum": (weights * stats).sum(axis=1),
        "sum_log": (weights * np.log(stats)).sum(axis=1),
        "prod": np.prod(stats**weights, axis=1) ** (1 / weights.sum(axis=1)),
    }[name]


def acts_of(*arrays) -> Outputs:
    named = OrderedDict((f"layer{i}", jnp.asarray(a)) for i, a in enumerate(arrays))
    return Outputs(jnp.zeros((len(arrays[0]), 2)), None, named)


def test_statistics_closed_forms():
    act = jnp.array([[3.0, -4.0], [0.0, 0.0]]).reshape(2, 1, 2, 1)
    np.testing.assert_allclose(STATISTICS["l2"](act), [5.0, 1e-6], rtol=1e-6)
    np.testing.assert_allclose(STATISTICS["sq_l2"](act), [25.0, 0.0])
    np.testing.assert_allclose(STATISTICS["mean_abs"](act), [3.5, 0.0])
    np.testing.assert_allclose(STATISTICS["topk_mean"](act), [4.0, 0.0])
    np.testing.assert_allclose(STATISTICS["frac_active"](act), [(3 / 3.35 + 4 / 4.35) / 2, 0.0], rtol=1e-6)


def test_aggregations_closed_forms():
    stats, weights = jnp.array([[2.0, 8.0]]), jnp.array([[1.0, 0.5]])
    np.testing.assert_allclose(AGGREGATIONS["sum"](stats, weights), [6.0])
    np.testing.assert_allclose(AGGREGATIONS["sum_log"](stats, weights), [np.log(2) + 0.5 * np.log(8)], rtol=1e-6)
    np.testing.assert_allclose(AGGREGATIONS["prod"](stats, weights), [(2 * np.sqrt(8)) ** (1 / 1.5)], rtol=1e-6)
    # a layer that is not monitored has no say; squared norms of many layers stay in float32
    np.testing.assert_allclose(AGGREGATIONS["prod"](stats, jnp.array([[0.0, 1.0]])), [8.0], rtol=1e-6)
    assert np.isfinite(AGGREGATIONS["prod"](jnp.full((1, 9), 1e9), jnp.ones((1, 9))))


@pytest.mark.parametrize(("statistic", "aggregation"), PAIRS)
def test_over_fire_is_its_numpy_definition(statistic, aggregation):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6, 6, 8)).astype("f"), rng.normal(size=(4, 5, 5, 9)).astype("f")
    weights = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, 2.0]], "f")
    stats = np.stack([numpy_statistic(statistic, a) for a in (first, second)], axis=1)
    value = over_fire(statistic, aggregation)(acts_of(first, second), jnp.asarray(weights))
    np.testing.assert_allclose(value, numpy_aggregate(aggregation, stats, weights), rtol=2e-6, atol=2e-6)


def test_over_fire_takes_one_row_of_weights_for_all():
    rng = np.random.default_rng(1)
    outputs, objective = acts_of(rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 2, 2, 2))), over_fire()
    row = jnp.array([[1.0, 0.5]])
    assert np.array_equal(objective(outputs, row), objective(outputs, jnp.tile(row, (3, 1))))


def test_an_unmonitored_layer_has_no_influence():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 2, 2, 2))
    weights = jnp.array([[1.0, 0.0]])
    for statistic, aggregation in PAIRS:
        objective = over_fire(statistic, aggregation)
        assert np.array_equal(
            objective(acts_of(first, second), weights), objective(acts_of(first, 100 * second), weights)
        )


@given(st.floats(-50, 50, width=32), st.integers(0, 5))
def test_margin_ignores_a_constant_on_both_logits(shift, seed):
    logits = jax.random.normal(jax.random.key(seed), (7, 2))
    moved = margin(Outputs(logits + shift, None, OrderedDict()))
    np.testing.assert_allclose(moved, margin(Outputs(logits, None, OrderedDict())), atol=1e-5)
    np.testing.assert_array_equal(margin(Outputs(logits, None, OrderedDict())), logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize(("statistic", "aggregation"), PAIRS)
def test_silent_layers_give_finite_values_and_gradients(statistic, aggregation):
    objective = over_fire(statistic, aggregation)
    live = jnp.ones((2, 3, 3, 4))

    def total(act, other):
        return jnp.sum(objective(acts_of(act, other), jnp.ones((1, 2))))

    for act, other in ((jnp.zeros_like(live), live), (jnp.zeros_like(live), jnp.zeros_like(live))):
        value, grads = jax.value_and_grad(total, argnums=(0, 1))(act, other)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in grads)
        np.testing.assert_array_equal(grads[0], 0.0)  # nothing fires, so nothing says which way to push


@pytest.mark.slow
def test_gradients_are_finite_differences_in_float64():
    """Of every pair at once, through the toy network. frac_active holds its knee constant in the gradient, so its
    differences are taken of the function with the knee frozen."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda w: w.astype(jnp.float64), TOY.init(jax.random.key(0)))
        x, way = jnp.asarray(rng.uniform(size=(1, *SHAPE))), jnp.asarray(rng.normal(size=(1, *SHAPE)))
        weights = jnp.array([[1.0, 0.5]])
        knees = [0.1 * jnp.mean(jnp.abs(a)) + TINY for a in TOY.apply(variables, x).acts.values()]

        @jax.jit
        def values(x):
            return jnp.stack([over_fire(*pair)(TOY.apply(variables, x), weights)[0] for pair in PAIRS])

        @jax.jit
        def frozen(x):
            outputs = TOY.apply(variables, x)
            stats = jnp.stack([jnp.mean(a / (a + k)) for a, k in zip(outputs.acts.values(), knees, strict=True)])
            shares = {a: aggregate(stats[None], weights)[0] for a, aggregate in AGGREGATIONS.items()}
            return jnp.stack(
                [shares[a] if s == "frac_active" else over_fire(s, a)(outputs, weights)[0] for s, a in PAIRS]
            )

        h = 1e-7
        slopes = (frozen(x + h * way) - frozen(x - h * way)) / (2 * h)
        grads = jax.jit(jax.jacrev(values))(x)
        assert grads.dtype == jnp.float64
        for pair, grad, slope in zip(PAIRS, grads, slopes, strict=True):
            np.testing.assert_allclose(jnp.sum(grad * way), slope, rtol=2e-5, err_msg=str(pair))


@given(st.integers(1, 40), st.floats(1e-3, 1e3))
def test_frac_active_rises_with_the_number_of_firing_neurons(count, size):
    """From 0 to 1 / 1.1, whatever the scale; one more firing neuron is always more."""
    acts = np.zeros((count + 1, 1, 8, 5), "f")
    for k in range(count + 1):
        acts[k].reshape(-1)[:k] = size
    shares = np.asarray(frac_active(jnp.asarray(acts)))
    assert shares[0] == 0.0
    assert (np.diff(shares) > 0).all()
    assert shares[-1] < 1.0
    np.testing.assert_allclose(shares[-1], (count / 40) / (1 + 0.1 * count / 40), rtol=1e-5)


@given(st.integers(0, 20))
def test_frac_active_prefers_many_weak_to_few_strong(seed):
    act = jax.random.uniform(jax.random.key(seed), (1, 4, 4, 5), minval=0.1)
    even = jnp.full_like(act, jnp.mean(act))
    assert 0 < float(frac_active(act)[0]) < float(frac_active(even)[0]) <= 1


def test_topk_mean_takes_at_least_one_and_the_share_asked():
    act = jnp.arange(300.0).reshape(1, 10, 10, 3) - 299.0  # |a| = 299 .. 0
    np.testing.assert_allclose(topk_mean(act), [298.0])  # 1 % of 300: 299, 298, 297
    np.testing.assert_allclose(topk_mean(act, 1.0), [149.5])
    np.testing.assert_allclose(topk_mean(act[:, :1, :1, :1]), [299.0])


def test_a_relative_gain_counts_the_same_in_every_layer():
    """sum_log's reason to be, and what sum is not."""
    rng = np.random.default_rng(4)
    small, large = rng.normal(size=(1, 3, 3, 2)), 1e3 * rng.normal(size=(1, 3, 3, 2))
    ones = jnp.ones((1, 2))
    for aggregation, equal in (("sum_log", True), ("sum", False)):
        objective = over_fire("l2", aggregation)
        base = objective(acts_of(small, large), ones)
        gains = [objective(acts_of(2 * small, large), ones) - base, objective(acts_of(small, 2 * large), ones) - base]
        assert bool(np.isclose(*gains, rtol=1e-4)) is equal
