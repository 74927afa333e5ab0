"""The run folder belongs to one configuration, its files are whole, and bad input is one line and exit code 2."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ffjax import run
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.run import Run, open_run


@dataclass(frozen=True, kw_only=True)
class Inner:
    eps: tuple[float, ...] = (10.0,)
    norm: str = "linf"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A driver's settings."""

    images: int = 100
    inner: Inner = field(default_factory=Inner)
    out: Path = Path("runs/x")
    compute: Compute = field(default_factory=Compute)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_folder_is_made_and_says_what_was_asked(tmp_path):
    folder = tmp_path / "deep" / "er"
    made = open_run(folder, Config(images=7))
    assert made == Run(folder)
    record = json.loads((folder / "config.json").read_text())
    assert record["images"] == 7
    assert record["inner"] == {"eps": [10.0], "norm": "linf"}
    assert contents(folder).keys() == {"config.json"}


def test_an_empty_folder_is_taken(tmp_path):
    open_run(tmp_path, Config())
    assert (tmp_path / "config.json").exists()


def test_a_folder_is_one_process_s_until_that_is_killed(tmp_path):
    """Two runs in one folder would write every line of a ledger twice."""
    code = f"from tests.test_run import *; open_run(Path({str(tmp_path)!r}), Config())"
    command = [sys.executable, "-c", f"{code}; print('in', flush=True); input()"]
    root, pipe = Path(__file__).parent.parent, subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=f"{tmp_path.name}: another run is at work there"):
            open_run(tmp_path, Config())
        other.kill()
    open_run(tmp_path, Config())
    open_run(tmp_path, Config())  # and again, in one process


def test_the_same_settings_take_it_up_again_untouched(tmp_path):
    open_run(tmp_path, Config())
    (tmp_path / "results.json").write_text("kept")
    before = contents(tmp_path)
    open_run(tmp_path, Config())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Config(images=50), "images: 100 there, 50 asked"),
        (Config(inner=Inner(eps=(10.0, 4.0))), "inner.eps"),
        (Config(inner=Inner(norm="l2")), "inner.norm: linf there, l2 asked"),
    ],
)
def test_other_settings_are_refused_naming_the_field(tmp_path, other, named):
    open_run(tmp_path, Config())
    before = contents(tmp_path)
    with pytest.raises(InputError, match="made with other settings") as caught:
        open_run(tmp_path, other)
    assert named in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_fields_that_say_how_may_differ(tmp_path):
    open_run(tmp_path, Config())
    open_run(tmp_path, Config(out=Path("elsewhere"), compute=Compute(chunk=3, devices=1)))


def test_what_may_grow_is_taken_up_again_and_noted_and_never_shrinks(tmp_path):
    open_run(tmp_path, Config(images=7), more=("images",))
    open_run(tmp_path, Config(images=9, out=Path("elsewhere")), more=("images",))
    record = json.loads((tmp_path / "config.json").read_text())
    assert record == json.loads(json.dumps(run.as_json(Config(images=9))))  # out is where it was first
    for other in (Config(images=8), Config(images=10, inner=Inner(norm="l2"))):
        with pytest.raises(InputError, match="made with other settings"):
            open_run(tmp_path, other, more=("images",))
    code = f"from tests.test_run import *; open_run(Path({str(tmp_path)!r}), Config(images=9))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert "another run is at work there" in found.stderr  # the new record is claimed too


def test_a_setting_that_a_newer_version_added_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"images": 100}))
    with pytest.raises(InputError, match="inner"):
        open_run(tmp_path, Config())


def test_a_folder_of_other_files_is_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a run folder"):
        open_run(tmp_path, Config())
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match="is a file"):
        open_run(path, Config())
    with pytest.raises(InputError, match="cannot be made"):
        open_run(path / "below", Config())
    assert path.read_text() == "x"


@pytest.mark.parametrize("text", ["{", "", "[1]", "null", '"x"'])
def test_a_damaged_record_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        open_run(tmp_path, Config())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == text


def test_a_run_killed_while_its_record_was_written_can_start_again(tmp_path):
    (tmp_path / "config.part").write_text('{"images":')
    open_run(tmp_path, Config())
    assert contents(tmp_path).keys() == {"config.json"}


