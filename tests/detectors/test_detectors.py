"""Every entry of DETECTORS is held to the same promises, at a small size and, where it has one, a small width."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ffjax.detectors import DETECTORS, at_size, build, layers
from ffjax.errors import InputError

SIZE = 64


def numbered(prefix, count):
    return tuple(f"{prefix}{i}" for i in range(1, count + 1))


VGG = tuple(f"conv{stage}_{i}" for stage, depth in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, depth + 1))
CAPSULE = (*VGG[:7], "conv3_4", "capsules1", "capsules2")
INCEPTION = ("inception1", "inception2", "conv3", "conv4")
CLASSNSEG = tuple(
    name
    for prefix, count in (("encode", 9), ("shared", 4), ("segment", 4), ("reconstruct", 4))
    for name in numbered(prefix, count)
)
XCEPTION = ("conv1", "conv2", *numbered("block", 12), "conv3", "conv4")
FASNET = ("conv1", "conv2_dw", "conv_23", *(f"conv_3_{i}" for i in range(4)), "conv_34")
FASNET += (*(f"conv_4_{i}" for i in range(6)), "conv_45", "conv_5_0", "conv_5_1", "conv_6_sep", "conv_6_dw")


class Case(NamedTuple):
    """What is known of an entry. parameters: trainable numbers at the builder's own defaults. layers: activations.
    refused: a size it cannot take. small: options that keep its tests short. relu: activations are not negative.
    one_logit: the network returns (0, z_fake). dropout, norm: it has them by default. mask: it has a mask head.
    to_the_bit: its rows do not change at all with the number of rows; where layers of over a thousand channels meet an
    image of 2 x 2, XLA:CPU cuts a matrix product by its number of rows, and adds up in another order."""

    parameters: int
    layers: tuple[str, ...]
    refused: int = 40
    small: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    relu: bool = True
    one_logit: bool = False
    dropout: bool = False
    norm: bool = True
    mask: bool = False
    to_the_bit: bool = True


NARROW = {"width": 8}
CASES = {
    "meso4": Case(27_977, numbered("conv", 4), one_logit=True, dropout=True),
    "mesoinception4": Case(28_615, INCEPTION, one_logit=True, dropout=True),
    "resnet10": Case(306_570, ("stem", *numbered("block", 4))),
    "meso4_port": Case(27_946, numbered("conv", 4), dropout=True),
    "mesoinception4_port": Case(28_557, INCEPTION, dropout=True, relu=False),  # no ReLU inside its inception layers
    "xception": Case(20_811_050, XCEPTION, 31, relu=False),
    "efficientnet_b0": Case(
        4_010_110, ("stem", *numbered("block", 16), "head"), 31, relu=False, dropout=True, to_the_bit=False
    ),
    "efficientnet_b4": Case(
        17_552_202, ("stem", *numbered("block", 32), "head"), 31, relu=False, dropout=True, to_the_bit=False
    ),
    "capsule_v1": Case(471_321 + 2_325_568, CAPSULE, 15),
    "capsule_v2": Case(1_571_070 + 2_325_568, CAPSULE, 15, dropout=True),
    "classnseg": Case(304_949, (*CLASSNSEG, "reconstruction"), relu=False, mask=True),
    "minifasnet_v1se": Case(433_586, FASNET, relu=False, dropout=True),
    "minifasnet_v2": Case(434_560, FASNET, relu=False, dropout=True),
    "vgg16": Case(134_268_738, VGG, small={"width": 8, "hidden": 32}, dropout=True, norm=False),
    "resnet18": Case(11_177_538, ("stem", *numbered("block", 8)), small=NARROW),
    "resnet50": Case(23_512_130, ("stem", *numbered("block", 16)), small=NARROW),
    "laplacian": Case(245_650, numbered("conv", 5), 31),
    "bondi": Case(338_578, numbered("conv", 4), 31, relu=False, norm=False),  # the authors' convolutions are linear
    "bayar": Case(1_574_787, ("constrained", *(f"conv{i}" for i in range(2, 6))), 31, relu=False),
}
HEAVY = ("xception", "efficientnet_b0", "efficientnet_b4", "minifasnet_v1se", "minifasnet_v2", "resnet50", "capsule_v2")
"""Entries whose programs take long to compile."""
ENTRIES = [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in DETECTORS]
apply = jax.jit(lambda forward, images: forward(images))


def images_of(n, size=SIZE, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, size, size, 3))


def gradient(forward, images):
    """Of the verdict, and of the mask where there is one: (heads, B, H, W, 3)."""

    def heads(x):
        outputs = forward(x)
        verdict = jnp.sum(outputs.logits @ jnp.array([-1.0, 1.0]))
        return (verdict,) if outputs.mask is None else (verdict, jnp.sum(outputs.mask))

    return jnp.stack(jax.jacrev(heads)(images))


gradient = jax.jit(gradient)


def drawn(detector, seed=0):
    """Variables of the right shapes, without the seconds that compiling init takes."""
    shapes, rng = jax.eval_shape(detector.init, jax.random.key(0)), np.random.default_rng(seed)

    def leaf(path, shape):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.2, 0.2)
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def test_every_entry_has_a_case():
    assert list(CASES) == list(DETECTORS)


@pytest.fixture(scope="module", params=ENTRIES)
def name(request):
    yield request.param
    jax.clear_caches()  # the programs of nineteen networks are gigabytes


@pytest.fixture(scope="module")
def detector(name):
    return build(name, SIZE, **CASES[name].small)


@pytest.fixture(scope="module")
def variables(detector):
    return drawn(detector)


@pytest.fixture(scope="module")
def forward(detector, variables):
    return Partial(detector.apply, variables)


def test_shapes_names_and_finite_values(name, detector, forward):
    outputs = apply(forward, images_of(12))
    assert detector.shape == (SIZE, SIZE, 3) and (outputs.mask is not None) == CASES[name].mask
    assert outputs.mask is None or outputs.mask.shape == (12, SIZE, SIZE)
    assert outputs.logits.shape == (12, 2) and outputs.logits.dtype == jnp.float32
    assert tuple(outputs.acts) == CASES[name].layers == layers(detector)
    for act in outputs.acts.values():
        assert act.ndim == 4 and act.shape[0] == 12 and jnp.isfinite(act).all()
        assert not CASES[name].relu or act.min() == 0
    heights = [act.shape[1] for act in outputs.acts.values()]
    assert CASES[name].mask or heights == sorted(heights, reverse=True)  # a decoder grows again


@pytest.mark.parametrize("name", DETECTORS)
def test_parameter_count_at_the_default_size(name):
    variables = jax.eval_shape(DETECTORS[name]().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == CASES[name].parameters


@pytest.mark.slow
def test_rows_do_not_see_each_other(name, forward):
    images = images_of(12)
    order = np.random.default_rng(0).permutation(12)
    whole, moved, part = (apply(forward, x).logits for x in (images, images[order], images[:8]))
    grads = [gradient(forward, x) for x in (images, images[order], images[:8])]
    np.testing.assert_array_equal(moved, whole[order])
    np.testing.assert_array_equal(grads[1], grads[0][:, order])
    for ours, theirs in ((part, whole[:8]), (grads[2], grads[0][:, :8])):
        atol = 0 if CASES[name].to_the_bit else 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.slow
def test_init_is_finite_and_follows_the_key(detector):
    init = jax.jit(detector.init)
    keys = [jax.random.key(k, impl="rbg") for k in (0, 0, 1)]  # compiles several times as fast as the default
    first, again, other = (jax.tree.leaves(init(key)) for key in keys)
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
    assert jnp.isfinite(grads).all() and (jnp.abs(grads).max(axis=(2, 3, 4)) > 0).all()


def test_a_class_is_a_difference_of_the_two_logits(name, forward):
    logits = apply(forward, images_of(8)).logits
    assert (logits[:, 0] == 0).all() == CASES[name].one_logit  # which return (0, z_fake)


def test_training_forward_updates_batch_statistics_and_nothing_else(name, detector, variables):
    train = jax.jit(detector.train)
    outputs, updated = train(variables, images_of(8), jax.random.key(1))
    assert outputs.logits.shape == (8, 2) and jax.tree.structure(updated) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    assert ("batch_stats" in variables) == CASES[name].norm
    statistics = [jax.tree.leaves(tree.get("batch_stats", {})) for tree in (variables, updated)]
    for before, after in zip(*statistics, strict=True):
        assert jnp.isfinite(after).all() and not jnp.array_equal(before, after)


def test_dropout_follows_the_key(name, detector, variables):
    train = jax.jit(detector.train)
    first, again, other = (train(variables, images_of(8), jax.random.key(k))[0].logits for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert jnp.array_equal(first, other) != CASES[name].dropout


def test_two_sets_of_weights_share_one_trace(detector):
    traces = []

    @jax.jit
    def logits(forward, images):
        traces.append(1)
        return forward(images).logits

    results = [logits(Partial(detector.apply, drawn(detector, k)), images_of(8)) for k in (0, 1)]
    assert len(traces) == 1 and not jnp.array_equal(*results)


@pytest.mark.parametrize("name", DETECTORS)
def test_sizes_that_a_network_cannot_take_are_refused(name):
    for size in (0, -32, CASES[name].refused):
        with pytest.raises(InputError, match=f"{name}: image size must be .*, got {size}$"):
            build(name, size)


def test_images_of_another_size_are_refused(detector, variables):
    with pytest.raises(InputError, match="given to a detector"):
        detector.apply(variables, images_of(1, 32))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"width": 0}, "option 'width' of resnet18 must be at least 1, got 0"),
        ("vgg16", {"hidden": -1}, "option 'hidden' of vgg16 must be at least 1, got -1"),
        ("laplacian", {"widths": [8, 8, 8, 8, 0]}, "option 'widths' of laplacian must be at least 1, got 0"),
        ("laplacian", {"kernels": [3.0] * 5}, "option 'kernels' of laplacian must be of the kind of"),
        ("meso4", {"dropout": 1.0}, "option 'dropout' of meso4 must be 0 or more, and below 1, got 1.0"),
        ("efficientnet_b0", {"stochastic_depth": -0.1}, "'stochastic_depth' of efficientnet_b0 must be 0 or more, and"),
        ("capsule_v2", {"noise": float("inf")}, "option 'noise' of capsule_v2 must be 0 or more, got inf"),
        ("meso4", {"size": 64.0}, "meso4: image size must be a whole number of pixels, got 64.0"),
    ],
)
def test_numbers_that_no_network_can_use_are_refused(name, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        build(name, **{"size": SIZE, **options})
    build("laplacian", SIZE)  # and nothing of it is remembered


def test_a_grey_detector_is_fed_grey_images_of_any_size():
    detector = build("laplacian", SIZE, channels=1)
    assert at_size(detector, SIZE) is detector and at_size(detector, 96).shape == (96, 96, 1)


def test_unknown_detectors_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=f"'xceptoin'; known: {', '.join(DETECTORS)}"):
        build("xceptoin", 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meso4", "resnet10", "classnseg"])
def test_at_size_feeds_the_same_detector_with_other_images(name):
    detector = build(name, SIZE)
    variables = drawn(detector)
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
