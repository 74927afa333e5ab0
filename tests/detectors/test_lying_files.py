"""Files that lie about what they hold, and names no file can have: one line each, and never a wrong network."""

import io
import pickle
import resource
import struct
import tarfile
import zipfile
from collections import OrderedDict
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from test_mesonet_port import published
from test_weights import changed, drawn, refusal, write_keras

from ffjax.detectors import load, loading, pytorch, weights
from ffjax.errors import InputError

META = {"arch": "meso4", "size": 32}


@pytest.fixture(scope="module")
def variables():
    return drawn("meso4", 32)


def flat(variables) -> dict[str, Any]:
    return {key: np.asarray(value) for key, value in flatten_dict(variables, sep="/").items()}


def keras_with(path, variables, **extra):
    write_keras(path, variables)
    with h5py.File(path, "a") as file:
        for key, value in extra.items():
            file[key] = value


@pytest.mark.parametrize("key", ["zzz/conv2d_7/kernel:0", "conv2d_7/kernel:0", "conv2d_7/conv2d_7/kernel", "loose"])
def test_a_keras_dataset_too_many_never_takes_another_s_place(key, variables, tmp_path):
    path = tmp_path / "net.h5"
    keras_with(path, variables, **{key: np.zeros((3, 3, 3, 8), np.float32)})
    assert refusal(f"meso4:{path}") == f"{path}: unexpected {key}"


def test_one_keras_layer_by_two_numbers_is_a_layer_too_many(variables, tmp_path):
    keras_with(tmp_path / "net.h5", variables, **{"conv2d_07/conv2d_07/kernel:0": np.zeros((3, 3, 3, 8), np.float32)})
    assert "5 conv2d layers where 4 are expected" in refusal(f"meso4:{tmp_path}/net.h5")


def test_keras_faults_go_by_the_file_s_names(variables, tmp_path):
    path = tmp_path / "net.h5"
    for changes, said in (
        (
            {"params.bn1.bias": jnp.full(8, jnp.nan)},
            "batch_normalization_7/batch_normalization_7/beta:0 holds NaN or inf",
        ),
        ({"batch_stats.bn4.var": None}, "missing batch_normalization_10/batch_normalization_10/moving_variance:0"),
        ({"params.conv2.scale": jnp.ones(8)}, "unexpected conv2d_8/conv2d_8/gamma:0"),
        ({"params.conv2.bias": jnp.ones(9)}, "conv2d_8/conv2d_8/bias:0 has shape (9,), not (8,)"),
    ):
        write_keras(path, changed(variables, **changes))
        assert said in refusal(f"meso4:{path}")
    write_keras(path, variables, np.int16)
    assert "conv2d_7/conv2d_7/kernel:0 is int16, not float32" in refusal(f"meso4:{path}")
    write_keras(path, variables)
    assert "dense_9/dense_9/kernel:0 has shape (16, 16), not (64, 16)" in refusal(f"meso4[size=64]:{path}")


def test_keras_numbers_of_another_float_and_a_whole_saved_model_are_read(variables, tmp_path):
    write_keras(tmp_path / "half.h5", variables, np.float64)
    with h5py.File(tmp_path / "half.h5") as file, h5py.File(tmp_path / "model.h5", "w") as model:
        for key in file:
            file.copy(key, model, f"model_weights/{key}")
        model["optimizer_weights/training/Adam/conv2d_7/kernel/m:0"] = np.zeros(3)
    for name in ("half", "model"):
        jax.tree.map(np.testing.assert_array_equal, load(f"meso4:{tmp_path}/{name}.h5").variables, variables)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_keys_that_run_through_each_other_are_refused(suffix, variables, tmp_path):
    path = tmp_path / f"net.{suffix}"
    numbers: dict[str, Any] = flat(variables) | {"params/conv1/kernel/x": np.zeros(2, np.float32)}
    save_file(numbers, path) if suffix == "safetensors" else np.savez(path, **numbers)
    assert refusal(f"meso4[size=32]:{path}") == f"{path}: unexpected params/conv1/kernel/x"
    with pytest.raises(InputError, match="unexpected params/conv1/kernel/x"):
        loading.convert([path], tmp_path / "out.safetensors", "meso4", 32)


