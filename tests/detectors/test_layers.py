"""Pooling and convolution forms against the textbook ones: values, ties, derivatives of both orders."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from ffjax.detectors.layers import conv_by_rows, max_pool


def textbook_pool(x, window):
    size = (1, window, window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")


def tied(seed, shape):
    """Few distinct values, so that most windows have ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, 3, shape), jnp.float32)


POOLS = (max_pool, textbook_pool)


@partial(jax.jit, static_argnums=(0, 3))
def pool_gradient(pool, x, weights, window):
    return jax.value_and_grad(lambda x: jnp.sum(weights * pool(x, window)))(x)


@pytest.mark.parametrize("window", [1, 2, 4, 8])
@given(seed=st.integers(0, 2**20))
def test_pool_and_its_gradient_are_reduce_window_s_ties_included(window, seed):
    x, weights = tied(seed, (2, 8, 16, 3)), jax.random.normal(jax.random.key(seed), (2, 8 // window, 16 // window, 3))
    ours, theirs = (pool_gradient(f, x, weights, window) for f in POOLS)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(max_pool(x, window), textbook_pool(x, window))


def test_pool_settles_ties_by_row_and_not_by_block():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0, 0].set(1).at[0, 0, 2, 0].set(1)
    gradient = jax.grad(lambda x: max_pool(x, 4).sum())(x)
    assert gradient[0, 0, 2, 0] == 1 and gradient.sum() == 1


def test_pool_crops_what_does_not_fill_a_window_and_lets_nan_and_infinity_through():
    x = jnp.arange(2 * 7 * 5, dtype=jnp.float32).reshape(2, 7, 5, 1)
    np.testing.assert_array_equal(max_pool(x, 2), textbook_pool(x, 2))
    for row, column in product(range(2), range(2)):
        assert jnp.isnan(max_pool(jnp.ones((1, 2, 2, 1)).at[0, row, column].set(jnp.nan), 2)).all()
    assert max_pool(jnp.full((1, 4, 4, 1), -jnp.inf), 4).item() == -jnp.inf


@pytest.mark.parametrize("window", [0, 3, 6])
def test_pool_refuses_windows_it_cannot_halve(window):
    with pytest.raises(ValueError, match="power of two"):
        max_pool(jnp.zeros((1, 12, 12, 1)), window)


@pytest.mark.parametrize("window", [2, 4])
def test_pool_is_twice_differentiable_in_both_modes(window):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2), jnp.float64)
        check_grads(jax.jit(lambda x: jnp.sum(jnp.sin(max_pool(x, window)) ** 2)), (x,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("window", [3, 5])
def test_convolution_by_rows_is_the_textbook_convolution(window, dilation):
    with jax.enable_x64(True):
        x, kernel = (
            jax.random.normal(jax.random.key(i), shape, jnp.float64)
            for i, shape in enumerate([(2, 9, 12, 3), (window, window, 3, 4)])
        )
        pads, layout, rates = [(dilation * (window // 2),) * 2] * 2, ("NHWC", "HWIO", "NHWC"), (dilation, dilation)
        textbook = jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, None, rates, layout)
        np.testing.assert_allclose(conv_by_rows(x, kernel, (1, 1), pads, rhs_dilation=rates), textbook, atol=1e-12)