def test_write_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    run.write_json(path, {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y")})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [0, 1], "c": "x/y"}
    for bad in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            run.write_json(path, {"a": bad})
        assert json.loads(path.read_text())["a"] == 0.5


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    json_path, arrays_path = tmp_path / "a.json", tmp_path / "b.0.5.npz"
    run.write_json(json_path, 1)
    run.save_arrays(arrays_path, {"x": np.ones(2)})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_json(json_path, 2)
    with pytest.raises(KeyboardInterrupt):
        run.save_arrays(arrays_path, {"x": np.zeros(2)})
    assert json.loads(json_path.read_text()) == 1
    with np.load(arrays_path) as file:
        np.testing.assert_array_equal(file["x"], 1.0)


def test_log_and_rewind(tmp_path):
    folder = Run(tmp_path)
    run.log(folder, [{"step": i, "objective": np.full(2, i, np.float32)} for i in (1, 2, 3)])
    run.log(folder, [{"step": 4, "objective": [4.0, 4.0]}])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [1, 2, 3, 4]
    path.write_text(whole + '{"step": 5, "obj')  # killed while writing
    run.rewind(folder, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "objective": [1.0, 1.0]},
        {"step": 2, "objective": [2.0, 2.0]},
    ]
    run.log(folder, [{"step": 3}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 5, 9, 17])
def test_rewind_drops_only_the_half_written_line(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + '{"step": 2, "a": 3}'[:cut])
    run.rewind(Run(tmp_path), 100)
    assert path.read_text() == '{"step": 1}\n'


def test_rewind_without_a_log_makes_none(tmp_path):
    run.rewind(Run(tmp_path), 3)
    assert contents(tmp_path) == {}


def test_every_logged_line_is_json(tmp_path):
    """Python writes NaN and -Infinity, which no other reader takes: the best score before the first check is one."""
    run.log(Run(tmp_path), [{"step": 1, "best": np.array([-np.inf, 2.0], np.float32), "other": float("nan")}])

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "best": [None, 2.0], "other": None}


@pytest.fixture
def command_line(monkeypatch):
    """Runs main() in this process with other arguments, without its compilation cache."""
    monkeypatch.setattr(run, "_cache_compilations", lambda: None)

    def call(body, *arguments):
        monkeypatch.setattr(sys, "argv", ["driver", *arguments])
        run.main(Config, body)

    return call


def test_main_hands_over_the_command_line(command_line):
    seen = []

    def body(asked):
        seen.append(asked)

    command_line(body, "--images", "3", "--inner.norm", "l2", "--compute.devices", "1")
    assert seen == [Config(images=3, inner=Inner(norm="l2"), compute=Compute(devices=1))]


def test_bad_input_is_one_line_and_exit_code_2(command_line, capsys):
    def body(_):
        raise InputError("x.png: not an image")

    with pytest.raises(SystemExit) as caught:
        command_line(body)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.err == "error: x.png: not an image\n"
    assert said.out == ""


@pytest.mark.parametrize("wrong", [("--imagse", "3"), ("--images", "three"), ("--compute.execution", "quick")])
def test_a_wrong_command_line_is_exit_code_2(command_line, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line(pytest.fail, *wrong)
    assert caught.value.code == 2
    assert wrong[0].lstrip("-") in capsys.readouterr().err


def test_other_errors_are_not_swallowed(command_line):
    def body(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line(body)


DRIVER = """
import sys
from dataclasses import dataclass
from pathlib import Path
from ffjax import run

@dataclass(frozen=True)
class Config:
    out: Path

def main(cfg):
    run.open_run(cfg.out, cfg)

run.main(Config, main)
"""


@pytest.mark.slow
def test_a_driver_as_a_process(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "--out", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}: not empty and not a run folder")


def test_a_logbook_drops_what_a_killed_run_had_left_and_only_once(tmp_path):
    made = run.Run(tmp_path)
    run.log(made, [{"step": step, "start": 1} for step in range(1, 7)])
    write = run.logbook(made)
    write([{"step": 4, "start": 2}, {"step": 5, "start": 2}])
    write([{"step": 5, "start": 3}, {"step": 6, "start": 2}])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["start"]) for r in rows] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (5, 3), (6, 2)]
