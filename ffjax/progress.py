"""What a person sees while they wait: a bar with rate and time left in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw a bar in."""

Tell = Callable[..., None]
"""tell(done=None, note=""): so many units are done by now; without a number, one more."""


@contextmanager
def step(console: Console, name: str) -> Iterator[None]:
    """A stretch of work that has no count, or draws a bar of its own: a line before and a line after."""
    begun = time.monotonic()
    console.print(f"{name} ...", highlight=False)
    yield
    console.print(f"{name}: done in {time.monotonic() - begun:.1f} s", highlight=False)


@contextmanager
def stage(console: Console, name: str, total: int, unit: str = "steps") -> Iterator[Tell]:
    """A named stretch of work of `total` units; its first line appears at once, whatever the first unit costs."""
    begun = time.monotonic()
    if not console.is_terminal:
        yield _lines(console, name, total, unit, begun)
        console.print(f"{name}: done in {time.monotonic() - begun:.1f} s", highlight=False)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} [cyan]{{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, rate="", note="")

        pace = _pace()

        def tell(done: int | None = None, note: str = "") -> None:
            now = int(bar.tasks[task].completed) + 1 if done is None else done
            rate = pace(now)
            bar.update(task, completed=now, note=note, rate=f"{rate:.1f}/s" if rate else "")

        yield tell


def _lines(console: Console, name: str, total: int, unit: str, begun: float) -> Tell:
    console.print(f"{name}: 0 of {total} {unit}", highlight=False)
    last, count, pace = [begun], [0], _pace()

    def tell(done: int | None = None, note: str = "") -> None:
        count[0] = done = count[0] + 1 if done is None else done
        rate, now = pace(done), time.monotonic()
        if now - last[0] >= EVERY:
            last[0] = now
            left = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate else ""
            console.print(f"{name}: {done} of {total} {unit}{left}  {note}", highlight=False)

    return tell


def _pace() -> Callable[[int], float]:
    """done -> units a second since the first call, 0 at first: what an earlier start had done does not count."""
    first: list[tuple[int, float]] = []

    def pace(done: int) -> float:
        now = time.monotonic()
        if not first:
            first.append((done, now))
        return (done - first[0][0]) / max(now - first[0][1], 1e-6)

    return pace
