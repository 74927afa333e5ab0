"""benchmarks.purify: what is not timed in it."""

import json
import sys

import pytest
from driven import refusal

from benchmarks import purify
from ffjax.defences.skip_network import Skip


def test_seconds_to_equal_psnr_are_of_what_all_contenders_reach():
    """Two contenders, two images: the first image is drawn to 22 dB by the slower to learn, the second to 31."""
    paths = {"ours": [[10.0, 25.0, 24.0], [20.0, 30.0, 31.0]], "theirs": [[12.0, 21.0, 22.0], [33.0, 32.0, 34.0]]}
    found = purify.to_equal(paths, {"ours": [0.5, 0.1, 0.2], "theirs": [1.0]})
    assert found["ours"] == {"dB": [22.0, 31.0], "iterations": [2, 3], "seconds": pytest.approx([0.4, 0.6])}
    assert found["theirs"] == {"dB": [22.0, 31.0], "iterations": [3, 1], "seconds": [3.0, 1.0]}


def test_operations_are_those_of_the_convolutions():
    """One scale, nothing skipped, 8 px, by hand: down0 and deep0 make 4 x 4 pixels, the others 8 x 8; the code needs no
    gradient."""
    down, deep, up = 2 * 9 * 4 * 6 * 16, 2 * 9 * 6 * 6 * 16, 2 * 9 * 6 * 6 * 64
    mix, last = 2 * 6 * 6 * 64, 2 * 6 * 3 * 64
    assert purify.operations(Skip((6,), (0,), 4), 8) == 2 * down + 3 * (deep + up + mix + last)


def test_what_is_said_of_a_gpu_is_called_an_extrapolation():
    assert "an extrapolation" in purify.extrapolated() and "0.6 ms" in purify.extrapolated()


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--repeats", "0"], "repeats: must be at least 1, got 0"),
        (["--images", "0"], "images: must be at least 1"),
        (["--steps", "-1"], "steps: must be at least 0"),
        (["--size", "100"], "size: the twin in PyTorch draws no image of 100 pixels"),
        (["--network", "huge"], "network: unknown 'huge'"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch, capsys, more, fault):
    assert fault in refusal(monkeypatch, capsys, purify, [*more, "--out", str(tmp_path / "out.json")])


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "benchmarks.torch_skip", raising=False)
    said = refusal(monkeypatch, capsys, purify, ["--out", str(tmp_path / "out.json")])
    assert "torch is not installed: pip install" in said


def test_two_contenders_are_measured_and_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="needs the torch extra")
    out = tmp_path / "out.json"
    sizes = {"network": "small", "size": 32, "images": 2, "turns": 1, "repeats": 1, "steps": 3}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    purify.main(purify.Config(**sizes, out=out))
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert all(name in said for name in ("ffjax", "PyTorch, one at a time", "PyTorch, batched"))
    assert found["throughput over one at a time"]["PyTorch, one at a time"] == [1.0]
    assert {len(path) for paths in found["psnr"].values() for path in paths} == {3}
