"""The attack driver as a user runs it: to its end, killed and taken up again, and given what it cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ground import lay

from experiments.attack_eval import Config, main
from ffjax import run


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """40 noise images and a Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 20, 1)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"meso4:{ground}/net0.safetensors", "--data", f"{ground}/images", "--jpeg", "75"]
    return [*given, "--threshold", "calibrated", "--compute.batch", "8", "--out", str(out), *more]


def drive(monkeypatch, given: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["attack_eval", *given])
    run.main(Config, main)


def timeless(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in sorted(rows, key=lambda row: row["id"])]


@pytest.mark.slow
def test_a_job_killed_between_batches_ends_with_the_rows_of_one_that_was_not(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, words(ground, whole, "--attack", "pgd", "--eps", "8", "--save"))
    told = capsys.readouterr().out
    assert "called wrongly (%)" in told and "under attack" in told

    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.attack_eval"]
    process = subprocess.Popen(
        [*command, *words(ground, cut, "--attack", "pgd", "--eps", "8", "--save")], env=env, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not (cut / "ledger.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (cut / "results.json").exists()
    drive(monkeypatch, words(ground, cut, "--attack", "pgd", "--eps", "8", "--save"))

    assert timeless(cut) == timeless(whole)
    results = [json.loads((out / "results.json").read_text()) for out in (whole, cut)]
    for found in results:
        del found["cost"]
    assert results[0] == results[1]
    attacked = [row for row in timeless(whole) if "success" in row]
    assert len(list((whole / "images").glob("*.png"))) == len(attacked) == results[0]["counts"]["attacked"] > 0


@pytest.mark.slow
def test_the_ensemble_says_who_broke_what_and_prints_its_flags(ground, tmp_path, monkeypatch, capsys):
    drive(monkeypatch, words(ground, tmp_path / "auto", "--attack", "auto", "--eps", "8", "--images", "8"))
    rows = [row for row in timeless(tmp_path / "auto") if row.get("success")]
    assert rows and all("by" in row for row in rows)
    results = json.loads((tmp_path / "auto" / "results.json").read_text())
    told = capsys.readouterr().out
    assert all(f"flag {name}:" in told for name in results["flags"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "pdg"], "unknown attack 'pdg'; known: "),
        (["--attack", "fgsm", "--norm", "l0"], "fgsm knows no l0; it knows linf, l2"),
        (["--attack", "pgd", "--options", "steps=0"], "steps"),
        (["--attack", "auto", "--options", "steps=3"], "attack auto has no options"),
        (["--attack", "cw", "--norm", "l2", "--restarts", "2"], "cw looks for the smallest distance itself"),
        (["--attack", "pgd", "--restarts", "0"], "restarts: must be at least 1, got 0"),
        (["--attack", "pgd", "--eps", "-1"], "eps: must not be negative, got -1"),
        (["--jpeg", "0"], "jpeg: qualities are whole numbers from 1 to 100, got 0"),
        (["--attack", "cw", "--norm", "l2", "--loss", "ce"], "cw needs the margin"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_is_made(
    ground, tmp_path, monkeypatch, capsys, more, message
):
    monkeypatch.setattr(sys, "argv", ["attack_eval", *words(ground, tmp_path / "out", *more)])
    with pytest.raises(SystemExit) as stop:
        run.main(Config, main)
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and message in said[0], said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_settings_are_not_mixed(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    drive(monkeypatch, words(ground, out, "--attack", "fgsm", "--images", "4"))
    before = (out / "ledger.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        drive(monkeypatch, words(ground, out, "--attack", "fgsm", "--images", "4", "--eps", "3"))
    assert stop.value.code == 2 and "eps: 2.0 there, 3.0 asked" in capsys.readouterr().err
    assert (out / "ledger.jsonl").read_bytes() == before
