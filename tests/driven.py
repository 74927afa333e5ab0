"""A driver run in this process, as its command line would run it."""

import sys
from types import ModuleType

import pytest

from ffjax import run


def drive(monkeypatch: pytest.MonkeyPatch, driver: ModuleType, words: list[str]) -> None:
    """driver: a module with Config and main."""
    monkeypatch.setattr(sys, "argv", [driver.__name__.rpartition(".")[2], *words])
    run.main(driver.Config, driver.main)


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], driver: ModuleType, words: list[str]
) -> str:
    """The one line with which it ends, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        drive(monkeypatch, driver, words)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: "), said
    return said[0]