def npy(shape="(2,)", descr="<f4", data=bytes(8)):
    """A .npy whose header says what it likes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(path, content, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr("a.npy", content)
    return bytearray(path.read_bytes())


def encrypted(path):
    raw = archive(path, npy())
    for start, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(start) + flag] |= 1
    path.write_bytes(raw)


def broken_lzma(path):
    raw = archive(path, npy(data=bytes(range(256)) * 40), zipfile.ZIP_LZMA)
    raw[60:80] = b"\xff" * 20
    path.write_bytes(raw)


LYING = {
    "far more than there is": lambda path: archive(path, npy("(1000000000000,)")),
    "more than can be counted": lambda path: archive(path, npy(f"({2**62}, {2**62})")),
    "a header that never ends": lambda path: archive(path, npy("(2,")),
    "a header too deep": lambda path: archive(path, npy("(" * 9000)),
    "no type": lambda path: archive(path, npy(descr="<q9")),
    "broken compression": broken_lzma,
    "encryption": encrypted,
}


@pytest.mark.parametrize("lie", LYING)
def test_a_lying_npz_is_refused(lie, tmp_path):
    path = tmp_path / "net.npz"
    LYING[lie](path)
    assert refusal(f"meso4_port:{path}").startswith(f"{path}: cannot be read as npz (")


def test_a_keras_file_that_claims_more_than_it_holds_is_refused(variables, tmp_path):
    path = tmp_path / "net.h5"
    for key, shape, said in (
        ("conv2d_7/conv2d_7/kernel:0", (10**12,), "has shape (1000000000000,), not (3, 3, 3, 8)"),
        ("dense_9/dense_9/kernel:0", (16 * 10**10, 16), "claims 10240000000000 bytes and holds 0"),
    ):
        write_keras(path, variables)
        with h5py.File(path, "a") as file:
            del file[key]
            file.create_dataset(key, shape, np.float32)
        assert said in refusal(f"meso4:{path}")


def test_headers_that_are_no_plain_json_load_or_are_refused(variables, tmp_path):
    """An interval of one photograph is NaN, which Python's JSON writes bare."""
    path = tmp_path / "net.safetensors"
    weights.save(path, variables, META | {"interval": [float("nan"), float("inf")]})
    again = load(f"meso4:{path}").meta["interval"]
    assert np.isnan(again[0]) and np.isinf(again[1])
    weights.save(path, variables, META | {"size": float("nan")})
    assert "says 'meso4' and nan" in refusal(f"meso4:{path}")
    weights.save(path, variables, META | {"options": {"width": float("nan")}})
    assert "unknown option 'width'" in refusal(f"meso4:{path}")
    for deep in ("[" * 100_000, "{"):
        save_file(flat(variables), path, {"arch": '"meso4"', "size": "32", "history": deep})
        assert refusal(f"meso4:{path}").startswith(f"{path}: cannot be read as safetensors (")


def test_values_and_names_that_cannot_be_are_refused(variables, tmp_path):
    with pytest.raises(InputError, match="option 'a' nests too deeply") as caught:
        loading.parse_options(["a=" + "[" * 100_000])
    assert len(str(caught.value)) < 200
    long = f"{tmp_path}/{'x' * 300}"
    for suffix in ("h5", "npz", "pt", "safetensors"):
        assert "(File name too long)" in refusal(f"meso4:{long}.{suffix}")
        (tmp_path / "a").touch()
        assert "null byte" in refusal(f"meso4:{tmp_path}/a\0b.{suffix}")
    assert "No such file" in refusal(f"meso4:{tmp_path}/a.npz+{'+'.join(['b.npz'] * 100)}")
    weights.save(tmp_path / "own.safetensors", variables, META)
    for out in (tmp_path / f"{long}.safetensors", tmp_path / "a\0b.safetensors"):
        with pytest.raises(InputError, match="cannot be written"):
            loading.convert([tmp_path / "own.safetensors"], out, "meso4")
    assert {one.name for one in tmp_path.iterdir()} == {"a", "own.safetensors"}


