"""The second paper's driver as a user runs it: to its end, killed inside an attack and taken up again, with networks of
its own training, and given what it cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from driven import drive, refusal
from ground import pictures

from experiments import gandhi_attacks
from ffjax import detectors, gandhi
from ffjax.detectors import weights

SMALL = {
    "vgg16": {"width": 2, "hidden": 4, "norm": "none", "pooled": 1},
    "resnet18": {"width": 2, "norm": "none"},
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """32 px pictures of noise, whose fakes are redder, in three splits; two small networks of random weights, that
    call everything fake."""
    folder = pictures(tmp_path_factory.mktemp("ground"), 60, ("train", "validation", "test"))
    for (name, options), last in zip(SMALL.items(), ("fc8", "dense"), strict=True):
        variables = jax.jit(detectors.build(name, 32, **options).init)(jax.random.key(0))
        dense = variables["params"][last]
        dense["bias"] = dense["bias"] + np.array([0, 3], np.float32)
        weights.save(folder / f"{name}.safetensors", variables, {"arch": name, "size": 32, "options": options})
    return folder


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(ground / "labels.csv"), "--size", "32", "--images", "8", "--multiples"]
    given += ["--inner", "20", "--searches", "2", "--compute.batch", "8"]
    return [*given, "--out", str(out), *more]


def given(ground: Path) -> list[str]:
    return ["--vgg", f"{ground}/vgg16.safetensors", "--resnet", f"{ground}/resnet18.safetensors"]


def timeless(out: Path) -> dict[str, list[dict]]:
    """Cell -> its ledger, without what the clock said."""
    return {
        path.parent.name: [
            {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()
        ]
        for path in sorted(out.glob("cells/*/ledger.jsonl"))
    }


def outcome(out: Path) -> dict:
    found = json.loads((out / "results.json").read_text())
    for cost in found["costs"]:
        del cost["seconds"]
    return found


@pytest.mark.slow
def test_a_job_killed_inside_an_attack_ends_as_one_that_was_not(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setenv("COLUMNS", "230")
    drive(monkeypatch, gandhi_attacks, [*words(ground, whole), *given(ground)])
    told = capsys.readouterr().out
    assert "detector not competent" in told and "published [S], pre-trained" in told and "What differs." in told
    assert "26.6" in told and "in all" in told  # the paper's figures, and what it took

    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    paced = ["--compute.chunk", "2", "--compute.snapshot", "2"]
    command = [sys.executable, "-m", "experiments.gandhi_attacks", *words(ground, cut), *given(ground), *paced]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    shots = cut / "cells/vgg16-cw-k200/underway"
    while not any(shots.glob("*/snapshots/[0-9]*")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and any(shots.glob("*")) and not (cut / "results.json").exists()
    assert set(timeless(cut)) == {"vgg16-fgsm"}
    drive(monkeypatch, gandhi_attacks, [*words(ground, cut), *given(ground)])

    cells = [f"{source}-{name}" for source in ("resnet18", "vgg16") for name in ("cw-k200", "fgsm")]
    assert timeless(cut) == timeless(whole) and list(timeless(whole)) == cells
    assert all(len(rows) == 8 for rows in timeless(whole).values())
    assert outcome(cut) == outcome(whole) and not list(cut.glob("cells/*/underway"))
    assert outcome(whole)["fakes"] == {"attacked": 8, "right": 10, "test": 10}

    before = (cut / "cells/vgg16-fgsm/ledger.jsonl").read_bytes()
    said = refusal(monkeypatch, capsys, gandhi_attacks, [*words(ground, cut), *given(ground), "--eps", "0.01"])
    assert "eps: 0.02 there, 0.01 asked" in said
    assert (cut / "cells/vgg16-fgsm/ledger.jsonl").read_bytes() == before

    drive(monkeypatch, gandhi_attacks, [*words(ground, cut), *given(ground), "--images", "10"])  # taken up with more
    assert outcome(cut)["fakes"]["attacked"] == 10
    assert all(len(rows) == 10 and rows[:8] == timeless(whole)[name] for name, rows in timeless(cut).items())


@pytest.mark.slow
def test_without_weights_it_trains_its_own_and_goes_on_from_them(ground, tmp_path, monkeypatch, capsys):
    recipe = gandhi.RECIPES["resnet18"]._replace(options=("width=4",), rate=3e-3)
    monkeypatch.setattr(gandhi, "RECIPES", gandhi.RECIPES | {"resnet18": recipe})
    out = tmp_path / "out"
    asked = [*words(ground, out, "--epochs", "80", "--inner", "2"), *given(ground)[:2]]
    drive(monkeypatch, gandhi_attacks, asked)
    told = capsys.readouterr().out
    assert "training resnet18 on" in told and "training vgg16" not in told
    made = out / "resnet18" / "weights.safetensors"
    header, before = detectors.load(f"resnet18:{made}").meta, made.read_bytes()
    assert header["command"].startswith("python -m experiments.gandhi_attacks ") and header["options"]["width"] == 4
    first = outcome(out)
    assert first["clean"]["resnet18"]["balanced_accuracy"]["value"] >= 0.9 and first["heading"].count("(vgg16)") == 1
    drive(monkeypatch, gandhi_attacks, asked)
    assert "training resnet18" not in capsys.readouterr().out
    assert made.read_bytes() == before and outcome(out) == first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "0"], "images: must be at least 1, got 0"),
        (["--kappa", "-3"], "kappa: must not be negative, got -3"),
        (["--inner", "0"], "inner: must be at least 1, got 0"),
        (["--vgg", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--resnet", "{ground}/vgg16.safetensors"], "holds weights of vgg16, not of resnet18"),
        (["--vgg", "meso4-a0"], "meso4-a0: weights of meso4, not of vgg16"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_is_made(
    ground, tmp_path, monkeypatch, capsys, more, message
):
    more = [word.format(ground=ground) for word in more]
    asked = [*words(ground, tmp_path / "out"), *given(ground), *more]
    assert message in refusal(monkeypatch, capsys, gandhi_attacks, asked)
    assert not (tmp_path / "out").exists()
