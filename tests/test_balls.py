"""Every ball: in it, in the box, idempotent to the bit, nothing at eps 0, one trace for all bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    """Exactly for linf, to SLACK (and a rounding of the float64 sum) for l2; checked in float64."""
    d, e = np.asarray(delta, np.float64), float(np.float32(eps))
    if name == "linf":
        return float(np.abs(d).max()) <= e
    return float(np.linalg.norm(d.ravel())) <= e * (1 + 2 * SLACK)


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds, scale=scales)
def test_project_lands_in_ball_and_box(name, seed, eps, scale):
    low, high = box(seed)
    delta = BALLS[name](eps).project(drawn(seed, scale), low, high)
    assert inside(name, delta, eps)
    assert (delta >= low).all() and (delta <= high).all()
    image = np.asarray(balls.apply(-low, delta))
    assert image.min() >= 0 and image.max() <= 1


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds, scale=scales, boxed=st.booleans())
def test_project_is_idempotent_to_the_bit(name, seed, eps, scale, boxed):
    low, high = box(seed) if boxed else (-1.0, 1.0)
    project = BALLS[name](eps).project
    once = project(drawn(seed, scale), low, high)
    assert np.array_equal(once, project(once, low, high))


@EVERY
@pytest.mark.parametrize("size", [64, 256])
def test_project_is_idempotent_and_inside_at_the_size_of_a_photograph(name, size):
    """The float32 sum of 200,000 squares rounds, and compiled sums round otherwise than eager ones."""
    project = jax.jit(lambda d, e: BALLS[name](e).project(d))
    for seed in range(4):
        for eps in (0.03, 2.0, 20.0):
            delta = drawn(seed, 10.0 ** (seed - 2), (size, size, 3)) + 0.05 * seed
            once = project(delta, eps)
            assert inside(name, once, eps)
            assert np.array_equal(once, project(once, eps))


@EVERY
@given(seed=st.integers(0, 10_000), eps=bounds)
def test_a_point_inside_stays_where_it_is(name, seed, eps):
    ball = BALLS[name](eps)
    delta = jnp.clip(0.999 * ball.sample(jax.random.key(seed), SHAPE), -1, 1)
    assert np.array_equal(ball.project(delta), delta)


@EVERY
@given(seed=st.integers(0, 10_000), scale=scales)
def test_eps_zero_is_identity(name, seed, scale):
    ball = BALLS[name](0.0)
    assert not ball.project(drawn(seed, scale)).any()
    assert not ball.sample(jax.random.key(seed), SHAPE).any()


@EVERY
@given(seed=st.integers(0, 10_000), eps=st.floats(1e-4, 30.0))
def test_samples_are_inside(name, seed, eps):
    assert inside(name, BALLS[name](eps).sample(jax.random.key(seed), SHAPE), eps)


@EVERY
def test_samples_are_spread_evenly_about_zero(name):
    """Zero mean (PEERS.md 4a, 18), and uniform in the ball: the share within half the bound is 2^-d."""
    count, shape = 4000, (2, 1, 1)
    ball = BALLS[name](0.5)
    drawn = jax.vmap(lambda key: ball.sample(key, shape))(jax.random.split(jax.random.key(0), count))
    spread = float(jnp.std(drawn))
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), 0.0, atol=4 * spread / np.sqrt(count))
    within = float(jnp.mean(jax.vmap(ball.norm)(drawn) <= 0.25))
    np.testing.assert_allclose(within, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / count))


@EVERY
@given(seed=st.integers(0, 10_000))
def test_steepest_rises_most(name, seed):
    """Of unit norm, and no random direction of unit norm has a larger inner product with the gradient."""
    ball = BALLS[name](1.0)
    gradient = drawn(seed, 1.0)
    best = ball.steepest(gradient)
    np.testing.assert_allclose(ball.norm(best), 1.0, rtol=1e-5)
    others = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(jax.random.split(jax.random.key(seed + 1), 50))
    others = jnp.concatenate([others, gradient[None] + 0.3 * others])
    units = jax.vmap(lambda o: o / ball.norm(o))(others)
    rise = float(jnp.sum(best * gradient))
    assert float(jnp.max(jnp.sum(units * gradient[None], axis=(1, 2, 3)))) <= rise * (1 + 1e-5)
    dual = jnp.sum(jnp.abs(gradient)) if name == "linf" else jnp.linalg.norm(gradient.ravel())
    np.testing.assert_allclose(rise, dual, rtol=1e-5)


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
