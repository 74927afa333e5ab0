"""The certification driver as a user runs it: to its end, cut and taken up again, and given what it cannot use."""

import json
import shutil
from pathlib import Path

import pytest
from driven import drive, refusal
from ground import lay
from PIL import Image

from experiments import certify
from ffjax.data import sets


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """20 noise images and a Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 10, 1)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"meso4:{ground}/net0.safetensors", "--data", f"{ground}/images", "--first", "10"]
    return [*given, "--samples", "40", "--sigma", "0.05", "0.2", "--out", str(out), *more]


def found_in(out: Path) -> tuple[dict, list[str]]:
    results = json.loads((out / "results.json").read_text())
    del results["environment"]
    return results, sorted((out / "ledger.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_it_certifies_and_a_run_that_was_cut_ends_with_the_same_results(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, certify, words(ground, whole))
    told = capsys.readouterr().out
    assert "reals (recall)" in told and "abstains" in told and "undefended" in told and "one noisy copy" in told
    results, lines = found_in(whole)
    thresholds = json.loads((whole / "thresholds.json").read_text())
    assert list(thresholds) == ["0.0", "0.05", "0.2"]
    told = [results["undefended_threshold"], *(one["threshold"] for one in results["sigmas"])]
    for one, kept in zip(told, thresholds.values(), strict=True):
        assert one == {"used": one["calibrated"] or 0.0} | kept["verdict"]
    assert len({one["verdict"]["calibrated"] for one in thresholds.values()}) == 3
    assert {json.loads(line)["threshold"] for line in lines} == {s["threshold"]["used"] for s in results["sigmas"]}
    assert [one["sigma"] for one in results["sigmas"]] == [0.05, 0.2]
    assert len(lines) == 2 * results["images"] == 2 * sum(e["n"] for e in results["undefended"].values()) > 20
    assert {"fake", "real"} < set(results["sigmas"][0]) and results["detector"] == "net0"
    assert (whole / "figures/certified.png").stat().st_size > 10_000

    drive(monkeypatch, certify, words(ground, cut))
    text = (cut / "ledger.jsonl").read_text()
    (cut / "ledger.jsonl").write_text(text[: len(text) * 5 // 8])  # in the middle of a line, as a kill may leave it
    (cut / "results.json").unlink()
    kept = json.loads((cut / "thresholds.json").read_text())
    (cut / "thresholds.json").write_text(json.dumps({name: kept[name] for name in ("0.0", "0.05")}))
    drive(monkeypatch, certify, words(ground, cut, "--compute.batch", "16"))
    assert found_in(cut) == (results, lines)
    assert (cut / "figures/certified.png").read_bytes() == (whole / "figures/certified.png").read_bytes()
    told = refusal(monkeypatch, capsys, certify, words(ground, cut, "--samples", "50"))
    assert "samples: 40 there, 50 asked" in told
    told = refusal(monkeypatch, capsys, certify, words(ground, cut, "--calibrate", "3"))
    assert "calibrate: 50 there, 3 asked" in told


@pytest.mark.slow
def test_a_run_folder_of_other_thresholds_or_validation_images_is_refused(ground, tmp_path, monkeypatch, capsys):
    out, own = tmp_path / "out", shutil.copytree(ground, tmp_path / "own")
    drive(monkeypatch, certify, words(own, out))
    kept = (out / "thresholds.json").read_text()
    moved = json.loads(kept)
    moved["0.2"]["verdict"]["calibrated"] = 3.5
    (out / "thresholds.json").write_text(json.dumps(moved))
    assert "was counted at threshold" in refusal(monkeypatch, capsys, certify, words(own, out))
    (out / "thresholds.json").write_text(kept)
    held = sets.load(f"{own}/images", "validation", 32)
    Image.fromarray(255 - held.images[0]).save(own / "images" / held.names[0])
    told = refusal(monkeypatch, capsys, certify, words(own, out))
    assert "the validation images of images have changed since this run began" in told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sigma", "0"], "sigma: must be above 0, got 0"),
        (["--sigma", "0.1", "0.1"], "sigma: needs at least one and no two alike"),
        (["--alpha", "0"], "alpha: must be between 0 and 1, got 0"),
        (["--alpha", "1"], "alpha: must be between 0 and 1, got 1"),
        (["--tau", "0.5"], "tau: must be between 0.5 and 1, got 0.5"),
        (["--samples", "0"], "samples: must be at least 1, got 0"),
        (["--samples", "9"], "samples: 9 draws, all of which agreeing certify nothing at alpha 0.001: at least 10 are"),
        (["--first", "0"], "first: must be at least 1, got 0"),
        (["--radii", "0.1", "0.05"], "radii: must rise and not be negative"),
        (["--seed", "-1"], "seed: must be from 0 to 2^32 - 1, got -1"),
        (["--images", "0"], "at least one image per class is needed"),
        (["--calibrate", "0"], "calibrate: must be at least 1, got 0"),
        (["--copies", "4"], "copies: must be odd, so that most say one thing, and at least 1, got 4"),
        (["--detector", "meso5-a0"], "meso5-a0"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_is_made(ground, tmp_path, monkeypatch, capsys, more, told):
    assert told in refusal(monkeypatch, capsys, certify, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
