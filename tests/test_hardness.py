"""What holds, on detectors whose every distance to the boundary is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import hardness
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.objectives import cross_entropy
from ffjax.types import Batch

COMPUTE = Compute(batch=8, devices=1)
LINEAR = toys.forward(0, toys.LINEAR)
W = np.asarray(toys.LINEAR.init(jax.random.key(0))["params"]["w"])


def rightly_labelled(count: int = 20):
    """Images far from black and white, labelled as the linear detector has them, but for the last four."""
    data = toys.images(count)
    data = data._replace(images=(64 + data.images // 2).astype(np.uint8))
    said = margins(LINEAR, data.images, COMPUTE)
    labels = (said > 0).astype(np.int32)
    labels[-4:] = 1 - labels[-4:]
    return data._replace(labels=labels), said


def test_a_linear_detector_holds_where_its_margin_is_beyond_the_bounds_reach():
    data, said = rightly_labelled()
    eps = float(np.median(np.abs(said)) / np.abs(W).sum())
    found = hardness.held(LINEAR, data, eps, COMPUTE)
    right = (said > 0) == (data.labels == 1)
    np.testing.assert_array_equal(found.clean, right)
    np.testing.assert_array_equal(found.pgd, right & (np.abs(said) > eps * np.abs(W).sum()))
    assert 0 < found.pgd.sum() < found.noise.sum() <= found.clean.sum() == 16


def test_balanced_is_a_half_for_whoever_always_says_the_same():
    labels = np.array([1, 1, 1, 0])
    assert hardness.balanced(labels == 1, labels) == 0.5
    assert hardness.balanced(np.array([True, False, False, True]), labels) == pytest.approx(2 / 3)


def test_an_epoch_is_chosen_by_clean_accuracy_and_from_competence_on_by_what_holds_too():
    data, said = rightly_labelled()
    competent = data._replace(labels=(said > 0).astype(np.int32))
    fake = jnp.array([[0.0, 1.0]])
    always = jax.tree_util.Partial(lambda x: LINEAR(x)._replace(logits=jnp.repeat(fake, len(x), axis=0)))

    def score(forward, some, eps):
        return hardness.score(forward, some, some, eps, COMPUTE)

    clean = hardness.balanced((said > 0) == (data.labels == 1), data.labels)
    assert 0.7 < clean < 0.9 and score(LINEAR, data, 0.0) == score(LINEAR, data, 2.0) == pytest.approx(clean)
    assert score(always, data, 0.0) == 0.5  # a constant, of which PGD leaves a half
    eps = float(np.median(np.abs(said)) / np.abs(W).sum())
    stands = np.abs(said) > eps * np.abs(W).sum()
    worse = min(stands[competent.labels == label].mean() for label in (0, 1))
    assert score(LINEAR, competent, 2.0) == 2.0 and score(LINEAR, competent, eps) == pytest.approx(2 + worse / 5)
    assert worse > 0


def test_slopes_are_each_images_own_whatever_its_batch():
    data, forward = toys.images(11), toys.forward()
    found = hardness.slopes(forward, data, COMPUTE)
    for k in (0, 7, 8, 10):
        one = Batch(None, data.labels[k : k + 1], None)
        x = jnp.asarray(data.images[k : k + 1] / np.float32(255))
        slope = jax.grad(lambda x, one=one: cross_entropy(forward(x), one)[0])(x)
        assert found[k] == pytest.approx(float(jnp.linalg.norm(slope.ravel())), rel=1e-4)


def test_measured_tells_both_classes_apart():
    data, _ = rightly_labelled()
    found = hardness.measured(LINEAR, data, hardness.held(LINEAR, data, 0.0, COMPUTE), COMPUTE)
    for kind, label in hardness.CLASSES.items():
        rows = data.labels == label
        expected = hardness.held(LINEAR, data, 0.0, COMPUTE).clean[rows].mean()
        assert found[f"clean_{kind}"].value == found[f"pgd_{kind}"].value == pytest.approx(expected)
    assert found["slope"].value > 0


def test_matched_asks_of_the_images_that_both_call_rightly_clean():
    def holding(clean, pgd):
        return hardness.Held(*(np.array(x, bool) for x in (clean, clean, pgd)))

    own, other = holding([1, 1, 1, 0, 1], [1, 1, 0, 0, 1]), holding([1, 1, 1, 1, 0], [0, 1, 0, 1, 0])
    found = hardness.matched(own, other, np.arange(5))
    assert found is not None and [one.n for one in found] == [3, 3]
    assert [one.value for one in found] == pytest.approx([2 / 3, 1 / 3])
    assert hardness.matched(own, holding([0, 0, 0, 1, 0], [0] * 5), np.arange(5)) is None


def test_what_a_gradient_attack_leaves_standing_is_flagged_where_gradients_vanish():
    """Scores of the linear detector, rounded to multiples of a hundredth: no gradient, and Square needs none."""
    data, said = rightly_labelled()
    competent = data._replace(labels=(said > 0).astype(np.int32))

    def stepped(images):
        told = LINEAR(images)
        return told._replace(logits=jnp.round(100 * told.logits) / 100)

    masked, eps = jax.tree_util.Partial(stepped), float(2 * np.median(np.abs(said)) / np.abs(W).sum())

    def flags(forward, eps):
        return hardness.flags(forward, competent, hardness.held(forward, competent, eps, COMPUTE), eps, COMPUTE)

    found = flags(masked, eps)
    assert {"zero_gradient", "black_box_beats_white_box"} <= set(found)
    assert flags(LINEAR, eps / 4) == {}
