"""Every fault that `checks` names, in the smallest detector that has it."""

import itertools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors import build, checks
from ffjax.errors import InputError
from ffjax.types import Detector, Outputs

SHAPE = (8, 8, 3)
IMAGES = checks.textures(SHAPE)
WEIGHTS = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def detector(verdict, mask=None, act=None):
    """verdict: images -> (B,) z_fake; mask, act: images -> their outputs."""

    def apply(variables, images):
        z = verdict(images)
        acts = OrderedDict() if act is None else OrderedDict(conv1=act(images))
        return Outputs(jnp.stack([jnp.zeros_like(z), z], axis=1), None if mask is None else mask(images), acts)

    return Detector(lambda key: {}, apply, lambda *_: None, SHAPE)


def linear(images):
    return jnp.sum(images * WEIGHTS[None], axis=(1, 2, 3)) + 0.3


def examine(verdict, images=IMAGES, gradient=True, **heads):
    return checks.examine(detector(verdict, **heads), {}, images, gradient=gradient, name="theirs")


def refused(match, verdict, **heads):
    with pytest.raises(InputError, match=f"^theirs: .*{match}") as caught:
        examine(verdict, **heads)
    assert "\n" not in str(caught.value)


def test_a_sound_detector_passes_in_silence():
    assert examine(linear, mask=lambda x: x[..., 0] - 0.5, act=jax.nn.relu) == ()


def test_textures_are_images_and_always_the_same():
    assert IMAGES.shape == (6, *SHAPE) and IMAGES.dtype == np.float32 and 0 <= IMAGES.min() < IMAGES.max() <= 1
    np.testing.assert_array_equal(IMAGES, checks.textures(SHAPE))
    assert checks.textures((5, 9, 1)).shape == (6, 5, 9, 1)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (IMAGES[:1], "need two or more images"),
        (IMAGES[:, :4], "need two or more images"),
        (IMAGES * 255, "must lie in"),
        (IMAGES * np.nan, "must lie in"),
    ],
)
def test_images_to_check_with_are_checked(images, match):
    with pytest.raises(InputError, match=match):
        examine(linear, images)


def test_noise_in_the_forward_is_refused():
    count = itertools.count()

    def drawn(images):
        noise = jax.pure_callback(
            lambda x: np.float32(next(count) * 0.1), jax.ShapeDtypeStruct((), jnp.float32), images
        )
        return linear(images) + noise

    with pytest.raises(InputError, match=r"^theirs: two calls on the same images differ by .* in logits: dropout"):
        examine(drawn, gradient=False)


def test_batch_statistics_are_refused():
    refused(
        "rows influence each other: logits of image .* with its batch-mates",
        lambda x: linear(x - x.mean(axis=0, keepdims=True)),
    )


def test_a_normaliser_by_the_range_of_the_batch_is_refused():
    refused("when it is asked about alone", lambda x: linear(x / jnp.maximum(x.max(), 1e-6)))


def test_a_first_row_that_is_treated_apart_is_refused():
    """ClassNSeg's normaliser runs over the batch axis: the first three images get one channel's scalar each."""
    refused("with its place in the batch", lambda x: linear(x.at[:3].multiply(0.5)))


def test_a_faint_influence_is_refused():
    refused("rows influence each other: logits", lambda x: linear(x) + 1e-3 * linear(x).mean(keepdims=True))


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:2]])
def test_an_influence_that_begins_with_a_batch_of_16_is_refused(images):
    def joined(x):
        return linear(x) - (0.1 * linear(x).mean(keepdims=True) if len(x) >= 16 else 0)

    with pytest.raises(InputError, match=r"^theirs: rows influence each other: logits"):
        examine(joined, images)


def test_an_answer_that_depends_on_the_size_of_the_batch_is_refused():
    refused("with the size of the batch", lambda x: linear(x) * (1 if len(x) < 16 else 1.01))


def test_faint_noise_is_refused():
    rng = np.random.default_rng(0)

    def drawn(images):
        shape = jax.ShapeDtypeStruct((len(images),), jnp.float32)
        draw = lambda x: rng.normal(size=len(x)).astype(np.float32)  # noqa: E731
        return linear(images) + 1e-3 * jax.pure_callback(draw, shape, images)

    with pytest.raises(InputError, match=r"^theirs: two calls on the same images differ by"):
        examine(drawn, gradient=False)


