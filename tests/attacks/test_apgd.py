"""Auto-PGD: exact on a linear detector in all its norms, and its own step and restarts as published."""

import itertools

import cases
import interior
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import balls, engine, goals
from ffjax.attacks import apgd
from ffjax.engine import Compute

MARGINS = interior.alternating(0.2, 0.8, 16)
FUSED = Compute(batch=32, devices=1, execution="fused")


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fails_just_inside_the_distance_and_succeeds_just_outside(norm, loss):
    process, batch = apgd.apgd(goals.verdict(loss), norm, steps=25), interior.batch(MARGINS)
    distances = interior.distances(MARGINS, norm)
    inside = engine.run(process, interior.FORWARD, batch, 0.95 * distances, 0, FUSED)
    outside = engine.run(process, interior.FORWARD, batch, 1.05 * distances, 0, FUSED)
    assert not inside.success.any() and outside.success.all()
    np.testing.assert_array_equal(inside.gradients, 25)
    np.testing.assert_array_equal(inside.queries, 27)  # and the clean image and the last iterate
    assert (outside.gradients < 25).all()


def test_checkpoints_are_the_published_ones():
    """0.22, then windows of 0.19, 0.16 ... down to 0.06: Croce and Hein (ICML 2020), section 3.2."""
    windows = apgd.checkpoints(100)
    assert np.flatnonzero(windows).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert windows[windows > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    for steps in (1, 2, 5, 12, 40):
        windows = apgd.checkpoints(steps)
        places = np.flatnonzero(windows)
        assert len(windows) == steps and np.array_equal(np.cumsum(windows[places]), places)


def walked(norm, steps=30, start="random", count=16, **options):
    """Every state of a run on the two-layer detector, in order."""
    process = apgd.apgd(goals.verdict(), norm, steps=steps, start=start, stop=False, **options)
    batch, forward = cases.rows(cases.batch(), np.arange(count)), toys.forward()
    eps, seeds = jnp.full(count, cases.EPS[norm]), jnp.zeros(count, jnp.uint32)
    states, step = [jax.jit(process.init)(forward, batch, eps, seeds)], jax.jit(process.step)
    for i in range(steps):
        states.append(step(jnp.int32(i), states[-1], forward))
    return states


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_iterate_is_in_ball_and_box(norm):
    for kept, climb in walked(norm):
        distance = jax.vmap(balls.BALLS[norm](1.0).norm)(climb.at - kept.batch.images)
        assert (distance <= cases.EPS[norm] * (1 + 1e-5)).all()
        assert climb.at.min() >= 0 and climb.at.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_halve_at_checkpoints_alone_and_there_go_on_from_the_best_point(norm):
    states = walked(norm)
    windows, rises, halved = apgd.checkpoints(30), np.zeros(16, int), 0
    heights = [np.asarray(state.own.last) for state in states[1:]]  # the objective at iterate i
    for i, (old, new) in enumerate(itertools.pairwise(states)):
        shrunk = np.asarray(new.own.length / old.own.length)
        rises += (heights[i] > heights[i - 1]) if i else 0
        assert set(shrunk.tolist()) <= {0.5, 1.0}
        if windows[i]:
            assert (shrunk[rises < 0.75 * windows[i]] == 0.5).all()
            rises[:] = 0
        else:
            assert (shrunk == 1).all()
        np.testing.assert_array_equal(new.own.height, np.max(heights[: i + 1], axis=0))
        halved += np.sum(shrunk < 1)
    assert halved > 16


def test_the_first_steps_are_the_published_formula():
    """By hand in l_2, where nothing saturates, from the clean image."""
    states = walked("l2", steps=12, start="zero", count=4)
    batch, forward, eps = states[0].trail.batch, toys.forward(), cases.EPS["l2"]
    goal = goals.verdict()

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(goal.objective(forward(x), batch)))(x)

    def stepped(x):
        g = gradient(x)
        far = x + 2 * eps * g / jnp.linalg.norm(g.reshape(4, -1), axis=1)[:, None, None, None]
        return projected(far)

    def projected(x):
        delta = x - batch.images
        size = jnp.linalg.norm(delta.reshape(4, -1), axis=1)[:, None, None, None]
        return jnp.clip(batch.images + delta * jnp.minimum(1, eps / size), 0, 1)

    x0 = batch.images
    x1 = stepped(x0)
    x2 = projected(x1 + 0.75 * (stepped(x1) - x1) + 0.25 * (x1 - x0))
    np.testing.assert_allclose(states[1].own.at, x1, atol=1e-6)
    np.testing.assert_allclose(states[2].own.at, x2, atol=1e-6)


def test_l1_steps_grow_sparser_as_the_best_point_does():
    """On a linear detector the optimum is one component; the first steps move a fifth of all."""
    batch = interior.batch(MARGINS)
    process = apgd.apgd(goals.verdict(), "l1", steps=25, stop=False)
    eps = jnp.asarray(interior.distances(MARGINS, "l1"), jnp.float32)
    state, step = jax.jit(process.init)(interior.FORWARD, batch, eps, jnp.zeros(16, jnp.uint32)), jax.jit(process.step)
    widths = []
    for i in range(25):
        state = step(jnp.int32(i), state, interior.FORWARD)
        widths.append(np.asarray(state.own.width) * 432)
    assert (widths[0] == 0.2 * np.float32(432)).all() and (widths[-1] <= 3).all()
    known = np.array([*(1 / 1.5**k for k in range(6)), 0.1])
    assert np.all(np.min(np.abs(np.asarray(state.own.length)[:, None] - known), axis=1) < 1e-6)
