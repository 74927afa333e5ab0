"""Weights go out and come back whole; whatever does not fit is refused in one line that names the file."""

import json
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ffjax import detectors
from ffjax.detectors import DETECTORS, all_options, build, load, weights
from ffjax.errors import InputError

SMALL = {"vgg16": {"width": 4, "hidden": 8}, "resnet18": {"width": 4}, "resnet50": {"width": 4}}
"""Options that keep the largest networks out of the way."""


def drawn(arch, size, **options):
    """Variables of the right shapes, without the seconds that compiling init takes."""
    shapes, rng = jax.eval_shape(build(arch, size, **options).init, jax.random.key(0)), np.random.default_rng(0)

    def leaf(path, shape):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.2, 0.2)
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def variables():
    return drawn("meso4", 32)


META = {"arch": "meso4", "size": 32, "trained on": ["set A", 3], "accuracy": 0.75}


def changed(variables, **updates):
    """The variables with flat keys replaced ('.' for '/'), or dropped where the value is None."""
    flat = flatten_dict(variables, sep="/") | {key.replace(".", "/"): value for key, value in updates.items()}
    return unflatten_dict({key: value for key, value in flat.items() if value is not None}, sep="/")


def refusal(spec):
    with pytest.raises(InputError) as caught:
        load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("arch", DETECTORS)
def test_round_trip_keeps_every_bit_and_the_meta_data(arch, tmp_path):
    options = SMALL.get(arch, {})
    variables = drawn(arch, 64, **options)
    meta = META | {"arch": arch, "size": 64, "options": json.loads(json.dumps(all_options(arch, options)))}
    weights.save(tmp_path / "deep" / "a.safetensors", variables, meta)
    (path,) = (tmp_path / "deep").iterdir()
    (tmp_path / "plain").touch()
    assert path.name == "a.safetensors" and path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    loaded = load(f"{arch}:{tmp_path}/deep/a.safetensors")
    assert (loaded.name, loaded.meta, loaded.detector.shape) == ("a", meta, (64, 64, 3))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_a_run_s_weights_are_named_after_its_folder(variables, tmp_path):
    weights.save(tmp_path / "run7" / "weights.safetensors", variables, META)
    assert load(f"meso4:{tmp_path}/run7/weights.safetensors").name == "run7"


def test_shipped_weights_are_loaded_by_name(variables, tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "SHIPPED", tmp_path)
    weights.save(tmp_path / "meso4-a0.safetensors", variables, META)
    assert detectors.shipped() == ("meso4-a0",) and load("meso4-a0").name == "meso4-a0"
    assert "meso4-a0" in refusal("meso4-a9")


def test_what_is_shipped_loads():
    for name in detectors.shipped():
        assert load(name).name == name


FAULTS = {
    "missing params/conv1/bias": {"params.conv1.bias": None},
    "unexpected params/conv9/bias": {"params.conv9.bias": jnp.zeros(3)},
    "params/conv1/bias has shape (3,), not (8,)": {"params.conv1.bias": jnp.zeros(3)},
    "params/conv1/bias is int32, not float32": {"params.conv1.bias": jnp.zeros(8, jnp.int32)},
    "params/conv1/bias holds NaN": {"params.conv1.bias": jnp.zeros(8).at[2].set(jnp.nan)},
    "batch_stats/bn2/var holds NaN or infinity": {"batch_stats.bn2.var": jnp.full(8, jnp.inf)},
    "; and 1 more": {f"params.extra{i}.bias": jnp.zeros(1) for i in range(5)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_differs_is_named(fault, variables, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, changed(variables, **FAULTS[fault]), META)
    message = refusal(f"meso4:{path}")
    assert message.startswith(str(path)) and fault in message


def test_another_architecture_or_size_is_refused(variables, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, variables, META)
    assert "holds weights of meso4, not of resnet10" in refusal(f"resnet10:{path}")
    for meta, fault in (
        ({"size": 64}, "dense1"),
        ({"size": 33}, "multiple"),
        ({"size": "32"}, "size"),
        ({"arch": 3}, "3"),
    ):
        weights.save(path, variables, META | meta)
        assert str(path) in refusal(f"meso4:{path}") and fault in refusal(f"meso4:{path}")


@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
def test_files_that_are_missing_empty_foreign_or_folders_are_refused(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    assert str(path) in refusal(f"meso4:{path}")
    for content in (b"", b"not weights at all" * 10):
        path.write_bytes(content)
        assert str(path) in refusal(f"meso4:{path}")
    path.unlink()
    path.mkdir()
    assert str(path) in refusal(f"meso4:{path}")


def test_truncated_files_are_refused(variables, tmp_path):
    ours, keras = tmp_path / "a.safetensors", tmp_path / "a.h5"
    weights.save(ours, variables, META)
    write_keras(keras, variables)
    for path in (ours, keras):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert str(path) in refusal(f"meso4:{path}")


def test_unknown_specs_list_what_is_known():
    assert "meso4, mesoinception4, resnet10" in refusal("vgg:a.safetensors")
    assert "ARCH:PATH" in refusal("no-such-weights")
    assert "no Keras layout" in refusal("resnet10:a.h5")


KERAS = {"kernel": "kernel", "bias": "bias", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}


def write_keras(path, variables, dtype: Any = np.float32):
    """Meso-4 variables in the authors' layout, layers out of order, the output saying REAL."""
    names = {f"conv{i}": f"conv2d_{i + 6}" for i in range(1, 5)} | {"dense1": "dense_9", "dense2": "dense_10"}
    names |= {f"bn{i}": f"batch_normalization_{i + 6}" for i in range(1, 5)}
    with h5py.File(path, "w") as file:
        for key, value in sorted(flatten_dict(variables).items(), reverse=True):
            leaf = "beta" if key[1].startswith("bn") and key[2] == "bias" else KERAS[key[2]]
            sign = -1 if key[1] == "dense2" else 1
            file[f"{names[key[1]]}/{names[key[1]]}/{leaf}:0"] = sign * np.asarray(value, dtype)


def test_keras_layers_are_found_by_number_whatever_their_order(variables, tmp_path):
    """conv2d_10 is after conv2d_9: by number, not by spelling; the size follows from the dense layer."""
    write_keras(tmp_path / "net.h5", variables)
    loaded = load(f"meso4:{tmp_path}/net.h5")
    assert loaded.meta == {"arch": "meso4", "size": 32, "options": {}} and loaded.name == "net"
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_keras_files_that_do_not_fit_are_refused(variables, tmp_path):
    path = tmp_path / "net.h5"
    write_keras(path, variables)
    assert "wrong architecture: 4 conv2d layers where 16" in refusal(f"mesoinception4:{path}")
    write_keras(path, changed(variables, **{"params.conv2.bias": jnp.full(8, jnp.nan)}))
    assert "conv2d_8/conv2d_8/bias:0 holds NaN" in refusal(f"meso4:{path}")
    write_keras(path, changed(variables, **{"params.dense1.kernel": jnp.zeros((17, 16))}))
    assert "17 rows fits no square image" in refusal(f"meso4:{path}")
    write_keras(path, changed(variables, **{"params.conv2.bias": None}))
    assert "missing conv2d_8/conv2d_8/bias:0" in refusal(f"meso4:{path}")
    write_keras(path, changed(variables, **{"params.dense1.kernel": None}))
    assert "missing dense_9/dense_9/kernel:0" in refusal(f"meso4:{path}")
    with h5py.File(path, "w") as file:
        file["loose"] = np.zeros(3)
    assert str(path) in refusal(f"meso4:{path}")
