"""Every entry of DETECTORS is held to the same promises, at a small size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ffjax.detectors import DETECTORS, at_size, build, layers
from ffjax.errors import InputError

SIZE = 64
PARAMETERS = {"meso4": 27_977, "mesoinception4": 28_615, "resnet10": 306_570}  # at each builder's own default size
LAYERS = {
    "meso4": ("conv1", "conv2", "conv3", "conv4"),
    "mesoinception4": ("inception1", "inception2", "conv3", "conv4"),
    "resnet10": ("stem", "block1", "block2", "block3", "block4"),
}
apply = jax.jit(lambda forward, images: forward(images))


def images_of(n, size=SIZE, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, size, size, 3))


def gradient(forward, images):
    return jax.grad(lambda x: jnp.sum(forward(x).logits @ jnp.array([-1.0, 1.0])))(images)


gradient = jax.jit(gradient)


def drawn(detector, seed=0):
    """Variables of the right shapes, without the seconds that compiling init takes."""
    shapes, rng = jax.eval_shape(detector.init, jax.random.key(0)), np.random.default_rng(seed)

    def leaf(path, shape):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.2, 0.2)
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module", params=list(DETECTORS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def detector(name):
    return build(name, SIZE)


@pytest.fixture(scope="module")
def variables(detector):
    return drawn(detector)


@pytest.fixture(scope="module")
def forward(detector, variables):
    return Partial(detector.apply, variables)


def test_shapes_names_and_finite_values(name, detector, forward):
    outputs = apply(forward, images_of(9))
    assert detector.shape == (SIZE, SIZE, 3) and outputs.mask is None
    assert outputs.logits.shape == (9, 2) and outputs.logits.dtype == jnp.float32
    assert tuple(outputs.acts) == LAYERS[name] == layers(detector)
    for act in outputs.acts.values():
        assert act.ndim == 4 and act.shape[0] == 9 and jnp.isfinite(act).all() and act.min() == 0
    heights = [act.shape[1] for act in outputs.acts.values()]
    assert heights == sorted(heights, reverse=True)


def test_parameter_count_at_the_default_size(name):
    variables = jax.eval_shape(DETECTORS[name]().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.slow
def test_rows_do_not_see_each_other(forward):
    images = images_of(12)
    order = np.random.default_rng(0).permutation(12)
    whole, moved, part = (apply(forward, x).logits for x in (images, images[order], images[:8]))
    np.testing.assert_array_equal(moved, whole[order])
    np.testing.assert_array_equal(part, whole[:8])
    grads = [gradient(forward, x) for x in (images, images[order], images[:8])]
    np.testing.assert_array_equal(grads[1], grads[0][order])
    np.testing.assert_array_equal(grads[2], grads[0][:8])


@pytest.mark.slow
def test_init_is_finite_and_follows_the_key(detector):
    init = jax.jit(detector.init)
    first, again, other = (jax.tree.leaves(init(jax.random.key(k))) for k in (0, 0, 1))
    assert all(jnp.isfinite(leaf).all() for leaf in first)
    assert all(map(jnp.array_equal, first, again)) and not all(map(jnp.array_equal, first, other))


def test_apply_is_deterministic(forward):
    images = images_of(8)
    np.testing.assert_array_equal(apply(forward, images).logits, apply(forward, images).logits)


def test_extreme_images_stay_finite(forward):
    flat = [jnp.full((1, SIZE, SIZE, 3), grey) for grey in (0.0, 0.5, 1.0)]
    saturated = jnp.round(images_of(5))
    images = jnp.concatenate([*flat, saturated])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(apply(forward, images)))
    assert jnp.isfinite(gradient(forward, images)).all()


def test_every_image_has_a_finite_gradient_that_is_not_zero(forward):
    grads = gradient(forward, images_of(8))
    assert jnp.isfinite(grads).all() and (jnp.abs(grads).max(axis=(1, 2, 3)) > 0).all()


def test_a_class_is_a_difference_of_the_two_logits(name, forward):
    logits = apply(forward, images_of(8)).logits
    assert (logits[:, 0] == 0).all() == (name != "resnet10")  # one-logit networks return (0, z_fake)


def test_training_forward_updates_batch_statistics_and_nothing_else(detector, variables):
    train = jax.jit(detector.train)
    outputs, updated = train(variables, images_of(8), jax.random.key(1))
    assert outputs.logits.shape == (8, 2) and jax.tree.structure(updated) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    for before, after in zip(*map(jax.tree.leaves, (variables["batch_stats"], updated["batch_stats"])), strict=True):
        assert jnp.isfinite(after).all() and not jnp.array_equal(before, after)


def test_dropout_follows_the_key(name, detector, variables):
    train = jax.jit(detector.train)
    first, again, other = (train(variables, images_of(8), jax.random.key(k))[0].logits for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert jnp.array_equal(first, other) == (name == "resnet10")  # which has no dropout


def test_two_sets_of_weights_share_one_trace(detector):
    traces = []

    @jax.jit
    def logits(forward, images):
        traces.append(1)
        return forward(images).logits

    results = [logits(Partial(detector.apply, drawn(detector, k)), images_of(8)) for k in (0, 1)]
    assert len(traces) == 1 and not jnp.array_equal(*results)


@pytest.mark.parametrize("size", [0, -32, 40])
def test_sizes_that_do_not_divide_are_refused(name, size):
    with pytest.raises(InputError, match=f"{name}: image size must be a positive multiple of .*{size}"):
        build(name, size)


def test_images_of_another_size_are_refused(detector, variables):
    with pytest.raises(InputError, match="given to a detector"):
        detector.apply(variables, images_of(1, 32))


def test_unknown_detectors_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=f"'xception'; known: {', '.join(DETECTORS)}"):
        build("xception", 64)


@pytest.mark.slow
def test_at_size_feeds_the_same_detector_with_other_images(detector, variables):
    assert at_size(detector, SIZE) is detector
    larger, images = at_size(detector, 96), images_of(9, 96)
    assert larger.shape == (96, 96, 3) and layers(larger) == layers(detector)
    whole, part = (apply(Partial(larger.apply, variables), x).logits for x in (images, images[:8]))
    np.testing.assert_array_equal(whole[:8], part)
    resized = jax.image.resize(images, (9, SIZE, SIZE, 3), "bilinear")
    np.testing.assert_allclose(whole, apply(Partial(detector.apply, variables), resized).logits, atol=1e-5)
    assert larger.train(variables, images, jax.random.key(0))[0].logits.shape == (9, 2)
    with pytest.raises(InputError, match="given to a detector"):
        larger.apply(variables, images_of(1))
