"""The attack driver as a user runs it: to its end, killed and taken up again, and given what it cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driven import drive, refusal
from ground import lay

from experiments import attack_eval
from ffjax import engine


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """40 noise images and a Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 20, 1)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"meso4:{ground}/net0.safetensors", "--data", f"{ground}/images", "--jpeg", "75"]
    return [*given, "--threshold", "calibrated", "--compute.batch", "8", "--out", str(out), *more]


def timeless(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in sorted(rows, key=lambda row: row["id"])]


def killed(given: list[str], cache: Path, when) -> None:
    """Starts the driver as a process of its own and kills it as soon as when()."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.attack_eval", *given]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not when() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.slow
def test_a_job_killed_twice_inside_a_batch_goes_on_from_its_snapshots(ground, tmp_path, monkeypatch):
    """One batch of some 120 steps and more: nothing of it is in the ledger when the process dies."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--attack", "cw", "--norm", "l2", "--eps", "9", "--compute.chunk", "10", "--compute.snapshot", "20"]
    more += ["--options", "searches=2", "inner=400", "abort=0", "rate=0.001", "--compute.batch", "32"]
    drive(monkeypatch, attack_eval, words(ground, whole, *more))
    given = words(ground, cut, *more)

    def reached() -> int:
        steps = [path.name for path in (cut / "underway").glob("*/snapshots/*")]
        return max([int(name) for name in steps if name.isdigit()], default=0)

    for step in (40, 80):
        killed(given, tmp_path, lambda step=step: reached() >= step)
        assert step <= reached() and not (cut / "ledger.jsonl").exists()
    monkeypatch.setattr(engine, "run", lambda *a, real=engine.run, **k: real(*a, **watched(k, seen)))
    seen: list[int] = []
    drive(monkeypatch, attack_eval, given)
    assert timeless(cut) == timeless(whole) and min(seen) > 80
    assert not (cut / "underway").exists() and not (whole / "underway").exists()


def watched(given: dict, seen: list[int]) -> dict:
    """engine.run's own words, with the steps of the attack (which alone is saved) noted."""
    if given.get("save") is None:
        return given
    return given | {"watch": lambda done, left: seen.append(done) or given["watch"](done, left)}


@pytest.mark.slow
def test_a_job_killed_between_batches_ends_with_the_rows_of_one_that_was_not(ground, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, attack_eval, words(ground, whole, "--attack", "pgd", "--eps", "8", "--save"))
    told = capsys.readouterr().out
    assert "called wrongly (%)" in told and "under attack" in told

    given = words(ground, cut, "--attack", "pgd", "--eps", "8", "--save")
    killed(given, tmp_path, lambda: (cut / "ledger.jsonl").exists())
    assert not (cut / "results.json").exists()
    drive(monkeypatch, attack_eval, given)

    assert timeless(cut) == timeless(whole)
    results = [json.loads((out / "results.json").read_text()) for out in (whole, cut)]
    for found in results:
        del found["cost"]
    assert results[0] == results[1]
    attacked = [row for row in timeless(whole) if "success" in row]
    assert len(list((whole / "images").glob("*.png"))) == len(attacked) == results[0]["counts"]["attacked"] > 0


@pytest.mark.slow
def test_the_ensemble_says_who_broke_what_and_prints_its_flags(ground, tmp_path, monkeypatch, capsys):
    drive(monkeypatch, attack_eval, words(ground, tmp_path / "auto", "--attack", "auto", "--eps", "8", "--images", "8"))
    rows = [row for row in timeless(tmp_path / "auto") if row.get("success")]
    assert rows and all("by" in row for row in rows)
    results = json.loads((tmp_path / "auto" / "results.json").read_text())
    told = capsys.readouterr().out
    assert all(f"flag {name}:" in told for name in results["flags"])
    (line,) = (line for line in told.splitlines() if "% under attack" in line)
    assert all(name in line for name in results["flags"])


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
        (["--attack", "auto", "--norm", "l0"], "attack auto knows no l0"),
        (["--seed", "-1"], "seed: must be from 0 to 2^32 - 1, got -1"),
        (["--effort", "-1"], "effort: must not be negative, got -1"),
        (["--jpeg", "0"], "jpeg: qualities are whole numbers from 1 to 100, got 0"),
        (["--attack", "cw", "--norm", "l2", "--loss", "ce"], "cw needs the margin"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_is_made(
    ground, tmp_path, monkeypatch, capsys, more, message
):
    assert message in refusal(monkeypatch, capsys, attack_eval, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_settings_are_not_mixed(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    drive(monkeypatch, attack_eval, words(ground, out, "--attack", "fgsm", "--images", "4"))
    before = (out / "ledger.jsonl").read_bytes()
    said = refusal(
        monkeypatch, capsys, attack_eval, words(ground, out, "--attack", "fgsm", "--images", "4", "--eps", "3")
    )
    assert "eps: 2.0 there, 3.0 asked" in said
    assert (out / "ledger.jsonl").read_bytes() == before
