"""Square: scores alone, one query a step, squares and pyramids as published, and its reach on a linear detector."""

import functools

import cases
import interior
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import engine, goals
from ffjax.attacks import square
from ffjax.engine import Compute
from ffjax.types import Batch

FUSED = Compute(batch=32, devices=1, execution="fused")
MARGINS = interior.alternating(0.5, 2, 16)


@functools.cache
def process(norm: str, steps: int, stop: bool = True, moves: square.Moves = "all"):
    return square.square(goals.verdict(), norm, steps=steps, stop=stop, moves=moves)


def begun(norm, batch, forward, eps):
    """(state before the first of 30 steps, step)."""
    run = process(norm, 30, stop=False)
    return jax.jit(run.init)(forward, batch, jnp.full(16, eps), jnp.zeros(16, jnp.uint32)), jax.jit(run.step)


@functools.cache
def blunt():
    """The linear detector without a gradient."""
    detector = toys.LINEAR
    return lambda variables, x: jax.lax.stop_gradient(detector.apply(variables, x))


def test_linf_comes_within_1_5_of_the_distance_in_1000_queries_and_never_below_it():
    forward, batch = jax.tree_util.Partial(blunt(), interior.VARIABLES), interior.batch(MARGINS)
    distances = interior.distances(MARGINS, "linf")
    near = engine.run(process("linf", 1000), forward, batch, 0.99 * distances, 0, FUSED)
    far = engine.run(process("linf", 1000), forward, batch, 1.5 * distances, 0, FUSED)
    assert not near.success.any() and far.success.all()
    np.testing.assert_array_equal(near.queries, 1002)  # 1000 steps, the clean image and the last candidate
    assert (far.queries < 1002).all() and not near.gradients.any() and not far.gradients.any()


def test_l2_comes_within_2_5_of_the_distance_in_2000_queries_on_smooth_weights_and_never_below_it():
    """Pyramids of three pixels or more cannot follow white weights, and on smooth ones reach some half of the rise that
    the gradient would: a NumPy transcript of the published algorithm reaches 0.50, 0.51, 0.54 where this does 0.47,
    0.52, 0.54. So 1.5 is out of its reach on 12 pixels."""
    weights = np.random.default_rng(0).normal(size=(3, 3, 3))
    waves = np.cos(np.pi * np.outer(np.arange(3), np.arange(12) + 0.5) / 12)
    weights = np.einsum("klc,ky,lx->yxc", weights, waves, waves).astype(np.float32)
    forward = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": jnp.asarray(weights), "b": jnp.float32(0)}})
    images = np.random.default_rng(1).uniform(0.3, 0.7, (16, *toys.SHAPE)).astype(np.float32)
    said = np.einsum("byxc,yxc->b", images, weights)
    batch = Batch(images, (said > 0).astype(np.int32), np.arange(16, dtype=np.int32))
    distances = np.abs(said) / np.linalg.norm(weights)
    near, far = (
        engine.run(process("l2", 2000, moves="channel"), forward, batch, times * distances, 0, FUSED)
        for times in (0.99, 2.5)
    )
    near_all = engine.run(process("l2", 2000), forward, batch, 0.99 * distances, 0, FUSED)
    far_all = engine.run(process("l2", 2000), forward, batch, 3.5 * distances, 0, FUSED)
    assert not near_all.success.any() and far_all.success.all()  # coarser steps: no nearer than that
    assert not near.success.any() and far.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_candidate_lies_in_the_box_and_at_the_bound_inside_it(norm):
    eps = {"linf": 0.1, "l2": 0.8}[norm]
    for batch, touches in ((interior.batch(MARGINS), True), (cases.rows(cases.batch(), np.arange(16)), False)):
        forward, (state, step), seen = interior.FORWARD, begun(norm, batch, interior.FORWARD, eps), []
        for i in range(30):
            candidate = np.asarray(state.own[0])
            assert candidate.min() >= 0 and candidate.max() <= 1
            delta = (candidate - batch.images).reshape(16, -1)
            sizes = np.abs(delta) if norm == "linf" else np.linalg.norm(delta, axis=1)
            assert np.all(sizes <= eps * (1 + 1e-5))
            if touches:
                np.testing.assert_allclose(sizes, eps, rtol=1e-5)
            seen.append(delta)
            state = step(jnp.int32(i), state, forward)
        assert (np.diff(seen, axis=0) != 0).any(axis=2).mean() > 0.99  # nothing is asked twice


