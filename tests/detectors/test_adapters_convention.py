"""Conventions by themselves: what reaches a foreign model, what its answer becomes, what contradicts itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors.adapters import Convention, Raw
from ffjax.detectors.adapters.convention import prepare, to_outputs
from ffjax.errors import InputError

IMAGES = np.random.default_rng(0).uniform(size=(5, 6, 8, 3)).astype(np.float32)
LOGITS = Convention(bounds=(0, 1), output="logits", fake=1)


@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), (-1, 1), (-0.5, 0.5)])
def test_black_and_white_become_the_bounds(bounds):
    ends = prepare(jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1), Convention(bounds=bounds, output="logits", fake=1))
    np.testing.assert_array_equal(ends.ravel(), bounds)


def test_the_usual_convention_changes_no_bit():
    np.testing.assert_array_equal(prepare(IMAGES, LOGITS), IMAGES)


def test_mean_and_deviation_are_in_the_models_own_order_and_scale():
    """Caffe's VGG: bytes, blue first, the means in that order."""
    mean, std = (103.9, 116.8, 123.7), (52.0, 58.0, 62.0)
    says = Convention(bounds=(0, 255), output="logits", fake=1, channels="BGR", mean=mean, std=std)
    expected = (IMAGES[..., [2, 1, 0]] * 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(prepare(IMAGES, says), expected, atol=1e-5)


def logits_of(scores, **says):
    raw = Raw(jnp.asarray(scores, jnp.float32))
    return np.asarray(to_outputs(raw, Convention(bounds=(0, 1), **says), False).logits)


SCORES = np.array([[1.0, -2.0], [0.3, 4.0], [-5.0, -5.0]], np.float32)
SOFTMAX = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("fake", [0, 1])
def test_logits_are_put_in_our_order_and_probabilities_give_the_same_margin(fake):
    ours = logits_of(SCORES, output="logits", fake=fake)
    np.testing.assert_array_equal(ours, SCORES[:, [1 - fake, fake]])
    ours = logits_of(SOFTMAX, output="probabilities", fake=fake)
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], SCORES[:, fake] - SCORES[:, 1 - fake], atol=1e-5)


@pytest.mark.parametrize(("fake", "sign"), [("high", 1), ("low", -1)])
@pytest.mark.parametrize("trailing", [(), (1,)])
def test_one_output_speaks_for_either_side(fake, sign, trailing):
    one = np.array([-3.0, 0.0, 2.5], np.float32)
    ours = logits_of(one.reshape(3, *trailing), output="logit", fake=fake)
    np.testing.assert_array_equal(ours, np.stack([0 * one, sign * one], axis=1))
    ours = logits_of((1 / (1 + np.exp(-one))).reshape(3, *trailing), output="probability", fake=fake)
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], sign * one, atol=1e-5)
    np.testing.assert_allclose(np.exp(ours).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("fake", [2, (0, 3), (1, 2, 3)])
def test_fault_22_several_kinds_of_fake_are_joined(fake):
    scores = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32) * 3
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    fakes = list(fake) if isinstance(fake, tuple) else [fake]
    expected = np.log(p[:, fakes].sum(axis=1)) - np.log(1 - p[:, fakes].sum(axis=1))
    for output, given in (("logits", scores), ("logits", scores + 50), ("probabilities", p)):
        ours = logits_of(given, output=output, fake=fake, classes=4)
        np.testing.assert_allclose(ours[:, 1] - ours[:, 0], expected, atol=1e-4)


def test_exact_zeros_and_ones_have_finite_logits_and_gradients():
    def total(p, **says):
        logits = to_outputs(Raw(p), Convention(bounds=(0, 1), **says), False).logits
        return jnp.sum(logits[:, 1] - logits[:, 0])

    both, one = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([0.0, 1.0])
    for p, says in ((both, {"output": "probabilities", "fake": 1}), (one, {"output": "probability", "fake": "high"})):
        assert jnp.isfinite(jax.grad(lambda p, says=says: total(p, **says))(p)).all()
    np.testing.assert_allclose(logits_of(both, output="probabilities", fake=1)[0], [np.log(1e-12), 0], atol=1e-4)


