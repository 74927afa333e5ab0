"""Plain functions as detectors: what reaches them, what their answers become, and what is refused."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ffjax.detectors import Loaded, at_size, layers
from ffjax.detectors.adapters import Convention, Raw, from_function
from ffjax.detectors.checks import DetectorWarning
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import Outputs

SHAPE = (6, 8, 3)
IMAGES = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(*SHAPE, 2)).astype(np.float32)
LOGITS = Convention(bounds=(0, 1), output="logits", fake=1)
LOGIT = Convention(bounds=(0, 1), output="logit", fake="high")


def linear(images):
    return jnp.einsum("bhwc,hwck->bk", images, WEIGHTS)


def score(images):
    return linear(images)[:, 1]


def z(adapted, images=IMAGES):
    return np.asarray(margin(adapted.detector.apply(adapted.variables, images)))


# what reaches the model


def test_a_model_of_channels_first_is_given_them_first():
    seen = []

    def model(images):
        seen.append(images.shape)
        return linear(images.transpose(0, 2, 3, 1))

    adapted = from_function(model, SHAPE, Convention(bounds=(0, 1), output="logits", fake=1, layout="NCHW"))
    assert set(seen) == {(n, 3, 6, 8) for n in (1, 8, 9, 18)}
    np.testing.assert_array_equal(z(adapted), z(from_function(linear, SHAPE, LOGITS)))


@pytest.mark.parametrize(
    "says",
    [
        {"bounds": (0, 255), "mean": 127.5, "std": 20.0},
        {"bounds": (0, 1), "mean": (0.485, 0.456, 0.406), "std": (0.1, 0.2, 0.3)},
        {"bounds": (-1, 1), "channels": "BGR", "std": (0.1, 0.2, 0.3)},
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_fault_10_gradients_agree_with_finite_differences_through_the_normalisation(says, layout):
    """PEERS 4a row 10: a wrapper whose gradient lacks 1/std. A central difference of a quadratic is exact."""

    def quadratic(images):
        x = images.transpose(0, 2, 3, 1) if layout == "NCHW" else images
        return score(x) + 0.1 * jnp.sum(x * x, axis=(1, 2, 3))

    convention = Convention(output="logit", fake="high", layout=layout, **says)
    adapted = from_function(quadratic, SHAPE, convention, check=False)
    slope = jax.grad(lambda x: margin(adapted.detector.apply({}, x)).sum())(IMAGES)
    for place in [(0, 0, 0), (3, 5, 1), (5, 7, 2)]:
        step = np.zeros(SHAPE, np.float32)
        step[place] = 0.25
        numeric = (z(adapted, IMAGES + step) - z(adapted, IMAGES - step)) / 0.5
        np.testing.assert_allclose(slope[(slice(None), *place)], numeric, rtol=1e-3, atol=1e-3 * np.abs(slope).max())


# what its answer becomes


def test_activations_and_masks_come_along():
    def model(images):
        acts = OrderedDict(zebra=images[:, ::2, ::2], aardvark=images * 2)
        return Outputs(linear(images), images[..., :1] - 0.5, acts)

    detector, variables = from_function(model, SHAPE, LOGITS)
    outputs = jax.jit(detector.apply)(variables, IMAGES)
    assert list(outputs.acts) == ["zebra", "aardvark"] == list(layers(detector))
    np.testing.assert_array_equal(outputs.mask, IMAGES[..., 0] - 0.5)
    np.testing.assert_array_equal(outputs.acts["aardvark"], IMAGES * 2)


def test_activations_and_masks_of_channels_first_are_turned():
    def model(images):
        return Outputs(linear(images.transpose(0, 2, 3, 1)), images[:, :1], OrderedDict(a=images))

    says = Convention(bounds=(0, 1), output="logits", fake=1, layout="NCHW", mask="probabilities")
    detector, variables = from_function(model, SHAPE, says, check=IMAGES * 0.8 + 0.1)
    outputs = detector.apply(variables, IMAGES)
    np.testing.assert_array_equal(outputs.acts["a"], IMAGES)
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.mask), IMAGES[..., 0], atol=1e-5)


def test_scores_with_activations_and_variables():
    def model(variables, images):
        return variables["gain"] * linear(images), {"a": images}

    variables = {"gain": jnp.float32(2)}
    adapted = from_function(model, SHAPE, LOGITS, variables)
    np.testing.assert_allclose(z(adapted), 2 * z(from_function(linear, SHAPE, LOGITS)), rtol=1e-5)
    assert adapted.detector.init(jax.random.key(0)) is variables is adapted.variables
    assert layers(adapted.detector) == ("a",)


def test_an_adapted_model_is_a_detector_like_any_other():
    adapted = from_function(linear, SHAPE, LOGITS)
    assert Loaded("theirs", *adapted, {}).detector.shape == SHAPE
    square = from_function(lambda x: x.mean((1, 2)) @ WEIGHTS[0, 0], (8, 8, 3), LOGITS)
    larger = at_size(square.detector, 16)
    assert larger.apply(square.variables, jnp.zeros((2, 16, 16, 3))).logits.shape == (2, 2)


def test_two_sets_of_weights_share_one_trace():
    traces = []

    def model(variables, images):
        traces.append(1)
        return variables * linear(images)

    detector, _ = from_function(model, SHAPE, LOGITS, jnp.float32(1), check=False)
    traces.clear()
    apply = jax.jit(lambda forward, images: forward(images).logits)
    results = [apply(Partial(detector.apply, jnp.float32(gain)), IMAGES) for gain in (1, 2)]
    assert len(traces) == 1 and not jnp.array_equal(*results)


# what is refused


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda x: linear(x)[:, :1], r"scores of shape \(1, 1\) where logits \(B, 2\) were declared"),
        (lambda x: linear(x).sum(), r"scores of shape \(\) where"),
        (lambda x: linear(x).argmax(-1, keepdims=True) * jnp.array([[1, 2]]), "scores are int32: a verdict has no"),
        (lambda x: {"cls": linear(x), "feat": x}, "returns a dict of cls, feat; it must return scores"),
        (lambda x: (linear(x), x, x), "returns a tuple of 3; it must return scores"),
        (lambda x: (linear(x), {"a": x.mean((1, 2))}), r"activation a: shape \(1, 3\), not four axes with the 1 image"),
        (lambda x: Outputs(linear(x), x, OrderedDict()), r"mask of shape \(1, 6, 8, 3\) where \(B, h, w\)"),
        (lambda x: linear(x).mean(axis=0, keepdims=True), "8 images give 1 scores: the model joins or drops rows"),
        (lambda x: linear(x[:, :4]), r"the model refuses 1 images of \(6, 8, 3\): "),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(model, match):
    with pytest.raises(InputError, match=f"^from_function: {match}") as caught:
        from_function(model, SHAPE, LOGITS, check=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "says", "match"),
    [
        ((6, 8), {}, r"shape must be \(height, width, channels\) in whole numbers, got \(6, 8\)"),
        (16, {}, "shape must be .* got 16"),
        (None, {}, "shape must be .* got None"),
        ((6, 8, "3"), {}, r"shape must be .* got \(6, 8, '3'\)"),
        ((6, 8, 0), {}, "shape must be"),
        ((6, 8, 1), {"channels": "BGR"}, "BGR was declared for images of 1 channels"),
        (SHAPE, {"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels"),
        (SHAPE, {"std": (0.5, 0.5)}, "std has 2 values for 3 channels"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape, says, match):
    with pytest.raises(InputError, match=f"from_function: {match}"):
        from_function(linear, shape, Convention(bounds=(0, 1), output="logits", fake=1, **says))


def test_a_shape_may_be_a_list():
    adapted = from_function(linear, list(SHAPE), LOGITS, check=False)
    assert adapted.detector.shape == SHAPE and z(adapted).shape == (5,)


def test_what_is_no_convention_is_refused():
    with pytest.raises(InputError, match=r"^from_function: need a Convention, got a dict$"):
        from_function(linear, SHAPE, {"bounds": (0, 1)})


def test_images_of_another_size_are_refused():
    detector, variables = from_function(linear, SHAPE, LOGITS)
    with pytest.raises(InputError, match=r"images of shape \(1, 8, 8, 3\) given to a detector of \(B, 6, 8, 3\)"):
        detector.apply(variables, jnp.zeros((1, 8, 8, 3)))


def test_training_a_model_that_was_brought_is_refused():
    detector, variables = from_function(linear, SHAPE, LOGITS)
    with pytest.raises(InputError, match="from_function: no training forward came with this model"):
        detector.train(variables, IMAGES, jax.random.key(0))


# the checks run by themselves


def three(images):
    return jax.nn.softmax(images.mean((1, 2)) * 5)


@pytest.mark.parametrize(
    ("model", "says", "match"),
    [
        (three, {"classes": 3}, "declared logits, but every row lies in"),
        (lambda x: three(x) * 4, {"classes": 3, "output": "probabilities"}, "these are logits"),
        (lambda x: jax.lax.stop_gradient(linear(x)), {}, "the gradient of the verdict is zero on every image"),
        (lambda x: linear(x - x.mean(0, keepdims=True)), {}, "rows influence each other"),
        (lambda x: linear(x) / jnp.std(x, axis=(1, 2, 3), keepdims=True)[:, 0, 0], {}, "NaN or infinite"),
    ],
)
def test_faults_are_refused_unless_nothing_is_to_be_checked(model, says, match):
    convention = Convention(**({"bounds": (0, 1), "output": "logits", "fake": 1} | says))
    with pytest.raises(InputError, match=f"^from_function: .*{match}"):
        from_function(model, SHAPE, convention)
    assert from_function(model, SHAPE, convention, check=False).detector.shape == SHAPE


def test_a_sigmoid_per_class_declared_as_logits_is_a_warning():
    with pytest.warns(DetectorWarning, match="from_function: declared logits, but every score lies in .* a sigmoid"):
        from_function(lambda x: jax.nn.sigmoid(linear(x)), SHAPE, LOGITS)


def test_a_mask_of_another_kind_than_declared_is_told():
    model = lambda x: Raw(linear(x), x[..., 0])  # noqa: E731
    with pytest.warns(DetectorWarning, match="declared a mask of logits, but all of it lies in"):
        from_function(model, SHAPE, LOGITS)
    says = Convention(bounds=(-1, 1), output="logits", fake=1, mask="probabilities")
    with pytest.raises(InputError, match="declared a mask of probabilities, but it ranges from -1 to 1: logits"):
        from_function(model, SHAPE, says)


def test_the_rounding_of_confident_probabilities_is_no_fault():
    """A batch of another size moves a probability by a unit in the last place, and its logarithm by 0.01 here."""

    def confident(x):
        p = jax.nn.sigmoid(10 + 2 * jnp.tanh(score(x)))
        return jnp.where(x.shape[0] % 2, p, p - 6e-8)

    says = Convention(bounds=(0, 1), output="probability", fake="high")
    from_function(confident, SHAPE, says, check=IMAGES)


def test_a_sigmoid_declared_as_a_logit_is_a_warning():
    with pytest.warns(DetectorWarning, match="from_function: declared a logit, but every score lies in"):
        from_function(lambda x: jax.nn.sigmoid(score(x)), SHAPE, LOGIT)


def test_bounds_that_look_wrong_are_a_warning_at_the_callers_line():
    with pytest.warns(DetectorWarning, match=r"bounds \(0, 1\) look wrong: .* not under \(0.0, 255.0\)") as caught:
        from_function(lambda x: 4 + score(x) / 255, SHAPE, LOGIT)
    assert caught[0].filename == __file__


def test_bounds_are_not_doubted_where_the_deviation_fixes_the_scale():
    says = Convention(bounds=(0, 1), mean=0.5, std=0.25, output="logit", fake="high")
    from_function(lambda x: 1 + score(x) / 10_000, SHAPE, says)


def test_faults_are_looked_for_on_the_callers_own_images():
    def dead_when_dark(images):
        lit = images.max(axis=(1, 2, 3), keepdims=True) > 0.5
        return linear(jnp.where(lit, images, jax.lax.stop_gradient(images)))

    from_function(dead_when_dark, SHAPE, LOGITS)
    with pytest.raises(InputError, match="gradient of the verdict is zero on every image"):
        from_function(dead_when_dark, SHAPE, LOGITS, check=IMAGES * 0.4)
    with pytest.raises(InputError, match="need two or more images"):
        from_function(linear, SHAPE, LOGITS, check=IMAGES[0])
    with pytest.raises(InputError, match=r"check: need two or more images of .* got str"):
        from_function(linear, SHAPE, LOGITS, check="yes")
