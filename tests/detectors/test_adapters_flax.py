"""Linen, NNX and Keras models brought as detectors."""

import importlib.util
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffjax.detectors import checks, layers
from ffjax.detectors.adapters import Convention, from_keras, from_linen, from_nnx
from ffjax.errors import InputError
from ffjax.objectives import margin

SHAPE = (8, 8, 3)
IMAGES = checks.textures(SHAPE)
LOGITS = Convention(bounds=(0, 1), output="logits", fake=1)
EVAL = {"train": False}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(4, (3, 3), name="zebra")(x))


class Net(nn.Module):
    """Named so that alphabetical order is not the order of depth; the last layer is called twice."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3), name="yak")(x))
        x = nn.BatchNorm(use_running_average=not train)(Block(name="block")(x))
        again = nn.Conv(4, (3, 3), name="ant")
        x = nn.Dropout(0.5, deterministic=not train)(again(nn.relu(again(x))))
        return nn.Dense(2)(x.mean((1, 2)))


NET = Net()


@pytest.fixture(scope="module")
def variables():
    return NET.init(jax.random.key(1), jnp.zeros((1, *SHAPE)), False)


def acts(adapted):
    return adapted.detector.apply(adapted.variables, IMAGES).acts


def test_linen_outputs_are_the_modules_own(variables):
    adapted = from_linen(NET, variables, SHAPE, LOGITS, inference=EVAL)
    outputs = jax.jit(adapted.detector.apply)(adapted.variables, IMAGES)
    np.testing.assert_allclose(outputs.logits, NET.apply(variables, IMAGES, False), rtol=1e-5, atol=1e-6)
    assert list(outputs.acts) == ["yak", "block/zebra", "ant", "ant:2"] == list(layers(adapted.detector))


def test_linen_layers_are_chosen_by_name_and_kept_in_order_of_depth(variables):
    chosen = {"layers": ("Dense_0", "block", "yak"), "inference": EVAL, "check": False}
    with pytest.raises(InputError, match="from_linen: activation Dense_0: shape"):
        from_linen(NET, variables, SHAPE, LOGITS, **chosen)
    found = acts(from_linen(NET, variables, SHAPE, LOGITS, **(chosen | {"layers": ("block", "yak")})))
    assert list(found) == ["yak", "block"]
    assert found["yak"].min() < 0 == found["block"].min()
    after = from_linen(NET, variables, SHAPE, LOGITS, **(chosen | {"layers": ("yak",), "nonlinearity": nn.relu}))
    np.testing.assert_array_equal(acts(after)["yak"], nn.relu(found["yak"]))


def test_unknown_linen_layers_are_refused_with_the_known_ones(variables):
    known = "yak, block/zebra, block, BatchNorm_0, ant, Dropout_0, Dense_0"
    with pytest.raises(InputError, match=f"from_linen: unknown layer 'conv1'; known: {known}"):
        from_linen(NET, variables, SHAPE, LOGITS, layers=("yak", "conv1"), inference=EVAL)


def test_a_linen_modules_own_activations_stand_unless_layers_are_named():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2, (3, 3))(x)
            return x.mean((1, 2)), {"own": nn.relu(x)}

    variables = Own().init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    assert list(acts(from_linen(Own(), variables, SHAPE, LOGITS, check=False))) == ["own"]
    assert list(acts(from_linen(Own(), variables, SHAPE, LOGITS, layers=("Conv_0",), check=False))) == ["Conv_0"]


def test_linen_init_draws_new_variables(variables):
    detector, _ = from_linen(NET, variables, SHAPE, LOGITS, inference=EVAL, check=False)
    drawn = detector.init(jax.random.key(2))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
    assert not jnp.array_equal(drawn["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"])


def test_linen_trains_if_told_how(variables):
    detector, _ = from_linen(NET, variables, SHAPE, LOGITS, inference=EVAL, check=False)
    with pytest.raises(InputError, match="from_linen: no training forward"):
        detector.train(variables, IMAGES, jax.random.key(0))
    detector, _ = from_linen(NET, variables, SHAPE, LOGITS, inference=EVAL, training={"train": True}, check=False)
    train = jax.jit(detector.train)
    (first, updated), (again, _), (other, _) = (train(variables, IMAGES, jax.random.key(k)) for k in (0, 0, 1))
    assert jnp.array_equal(first.logits, again.logits) and not jnp.array_equal(first.logits, other.logits)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    moved = [not jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (updated, variables)), strict=True)]
    assert sum(moved) == 2  # the mean and the variance of the one BatchNorm


def test_batch_statistics_left_on_in_linen_are_refused(variables):
    class Forgotten(nn.Module):
        @nn.compact
        def __call__(self, x):
            mean = x.mean((0, 1, 2), keepdims=True)
            return nn.Dense(2)((x / (1e-3 + mean)).mean((1, 2)))

    drawn = Forgotten().init(jax.random.key(0), jnp.ones((1, *SHAPE)))
    with pytest.raises(InputError, match="from_linen: rows influence each other"):
        from_linen(Forgotten(), drawn, SHAPE, LOGITS)


def test_linen_takes_channels_first():
    class First(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.mean((2, 3)))

    variables = First().init(jax.random.key(0), jnp.zeros((1, 3, 8, 8)))
    says = Convention(bounds=(0, 1), output="logits", fake=1, layout="NCHW")
    detector, _ = from_linen(First(), variables, SHAPE, says, layers=())
    expected = First().apply(variables, IMAGES.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(detector.apply(variables, IMAGES).logits, expected, rtol=1e-5)


class Streams(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.drop(x.mean((1, 2)))), {"conv": x}


def test_nnx_is_asked_in_eval_mode_and_left_as_it_was():
    model = Streams(nnx.Rngs(0, dropout=1))
    before = jax.tree.map(np.array, nnx.state(model, nnx.Not(nnx.RngState)))
    detector, variables = from_nnx(model, SHAPE, LOGITS)
    outputs = jax.jit(detector.apply)(variables, IMAGES)
    assert not model.drop.deterministic and not model.norm.use_running_average
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Not(nnx.RngState)), before)
    model.eval()
    np.testing.assert_allclose(outputs.logits, model(IMAGES)[0], rtol=1e-5, atol=1e-6)
    assert list(outputs.acts) == ["conv"] and outputs.acts["conv"].shape == (6, 8, 8, 4)
    model.head.bias[...] += 100
    np.testing.assert_array_equal(jax.jit(detector.apply)(variables, IMAGES).logits, outputs.logits)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))  # no random streams among the weights


def test_nnx_trains_with_the_key_it_is_given():
    detector, variables = from_nnx(Streams(nnx.Rngs(0, dropout=1)), SHAPE, LOGITS, check=False)
    train = jax.jit(detector.train)
    (first, updated), (again, _), (other, _) = (train(variables, IMAGES, jax.random.key(k)) for k in (0, 0, 1))
    assert jnp.array_equal(first.logits, again.logits) and not jnp.array_equal(first.logits, other.logits)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    moved = [not jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (updated, variables)), strict=True)]
    assert sum(moved) == 2
    assert jnp.isfinite(detector.apply(updated, IMAGES).logits).all()


KERAS = """
import os, re, sys
import numpy as np, jax, keras
from ffjax.detectors import checks
from ffjax.detectors.adapters import Convention, from_keras
from ffjax.errors import InputError

