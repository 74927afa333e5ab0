"""Every ball: in it, in the box, idempotent to the bit, nothing at eps 0, one trace for all bounds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from toys import SHAPE

from ffjax import balls
from ffjax.balls import BALLS, SLACK

EVERY = pytest.mark.parametrize("name", BALLS)
bounds = st.one_of(st.just(0.0), st.floats(1e-4, 1.0), st.floats(1.0, 30.0))
scales = st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0, 100.0, 1e12])


def drawn(seed: int, scale: float, shape=SHAPE) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(seed), shape)


def box(seed: int) -> tuple[jax.Array, jax.Array]:
    """The box of a random image, some of whose pixels are black or white: it holds 0."""
    x = jnp.clip(jax.random.uniform(jax.random.key(seed), SHAPE, minval=-0.3, maxval=1.3), 0, 1)
    return -x, 1 - x


def inside(name: str, delta: jax.Array, eps: float) -> bool:
    """Exactly for linf and l0, to SLACK (and the rounding of a float32 sum) for l2, ten times that for l1; checked in
    float64."""
    d, e = np.asarray(delta, np.float64), float(np.float32(eps))
    if name == "linf":
        return float(np.abs(d).max()) <= e
    if name == "l0":
        return np.count_nonzero(d) <= np.floor(e)
    order, slack = (1, 10 * SLACK) if name == "l1" else (2, SLACK)
    return float(np.linalg.norm(d.ravel(), order)) <= e * (1 + 2 * slack)


@functools.cache
def compiled(name: str):
    """(delta, eps, low=-1, high=1) -> delta, compiled once for all bounds."""
    return jax.jit(lambda delta, eps, low=-1.0, high=1.0: BALLS[name](eps).project(delta, low, high))


@functools.cache
def sampled(name: str):
    """(seed, eps) -> delta."""
    return jax.jit(lambda seed, eps: BALLS[name](eps).sample(jax.random.key(seed), SHAPE))


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds, scale=scales)
def test_project_lands_in_ball_and_box(name, seed, eps, scale):
    low, high = box(seed)
    delta = compiled(name)(drawn(seed, scale), eps, low, high)
    assert inside(name, delta, eps)
    assert (delta >= low).all() and (delta <= high).all()
    image = np.asarray(balls.apply(-low, delta))
    assert image.min() >= 0 and image.max() <= 1


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds, scale=scales, boxed=st.booleans())
def test_project_is_idempotent_to_the_bit(name, seed, eps, scale, boxed):
    low, high = box(seed) if boxed else (-1.0, 1.0)
    once = compiled(name)(drawn(seed, scale), eps, low, high)
    assert np.array_equal(once, compiled(name)(once, eps, low, high))


@EVERY
@pytest.mark.parametrize("size", [64, 256])
def test_project_is_idempotent_and_inside_at_the_size_of_a_photograph(name, size):
    """The float32 sum of 200,000 squares rounds, and compiled sums round otherwise than eager ones."""
    project = compiled(name)
    for seed in range(4):
        for eps in (0.03, 2.0, 20.0):
            delta = drawn(seed, 10.0 ** (seed - 2), (size, size, 3)) + 0.05 * seed
            once = project(delta, eps)
            assert inside(name, once, eps)
            assert np.array_equal(once, project(once, eps))


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds)
def test_a_point_inside_stays_where_it_is(name, seed, eps):
    delta = jnp.clip(0.999 * sampled(name)(seed, eps), -1, 1)
    assert np.array_equal(compiled(name)(delta, eps), delta)


@EVERY
@given(seed=st.integers(0, 10_000), scale=scales)
def test_eps_zero_is_identity(name, seed, scale):
    assert not compiled(name)(drawn(seed, scale), 0.0).any()
    assert not sampled(name)(seed, 0.0).any()


@EVERY
@given(seed=st.integers(0, 10_000), eps=st.floats(1e-4, 30.0))
def test_samples_are_inside(name, seed, eps):
    assert inside(name, sampled(name)(seed, eps), eps)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_fault_18_samples_are_spread_evenly_about_zero(name):
    """Zero mean (PEERS.md 4a, 18), and uniform in the ball: the share within half the bound is 2^-d."""
    count, shape = 4000, (2, 1, 1)
    ball = BALLS[name](0.5)
    drawn = jax.vmap(lambda key: ball.sample(key, shape))(jax.random.split(jax.random.key(0), count))
    spread = float(jnp.std(drawn))
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), 0.0, atol=4 * spread / np.sqrt(count))
    within = float(jnp.mean(jax.vmap(ball.norm)(drawn) <= 0.25))
    np.testing.assert_allclose(within, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / count))


def test_l0_samples_take_every_component_equally_often():
    count, shape = 4000, (3, 2, 1)
    drawn = jax.vmap(lambda key: balls.l0(2.7).sample(key, shape))(jax.random.split(jax.random.key(0), count))
    assert (jnp.sum(drawn != 0, axis=(1, 2, 3)) == 2).all()
    np.testing.assert_allclose(jnp.mean(drawn != 0, axis=0), 1 / 3, atol=4 * np.sqrt(2 / 9 / count))
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), 0.0, atol=4 * float(jnp.std(drawn)) / np.sqrt(count))


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
@given(seed=st.integers(0, 10_000))
def test_steepest_rises_most(name, seed):
    """Of unit norm, and no random direction of unit norm has a larger inner product with the gradient."""
    ball = BALLS[name](1.0)
    gradient = drawn(seed, 1.0)
    best = signs(gradient, 0.0) if name == "l1" else ball.steepest(gradient)  # a share of 0: the largest component
    np.testing.assert_allclose(ball.norm(best), 1.0, rtol=1e-5)
    others = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(jax.random.split(jax.random.key(seed + 1), 50))
    others = jnp.concatenate([others, gradient[None] + 0.3 * others])
    units = jax.vmap(lambda o: o / ball.norm(o))(others)
    rise = float(jnp.sum(best * gradient))
    assert float(jnp.max(jnp.sum(units * gradient[None], axis=(1, 2, 3)))) <= rise * (1 + 1e-5)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]
    np.testing.assert_allclose(rise, jnp.linalg.norm(gradient.ravel(), dual), rtol=1e-5)


signs = jax.jit(lambda gradient, share: balls.l1(1.0, share).steepest(gradient))


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.003, 0.01, 0.2, 1.0]))
def test_l1_follows_the_signs_of_the_largest_share(seed, share):
    gradient = drawn(seed, 1.0)
    step, size = signs(gradient, share), np.abs(gradient).ravel()
    count = max(1, round(share * size.size))
    moved = np.asarray(step).ravel() != 0
    assert moved.sum() == count
    assert count == size.size or size[moved].min() >= size[~moved].max()
    np.testing.assert_allclose(step, np.sign(gradient) * moved.reshape(SHAPE) / count, rtol=1e-6)


def test_l1_shares_evenly_among_equals():
    """A constant gradient names no favourite: all of it is followed, and its zeros are not."""
    gradient = jnp.zeros(SHAPE).at[:3].set(-2.0)
    np.testing.assert_allclose(balls.l1(1.0).steepest(gradient), gradient / 2 / (3 * 12 * 3), rtol=1e-6)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_a_long_l0_step_is_the_best_for_a_linear_function(seed, count):
    """The `count` components with the largest product of gradient and room, moved as far as the box lets them."""
    gradient, (low, high) = drawn(seed, 1.0), box(seed)
    delta = compiled("l0")(1e6 * balls.l0(1).steepest(gradient), count, low, high)
    best = np.sort(np.asarray(jnp.maximum(gradient * low, gradient * high)).ravel())[::-1][:count].sum()
    np.testing.assert_allclose(jnp.sum(gradient * delta), best, rtol=1e-5)


@EVERY
def test_steepest_of_a_zero_gradient_is_zero(name):
    assert not BALLS[name](1.0).steepest(jnp.zeros(SHAPE)).any()


@EVERY
def test_one_trace_serves_all_bounds(name):
    traces = []

    @jax.jit
    def project(delta, eps):
        traces.append(1)
        return BALLS[name](eps).project(delta)

    for eps in (0.0, 0.01, 0.5, 7.0):
        project(drawn(0, 1.0), eps)
    assert len(traces) == 1


@EVERY
def test_at_bound(name):
    ball = BALLS[name](0.1)
    assert float(ball.at_bound(jnp.zeros(SHAPE))) == 0.0
    assert float(ball.at_bound(ball.project(jnp.full(SHAPE, 5.0)))) == (1.0 if name == "linf" else 0.0)
    bound = 0.1 if name == "linf" else 1.0  # under l2 only the box stops a component
    half = jnp.where(jnp.arange(12)[:, None, None] < 6, jnp.float32(bound), 0.0) * jnp.ones(SHAPE)
    assert float(ball.at_bound(half)) == 0.5


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("eps", [0.2, 0.9, 3.0])
def test_fault_28_l1_projection_is_the_nearest_point_by_brute_force(eps, scale):
    """PEERS.md 4a, 28: peers project onto l_1 by scaling, or forget the box. Here: quadratic programming in float64."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        delta, x = scale * rng.normal(size=6), rng.choice([0.0, 1.0, 0.3, 0.8], 6)
        split = np.concatenate([np.eye(6), -np.eye(6)], axis=1)  # delta = rises - falls, both >= 0
        found = optimize.minimize(
            lambda v, delta=delta, split=split: np.sum((split @ v - delta) ** 2),
            np.zeros(12),
            jac=lambda v, delta=delta, split=split: 2 * split.T @ (split @ v - delta),
            bounds=[(0, room) for room in (*(1 - x), *x)],
            constraints={"type": "ineq", "fun": lambda v: eps - v.sum(), "jac": lambda v: -np.ones(12)},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        low, high = jnp.float32(-x), jnp.float32(1 - x)
        got = compiled("l1")(jnp.float32(delta), eps, low, high)
        np.testing.assert_allclose(got, split @ found.x, atol=2e-5)
        assert np.array_equal(got, compiled("l1")(got, eps, low, high))


def test_l1_projection_uses_its_whole_bound():
    """Neither far-off values nor ties nor a wide range of scales leave some of eps unused where the box has room."""
    far = drawn(0, 1.0).at[0, 0, 0].set(1e12).at[1, 1].set(-1e5)
    for delta in (far, jnp.full(SHAPE, 0.3), jnp.full(SHAPE, -1e12), drawn(1, 1e-3)):
        for eps in (1e-3, 0.5, 7.0):
            got = compiled("l1")(delta, eps)
            expected = min(eps, np.sum(np.minimum(np.abs(np.asarray(delta, np.float64)), 1)))
            np.testing.assert_allclose(np.sum(np.abs(np.asarray(got, np.float64))), expected, rtol=2e-5)


@pytest.mark.parametrize("count", [0, 1, 2.9, 4, 6, 9])
def test_l0_projection_is_the_nearest_point_by_brute_force(count):
    """Every set of components tried, in float64."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        delta, x = rng.normal(size=6), rng.choice([0.0, 1.0, 0.3, 0.8], 6)
        boxed = np.clip(delta, -x, 1 - x)
        kept = [np.isin(np.arange(6), some) * boxed for some in itertools.combinations(range(6), min(6, int(count)))]
        least = min(np.sum((one - delta) ** 2) for one in kept)
        got = compiled("l0")(jnp.float32(delta), count, jnp.float32(-x), jnp.float32(1 - x))
        assert np.count_nonzero(got) <= count
        np.testing.assert_allclose(np.sum((np.asarray(got, np.float64) - delta) ** 2), least, rtol=1e-5)


def test_l0_keeps_the_first_of_equals():
    got = compiled("l0")(jnp.full((2, 2, 2), 0.5), 3.0)
    assert np.asarray(got).ravel().tolist() == [0.5] * 3 + [0.0] * 5


@pytest.mark.parametrize("value", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e35])
def test_l2_neither_vanishes_nor_overflows(value):
    """Squares of these leave float32; the norm must not."""
    delta = jnp.full(SHAPE, value)
    ball = balls.l2(0.5)
    expected = value * np.sqrt(432.0)
    np.testing.assert_allclose(ball.norm(delta), expected, rtol=1e-5)
    projected = ball.project(delta)
    assert np.isfinite(projected).all() and inside("l2", projected, 0.5)
    if expected > 0.5:
        np.testing.assert_allclose(ball.norm(projected), 0.5, rtol=1e-5)


def test_apply_is_an_image():
    images = jnp.linspace(0, 1, 2 * 432).reshape(2, *SHAPE)
    shown = balls.apply(images, jnp.full((1, *SHAPE), 0.7))
    np.testing.assert_array_equal(shown, np.minimum(np.asarray(images) + np.float32(0.7), 1))
