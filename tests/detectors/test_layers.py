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

from ffjax.detectors.layers import conv_by_rows
from ffjax.detectors.pooling import adaptive_mean_pool, max_pool


def textbook_pool(x, window, stride=None, padding=0):
    size, steps = (1, window, window, 1), (1, stride or window, stride or window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, steps, ((0, 0), *[(padding, padding)] * 2, (0, 0)))


def tied(seed, shape):
    """Few distinct values, so that most windows have ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, 3, shape), jnp.float32)


FORMS = ((1,), (2,), (3,), (4,), (8,), (3, 2), (3, 2, 1), (3, 1, 1), (2, 3), (5, 2, 2))  # window, stride, padding


@partial(jax.jit, static_argnums=(0, 2))
def pool_and_gradient(pool, x, form):
    pooled, back = jax.vjp(lambda x: pool(x, *form), x)
    return pooled, back(jnp.arange(1.0, pooled.size + 1).reshape(pooled.shape))[
        0
    ]  # whole numbers: their sums are exact


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**20))
def test_pool_and_its_gradient_are_reduce_window_s_ties_included(form, seed):
    x = tied(seed, (2, 8, 17, 3))
    ours, theirs = (pool_and_gradient(f, x, form) for f in (max_pool, textbook_pool))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("form", [(2,), (3, 2, 1)])
def test_pool_and_its_gradient_are_pytorch_s_ties_included(form):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = tied(0, (2, 9, 12, 3))
    pooled, gradient = pool_and_gradient(max_pool, x, form)
    theirs = torch.tensor(np.array(x)).permute(0, 3, 1, 2).requires_grad_()
    out = torch.nn.functional.max_pool2d(theirs, *form)
    out.backward(torch.arange(1.0, out.numel() + 1).reshape(out.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(pooled, out.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(gradient, theirs.grad.permute(0, 2, 3, 1))


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


@pytest.mark.parametrize("form", [(0,), (2, 0), (2, 2, 2), (3, 2, -1)])
def test_pool_refuses_what_is_no_window(form):
    with pytest.raises(ValueError, match=f"max_pool: window {form[0]}"):
        max_pool(jnp.zeros((1, 12, 12, 1)), *form)


@pytest.mark.parametrize("form", [(2,), (4,), (3, 2, 1)])
def test_pool_is_twice_differentiable_in_both_modes(form):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2), jnp.float64)
        check_grads(jax.jit(lambda x: jnp.sum(jnp.sin(max_pool(x, *form)) ** 2)), (x,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("length", [4, 7, 8, 10, 14])
def test_adaptive_mean_pool_has_pytorch_s_bins(length):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = jax.random.normal(jax.random.key(0), (2, length, length, 3))
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(np.array(x)).permute(0, 3, 1, 2), 7)
    np.testing.assert_allclose(adaptive_mean_pool(x, 7), theirs.permute(0, 2, 3, 1), atol=1e-6)


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
