"""Attacks of low frequencies alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import engine, goals, individual
from ffjax.attacks import rules
from ffjax.attacks.fast_gradient import low_pgd
from ffjax.engine import Compute


def spread(values):
    """What is linear between few values."""
    return jax.image.resize(jnp.asarray(values), toys.SHAPE, "linear")


def test_a_coarse_step_is_the_steepest_of_those_between_few_values():
    rng = np.random.default_rng(0)
    g, rule = jnp.asarray(rng.normal(size=toys.SHAPE)), rules.coarse(3, 1.0)
    step, _ = rule.update(g, rule.init(g))
    assert float(jnp.abs(step).max()) == pytest.approx(1.0)
    others = [float(jnp.sum(g * spread(rng.choice([-1.0, 1.0], (3, 3, 3))))) for _ in range(200)]
    assert float(jnp.sum(g * step)) >= max(others) > 0


def test_coarse_steps_stay_linear_and_in_the_bound_and_come_back_from_it():
    """Gradients that push one way past the bound, then the other way: no share of the bound is lost by turning."""
    rng = np.random.default_rng(1)
    g, rule = jnp.asarray(rng.normal(size=toys.SHAPE)), rules.coarse(3, 0.25)
    there, values = jnp.zeros(toys.SHAPE), rule.init(g)
    basis = np.stack([np.ravel(spread(np.eye(27)[k].reshape(3, 3, 3))) for k in range(27)], axis=1)
    far = [0.25, 0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1]
    for way, reach in zip([1.0] * 6 + [-1.0] * 8, far, strict=True):
        step, values = rule.update(way * g, values)
        there = there + step
        assert float(jnp.abs(there).max()) == pytest.approx(reach, abs=1e-6)
        rest = np.linalg.lstsq(basis, np.ravel(there), rcond=None)[1]
        np.testing.assert_allclose(rest, 0, atol=1e-10)


def test_a_linear_detector_is_met_by_the_best_low_frequencies_there_are():
    """Of a linear margin w x the best perturbation that is linear between cells is eps times the signs of what w
    gathers there; grey images, so that nothing is cut."""
    w = np.random.default_rng(2).normal(size=toys.SHAPE).astype(np.float32)
    forward = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": jnp.asarray(w), "b": jnp.float32(0)}})
    data = toys.images(4)._replace(images=np.full((4, *toys.SHAPE), 128, np.uint8), labels=np.array([0, 1, 0, 1]))
    batch, eps = individual.batch_of(data, np.arange(4)), np.full(4, 0.1, np.float32)
    goal = goals.verdict(confidence=1e9)
    made = engine.run(low_pgd(goal, steps=5, cells=3), forward, batch, eps, 0, Compute(batch=4)).images - batch.images
    gathered = jax.linear_transpose(spread, np.zeros((3, 3, 3), np.float32))(jnp.asarray(w))[0]
    best = 0.1 * np.asarray(spread(np.sign(gathered)))
    for k, way in enumerate((1, -1, 1, -1)):  # a real is driven to fake
        np.testing.assert_allclose(made[k], way * best, atol=1e-6)
