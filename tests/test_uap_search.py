"""The search for what to drive, as a user runs it; and what a pattern needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import toys
from driven import drive, refusal
from ground import studied

from experiments import uap_search
from ffjax import anatomy_figures, needs, run
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.objectives import AGGREGATIONS, STATISTICS
from ffjax.universal import named


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return studied(tmp_path_factory.mktemp("ground"), 40, 1)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--source", f"meso4:{ground}/net0.safetensors", "--data", f"{ground}/set", "--size", "32"]
    return [*given, "--images", "6", "--validation", "6", "--noises", "2", "--steps", "3", "--out", str(out), *more]


@pytest.mark.slow
def test_every_objective_is_tried_and_the_best_on_validation_is_reported(ground, tmp_path, monkeypatch, capsys):
    drive(monkeypatch, uap_search, words(ground, tmp_path / "out"))
    assert "chosen" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    layers = 4
    assert len(found["scores"]) == len(STATISTICS) * (len(AGGREGATIONS) + layers)
    told = found["told"]["chosen"]
    assert found["scores"][told["name"]] == max(found["scores"].values()) == told["validation"]
    assert found["told"]["GD-UAP's"]["name"] == "l2-sum_log-all"
    made = np.load(tmp_path / "out/patterns/l2-sum_log/patterns.npy")
    assert made.shape == (3 * (1 + layers), 32, 32, 3)  # every seed of every layer choice
    for storage in ("float", "png"):
        assert told[storage]["test"]["n"] == 12 and set(found["told"]["noise"][storage]) == {"test"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("patterns.npy")}
    drive(monkeypatch, uap_search, words(ground, tmp_path / "out"))  # all is there: nothing is made again
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_what_cannot_be_done_is_refused_in_one_line(ground, tmp_path, monkeypatch, capsys):
    assert "steps" in refusal(monkeypatch, capsys, uap_search, words(ground, tmp_path / "out", "--steps", "0"))


def test_needs_are_rates_of_the_fakes_called_rightly(tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "IMAGES", (1, 8))
    monkeypatch.setattr(needs, "STEPS", (1, 6))
    data, source, told = toys.images(40), toys.source(), []
    config = named("to_real", seeds=(0,), steps=6, check=2, eps=(60.0,))
    folder = run.Run(tmp_path)
    found = needs.curves(
        folder, config, source, toys.SIZE, Compute(devices=1), data, data, data, lambda: told.append(1)
    )
    fakes = (data.labels == 1) & (margins(source.forward, data.images, Compute(devices=1)) > 0)
    assert found["fakes"] == fakes.sum() > 0 and len(told) == 4
    assert found["images"]["tried"] == [1, 8] and [r["n"] for r in found["steps"]["rates"]] == [fakes.sum()] * 2
    # the pattern made of all images in all steps, by hand
    delta = np.load(tmp_path / "needs/toy0-steps6-check1/pattern.npy")
    turned = margins(source.forward, data.images[fakes], Compute(devices=1), delta) <= 0
    assert found["steps"]["rates"][-1]["value"] == pytest.approx(turned.mean())
    assert np.abs(delta).max() <= 60 / 255 + 1e-6
    again = needs.curves(folder, config, source, toys.SIZE, Compute(devices=1), data, data, data)
    assert again == found
    anatomy_figures.save_all(tmp_path, "toy", {"needs": found})
    assert (tmp_path / "anatomy-needs.png").stat().st_size > 10_000
