"""The depthwise form for CPU against the compiler's: values, both gradients, derivatives of second order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ffjax.detectors import depthwise as module
from ffjax.detectors.depthwise import depthwise, shifted, textbook

CASES = {  # window, strides, pads, image
    "same": ((3, 3), (1, 1), ((1, 1), (1, 1)), (9, 12)),
    "halving": ((3, 3), (2, 2), ((1, 1), (1, 1)), (9, 12)),
    "halving 5": ((5, 5), (2, 2), ((2, 2), (2, 2)), (10, 7)),
    "one sided": ((3, 3), (2, 2), ((0, 1), (0, 1)), (8, 8)),
    "whole image": ((7, 7), (1, 1), ((0, 0), (0, 0)), (7, 7)),
    "cropping": ((3, 3), (1, 1), ((-1, 1), (2, -2)), (8, 8)),
    "oblong": ((1, 4), (3, 2), ((0, 2), (1, 0)), (8, 9)),
    "even window": ((2, 4), (1, 2), ((1, 0), (2, 1)), (5, 6)),
    "wide padding": ((3, 2), (2, 3), ((3, 3), (0, 2)), (5, 7)),
    "sparse": ((1, 1), (2, 2), ((0, 0), (0, 0)), (5, 6)),
}


def drawn(window, size, channels=3, rows=2, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, *size, channels), (*window, 1, channels)))


FORMS = (shifted, textbook)


@partial(jax.jit, static_argnums=(0, 3, 4))
def value_and_gradients(form, x, kernel, strides, pads):
    y, back = jax.vjp(lambda x, k: form(x, k, strides, pads), x, kernel)
    return y, *back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_textbook_form_s(case):
    window, strides, pads, size = CASES[case]
    with jax.enable_x64(True):
        x, kernel = drawn(window, size)
        for ours, theirs in zip(*(value_and_gradients(f, x, kernel, strides, pads) for f in FORMS), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("case", ["same", "halving"])
def test_twice_differentiable_in_images_and_kernel(case):
    window, strides, pads, _ = CASES[case]
    with jax.enable_x64(True):
        args = drawn(window, (4, 5), 2, 1)
        check_grads(
            jax.jit(lambda x, k: jnp.sum(jnp.sin(shifted(x, k, strides, pads)) ** 2)), args, order=2, modes=("rev",)
        )


@pytest.mark.parametrize("cpu", [True, False])
def test_the_layer_is_flax_s_grouped_convolution_whichever_form_is_chosen(cpu, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda: cpu)
    layer, plain = depthwise(6, 3, "d", 2), module.nn.Conv(6, (3, 3), 2, 1, feature_group_count=6, name="d")
    x = drawn((1, 1), (8, 8), 6, 2, np.float32)[0]
    variables = layer.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"bias": (6,), "kernel": (3, 3, 1, 6)}}
    np.testing.assert_allclose(layer.apply(variables, x), plain.apply(variables, x), atol=1e-6)


def test_rows_do_not_see_each_other():
    x, kernel = drawn((3, 3), (19, 19), 24, 12, np.float32)
    order = np.random.default_rng(1).permutation(12)
    run = jax.jit(
        lambda x: jax.value_and_grad(lambda x: jnp.sum(shifted(x, kernel, (2, 2), ((1, 1), (1, 1))) ** 2))(x)[1]
    )
    whole = run(x)
    np.testing.assert_array_equal(run(x[order]), whole[order])
    np.testing.assert_array_equal(run(x[:8]), whole[:8])
