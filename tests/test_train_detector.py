"""The training driver on a small run: it learns, reports, and what it writes loads as a detector."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.train_detector import Config, main
from ffjax import detectors, run
from ffjax.train import TrainConfig


@pytest.fixture
def pictures(tmp_path):
    """A CSV of 32 px pictures whose fakes are a little redder, split into train, validation and test."""
    folder, rng, rows = tmp_path / "pictures", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(160):
        label, split = i % 2, ("train", "train", "validation", "test")[i // 2 % 4]
        pixels = rng.integers(70, 150, (32, 32, 3))
        pixels[..., 0] += 50 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        rows.append((f"{i:03d}.png", label, split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split"), *rows])
    return folder


@pytest.mark.slow
def test_options_reach_the_network_and_the_file_and_patches_show_what_their_history_gives_away(tmp_path, capsys):
    folder, rng = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    data, out = f"patches:{folder}?operation=median3&patches=8", tmp_path / "made"
    words = {"arch": "laplacian", "options": ("widths=[4, 4, 4, 4, 8]",), "size": 64, "data": data, "others": ()}
    main(Config(**words, train=TrainConfig(epochs=3, precision="bfloat16"), out=out))  # type: ignore[arg-type]
    loaded = detectors.load(f"laplacian:{out}/weights.safetensors")
    assert loaded.meta["options"]["widths"] == [4, 4, 4, 4, 8]
    assert loaded.variables["params"]["conv1"]["kernel"].shape[-1] == 4
    assert "JPEG history alone, test (n = " in capsys.readouterr().out


@pytest.mark.slow
def test_it_learns_and_ships_what_it_learnt(pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made-0"
    words = ["--arch", "meso4", "--size", "32", "--data", str(pictures), "--others", "--dropout", "0.1"]
    words += ["--train.epochs", "15", "--train.batch", "16", "--train.rate", "1e-2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["train_detector", *words])
    run.main(Config, main)

    loaded = detectors.load(f"meso4:{out}/weights.safetensors")
    assert loaded.name == "made-0" and loaded.detector.shape == (32, 32, 3)
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["pictures"]["clean_accuracy"]["value"] >= 0.95
    assert loaded.meta["test"] == results["test"] and "--train.epochs 15" in loaded.meta["command"]
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    assert "pictures test (n = 40)" in capsys.readouterr().out