def test_an_influence_on_the_mask_alone_is_refused():
    refused("rows influence each other: mask of a", linear, mask=lambda x: x[..., 0] - x[..., 0].mean(0, keepdims=True))
    refused("rows influence each other: activation conv1 of", linear, act=lambda x: x - x.mean(0, keepdims=True))


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_rounding_by_batch_size_is_not_an_influence(size):
    def rounded(images):
        # what another kernel does at another batch size: some units in the last place of terms that cancel
        return size * (linear(images) + 20 - 20 * (1 + 1e-6 * images.shape[0] / 9))

    assert examine(rounded) == ()


def test_a_dead_gradient_is_refused_for_either_head():
    refused("gradient of the verdict is zero on every image: detached", lambda x: linear(jax.lax.stop_gradient(x)))
    refused("gradient of the verdict is zero on every image: detached", lambda x: jnp.round(linear(x)))
    dead = lambda x: jax.lax.stop_gradient(x[..., 0])  # noqa: E731
    refused("gradient of the mask is zero on every image: detached", linear, mask=dead)


def test_a_saturated_verdict_is_named_as_the_reason():
    refused(r"zero on every image \(verdicts are saturated\)", lambda x: 20 * jnp.sign(linear(x)))


def test_a_dead_gradient_goes_unnoticed_where_none_is_asked_for():
    assert examine(lambda x: jnp.round(linear(x)), gradient=False) == ()


def test_a_gradient_that_is_zero_on_some_images_is_a_warning():
    (found,) = examine(lambda x: jnp.where(x.max(axis=(1, 2, 3)) < 0.7, linear(jax.lax.stop_gradient(x)), linear(x)))
    assert found == "theirs: the gradient of the verdict is zero on image 2, image 3"


def test_a_gradient_that_is_not_finite_on_plain_images_is_a_warning():
    (found,) = examine(lambda x: linear(x) + jnp.std(x, axis=(1, 2, 3)))
    assert found.startswith("theirs: the gradient of the verdict is NaN or infinite on a black image, a grey image")


def test_a_gradient_that_is_not_finite_on_images_is_refused():
    refused("gradient of the verdict is NaN or infinite on", lambda x: linear(x) + jnp.sqrt(0 * x[:, 0, 0, 0]))


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda x: linear(x) / x.max(axis=(1, 2, 3)), "logits is NaN or infinite on a black image$"),
        (lambda x: linear(x) - jnp.log(1 - x.min(axis=(1, 2, 3))), "logits is NaN or infinite on a white image$"),
        (lambda x: linear(x) / jnp.std(x, axis=(1, 2, 3)), "NaN or infinite on a black image, a grey image, a white"),
    ],
)
def test_values_that_are_not_finite_are_refused(broken, match):
    refused(match, broken)


def test_shapes_and_types_are_refused():
    refused(r"mask of shape \(9, 8, 8, 1\) for 9 images, not \(B, h, w\)", linear, mask=lambda x: x[..., :1])
    refused(r"activation conv1 of shape \(9, 8, 8\) for 9 images, not \(B, h, w, c\)", linear, act=lambda x: x[..., 0])
    refused("activation conv1 is float16, not float32", linear, act=lambda x: x.astype(jnp.float16))
    refused(r"logits of shape \(9, 2, 3\)", lambda x: x[:, 0, 0])


def test_a_batch_of_one_that_is_squeezed_away_is_refused():
    def squeezing(variables, images):
        outputs = detector(linear).apply(variables, images)
        return outputs._replace(logits=outputs.logits.squeeze())

    with pytest.raises(InputError, match=r"^theirs: logits of shape \(2,\) for 1 images, not \(B, 2\)$"):
        checks.examine(detector(linear)._replace(apply=squeezing), {}, IMAGES, name="theirs")


