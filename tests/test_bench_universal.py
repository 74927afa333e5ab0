"""The benchmark of universal perturbations without its peers: what a step costs, and where a run stops."""

import json
from pathlib import Path

import numpy as np
import pytest
import toys
from driven import drive
from ground import studied

from benchmarks import universal as bench
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.universal import named


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return studied(tmp_path_factory.mktemp("ground"), 60, 2)


@pytest.mark.slow
def test_steps_are_measured_beside_their_floor(ground, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "torch_peers", lambda: None)  # the extra is not needed for this part
    monkeypatch.setattr(bench, "STEPS", 2)
    nets = [f"meso4:{ground}/net{k}.safetensors" for k in range(2)]
    given = ["--detector", nets[0], "--more", nets[1], "--data", f"{ground}/set", "--parts", "steps", "--repeats", "1"]
    drive(monkeypatch, bench, [*given, "--train", "8", "--images", "4", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["method"] for row in found["steps"]] == ["gd_uap", "uap_pgd"]
    assert found["sources"][0]["sources"] == ["net0", "net1"] and found["sources"][0]["rows"] == 32
    assert all(0.2 < row["ratio"] < 20 for row in (*found["steps"], *found["sources"]))
    assert "x the bare gradients of net0, net1" in capsys.readouterr().out


def test_a_method_stops_where_enough_verdicts_are_changed(monkeypatch):
    data, source, seen = toys.images(40), toys.source(), []
    make = bench.uap.make

    def watched(config, laid, sources, size, compute, shots, watch, *images):
        def both(done, infos):
            seen.append((done, float(infos.best_score[-1][0])))
            watch(done, infos)

        return make(config, laid, sources, size, compute, shots, both, *images)

    monkeypatch.setattr(bench.uap, "make", watched)
    config = named("uap_pgd", eps=(100.0,), seeds=(0,), steps=60, check=2, patience=100)
    delta = bench._made(config, source, data, 0.05)
    before, after = (margins(source.forward, data.images, Compute(devices=1), v) > 0 for v in (None, delta))
    assert seen[-1][0] < 60 and seen[-1][1] >= 0.05 and all(score < 0.05 for _, score in seen[:-1])
    assert np.mean(before != after) >= 0.05
    seen.clear()
    bench._made(config, source, data, 2.0)  # never enough
    assert seen[-1][0] == 60
