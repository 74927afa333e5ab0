"""The report is made from a folder alone, says every figure of the claims, and hides neither direction."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ffjax import figures, findings, report, run, study
from ffjax.errors import InputError
from ffjax.types import ImageSet

UNDEFINED = [None, None, None, 0]
MARGINS = {
    "over_clean": [0.4, 0.3, 0.5],
    "over_noise": [0.321, 0.123, 0.456],
    "over_fixed": [0.222, 0.111, 0.333],
    "margin": [0.222, 0.111, 0.333],
}


def _metrics(rng: np.random.Generator, balanced: float) -> dict[str, list]:
    names = (*report.page.METRICS, "fooling_rate")
    found = {name: [value := float(rng.random()), value / 2, (1 + value) / 2, 10] for name in names}
    return found | {"attacked_balanced_accuracy": [balanced, balanced - 0.05, 1.0, 10], "attacked_auc": UNDEFINED}


def _claim(rng: np.random.Generator, detector: str, data: str, group: str, direction: str, held: bool) -> dict:
    def spread(patterns: int) -> dict:
        low, median, high = (round(float(x), 3) for x in np.sort(rng.random(3)))
        return {"median": median, "low": low, "high": high, "patterns": patterns}

    rates = {"clean": spread(1), "noise": spread(2), "fixed": spread(1), "uap": spread(2)}
    rates["uap"]["median"] = rates["uap"]["high"] = 0.987
    names = {"detector": detector, "data": data, "group": group, "direction": direction}
    beaten = {} if held else {"over_noise": [0.321, -0.123, 0.456]}
    return names | rates | {"n": 5, "groups": 4, "held": held} | MARGINS | beaten


def _results(rng: np.random.Generator, groups: tuple[str, ...], sets: tuple[str, ...], sources: int) -> dict:
    detectors, storages = ["source<1>", "weak", "strong"], ["float", "jpeg75"]
    conditions = [{"name": f"clean-{s}", "kind": "clean", "group": "", "storage": s} for s in storages]
    for group in groups:
        for kind, name in (("noise", f"noise-{group}-0"), ("noise", f"noise-{group}-1"), ("uap", f"uap-{group}-seed0")):
            conditions += [{"name": f"{name}-{s}", "kind": kind, "group": group, "storage": s} for s in storages]
        for way in ("to-real", "to-fake"):
            name = f"fixed-{group}-{way}-float"
            conditions.append({"name": name, "kind": "fixed", "group": group, "storage": "float"})
    balanced = dict(zip(detectors, (0.95, 0.6, 0.9), strict=True))
    fired = {"conv1": {"mean_abs": 0.5, "active": 0.5}, "conv2": {"mean_abs": 0.0, "active": 0.0}}
    pattern = {"eps": 0.04, "score": 2.5, "linf": 0.04, "l2": 1.0}
    return {
        "conditions": conditions,
        "sources": detectors[:sources],
        "detectors": detectors,
        "data": [{"name": name, "size": 8, "real": 5, "fake": 5, "groups": 8} for name in sets],
        "patterns": [
            {"name": f"{group}-seed{k}", "group": group, "chosen": k == 0} | pattern for group in groups for k in (0, 1)
        ],
        "fixed": {group: {"to-real": "grey+", "to-fake": "grey-"} for group in groups},
        "cells": [
            {"detector": d, "data": s, "condition": c["name"], "metrics": _metrics(rng, balanced[d])}
            for d in detectors
            for s in sets
            for c in conditions
        ],
        "claims": [
            _claim(rng, d, s, group, way, held=way == "fake_called_real")
            for d in detectors
            for s in sets
            for group in groups
            for way in findings.DIRECTIONS
        ],
        "quality": [{"data": "a", "condition": "clean-float", "n": 10, "psnr": None, "ssim": 1.0}],
        "activations": [
            {"detector": d, "condition": c["name"], "kind": c["kind"], "layers": fired}
            for d in detectors[:sources]
            for c in conditions
        ],
        "environment": {"jax": "0"},
    }


def _folder(
    path: Path, groups: tuple[str, ...] = ("all-10",), sets: tuple[str, ...] = ("a",), sources: int = 1
) -> Path:
    """A run folder as the driver leaves it, of made-up figures."""
    rng = np.random.default_rng(0)
    folder, results = run.Run(path), _results(rng, groups, sets, sources)
    run.write_json(folder / "config.json", {"source": ["source<1>"], "uap": {"mode": "no_data", "bank": "noise"}})
    run.write_json(folder / "results.json", results)
    values = [1.0, None] * len(groups)
    run.log(folder, [{"step": step, "objective": values, "saturation": values} for step in (1, 2)])
    delta = rng.uniform(-0.04, 0.04, (8, 8, 3)).astype(np.float32)
    np.save(folder / "perturbation.npy", delta)
    images = rng.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    names = tuple(f"{k}.png" for k in range(10))
    study.save_examples(folder, ImageSet(images, np.repeat([0, 1], 5), np.arange(10), names), delta)
    for name in ("clean-float", f"uap-{groups[0]}-seed0-float"):
        scores = {detector: rng.normal(size=10) for detector in results["detectors"]}
        run.save_arrays(folder / f"scores/a-test/{name}.npz", scores)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _folder(tmp_path_factory.mktemp("one") / "run")
    report.write(folder)
    return folder


def _text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_figure_and_the_perturbation_are_made(written: Path):
    made = {path.stem for path in (written / "figures").iterdir()}
    assert made == {"examples", "directions-all-10", "storage-all-10-a", "activations-all-10", "objective-all-10"}
    image = np.asarray(Image.open(written / "perturbation.png"))
    assert image.shape == (512, 512, 3)
    delta = np.load(written / "perturbation.npy")
    assert {int(image.min()), int(image.max())} & {0, 255}
    np.testing.assert_array_equal(image[::64, ::64] > 127.5, delta > 0)


def test_the_page_is_self_contained_and_says_what_its_pictures_show(written: Path):
    text = _text(written)
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) == 5 and all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures)
    assert "source&lt;1&gt;" in text and "source<1>" not in text


def test_every_number_of_the_claims_is_on_the_page(written: Path):
    claims = json.loads((written / "results.json").read_text())["claims"]
    rows = re.findall(r"<tr>(.*)", _text(written).split("<h2>Claims</h2>")[1].split("<h2>")[0])
    assert len(rows) == len(claims) + 1
    for row, words in zip(claims, rows[1:], strict=True):
        spreads = [row[kind] for kind in findings.KINDS]
        wanted = [s["median"] for s in spreads] + [
            s[end] for s in spreads if s["patterns"] > 1 for end in ("low", "high")
        ]
        assert all(f"{100 * value:.1f}" in words for value in wanted)
        figures_said = [f"{100 * value:+.1f}" for key in ("over_noise", "over_fixed") for value in row[key]]
        assert all(figure.replace("-", "−") in words for figure in figures_said)
        assert f">{row['n']}<" in words and f"{row['groups']} ids" in words
        assert findings.DIRECTIONS[row["direction"]] in words


def test_a_claim_needs_an_accurate_detector_and_an_interval_above_zero(written: Path):
    results = json.loads((written / "results.json").read_text())
    said = {(r["detector"], r["direction"]): findings.verdict(results, r) for r in results["claims"]}
    assert said["source<1>", "fake_called_real"] == said["strong", "fake_called_real"] == "held"
    assert said["source<1>", "real_called_fake"] == "not held"
    assert {said["weak", way] for way in findings.DIRECTIONS} == {"no claim"}
    words = _text(written)
    assert words.count('class="held">') == 2 and words.count('class="unfit">') == 2
    assert "Fakes called real: held in 1 of 1, and beats noise only in 0 more." in words
    assert "Reals called fake: held in 0 of 1, and beats noise only in 0 more." in words


def test_a_pattern_that_only_beats_noise_is_called_so(written: Path):
    results = json.loads((written / "results.json").read_text())
    row = next(r for r in results["claims"] if r["detector"] == "strong" and not r["held"])
    assert findings.verdict(results, row) == "not held"
    row |= {"over_noise": [0.3, 0.1, 0.4], "over_clean": [0.3, 0.1, 0.4]}
    assert findings.verdict(results, row) == "beats noise only"
    row["over_clean"] = [0.05, -0.01, 0.1]
    assert findings.verdict(results, row) == "not held"


def test_a_push_to_one_side_is_said(written: Path):
    results = json.loads((written / "results.json").read_text())
    for row, (clean, uap) in zip(results["claims"], ((0.1, 0.9), (0.2, 0.0)), strict=False):
        row["clean"]["median"], row["uap"]["median"] = clean, uap
    lines = findings.story(results, {}, "all-10").points[0][1]
    assert any("one side, real" in line for line in lines)


def test_the_same_folder_gives_the_same_page(written: Path):
    before = {path: path.read_bytes() for path in (written / "figures").iterdir()} | {0: _text(written)}
    report.write(written)
    assert before == {path: path.read_bytes() for path in (written / "figures").iterdir()} | {0: _text(written)}


def test_several_groups_sets_and_sources_and_undefined_figures(tmp_path: Path):
    folder = _folder(tmp_path / "run", groups=("all-10", "conv1+conv2-4"), sets=("a", "b"), sources=2)
    results = json.loads((folder / "results.json").read_text())
    for cell in results["cells"]:
        if cell["detector"] == "strong":
            cell["metrics"] = {name: UNDEFINED for name in cell["metrics"]}
    nothing = {"median": None, "low": None, "high": None, "patterns": 2}
    for row in results["claims"]:
        if row["detector"] == "strong":
            row |= {"uap": nothing, "noise": nothing, "held": False} | {key: [None] * 3 for key in MARGINS}
        row.pop("fixed")
    run.write_json(folder / "results.json", results)
    report.write(folder)
    text, out = _text(folder), io.StringIO()
    report.closing_table(folder, Console(file=out, width=120))
    assert len(list((folder / "figures").iterdir())) == 1 + 2 * (3 + 2)
    assert text.count('<section class="lead">') == 2 and "conv1+conv2-4" in text
    words = re.sub(r'src="[^"]*"', "", text) + out.getvalue()
    assert not re.search(r"\b(None|nan)\b", words)
    assert "conv1+conv2-4 on b" in out.getvalue()


@pytest.mark.parametrize("width", (120, 80))
def test_the_closing_table_fits_and_gives_both_directions_and_the_report(written: Path, width: int):
    out = io.StringIO()
    report.closing_table(written, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines()[:-1])) <= width and "…" not in text
    row = json.loads((written / "results.json").read_text())["claims"][0]
    rates = " → ".join(f"{100 * row[kind]['median']:.0f}" for kind in ("clean", "noise", "uap"))
    assert rates in text and "not held" in text and "no claim" in text and "source<1>" in text
    assert "5 fakes, 5 reals, 8 identities" in text and str(written / "report.html") in text


@pytest.mark.parametrize("name", ("config.json", "results.json", "metrics.jsonl", "perturbation.npy", "examples.npz"))
def test_what_is_missing_or_broken_is_named(tmp_path: Path, name: str):
    folder = _folder(tmp_path / "run")
    (folder / name).write_bytes(b"{")
    with pytest.raises(InputError, match=rf"{name}: not as a run leaves it"):
        report.write(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: missing"):
        report.write(folder)
    assert not (folder / "figures").exists()


def test_results_of_another_kind_are_refused(tmp_path: Path):
    folder = _folder(tmp_path / "run")
    (folder / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"results\.json: holds no conditions"):
        report.closing_table(folder, Console(file=io.StringIO()))


def test_examples_are_half_fake_half_real_and_no_more_than_there_are(tmp_path: Path):
    labels = np.array([0, 0, 0, 1])
    data = ImageSet(np.zeros((4, 2, 2, 3), np.uint8), labels, np.arange(4), tuple("wxyz"))
    study.save_examples(run.Run(tmp_path), data, np.ones((2, 2, 3)))
    with np.load(tmp_path / "examples.npz") as saved:
        assert saved["rows"].tolist() == [3, 0, 2] and saved["labels"].tolist() == [1, 0, 0]
        assert saved["names"].tolist() == ["z", "w", "y"] and saved["delta"].dtype == np.float32


@pytest.mark.parametrize("peak", (0.04, 0.5, 0.0))
def test_amplified_keeps_zero_grey_and_reaches_the_full_range(peak: float):
    shown, factor = figures.amplified(np.full((1, 1, 3), [peak, 0, -peak / 2]))
    np.testing.assert_allclose(shown[0, 0], [1 if peak else 0.5, 0.5, 0.25 if peak else 0.5])
    assert factor == (0.5 / peak if peak else 1)