def test_a_failed_write_leaves_nothing(variables, tmp_path):
    weights.save(tmp_path / "own.safetensors", variables, META)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written \(File too large\)"):
            loading.convert([tmp_path / "own.safetensors"], tmp_path / "new.safetensors", "meso4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [one.name for one in tmp_path.iterdir()] == ["own.safetensors"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_our_own_numbers_of_another_type_are_refused(dtype, variables, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(flat(variables) | {"params/conv1/bias": np.ones(8, dtype)}, path, {"arch": '"meso4"', "size": "32"})
    assert refusal(f"meso4:{path}") == f"{path}: params/conv1/bias is {dtype}, not float32"


def test_batches_are_counted_for_known_layers_only(tmp_path):
    path = tmp_path / "net.npz"
    state: dict[str, Any] = published("meso4_port", 64)
    counted: dict[str, Any] = {
        key.replace("running_mean", "num_batches_tracked"): np.asarray(3) for key in state if "_mean" in key
    }
    assert counted
    np.savez(path, **state, **counted)
    load(f"meso4_port[size=64]:{path}")
    for key in ("bn9.num_batches_tracked", "num_batches_tracked"):
        more: dict[str, Any] = state | {key: np.asarray(np.nan)}
        np.savez(path, **more)
        assert refusal(f"meso4_port[size=64]:{path}") == f"{path}: unexpected {key}"


def test_suffixes_are_known_in_any_case(variables, tmp_path):
    write_keras(tmp_path / "net.H5", variables)
    weights.save(tmp_path / "net.SafeTensors", variables, META)
    with (tmp_path / "net.NPZ").open("wb") as file:
        np.savez(file, **flat(variables))
    for name in ("net.H5", "net.SafeTensors", "net.NPZ"):
        loaded = load(f"meso4[size=32]:{tmp_path}/{name}")
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    made = loading.convert([tmp_path / "net.H5"], tmp_path / "out.SAFETENSORS", "meso4")
    assert load(f"meso4:{tmp_path}/out.SAFETENSORS").meta == made.meta
    assert "Keras weights come in one file" in refusal("meso4:a.H5+b.pt")


def before_0_1_10(torch, path):
    """One tensor a = (1, 2, 3) as the first releases of PyTorch wrote it: three pickles in a tar."""

    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return "7" if isinstance(obj, torch.Tensor) else None

    pickled = io.BytesIO()
    Writer(pickled, 2).dump(OrderedDict(a=torch.zeros(1)))
    numbers = struct.pack("<q3f", 3, 1, 2, 3)
    storages = pickle.dumps(1, 2) + pickle.dumps((5, "cpu", torch.FloatStorage), 2) + numbers + pickle.dumps([], 2)
    shape = struct.pack("<iiqqq", 1, 0, 3, 1, 0)
    tensors = pickle.dumps(1, 2) + pickle.dumps((7, 5, torch.FloatTensor), 2) + shape
    with tarfile.open(path, "w") as tar:
        for name, content in (("storages", storages), ("tensors", tensors), ("pickle", pickled.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.filterwarnings("default")
def test_the_tar_of_the_first_pytorch_is_refused_by_name(tmp_path):
    """torch still reads it, but not without running what is in it."""
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    before_0_1_10(torch, tmp_path / "net.tar")
    assert torch.load(tmp_path / "net.tar", weights_only=False)["a"].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="refused: a tar archive") as caught:
        pytorch.read_state(tmp_path / "net.tar")
    assert "0.1.10" in str(caught.value) and "\n" not in str(caught.value)
