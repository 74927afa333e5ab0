"""Specs and published files to a detector with its weights, and once and for all to a safetensors file."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_mesonet_port import published
from test_weights import drawn, write_keras

from ffjax import detectors
from ffjax.detectors import build, load, loading, weights
from ffjax.detectors.loading import parse
from ffjax.errors import InputError

RELEASED = "meso4_port[size=64,shared_norm=as_released]"
META = {"arch": "meso4_port", "size": 64, "options": {"shared_norm": "as_released"}}


@pytest.fixture
def state():
    return published("meso4_port", 64)


@pytest.fixture
def npz(state, tmp_path):
    np.savez(tmp_path / "best.npz", **state)
    return tmp_path / "best.npz"


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_spec_in_parts(tmp_path):
    assert parse("meso4:a/b.h5") == ("meso4", None, {}, (Path("a/b.h5"),))
    assert parse("meso4_port:a.pt+b/c.pt").files == (Path("a.pt"), Path("b/c.pt"))
    (tmp_path / "a+b.pt").touch()
    assert parse(f"meso4_port:{tmp_path}/a+b.pt").files == (tmp_path / "a+b.pt",)
    spec = parse('meso4[size=96, a=[1, 2],b=1e-3,c=true,d="x,y",e=plain text,f=null]:p[q]:r.pt')
    assert spec.options == {"a": [1, 2], "b": 1e-3, "c": True, "d": "x,y", "e": "plain text", "f": None}
    assert spec.size == 96 and spec.files == (Path("p[q]:r.pt"),)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("meso4", "give ARCH:PATH or ARCH[option=value]:PATH with one of meso4, "),
        ("meso4[size=64]", "give ARCH:PATH"),
        ("meso4:", "give ARCH:PATH"),
        ("[a=b]:x.pt", "give ARCH:PATH"),
        ("vgg99[a=b]:x.pt", "unknown detector 'vgg99' in 'vgg99[a=b]:x.pt'; known: meso4, "),
        ("meso4[size]:x.pt", "option 'size' must have the form key=value"),
        ("meso4[=3]:x.pt", "option '' must have the form key=value"),
        ("meso4[size=big]:x.pt", "size must be a whole number, got 'big'"),
        ("meso4[size=true]:x.pt", "size must be a whole number, got True"),
    ],
)
def test_specs_of_another_form_are_refused(spec, said):
    assert said in refusal(load, spec)


def test_options_are_known_and_the_same_choice_is_the_same_detector():
    assert build("meso4_port", 64) is build("meso4_port", 64, shared_norm="fixed")
    assert build("meso4_port", 64) is not build("meso4_port", 64, shared_norm="as_released")
    assert refusal(build, "meso4_port", 64, width=3) == "unknown option 'width' of meso4_port; known: shared_norm"
    message = refusal(build, "meso4_port", 64, shared_norm=3)
    assert message == "option 'shared_norm' of meso4_port must be of the kind of 'fixed', got 3"
    assert refusal(build, "resnet10", 64, width=3) == "unknown option 'width' of resnet10; known: none"


def test_lists_from_json_reach_a_builder_as_tuples(monkeypatch):
    seen = []

    def builder(size=32, dropout=0.0, *, widths=(1, (2, 3))):
        seen.append(widths)
        return detectors.meso4(size)

    monkeypatch.setitem(detectors.DETECTORS, "listed", builder)
    assert "must be of the kind of (1, (2, 3)), got 7" in refusal(build, "listed", 32, widths=7)
    assert build("listed", 32, widths=[4, [5]]) is build("listed", 32, widths=(4, (5,))) and seen == [(4, (5,))]


def test_a_pytorch_state_dict_loads_with_its_options(npz):
    loaded = load(f"{RELEASED}:{npz}")
    assert (loaded.name, loaded.detector.shape) == ("best", (64, 64, 3))
    assert loaded.meta == META | {"read_with": {"classes": "real_first"}}
    assert set(loaded.variables["batch_stats"]) == {"bn1", "bn3"}
    assert loaded.detector is build("meso4_port", 64, shared_norm="as_released")
    fixed = load(f"meso4_port[size=64]:{npz}")
    assert fixed.meta["options"] == {"shared_norm": "fixed"} and "bn4" in fixed.variables["batch_stats"]
    swapped = load(f"meso4_port[size=64,classes=fake_first]:{npz}")
    assert swapped.meta["read_with"] == {"classes": "fake_first"}
    kernels = [one.variables["params"]["dense2"]["kernel"] for one in (fixed, swapped)]
    np.testing.assert_array_equal(kernels[0], kernels[1][:, ::-1])


def test_pytorch_files_that_do_not_fit_are_refused_by_name(npz, state, tmp_path):
    assert refusal(load, f"meso4_port:{npz}") == f"{npz}: fc1.weight has shape (16, 64), not (16, 1024)"
    message = refusal(load, f"mesoinception4_port[size=64]:{npz}")
    assert message.startswith(f"{npz}: missing Incption1_bn.running_mean; ") and message.endswith("; and 30 more")
    assert refusal(load, f"meso4_port[size=33]:{npz}").startswith(f"{npz}: meso4_port: image size")
    message = refusal(load, f"meso4_port[classes=random]:{npz}")
    assert message.startswith(f"{npz}: ") and "real_first" in message
    message = refusal(load, f"meso4_port[port=keras]:{npz}")
    assert refusal(load, f"meso4_port[classes=[1]]:{npz}").startswith(f"{npz}: option 'classes' of meso4_port must be")
    assert message == f"{npz}: unknown option 'port' of meso4_port; known: size, shared_norm, classes"
    assert "no PyTorch layout is known for 'resnet10'; known: meso4_port" in refusal(load, f"resnet10:{npz}")


def test_one_network_in_several_files(state, tmp_path):
    for name, belongs in (("convs", True), ("head", False)):
        part = {key: value for key, value in state.items() if key.startswith("fc") != belongs}
        np.savez(tmp_path / f"{name}.npz", **part)
    np.savez(tmp_path / "whole.npz", **state)
    loaded = load(f"{RELEASED}:{tmp_path}/convs.npz+{tmp_path}/head.npz")
    assert loaded.name == "convs+head"
    same(loaded.variables, load(f"{RELEASED}:{tmp_path}/whole.npz").variables)
    message = refusal(load, f"{RELEASED}:{tmp_path}/whole.npz+{tmp_path}/head.npz")
    assert message.startswith(f"{tmp_path}/head.npz: fc1.weight is in another") and "fc2.bias" in message
    assert "Keras weights come in one file" in refusal(load, "meso4:a.h5+b.h5")


@pytest.mark.parametrize("arch", ["meso4", "meso4_port"])
def test_our_own_numbers_in_an_npz_or_a_bare_safetensors_are_known_by_their_keys(arch, tmp_path):
    variables = drawn(arch, 64)
    weights.save(tmp_path / "own.safetensors", variables, {})
    flat, header = weights.read_flat(tmp_path / "own.safetensors")
    assert header == {}
    np.savez(tmp_path / "own.npz", **flat)
    for name in ("own.npz", "own.safetensors"):
        loaded = load(f"{arch}[size=64]:{tmp_path}/{name}")
        same(loaded.variables, variables)
        assert loaded.meta["size"] == 64
        assert "has shape" in refusal(load, f"{arch}:{tmp_path}/{name}")  # at its own 256 px


def test_safetensors_with_pytorch_s_keys(state, npz, tmp_path):
    save_file(state, tmp_path / "best.safetensors", {"format": "pt", "title": "not JSON"})
    loaded = load(f"{RELEASED}:{tmp_path}/best.safetensors")
    same(loaded.variables, load(f"{RELEASED}:{npz}").variables)


def test_options_in_a_header_are_defaults_that_a_spec_overrides(npz, tmp_path):
    path = tmp_path / "own.safetensors"
    variables = drawn("resnet10", 64)
    weights.save(path, variables, {"arch": "resnet10", "size": 64})
    loaded = load(f"resnet10[size=32]:{path}")  # any size takes these weights
    assert loaded.detector.shape == (32, 32, 3) and loaded.meta["size"] == 32
    released = load(f"{RELEASED}:{npz}")
    weights.save(path, released.variables, released.meta)
    again = load(f"meso4_port:{path}")
    assert (again.meta, again.detector) == (released.meta, released.detector)
    message = refusal(load, f"meso4_port[shared_norm=fixed]:{path}")
    assert "missing batch_stats/bn2/mean" in message and str(path) in message
    assert "unknown option 'classes'" in refusal(load, f"meso4_port[classes=fake_first]:{path}")
    weights.save(path, released.variables, META | {"options": {"of the future": 1}})
    assert f"{path}: unknown option 'of the future'" in refusal(load, f"meso4_port:{path}")
    weights.save(path, released.variables, META | {"options": [1]})
    assert f"{path}: the header's options must be named" in refusal(load, f"meso4_port:{path}")


def command_line(capsys, *arguments):
    """(exit code, standard output, standard error) of the command in this process."""
    code = 0
    try:
        weights.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_convert_writes_what_load_opens_without_torch(state, tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    source, out = tmp_path / "best.pth", tmp_path / "deep" / "own.safetensors"
    torch.save({"state_dict": {f"module.{key}": torch.from_numpy(value) for key, value in state.items()}}, source)
    direct = load(f"{RELEASED}:{source}")
    options = ("--arch", "meso4_port", "--size", 64, "--options", "shared_norm=as_released", "classes=real_first")
    code, said, error = command_line(capsys, "convert", source, out, *options)
    assert (code, error, said) == (0, "", f"{out}: meso4_port at 64 px, shared_norm as_released\n")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "ffjax[torch]" in refusal(load, f"{RELEASED}:{source}")
    loaded = load(f"meso4_port:{out}")
    origin = [{"file": "best.pth", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}]
    assert loaded.meta == direct.meta | {"converted_from": origin} and loaded.name == "own"
    assert loaded.detector is direct.detector
    same(loaded.variables, direct.variables)


def test_convert_takes_keras_files_and_several_files(state, tmp_path, capsys):
    write_keras(tmp_path / "net.h5", drawn("meso4", 32))
    code, said, _ = command_line(capsys, "convert", tmp_path / "net.h5", tmp_path / "a.safetensors", "--arch", "meso4")
    assert (code, said) == (0, f"{tmp_path}/a.safetensors: meso4 at 32 px\n")
    same(load(f"meso4:{tmp_path}/a.safetensors").variables, drawn("meso4", 32))
    parts = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for path, keys in zip(parts, (list(state)[::2], list(state)[1::2]), strict=True):
        np.savez(path, **{key: state[key] for key in keys})
    made = loading.convert(parts, tmp_path / "b.safetensors", "meso4_port", 64)
    assert [one["file"] for one in made.meta["converted_from"]] == ["one.npz", "two.npz"]
    same(made.variables, load(f"meso4_port:{tmp_path}/b.safetensors").variables)


def test_a_conversion_that_fails_is_one_line_and_leaves_nothing(npz, tmp_path, capsys):
    out = tmp_path / "deep" / "own.safetensors"
    (tmp_path / "there.safetensors").write_bytes(b"kept")
    (tmp_path / "file").write_bytes(b"kept")
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        ((npz, out, "--arch", "meso4_port"), f"{npz}: fc1.weight has shape (16, 64), not (16, 1024)"),
        ((npz, out, "--arch", "vgg99"), "unknown detector 'vgg99'; known: meso4, "),
        ((npz, out, "--arch", "resnet10"), "no PyTorch layout is known for 'resnet10'"),
        ((npz, out, "--arch", "meso4_port", "--options", "size"), "option 'size' must have the form key=value"),
        ((npz, out, "--arch", "meso4_port", "--options", "a=b"), "unknown option 'a'"),
        ((tmp_path / "no.npz", out, "--arch", "meso4"), f"{tmp_path}/no.npz: cannot be read"),
        ((npz, npz, "--arch", "meso4_port"), "must end in .safetensors"),
        ((out, "--arch", "meso4_port"), "one file to read at least"),
        ((npz, tmp_path / "there.safetensors", "--arch", "meso4_port", "--size", 64), "exists already"),
        ((npz, tmp_path / "file" / "own.safetensors", "--arch", "meso4_port", "--size", 64), "cannot be written"),
    ):
        code, printed, error = command_line(capsys, "convert", *arguments)
        assert (code, printed, error.count("\n")) == (2, "", 1), error
        assert error.startswith("error: ") and said in error
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.safetensors").read_bytes() == b"kept"


def test_a_wrong_command_line_is_exit_code_2(capsys):
    for arguments in ((), ("convert",), ("convert", "a.pt", "b.safetensors"), ("revert", "a"), ("convert", "--sise")):
        assert command_line(capsys, *arguments)[0] == 2


@pytest.mark.slow
def test_the_command_as_a_process_says_one_line(tmp_path):
    command = f"{sys.executable} -m ffjax.detectors.weights convert no.pt out.safetensors --arch meso4_port"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no.pt: cannot be read (No such file or directory)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_importing_the_detectors_stays_cheap():
    heavy = "torch", "torchvision", "timm", "h5py", "safetensors", "keras", "tensorflow"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, ffjax.detectors; print([m for m in {heavy} if m in sys.modules])"],
        capture_output=True,
        text=True,
    )
    assert (told.stdout, told.returncode) == ("[]\n", 0)
