"""The claims' driver as a user runs it, on detectors of random weights: to its end, and cut and taken up again."""

import json
from pathlib import Path

import numpy as np
import pytest
from driven import drive, refusal
from ground import studied

from experiments import huang_uap as driver
from ffjax import huang_cells, transfer


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return studied(tmp_path_factory.mktemp("ground"), 60, 2)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    nets = [f"meso4:{ground}/net{k}.safetensors" for k in range(2)]
    given = ["--sources", nets[0], "--unseen", nets[1], "--data", f"{ground}/set", "--size", "32", "--images", "10"]
    given += ["--methods", "gd_uap", "gd_uap_range", "--seeds", "0", "1", "--noises", "2", "--stored", "png"]
    given += ["--no-needs"]
    return [*given, "--compute.batch", "16", "--out", str(out), *more]


@pytest.mark.slow
def test_it_lays_out_every_claim_and_goes_on_where_it_was_cut(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, driver, words(ground, whole))
    said = capsys.readouterr().out
    for part in (
        "1. On the detector",
        "2. Rungs",
        "4. On detectors it has not seen",
        "5. From a file",
        "7. How visible",
    ):
        assert part in said
    assert "no detector with a mask" in said.lower() and "nobody was asked" in said
    found = json.loads((whole / "results.json").read_text())
    assert len(found["rows"]) == 2 * 2 * 2 * 3 and len(found["rungs"]) == 2
    assert {path.stem for path in (whole / "figures" / "net0").glob("*.png")} >= {"anatomy-push", "anatomy-spectra"}
    true, made = huang_cells.scored, []

    def dies(*args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return true(*args)

    monkeypatch.setattr(huang_cells, "scored", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        drive(monkeypatch, driver, words(ground, cut))
    monkeypatch.setattr(huang_cells, "scored", true)
    drive(monkeypatch, driver, words(ground, cut))
    for file in (whole / "scores").rglob("*.npz"):
        one, other = transfer.read(file), transfer.read(cut / file.relative_to(whole))
        assert set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


def test_what_cannot_be_done_is_refused_in_one_line(ground, tmp_path, monkeypatch, capsys):
    for more, told in ((("--methods", "luck"), "methods"), (("--eps", "0"), "eps"), (("--noises", "0"), "noises")):
        assert told in refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
