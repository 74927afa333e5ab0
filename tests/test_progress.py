"""What a person sees while they wait."""

import io

from rich.console import Console

from ffjax import progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=160, force_terminal=terminal), out


def test_without_a_terminal_the_first_line_comes_at_once_and_others_now_and_then(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    screen, out = console(terminal=False)
    with progress.stage(screen, "work", 100) as tell:
        assert out.getvalue() == "work: 0 of 100 steps\n"
        for done in range(20, 101, 20):
            tell(done, f"loss {done}")
            clock.now += 6
    lines = out.getvalue().splitlines()
    # two calls are less than EVERY apart; the pace is 20 steps in 6 seconds
    assert lines[1:3] == [
        "work: 60 of 100 steps, 3.3/s, 12 s left  loss 60",
        "work: 100 of 100 steps, 3.3/s, 0 s left  loss 100",
    ]
    assert lines[-1] == "work: done in 30.0 s"


def test_steps_of_an_earlier_start_do_not_count_towards_the_pace(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    screen, out = console(terminal=False)
    with progress.stage(screen, "work", 1000) as tell:
        tell(900)
        clock.now += 20
        tell(920)
    assert "work: 920 of 1000 steps, 1.0/s, 80 s left" in out.getvalue()


def test_without_a_number_each_call_is_one_more():
    screen, out = console(terminal=True)
    with progress.stage(screen, "work", 3, "things") as tell:
        for _ in range(3):
            tell()
    assert "3/3" in out.getvalue() and "things" in out.getvalue()