def test_probabilities_keep_a_margin_of_27_and_one_probability_of_16():
    """As `to_outputs` documents: what is lost beyond is lost in the declared output, not here."""
    margins = np.array([15.0, 26.0], np.float32)
    pair = np.stack(
        [1 / (1 + np.exp(margins.astype(np.float64))), 1 / (1 + np.exp(-margins.astype(np.float64)))], axis=1
    )
    ours = logits_of(pair, output="probabilities", fake=1)
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], margins, atol=0.3)
    ours = logits_of(pair[:, 1], output="probability", fake="high")
    np.testing.assert_allclose(ours[0, 1] - ours[0, 0], 15, atol=0.3)


@pytest.mark.parametrize(
    ("says", "match"),
    [
        ({"output": "score"}, "output: unknown 'score'; known: logits, probabilities, logit, probability"),
        ({"channels": "RGBA"}, "channels: unknown 'RGBA'; known: RGB, BGR"),
        ({"layout": "HWC"}, "layout: unknown 'HWC'; known: None, NHWC, NCHW"),
        ({"mask": "logit"}, "mask: unknown 'logit'; known: logits, probabilities"),
        ({"fake": "high"}, "fake: 'high' names no proper part of the indices 0 .. 1"),
        ({"fake": 2}, "fake: 2 names no proper part"),
        ({"fake": -1}, "fake: -1 names no proper part"),
        ({"fake": True}, "fake: True names no proper part"),
        ({"fake": (0, 1)}, "fake: .* names no proper part"),
        ({"fake": (1, 1), "classes": 3}, "fake: .* names no proper part"),
        ({"fake": ()}, "fake: .* names no proper part"),
        ({"output": "logit"}, "fake: for one logit say 'high' or 'low'"),
        ({"output": "probability", "fake": 0}, "fake: for one probability say 'high' or 'low'"),
        ({"bounds": (1, 0)}, "bounds: need two finite values, low < high"),
        ({"bounds": (0, float("inf"))}, "bounds: need two finite values"),
        ({"bounds": (0,)}, r"bounds: need two finite values, low < high, got \(0,\)$"),
        ({"bounds": None}, "bounds: need two finite values, low < high, got None$"),
        ({"bounds": ("a", "b")}, r"bounds: need two finite values, low < high, got \('a', 'b'\)$"),
        ({"classes": "2"}, "classes: need a whole number, 2 or more, got '2'"),
        ({"classes": 1}, "classes: need a whole number, 2 or more, got 1"),
        ({"std": 0.0}, "std: need a positive number, or one per channel, got 0.0"),
        ({"std": (0.2, -0.2, 0.2)}, r"std: need a positive number, or one per channel, got \(0.2, -0.2, 0.2\)"),
        ({"std": None}, "std: need a positive number"),
        ({"mean": "a"}, "mean: need a finite number, or one per channel, got 'a'"),
        ({"mean": (0.5, "b")}, "mean: need a finite number"),
        ({"mean": float("nan")}, "mean: need a finite number"),
        ({"mean": (123.7, 116.8, 103.9)}, "mean: .* lies outside bounds"),
        ({"mean": 0.5, "std": 58.0}, "std: 58.0 spreads bounds .* over 0.0172: two scales"),
        ({"bounds": (0, 255), "mean": 0.5, "std": 0.229}, "std: 0.229 spreads bounds .* over 1.11e.03: two scales"),
    ],
)
def test_a_contradictory_convention_is_refused(says, match):
    with pytest.raises(InputError, match=match):
        Convention(**({"bounds": (0, 1), "output": "logits", "fake": 1} | says))


def test_lists_and_arrays_stand_for_tuples():
    given = Convention(
        bounds=[0, 1], output="logits", fake=[1, 2], classes=np.int64(4), mean=np.array([0.5, 0.25, 0.5])
    )
    assert given == Convention(bounds=(0, 1), output="logits", fake=(1, 2), classes=4, mean=(0.5, 0.25, 0.5))
    assert hash(given) is not None


@pytest.mark.parametrize("missing", ["bounds", "output", "fake"])
def test_what_nobody_can_guess_must_be_said(missing):
    says = {"bounds": (0, 1), "output": "logits", "fake": 1}
    del says[missing]
    with pytest.raises(TypeError, match=missing):
        Convention(**says)
