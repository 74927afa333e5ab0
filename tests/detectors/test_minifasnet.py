"""MiniFASNet: the published weights' golden outputs, from which its architecture was read, and its three classes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ffjax.detectors.minifasnet import (
    minifasnet_v1se,
    minifasnet_v2,
    three_classes,
    torch_layout_v1se,
    torch_layout_v2,
)
from ffjax.detectors.pytorch import convert, read_state
from ffjax.errors import InputError

SIZE = 32
FILES = {minifasnet_v1se: "4_0_0_80x80_MiniFASNetV1SE.pth", minifasnet_v2: "2.7_80x80_MiniFASNetV2.pth"}
LAYOUTS = {minifasnet_v1se: torch_layout_v1se, minifasnet_v2: torch_layout_v2}
builders = pytest.mark.parametrize("builder", list(FILES))


def template(builder, size=80):
    return jax.eval_shape(builder(size).init, jax.random.key(0))


def drawn(builder, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), shape.dtype)
        spread = (2 / np.prod(shape.shape[:-1])) ** 0.5 if len(shape.shape) > 1 else 0.1
        return jnp.asarray(spread * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, template(builder, size))


def published(shared, builder):
    pytest.importorskip("torch", reason="published .pth files need torch")
    return read_state(shared / "minifasnet" / "weights" / FILES[builder])


def golden(shared, builder):
    """What is told of each crop, and the crops."""
    told = json.loads((shared / "minifasnet" / "golden.json").read_text())["files"]
    told = [entry[FILES[builder]] for entry in told.values()]
    crops = [Image.open(shared / "minifasnet" / entry["crop"]).convert("RGB") for entry in told]
    return told, jnp.asarray(np.stack([np.asarray(crop, np.float32) / 255 for crop in crops]))


@pytest.mark.shared
@builders
def test_probabilities_and_input_gradients_of_the_authors_crops(shared, builder):
    told, crops = golden(shared, builder)
    apply = builder().apply

    @jax.jit
    def everything(variables, crops):
        gradient = jax.grad(lambda x: jax.nn.log_softmax(apply(variables, x).logits)[:, 0].sum())
        return apply(variables, crops).logits, three_classes(variables, crops), gradient(crops)

    variables = convert(published(shared, builder), LAYOUTS[builder](), template(builder))
    logits, three, grads = everything(variables, crops)
    np.testing.assert_allclose(three, [t["logits"] for t in told], atol=1e-3, rtol=0)
    np.testing.assert_allclose(jax.nn.softmax(three), [t["softmax"] for t in told], atol=1e-4, rtol=0)
    real = np.array([t["softmax"][1] for t in told])
    np.testing.assert_allclose(jax.nn.softmax(logits), np.stack([real, 1 - real], 1), atol=1e-4, rtol=0)
    flat = np.asarray(grads, np.float64).reshape(len(told), -1) / 255  # theirs is per step of 0 .. 255
    norms = [t["input_grad_of_log_p_real"] for t in told]
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), [t["l2"] for t in norms], rtol=1e-3)
    np.testing.assert_allclose(np.abs(flat).max(axis=1), [t["linf"] for t in norms], rtol=1e-3)


@pytest.mark.shared
@builders
def test_as_many_numbers_as_the_published_file(shared, builder):
    shapes = json.loads((shared / "minifasnet" / "golden.json").read_text())["tensors"][FILES[builder]]
    kept = ("running_mean", "running_var", "num_batches_tracked")
    told = sum(int(np.prod(shape)) for key, shape in shapes.items() if not key.endswith(kept))
    assert sum(leaf.size for leaf in jax.tree.leaves(template(builder)["params"])) == told


@pytest.mark.shared
def test_the_other_networks_file_is_refused(shared):
    state = published(shared, minifasnet_v2)
    with pytest.raises(InputError, match=r"conv_3\.model\.1\..* has shape"):
        convert(state, torch_layout_v1se(), template(minifasnet_v1se))
    with pytest.raises(InputError, match=r"conv_6_dw\.conv\.weight has shape \(512, 1, 5, 5\), not \(512, 1, 4, 4\)"):
        convert(state, torch_layout_v2(), template(minifasnet_v2, 64))


@pytest.mark.parametrize(("builder", "count"), [(minifasnet_v1se, 433_586), (minifasnet_v2, 434_560)])
def test_parameter_counts(builder, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(template(builder)["params"])) == count


@builders
def test_three_classes_become_two(builder):
    variables, images = drawn(builder), jax.random.uniform(jax.random.key(1), (8, SIZE, SIZE, 3))
    apply = builder(SIZE).apply
    outputs, three = jax.jit(lambda v, x: (apply(v, x), three_classes(v, x)))(variables, images)
    assert outputs.logits.shape == (8, 2) and three.shape == (8, 3) and outputs.mask is None
    chances = jax.nn.softmax(three)
    merged = jnp.stack([chances[:, 1], chances[:, 0] + chances[:, 2]], axis=1)
    np.testing.assert_allclose(jax.nn.softmax(outputs.logits), merged, rtol=1e-4)
    blocks = [f"conv_3_{i}" for i in range(4)] + ["conv_34"] + [f"conv_4_{i}" for i in range(6)] + ["conv_45"]
    names = ["conv1", "conv2_dw", "conv_23", *blocks, "conv_5_0", "conv_5_1", "conv_6_sep", "conv_6_dw"]
    assert list(outputs.acts) == names
    assert outputs.acts["conv_5_1"].shape == (8, 2, 2, 128) and outputs.acts["conv_6_dw"].shape == (8, 1, 1, 512)


@pytest.mark.slow
@builders
def test_dropout_and_statistics_in_training(builder):
    variables, images = drawn(builder), jax.random.uniform(jax.random.key(1), (8, SIZE, SIZE, 3))
    train = jax.jit(builder(SIZE).train)
    (one, updated), (again, _), (other, _) = (train(variables, images, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.logits, again.logits)
    assert not jnp.array_equal(one.logits, other.logits)
    for before, after in zip(*map(jax.tree.leaves, (variables["batch_stats"], updated["batch_stats"])), strict=True):
        assert jnp.isfinite(after).all() and not jnp.array_equal(before, after)


@builders
@pytest.mark.parametrize("size", [0, -16, 40])
def test_sizes_that_do_not_divide_are_refused(builder, size):
    with pytest.raises(
        InputError, match=f"{builder.__name__}: image size must be a positive multiple of 16, got {size}"
    ):
        builder(size)
