"""The transfer driver as a user runs it: to its end, cut between cells and taken up again, refusing what it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
from driven import drive, refusal
from ground import studied

from experiments import transfer as driver
from ffjax import transfer


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return studied(tmp_path_factory.mktemp("ground"), 60, 2)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    nets = [f"meso4:{ground}/net{k}.safetensors" for k in range(2)]
    given = ["--sources", nets[0], "--others", nets[1], "--data", f"{ground}/set", "--size", "32", "--images", "10"]
    given += ["--methods", "gd_uap", "pgd", "--seeds", "0", "--noises", "1", "--stored", "png", "--classical", "svm"]
    return [*given, "--compute.batch", "16", "--out", str(out), *more]


@pytest.mark.slow
def test_it_runs_to_its_end_and_goes_on_where_it_was_cut(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, driver, words(ground, whole))
    said = capsys.readouterr().out
    assert "made on" in said and "heat maps" in said
    found = json.loads((whole / "results.json").read_text())
    cells, targets, stored = 2 + 2, 3, 2
    assert len(found["entries"]) == cells * targets * stored
    assert {path.name for path in (whole / "figures").iterdir()} == {
        f"{m}-{way}.png" for m in ("gd_uap", "pgd") for way in ("fake_called_real", "real_called_fake")
    }
    assert "gd_uap on set, png: fakes called real" in (whole / "tables.txt").read_text()
    true, made = transfer.score, []

    def dies(images, targets, stored):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return true(images, targets, stored)

    monkeypatch.setattr(transfer, "score", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        drive(monkeypatch, driver, words(ground, cut))
    left = {path: path.stat().st_mtime_ns for path in (cut / "scores").rglob("*.npz")}
    assert len(left) == 3
    monkeypatch.setattr(transfer, "score", true)
    drive(monkeypatch, driver, words(ground, cut))
    assert all(path.stat().st_mtime_ns == then for path, then in left.items())
    for file in (whole / "scores").rglob("*.npz"):
        with np.load(file) as one, np.load(cut / file.relative_to(whole)) as other:
            assert set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_a_row_made_on_all_sources_at_once(ground, tmp_path, monkeypatch, capsys):
    nets = [f"meso4:{ground}/net{k}.safetensors" for k in range(2)]
    given = words(ground, tmp_path, "--together", "average", "--sources", *nets, "--classical", "--stored")
    given = [word for k, word in enumerate(given) if not (word == "--others" or given[k - 1] == "--others")]
    drive(monkeypatch, driver, given)
    entries = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert {(e["source"], e["method"]) for e in entries if e["source"].startswith("all")} == {("all-average", "gd_uap")}
    said = capsys.readouterr().out
    assert "all-average" in said and said.count("pgd on set") == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--methods", "luck"), "unknown"),
        (("--eps", "300"), "eps"),
        (("--images", "0"), "images"),
        (("--stored", "png", "png"), "twice"),
        (("--seeds", "1", "1"), "seeds"),
        (("--methods", "joint"), "no mask"),
        (("--sources", "meso4-a0", "meso4-a1", "--together", "worst"), "not for firing"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(ground, tmp_path, monkeypatch, capsys, more, told):
    assert told in refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
