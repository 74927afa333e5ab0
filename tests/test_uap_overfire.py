"""The main job as a user runs it: to its end, killed and taken up again, and given what it cannot use."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from driven import drive, refusal
from ground import lay
from PIL import Image

from experiments import uap_overfire
from ffjax import detectors
from ffjax.detectors import weights

STEPS = 40


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """24 noise images and two Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 12, 2)


def arguments(ground: Path, out: Path, **changes: str) -> list[str]:
    """The command line of a small job; changes override by option name, _ for . and -"""
    options = {
        "--source": f"meso4:{ground}/net0.safetensors",
        "--unseen": f"meso4:{ground}/net1.safetensors",
        "--data": f"{ground}/images",
        "--noises": "2",
        "--viewing": "2",
        "--uap.steps": str(STEPS),
        "--uap.seeds": "0 1",
        "--uap.check": "10",
        "--compute.chunk": "5",
        "--compute.snapshot": "10",
        "--out": str(out),
    } | changes
    return [word for name, value in options.items() for word in (name, *value.split())]


def start(ground: Path, out: Path, cache: Path) -> subprocess.Popen:
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.uap_overfire", *arguments(ground, out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def kill_when(process: subprocess.Popen, reached) -> None:
    """kill -9 as soon as reached() is true."""
    until = time.monotonic() + 120
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, f"ended before it could be killed: {process.communicate()[0]}"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_job_killed_anywhere_ends_with_the_bytes_of_one_that_was_not(ground, tmp_path):
    whole, cut, cache = tmp_path / "whole", tmp_path / "cut", tmp_path / "cache"
    text = finish(start(ground, whole, cache))
    assert "report.html" in text and (whole / "report.html").exists()

    # before the first snapshot, between two, after the last step, and among the scores
    for rows in (1, 15, 25, STEPS):
        kill_when(start(ground, cut, cache), lambda rows=rows: lines(cut / "metrics.jsonl") >= rows)
    kill_when(start(ground, cut, cache), lambda: len(list(cut.glob("scores/*/*.npz"))) > 2)
    finish(start(ground, cut, cache))

    assert (cut / "perturbations.npy").read_bytes() == (whole / "perturbations.npy").read_bytes()
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    results = [json.loads((folder / "results.json").read_text()) for folder in (cut, whole)]
    assert results[0]["cells"] == results[1]["cells"] and results[0]["claims"] == results[1]["claims"]


def broken_weights(ground: Path, path: Path) -> Path:
    loaded = detectors.load(f"meso4:{ground}/net0.safetensors")
    variables = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), loaded.variables)
    weights.save(path, variables, {"arch": "meso4", "size": 32})
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--source": "meso5"}, ["meso5", "meso4", "resnet10"]),
        ({"--source": "meso5:x.h5"}, ["meso5", "meso4", "resnet10"]),
        ({"--source": "meso4:{ground}/none.safetensors"}, ["none.safetensors"]),
        ({"--source": "meso4:{nan}"}, ["nan.safetensors", "NaN"]),
        ({"--source": "resnet10:{ground}/net0.safetensors"}, ["net0.safetensors", "meso4", "resnet10"]),
        ({"--unseen": "meso4:{ground}/net0.safetensors"}, ["net0", "more than once"]),
        ({"--uap.layers": "conv9"}, ["conv9", "conv1", "conv4"]),
        ({"--data": "{ground}/nowhere"}, ["nowhere"]),
        ({"--data": "{empty}"}, ["empty"]),
        ({"--data": "{single}"}, ["single", "fake"]),
        ({"--data": "{truncated}"}, ["03.png"]),
        ({"--uap.mode": "with_data"}, ["train"]),
        ({"--compute.devices": "99"}, ["99"]),
        ({"--compute.chunk": "0"}, ["compute.chunk"]),
        ({"--compute.batch": "0"}, ["compute.batch"]),
        ({"--noises": "0"}, ["noises"]),
        ({"--uap.eps": "inf"}, ["uap.eps", "finite"]),
        ({"--uap.rate": "nan"}, ["uap.rate", "finite"]),
        ({"--uap.eps": "10 10.0000000001"}, ["uap.eps"]),
        ({"--uap.seeds": "8589934592"}, ["seeds"]),
        ({"--viewing": "-1"}, ["viewing"]),
        ({"--stored": "png png"}, ["png"]),
        ({"--uap.shape": "filter", "--uap.mode": "range_prior"}, ["filter", "huang_uap"]),
        ({"--uap.objective": "margin", "--uap.aim": "real", "--uap.mask": "erase"}, ["net0", "no mask"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(ground, tmp_path, monkeypatch, capsys, changes, expected):
    places = {name: tmp_path / name for name in ("empty", "single", "truncated")} | {"ground": ground}
    for name, classes in {"empty": ("real", "fake"), "single": ("real",), "truncated": ("real", "fake")}.items():
        for label in classes:
            (places[name] / label).mkdir(parents=True)
            if name != "empty":
                for file in (ground / "images" / label).iterdir():
                    (places[name] / label / file.name).write_bytes(file.read_bytes())
    (places["truncated"] / "real" / "03.png").write_bytes((ground / "images" / "real" / "03.png").read_bytes()[:900])
    places["nan"] = broken_weights(ground, tmp_path / "nan.safetensors")
    words = arguments(ground, tmp_path / "out", **{k: v.format(**places) for k, v in changes.items()})
    said = refusal(monkeypatch, capsys, uap_overfire, words)
    assert all(word in said for word in expected), said
    assert not (tmp_path / "out").exists() or "devices" in said


def test_a_folder_of_other_settings_is_left_alone(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "not empty" in refusal(monkeypatch, capsys, uap_overfire, arguments(ground, out))
    assert (out / "thesis.txt").read_text() == "precious" and len(list(out.iterdir())) == 1


@pytest.mark.slow
def test_weights_or_images_that_changed_under_a_run_are_noticed(ground, tmp_path, monkeypatch, capsys):
    for name in ("net0.safetensors", "net1.safetensors"):
        (tmp_path / name).write_bytes((ground / name).read_bytes())
    shutil.copytree(ground / "images", tmp_path / "images")
    words = arguments(tmp_path, tmp_path / "out", **{"--uap.steps": "2", "--stored": "png"})
    drive(monkeypatch, uap_overfire, words)
    before = (tmp_path / "out" / "results.json").read_bytes()
    (tmp_path / "net0.safetensors").write_bytes((ground / "net1.safetensors").read_bytes())
    assert "weights of net0 have changed" in refusal(monkeypatch, capsys, uap_overfire, words)
    (tmp_path / "net0.safetensors").write_bytes((ground / "net0.safetensors").read_bytes())
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "real" / "03.png")
    assert "images of images have changed" in refusal(monkeypatch, capsys, uap_overfire, words)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
