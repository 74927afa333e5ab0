"""The published networks, against golden outputs made elsewhere in float64 and against a second statement here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ffjax.detectors import build, layers, load
from ffjax.detectors.layers import max_pool

ARCH = {"Meso4_DF": "meso4", "Meso4_F2F": "meso4", "MesoInception_F2F": "mesoinception4"}
apply = jax.jit(lambda forward, images: forward(images))


def published(shared, name):
    arch = "meso4" if name.startswith("Meso4") else "mesoinception4"
    return load(f"{arch}:{shared}/mesonet/weights/{name}.h5")


def golden(shared, folder, file):
    """(file names, what is expected of each, their images)."""
    files = json.loads((shared / folder / file).read_text())["files"]
    images = [np.asarray(Image.open(shared / folder / name).convert("RGB"), np.float32) / 255 for name in files]
    return list(files), list(files.values()), jnp.asarray(np.stack(images))


def agree(net, images, logits_of_real, probabilities_of_real):
    fake = apply(jax.tree_util.Partial(net.detector.apply, net.variables), images).logits[:, 1]
    np.testing.assert_allclose(-fake, logits_of_real, atol=1e-3, rtol=0)
    np.testing.assert_allclose(jax.nn.sigmoid(-fake), probabilities_of_real, atol=1e-4, rtol=0)


@pytest.mark.shared
@pytest.mark.parametrize("name", ARCH)
def test_outputs_on_the_authors_images(shared, name):
    _, expected, images = golden(shared, "mesonet", "golden.json")
    told = [entry["predictions"][name] for entry in expected]
    agree(published(shared, name), images, [t["logit"] for t in told], [t["prob_real"] for t in told])


@pytest.mark.shared
@pytest.mark.parametrize("name", ARCH)
def test_outputs_on_faces_of_set_a(shared, name):
    _, expected, images = golden(shared, "faces-ffhq-stylegan1", "golden_published_nets.json")
    told = [entry[name] for entry in expected]
    agree(published(shared, name), images, [t["logit"] for t in told], [t["p"] for t in told])


@pytest.mark.shared
@pytest.mark.parametrize("name", ARCH)
def test_input_gradients_on_the_authors_images(shared, name):
    _, expected, images = golden(shared, "mesonet", "golden.json")
    net = published(shared, name)
    told = [entry["predictions"][name]["input_grad_of_logit"] for entry in expected]
    real = jax.jit(jax.grad(lambda x, v: -net.detector.apply(v, x).logits[:, 1].sum()))(images, net.variables)
    flat = np.asarray(real, np.float64).reshape(len(told), -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), [t["l2"] for t in told], rtol=1e-3)
    np.testing.assert_allclose(np.abs(flat).max(axis=1), [t["linf"] for t in told], rtol=1e-3)
    np.testing.assert_allclose(flat.sum(axis=1), [t["sum"] for t in told], rtol=1e-3, atol=1e-3)


@pytest.mark.shared
@pytest.mark.parametrize("name", ARCH)
def test_block_outputs_of_the_first_image(shared, name):
    """The golden blocks are taken after normalisation and pooling: both are redone here from the activations."""
    _, expected, images = golden(shared, "mesonet", "golden.json")
    net = published(shared, name)
    acts = jax.jit(net.detector.apply)(net.variables, images[:1]).acts
    told = expected[0]["predictions"][name]["block_outputs"]
    for i, (block, act, pool) in enumerate(zip(told, acts.values(), (2, 2, 2, 4), strict=True), start=1):
        out = max_pool(normalised(act, net.variables, f"bn{i}"), pool)
        assert list(out.shape) == block["shape_nhwc"]
        np.testing.assert_allclose([out.mean(), out.std()], [block["mean"], block["std"]], rtol=1e-4, atol=1e-5)


@pytest.mark.shared
def test_the_network_without_golden_outputs_loads(shared):
    net = published(shared, "MesoInception_DF")
    assert net.name == "MesoInception_DF" and net.detector.shape == (256, 256, 3)
    assert layers(net.detector) == ("inception1", "inception2", "conv3", "conv4")
    _, expected, images = golden(shared, "mesonet", "golden.json")
    logits = apply(jax.tree_util.Partial(net.detector.apply, net.variables), images).logits
    deepfakes = np.asarray([entry["forgery"] == "deepfake" for entry in expected])
    assert (logits[deepfakes, 1] > 0).all()


def normalised(x, variables, name):
    params, stats = variables["params"][name], variables["batch_stats"][name]
    per_channel = [a.reshape(1, 1, 1, -1) for a in (params["scale"], params["bias"], stats["mean"], stats["var"])]
    scale, bias, mean, var = per_channel
    return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias


def stated_again(variables, x):
    """Meso-4 on lax alone, written from the paper's table: z_fake (B,)."""
    params = variables["params"]
    for i, pool in enumerate((2, 2, 2, 4), start=1):
        layer, window = params[f"conv{i}"], (1, pool, pool, 1)
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = normalised(jnp.maximum(x + layer["bias"].reshape(1, 1, 1, -1), 0), variables, f"bn{i}")
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x.reshape(x.shape[0], -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"].reshape(1, -1)
    x = jnp.where(x > 0, x, 0.1 * x)
    return (x @ params["dense2"]["kernel"] + params["dense2"]["bias"].reshape(1, -1))[:, 0]


def test_meso4_agrees_with_a_second_statement_in_value_and_gradient():
    detector = build("meso4", 64)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(detector.init, jax.random.key(0))
    variables = jax.tree.map(lambda a: jnp.asarray(rng.uniform(-0.2, 0.3, a.shape), a.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(lambda a: jnp.abs(a) + 0.1, variables["batch_stats"])
    images = jax.random.uniform(jax.random.key(2), (8, 64, 64, 3))
    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda x, v, f=f: f(v, x).sum()))(images, variables)
        for f in (lambda v, x: detector.apply(v, x).logits[:, 1], stated_again)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-5)