PROBABILITIES = np.array([[0.1, 0.9], [0.5, 0.5], [0.99, 0.01], [0.3, 0.7]], np.float32)
LOGITS = np.array([[1.0, -3.0], [0.2, 0.1], [5.0, 2.0], [-1.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("scores", "output", "match"),
    [
        (PROBABILITIES, "logits", "declared logits, but every row lies in .* sums to 1: these are probabilities"),
        (LOGITS, "probabilities", "declared probabilities, but scores range from -3 to 5: these are logits"),
        (
            np.abs(LOGITS) / 6,
            "probabilities",
            "declared probabilities, but rows sum to 0.05 .. 1.17, not 1: .* per class",
        ),
        (LOGITS[:, 0], "probability", "declared probability, but scores range from -1 to 5: these are logits"),
        (np.full((4, 2), np.inf, np.float32), "logits", "scores are NaN or infinite"),
    ],
)
def test_scores_of_another_kind_are_refused(scores, output, match):
    with pytest.raises(InputError, match=f"^theirs: {match}$"):
        checks.examine_scores(scores, output, name="theirs")


def test_scores_that_are_the_same_for_all_images_are_refused():
    for output, scores in (("logits", [[3.0, -2.0]]), ("probabilities", [[0.3, 0.7]]), ("logit", [[1.5]])):
        with pytest.raises(InputError, match=r"^theirs: all 4 images get the same scores: it is dead"):
            checks.examine_scores(np.float32(scores * 4), output, name="theirs")


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        (
            PROBABILITIES * np.float32([0.5, 1]),
            "every score lies in [0, 1]: a sigmoid per class? (an untrained network may)",
        ),
        (PROBABILITIES * 100, "every row sums to 100: a softmax, scaled?"),
        (PROBABILITIES - 1, "every row sums to -1: a softmax, scaled?"),
    ],
)
def test_logits_that_may_be_probabilities_are_a_warning(scores, match):
    (found,) = checks.examine_scores(scores, "logits", name="theirs")
    assert found == f"theirs: declared logits, but {match}"


@pytest.mark.parametrize("ends", [(0, 1), (1e-7, 1 - 1e-7)])
def test_decisions_are_a_warning(ends):
    (found,) = checks.examine_scores(np.float32(ends)[[0, 1, 1, 0]], "probability", name="theirs")
    assert found.startswith("theirs: scores take only the values ") and "decision-based attacks" in found


def test_logits_of_either_sign_are_no_softmax():
    """A network trained from zero has rows that sum to 0."""
    z = LOGITS[:, :1]
    assert checks.examine_scores(np.concatenate([-z, z], axis=1), "logits") == ()


def test_one_score_inside_the_unit_interval_is_a_warning():
    (found,) = checks.examine_scores(PROBABILITIES[:, :1], "logit", name="theirs")
    assert (
        found == "theirs: declared a logit, but every score lies in [0, 1]: if it is a sigmoid, declare 'probability'"
    )


@pytest.mark.parametrize(
    ("scores", "output"),
    [
        (PROBABILITIES, "probabilities"),
        (PROBABILITIES[:, 0], "probability"),
        (LOGITS, "logits"),
        (LOGITS[:, 0], "logit"),
    ],
)
def test_scores_of_the_declared_kind_pass(scores, output):
    assert checks.examine_scores(scores, output) == ()


def bounds_found(model, declared):
    """model: values as the model takes them -> margins."""
    images = checks.with_plain(IMAGES, SHAPE)
    return checks.examine_bounds(lambda b: np.asarray(model(b[0] + images * (b[1] - b[0]))), declared, name="theirs")


def test_bounds_a_model_does_not_expect_are_a_warning():
    for_bytes = lambda x: 4 + linear(x) / 255  # noqa: E731
    (found,) = bounds_found(for_bytes, (0.0, 1.0))
    assert found.startswith("theirs: bounds (0.0, 1.0) look wrong: verdicts hardly move over all images, but not un")
    assert found.endswith("under (0.0, 255.0)")
    assert bounds_found(for_bytes, (0.0, 255.0)) == ()


def test_saturated_verdicts_are_a_warning():
    for_units = lambda x: 2 * linear(x)  # noqa: E731
    (found,) = bounds_found(for_units, (0.0, 255.0))
    assert found == "theirs: bounds (0.0, 255.0) look wrong: verdicts are saturated, but not under (0.0, 1.0)"
    assert bounds_found(for_units, (0.0, 1.0)) == ()


def test_a_constant_model_is_no_fault_of_its_bounds():
    assert bounds_found(lambda x: np.ones(len(x)), (0.0, 1.0)) == ()


def test_plain_scaling_is_no_fault_of_bounds():
    assert bounds_found(lambda x: linear(x) / 255 - 0.3 / 255, (0.0, 1.0)) == ()


def examined(arch, size, **options):
    network = build(arch, size, **options)
    images = checks.textures(network.shape)
    return checks.examine(network, network.init(jax.random.key(0)), images, name=arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["meso4", "resnet10", "laplacian", "bondi"])
def test_our_own_networks_pass(arch):
    assert examined(arch, 64) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "quirk", "match"),
    [
        ("classnseg", {"normaliser": "as_released"}, "with its place in the batch"),
        ("capsule_v1", {"features": "as_released"}, "gradient of the verdict is zero on every image: detached"),
    ],
)
def test_released_quirks_are_refused(arch, quirk, match):
    with pytest.raises(InputError, match=f"^{arch}: .*{match}"):
        examined(arch, 64, **quirk)