def test_linf_candidates_differ_from_the_kept_one_by_one_square():
    batch, forward = interior.batch(MARGINS), interior.FORWARD
    state, step = begun("linf", batch, forward, 0.1)
    stripes = np.asarray(state.own[0]) - batch.images
    np.testing.assert_allclose(np.ptp(stripes, axis=1), 0, atol=1e-6)
    for i in range(30):
        state = step(jnp.int32(i), state, forward)
        candidate, current, _ = state.own
        side = int(square._side(jnp.int32(i), 30, 0.8, (12, 12)))
        for one in np.abs(candidate - current).max(axis=-1) > 1e-6:
            rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
            assert 0 <= np.ptp(rows) < side and 0 <= np.ptp(columns) < side


def test_what_is_kept_never_falls():
    batch, forward = cases.rows(cases.batch(), np.arange(16)), toys.forward()
    (state, step), heights = begun("l2", batch, forward, 0.3), []
    for i in range(30):
        state = step(jnp.int32(i), state, forward)
        heights.append(np.asarray(state.own[2]))
    assert np.all(np.diff(heights, axis=0) >= 0) and np.all(heights[-1] > heights[0])
    goal = goals.verdict()
    np.testing.assert_allclose(heights[-1], goal.objective(forward(state.own[1]), batch), atol=1e-5)


@pytest.mark.parametrize("steps", [10_000, 500])
def test_squares_shrink_by_shares_of_the_budget(steps):
    """The published table, at 10,000 queries: p, p/2 after 10, p/4 after 50, ... p/512 after 8000."""
    ends = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 10_000)
    for i in range(0, steps, max(1, steps // 500)):
        share = 0.8 / 2 ** sum(i * (10_000 / steps) > end for end in ends[:-1])
        expected = np.clip(round(np.sqrt(share * 224 * 160)), 1, 159)
        assert int(square._side(jnp.int32(i), steps, 0.8, (224, 160))) == expected


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 11])
@pytest.mark.parametrize("turned", [False, True])
def test_pyramids_are_the_published_ones(side, turned):
    """Layer on layer: 1/k^2 is added to ever larger squares around the middle of each half."""

    def pile(height, width):
        pile = np.zeros((height, width))
        down, across = height // 2, width // 2
        for k in range(1, max(down, across) + 2):
            pile[max(down - k + 1, 0) : down + k, max(across - k + 1, 0) : across + k] += 1 / k**2
        return pile / max(np.linalg.norm(pile), 1e-9)

    expected = np.concatenate([pile(side // 2, side), -pile(side - side // 2, side)])
    expected /= np.linalg.norm(expected)
    rows, columns = jnp.indices((16, 16))
    got = np.asarray(square.pyramids(rows - 2, columns - 3, jnp.int32(side), jnp.bool_(turned)))
    np.testing.assert_allclose(got[2 : 2 + side, 3 : 3 + side], expected.T if turned else expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 3), (9, 14, 1)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_small_and_oblong_images(norm, shape):
    """Squares stay inside images smaller than a pyramid; here brighter is faker."""
    images = np.full((8, *shape), 0.5, np.float32)
    batch = Batch(images, np.zeros(8, np.int32), np.arange(8, dtype=np.int32))
    result = engine.run(process(norm, 60), jax.tree_util.Partial(brightness, jnp.float32(0.51)), batch, 0.2, 0, FUSED)
    assert np.isfinite(result.images).all() and (result.distance <= 0.2 * (1 + 1e-5)).all()
    assert norm == "l2" or result.success.all()


def brightness(threshold, images):
    score = jnp.mean(images, axis=(1, 2, 3)) - threshold
    return toys.Outputs(jnp.stack([jnp.zeros_like(score), score], axis=1), None, toys.OrderedDict())
