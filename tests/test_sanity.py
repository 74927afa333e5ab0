"""Every sign of robustness that is none: raised where it should be, silent on an honest detector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import goals, sanity
from ffjax.types import Batch


def batch(count=16):
    pictures = (toys.images(count).images / 255).astype(np.float32)
    return Batch(pictures, np.arange(count, dtype=np.int32) % 2, np.arange(count, dtype=np.int32))


def flags(change):
    variables = toys.TOY.init(jax.random.key(0))
    forward = jax.tree_util.Partial(lambda v, images: change(toys.TOY.apply(v, images), images), variables)
    return sanity.of_forward(forward, goals.verdict(), batch())


def test_an_honest_detector_raises_none():
    assert flags(lambda outputs, images: outputs) == {}


def _noisy(outputs, images):
    draw = jax.pure_callback(
        lambda: np.random.default_rng().normal(size=outputs.logits.shape).astype(np.float32),
        jax.ShapeDtypeStruct(outputs.logits.shape, jnp.float32),
    )
    return outputs._replace(logits=outputs.logits + draw)


def _looping(outputs, images):
    added = jax.lax.fori_loop(0, 3, lambda i, x: x * 0.5, outputs.logits)
    return outputs._replace(logits=outputs.logits + added)


def _dead_half(outputs, images):
    alive = jnp.arange(len(images))[:, None] % 2 == 0
    return outputs._replace(logits=jnp.where(alive, outputs.logits, jax.lax.stop_gradient(outputs.logits)))


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (_noisy, "random", "two outputs"),
        (lambda o, x: o._replace(logits=jax.nn.softmax(o.logits)), "probabilities", "probabilities"),
        (lambda o, x: o._replace(logits=jax.lax.stop_gradient(o.logits)), "zero_gradient", "16 of 16"),
        (_dead_half, "zero_gradient", "8 of 16"),
        (_looping, "test_time_optimisation", "scan|while"),
    ],
)
def test_each_fault_raises_its_flag_and_no_other(change, name, told):
    found = flags(change)
    assert list(found) == [name]
    assert any(word in found[name] for word in told.split("|"))


def _rows(moved):
    margins = {"clean": {"float": -1.0}, "noise": {"float": -1.0}}
    return [
        {"success": False, "label": 0, "margins": margins | {"attacked": {"float": -1.0 + (0.5 if m else 0)}}}
        for m in moved
    ]


def test_an_objective_that_does_not_rise_on_what_stands_is_told_with_its_count():
    assert sanity.of_rows(_rows([True] * 10)) == {}
    assert "2 of the 10" in sanity.of_rows(_rows([True] * 8 + [False] * 2))["loss_not_rising"]


def test_a_black_box_that_breaks_what_gradients_left_is_told():
    assert sanity.of_ensemble({"apgd": 10}, ("square",)) == {}
    assert "square broke 3" in sanity.of_ensemble({"apgd": 10, "square": 3}, ("square",))["black_box_beats_white_box"]
