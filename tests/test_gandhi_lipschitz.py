"""The second paper's regularisation table as a user runs it, on pictures that are easy to tell apart."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from driven import drive, refusal
from ground import pictures

from experiments import gandhi_lipschitz
from ffjax import detectors, lipschitz_table
from ffjax.detectors import weights
from ffjax.lipschitz_table import Network
from ffjax.metrics import Estimate

VGG = {"width": 2, "hidden": 4, "norm": "none", "pooled": 1}


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """32 px pictures whose fakes are redder, and a VGG of random weights that calls everything fake."""
    folder = pictures(tmp_path_factory.mktemp("ground"), 120, ("train", "validation", "test"))
    variables = jax.jit(detectors.build("vgg16", 32, **VGG).init)(jax.random.key(0))
    dense = variables["params"]["fc8"]
    dense["bias"] = dense["bias"] + np.array([0, 3], np.float32)
    weights.save(folder / "vgg16.safetensors", variables, {"arch": "vgg16", "size": 32, "options": VGG})
    return folder


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--vgg", f"{ground}/vgg16.safetensors", "--data", str(ground / "labels.csv"), "--size", "32"]
    given += ["--options", "width=4", "--weights", "5", "--train.epochs", "8", "--train.batch", "8"]
    given += ["--train.rate", "3e-3", "--images", "8", "--few", "4", "--inner", "20", "--compute.batch", "8"]
    return [*given, "--out", str(out), *more]


@pytest.mark.slow
def test_it_trains_attacks_and_lays_the_papers_figures_beside(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made"
    drive(monkeypatch, gandhi_lipschitz, words(ground, out))
    told = capsys.readouterr().out
    assert "published" in told and "What differs." in told and "detector not competent (vgg16" in told
    found = json.loads((out / "results.json").read_text())
    assert [one["weight"] for one in found["networks"]] == [0, 5]
    fit = {"none"} | {one["name"] for one in found["networks"] if one["chosen"]}
    assert {(f["network"], f["column"]) for f in found["figures"]} == {
        (name, column) for name in fit for column in lipschitz_table.COLUMNS[1:]
    }
    ledgers = {path: path.read_bytes() for path in out.glob("cells/**/ledger.jsonl")}
    assert len(ledgers) == 2 + 3 * len(fit) and not list(out.glob("cells/**/underway"))
    assert "settings tried" in told and (out / "figures/loss.png").stat().st_size > 5000

    (out / "results.json").unlink()
    drive(monkeypatch, gandhi_lipschitz, words(ground, out))
    assert json.loads((out / "results.json").read_text()) == found
    assert {path: path.read_bytes() for path in ledgers} == ledgers
    assert "inner: 20 there, 30 asked" in refusal(
        monkeypatch, capsys, gandhi_lipschitz, words(ground, out, "--inner", "30")
    )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--weights", "0"], "weights"),
        (["--few", "0"], "few"),
        (["--inner", "0"], "inner"),
        (["--train.rate", "-1"], "rate > 0"),
        (["--vgg", "resnet18-a0"], "resnet18"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(more, told, ground, tmp_path, monkeypatch, capsys):
    assert told in refusal(monkeypatch, capsys, gandhi_lipschitz, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def network(name, weight, chosen=False) -> Network:
    clean = {f"{side}_accuracy": Estimate(0.95, 0.9, 1.0, 100) for side in ("fake", "real", "balanced")}
    return Network(name, weight, clean, 1.0, {}, chosen)


@pytest.mark.parametrize(("low", "high", "said"), [(0.4, 0.6, "above"), (0.05, 0.3, "not apart from")])
def test_a_column_is_apart_where_intervals_are(low, high, said):
    before, after = Estimate(0.1, 0.05, 0.2, 50), Estimate((low + high) / 2, low, high, 50)
    found = {
        (name, column, "float"): (share, share)
        for name, share in (("none", before), ("weight 5", after))
        for column in lipschitz_table.COLUMNS[1:]
    }
    lines = lipschitz_table.claims([network("none", 0), network("weight 5", 5, chosen=True)], found)
    assert len(lines) == 4 and all(f", {said} none's" in line for line in lines)
    assert "no claim is made" in lipschitz_table.claims([network("none", 0), network("weight 5", 5)], found)[0]