def model(size=8):
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="zebra")
    rest = [keras.layers.BatchNormalization(), keras.layers.Conv2D(4, 3, activation="relu", name="ant")]
    rest += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.5), keras.layers.Dense(1, "sigmoid")]
    return keras.Sequential([keras.Input((size, size, 3)), keras.layers.Rescaling(1 / 255), conv, *rest])

keras.utils.set_random_seed(0)
images, theirs = checks.textures((8, 8, 3)), model()
norm = theirs.layers[2]
norm.set_weights([w + 0.3 for w in norm.get_weights()])
says = Convention(bounds=(0, 255), output="probability", fake="low")
for layers in ((), ("zebra", "ant")):
    detector, variables = from_keras(theirs, says, layers=layers)
    outputs = jax.jit(detector.apply)(variables, images)
    expected = np.asarray(theirs(images * 255, training=False))[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(outputs.logits[:, 1] - outputs.logits[:, 0])), expected, atol=1e-5)
    assert list(outputs.acts) == list(layers) and detector.shape == (8, 8, 3)
assert outputs.acts["zebra"].shape == (6, 6, 6, 4)
slope = jax.grad(lambda x: detector.apply(variables, x).logits[:, 1].sum())(images)
assert (np.abs(slope).max(axis=(1, 2, 3)) > 0).all()

def refused(match, *args, **kwargs):
    try:
        from_keras(*args, **kwargs)
    except InputError as error:
        assert re.search(match, str(error)), error
    else:
        raise AssertionError(match)

refused("from_keras: unknown layer 'conv'; known: rescaling, zebra", theirs, says, layers=("conv",))
refused("give shape=", model(None), says)
assert from_keras(model(None), says, (12, 12, 3), check=False).detector.shape == (12, 12, 3)
refused("must be built", keras.Sequential([*theirs.layers[:-1], keras.layers.Dense(1)]), says, (8, 8, 3))
logit = keras.Sequential([keras.Input((8, 8, 3)), *theirs.layers[:-1], keras.layers.Dense(1)])
logit.layers[-1].bias.assign([3.0])
refused("declared probability, but .* range", logit, says)
keras.backend.backend = lambda: "tensorflow"
refused("from_keras: Keras runs on tensorflow; set KERAS_BACKEND=jax before it is imported", theirs, says)
print("keras: all met")
"""


@pytest.mark.slow
def test_keras_models_on_jax():
    """In a process of its own: the backend is chosen once, when Keras is imported."""
    if importlib.util.find_spec("keras") is None:  # importing it here would choose a backend
        pytest.skip("Keras models need the extra: pip install 'ffjax[keras]'")
    done = subprocess.run(
        [sys.executable, "-c", KERAS], env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "keras: all met", done.stderr[-3000:]


def test_a_missing_library_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(InputError, match=r"^from_keras: needs keras: pip install 'ffjax\[keras\]'"):
        from_keras(object(), LOGITS)


def test_gradients_reach_every_image(variables):
    detector, _ = from_linen(NET, variables, SHAPE, LOGITS, inference=EVAL, check=False)
    slope = jax.grad(lambda x: margin(detector.apply(variables, x)).sum())(jnp.asarray(IMAGES))
    assert (jnp.abs(slope).max(axis=(1, 2, 3)) > 0).all()
