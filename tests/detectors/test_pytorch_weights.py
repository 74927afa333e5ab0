"""PyTorch state dicts come in whole and exact; whatever is not one is refused in one line, and no code is run."""

import json
import os
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ffjax.detectors import LAYOUTS, build, default_size, pytorch
from ffjax.detectors.layout import Layout
from ffjax.errors import InputError

rng = np.random.default_rng(0)
STATE = {
    "conv.weight": rng.normal(size=(3, 2, 5, 4)).astype(np.float32),
    "bn.running_var": rng.uniform(size=3).astype(np.float32),
    "bn.num_batches_tracked": np.asarray(7),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the `torch` extra is not installed")


def tensors(torch, state=STATE, prefix=""):
    return {prefix + key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def refusal(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(found, expected=STATE):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "model, beside its name": lambda state: {"net": "resnet18", "model": state},
    "net, twice": lambda state: {"model": {"net": state}, "args": [1, 2]},
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_form_of_file_gives_the_same_numbers(torch, new, wrapper, prefix, tmp_path):
    path = tmp_path / "net.pth.tar"
    torch.save(WRAPPED[wrapper](tensors(torch, prefix=prefix)), path, _use_new_zipfile_serialization=new)
    same(pytorch.read_state(path))


def test_a_prefix_that_not_every_key_has_stays(torch, tmp_path):
    torch.save({"module.a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "net.pt")
    assert list(pytorch.read_state(tmp_path / "net.pt")) == ["module.a", "b"]


def test_npz_and_safetensors_hold_the_same_keys_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    np.savez(tmp_path / "net.npz", **STATE)
    same(pytorch.read_state(tmp_path / "net.npz"))
    save_file({f"module.{key}": value for key, value in STATE.items()}, tmp_path / "a.safetensors", {"format": "pt"})
    found = pytorch.read_state(tmp_path / "a.safetensors")
    same({key: found[key] for key in STATE})
    assert len(found) == len(STATE)


def test_floating_point_becomes_float32_and_whole_numbers_stay(torch, tmp_path):
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    state = {str(kind): torch.ones(2, dtype=kind) for kind in kinds}
    torch.save(state | {"trained": torch.nn.Parameter(torch.ones(2))}, tmp_path / "net.pt")
    found = pytorch.read_state(tmp_path / "net.pt")
    assert [str(value.dtype) for value in found.values()] == ["float32"] * 3 + ["int64", "bool", "float32"]
    assert all((value == 1).all() for value in found.values())


class Hostile:
    """Unpickled by the usual means, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(torch, new, tmp_path):
    path, made = tmp_path / "net.pt", tmp_path / "made"
    torch.save({"a": torch.zeros(2), "b": Hostile(str(made))}, path, _use_new_zipfile_serialization=new)
    message = refusal(pytorch.read_state, path)
    assert message.startswith(f"{path}: refused: a pickle of more than tensors (") and "mkdir" in message
    assert not made.exists()
    torch.load(path, weights_only=False)  # the file does what it is feared for, where nobody looks
    assert made.is_dir()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_a_whole_module_is_refused(torch, new, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt", _use_new_zipfile_serialization=new)
    assert "torch.nn.modules.linear.Linear" in refusal(pytorch.read_state, tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
def test_truncated_empty_and_foreign_files_are_refused(torch, suffix, tmp_path):
    path = tmp_path / f"net.{suffix}"
    writers = {
        "npz": [lambda: np.savez(path, **STATE)],
        "safetensors": [lambda: save_file(STATE, path)],
        "pt": [lambda n=n: torch.save(tensors(torch), path, _use_new_zipfile_serialization=n) for n in (True, False)],
    }
    wholes = [(write(), path.read_bytes())[1] for write in writers[suffix]]
    cut = [whole[: len(whole) * part // 8] for whole in wholes for part in range(8)]
    for content in (*cut, wholes[0][:-1], b"accuracy 0.93\n" * 40, b"\x80\x02}q\x00.", b"\x93NUMPY"):
        path.write_bytes(content)
        assert refusal(pytorch.read_state, path).startswith(f"{path}: ")


def test_missing_files_and_folders_are_refused(tmp_path):
    for suffix in ("pt", "npz", "safetensors"):
        path = tmp_path / f"net.{suffix}"
        assert refusal(pytorch.read_state, path).startswith(f"{path}: cannot be read")
        path.mkdir()
        assert refusal(pytorch.read_state, path).startswith(f"{path}: cannot be read")


def test_what_holds_no_state_dict_is_refused(torch, tmp_path):
    path = tmp_path / "net.pt"
    for value, said in {
        "a list": ([torch.zeros(2)], "holds a list, not a state dict"),
        "nothing": ({}, "holds no numbers at all"),
        "a tensor": (torch.zeros(2), "holds a Tensor, not a state dict"),
        "an unknown wrapper": ({"weights": {"a": torch.zeros(2)}}, "weights holds no plain real numbers"),
        "text": ({"a": torch.zeros(2), "b": "x"}, "b holds no plain real numbers"),
        "complex": ({"a": torch.zeros(2, dtype=torch.complex64)}, "a holds no plain real numbers"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "a holds no plain real numbers"),
        "numbered": ({0: torch.zeros(2)}, "0 is no name"),
        "two": ({"model": {"a": torch.zeros(2)}, "state_dict": {"a": torch.ones(2)}}, "state_dict, model"),
    }.values():
        torch.save(value, path)
        assert said in refusal(pytorch.read_state, path)


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.asarray([Hostile(str(tmp_path / "made"))], object))
    assert "cannot be read as npz" in refusal(pytorch.read_state, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.asarray(["text"]))
    assert "a holds no plain real numbers" in refusal(pytorch.read_state, tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    assert "one array" in refusal(pytorch.read_state, tmp_path / "c.npz")
    assert not (tmp_path / "made").exists()


def test_without_torch_the_extra_and_the_conversion_are_named(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(pytorch.read_state, path)
    assert "pip install 'ffjax[torch]'" in message and "ffjax.detectors.weights convert" in message


def test_a_torch_whose_weights_only_was_unsafe_is_refused(torch, tmp_path, monkeypatch):
    torch.save(tensors(torch), tmp_path / "net.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert "2.5.1" in refusal(pytorch.read_state, tmp_path / "net.pt")
    monkeypatch.setattr(torch, "__version__", "2.10.0.dev20260101")
    same(pytorch.read_state(tmp_path / "net.pt"))


def test_several_files_are_united_unless_they_share_a_key(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    np.savez(tmp_path / "b.npz", b=np.ones(2))
    assert list(pytorch.read_states([tmp_path / "a.npz", tmp_path / "b.npz"])) == ["a", "b"]
    message = refusal(pytorch.read_states, [tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "a.npz"])
    assert message == f"{tmp_path}/a.npz: a is in another of the files too"


LAYERS = {  # ours, PyTorch's, and the shape of one image of its input here
    "conv": (lambda: nn.Conv(4, (3, 5), padding="VALID"), lambda t: t.nn.Conv2d(2, 4, (3, 5)), (7, 8, 2)),
    "depthwise": (
        lambda: nn.Conv(3, (3, 3), feature_group_count=3, padding="VALID"),
        lambda t: t.nn.Conv2d(3, 3, 3, groups=3),
        (6, 5, 3),
    ),
    "conv1d": (lambda: nn.Conv(4, (5,), padding="VALID"), lambda t: t.nn.Conv1d(2, 4, 5), (9, 2)),
    "dense": (lambda: nn.Dense(4), lambda t: t.nn.Linear(3, 4), (3,)),
    "transposed": (
        lambda: nn.ConvTranspose(4, (3, 2), padding="VALID", transpose_kernel=True),
        lambda t: t.nn.ConvTranspose2d(2, 4, (3, 2)),
        (5, 6, 2),
    ),
    "normalised": (
        lambda: nn.BatchNorm(use_running_average=True, epsilon=1e-5),
        lambda t: t.nn.BatchNorm2d(3).eval(),
        (5, 4, 3),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_kind_of_layer_computes_what_pytorch_does(torch, kind):
    ours, theirs, shape = LAYERS[kind]

    there = theirs(torch)
    state = {f"there.{key}": rng.uniform(0.2, 1, value.shape) for key, value in there.state_dict().items()}
    with torch.no_grad():
        for key, value in there.state_dict().items():
            value.copy_(torch.from_numpy(np.asarray(state[f"there.{key}"])))
    images = rng.uniform(-1, 1, (2, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = np.moveaxis(there(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy(), 1, -1)
    layer: Any = ours()
    template = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(images))
    variables = pytorch.convert(pytorch.plain(state, "x"), Layout({"": "there"}), template)
    np.testing.assert_allclose(layer.apply(variables, images), expected, rtol=1e-5, atol=1e-5)


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


TEMPLATE = {
    "params": {
        "block": {"conv": {"kernel": spec(3, 5, 2, 4), "bias": spec(4)}, "act": {"slope": spec(4)}},
        "norm1": {"scale": spec(4)},
        "norm2": {"scale": spec(4)},
        "routing": spec(2, 3),
    },
    "batch_stats": {"norm1": {"mean": spec(4), "var": spec(4)}, "norm2": {"mean": spec(4), "var": spec(4)}},
}
LAYOUT = Layout({"block/conv": "features.0", "block/act": "act", "norm1": "bn", "norm2": "bn", "": ""})
GIVEN = {
    "features.0.weight": np.arange(4 * 2 * 3 * 5, dtype=np.float32).reshape(4, 2, 3, 5),
    "features.0.bias": np.ones(4, np.float32),
    "act.weight": np.full(4, 0.25, np.float32),
    "bn.weight": np.full(4, 2, np.float32),
    "bn.running_mean": np.full(4, 3, np.float32),
    "bn.running_var": np.full(4, 4, np.float32),
    "bn.num_batches_tracked": np.asarray(1),
    "routing": np.full((2, 3), 5, np.float32),
}


def test_numbers_land_where_the_layout_says():
    flat = flatten_dict(pytorch.convert(GIVEN, LAYOUT, TEMPLATE), sep="/")
    for i, o, y, x in ((0, 0, 0, 0), (1, 3, 2, 4), (0, 2, 1, 3)):
        assert flat["params/block/conv/kernel"][y, x, i, o] == GIVEN["features.0.weight"][o, i, y, x]
    values = {key: value.ravel()[0] for key, value in flat.items() if not key.endswith("kernel")}
    assert values == {
        "params/block/conv/bias": 1,
        "params/block/act/slope": 0.25,
        "params/norm1/scale": 2,
        "params/norm2/scale": 2,  # one module of theirs may serve two places of ours
        "params/routing": 5,
        "batch_stats/norm1/mean": 3,
        "batch_stats/norm1/var": 4,
        "batch_stats/norm2/mean": 3,
        "batch_stats/norm2/var": 4,
    }


def test_what_a_layout_does_before_and_after_is_done():
    def older(state):
        return {key.replace("conv_0", "features.0"): value for key, value in state.items()}

    def doubled(flat):
        return flat | {"params/routing": 2 * flat["params/routing"]}

    given = {key.replace("features.0", "conv_0"): value for key, value in GIVEN.items()}
    variables = pytorch.convert(given, LAYOUT._replace(first=older, last=doubled), TEMPLATE)
    assert variables["params"]["routing"][0, 0] == 10 and len(given) == len(GIVEN)
    strict = LAYOUT._replace(first=lambda state: {"a": state["fc.weight"]})
    assert refusal(pytorch.convert, GIVEN, strict, TEMPLATE, "a.pt") == "a.pt: missing fc.weight"
    fixed = LAYOUT._replace(first=lambda state: state | {"routing": state["routing"].reshape(5)})
    message = refusal(pytorch.convert, GIVEN, fixed, TEMPLATE)
    assert "does not fit the network's layout" in message


FAULTS = {
    "missing act.weight": {"act.weight": None},
    "unexpected fc.weight": {"fc.weight": np.zeros(3, np.float32)},
    "features.0.weight has shape (3, 5, 2, 4), not (4, 2, 3, 5)": {"features.0.weight": np.zeros((3, 5, 2, 4), "f4")},
    "features.0.bias is int64, not float32": {"features.0.bias": np.zeros(4, np.int64)},
    "bn.running_var holds NaN or infinity": {"bn.running_var": np.asarray([1, np.nan, 1, 1], np.float32)},
    "; and 1 more": {f"extra.{i}": np.zeros(1, np.float32) for i in range(5)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_differs_is_named(fault):
    given = {key: value for key, value in (GIVEN | FAULTS[fault]).items() if value is not None}
    message = refusal(pytorch.convert, given, LAYOUT, TEMPLATE, "net.pt")
    assert message.startswith("net.pt: ") and fault in message and message.count(fault) == 1


def test_all_that_differs_is_named_at_once():
    changes = {key: value for fault in list(FAULTS)[:4] for key, value in FAULTS[fault].items()}
    given = {key: value for key, value in (GIVEN | changes).items() if value is not None}
    message = refusal(pytorch.convert, given, LAYOUT, TEMPLATE)
    assert all(fault in message for fault in list(FAULTS)[:4])


def test_numbers_too_large_for_float32_are_refused():
    state = pytorch.plain(GIVEN | {"routing": np.full((2, 3), 1e300)}, "net.npz")
    assert "routing holds NaN or infinity" in refusal(pytorch.convert, state, LAYOUT, TEMPLATE)


@pytest.mark.parametrize("arch", LAYOUTS)
def test_a_layout_names_every_layer_of_its_network(arch):
    detector = build(arch, default_size(arch))
    template = flatten_dict(jax.eval_shape(detector.init, jax.random.key(0)), sep="/")
    assert {path.partition("/")[2].rpartition("/")[0] for path in template} <= set(LAYOUTS[arch]().names)


@pytest.mark.shared
@pytest.mark.parametrize("part", ["full/encoder_46", "full/decoder_46", "finetune/encoder_26", "finetune/decoder_26"])
def test_published_files_of_the_old_format_hold_the_numbers_of_their_npz(torch, shared, part):
    found = pytorch.read_state(shared / "classnseg" / "checkpoints" / f"{part}.pt")
    with np.load(shared / "classnseg" / "weights_as_npz.npz") as npz:
        expected = {key.removeprefix(f"{part}/"): npz[key] for key in npz.files if key.startswith(f"{part}/")}
    assert len(expected) > 60
    same(found, expected)


@pytest.mark.shared
def test_published_capsule_and_minifasnet_files_have_the_names_told(torch, shared):
    golden = json.loads((shared / "minifasnet" / "golden.json").read_text())["tensors"]
    for name, told in golden.items():
        found = pytorch.read_state(shared / "minifasnet" / "weights" / name)
        assert {key: list(value.shape) for key, value in found.items()} == told
    for name in json.loads((shared / "capsule-forensics-v1" / "golden.json").read_text())["checkpoints"]:
        found = pytorch.read_state(shared / "capsule-forensics-v1" / name)
        assert len(found) == 73 and found["routing_stats.route_weights"].shape == (2, 3, 4, 8)
