"""Training curves for TensorBoard, beside metrics.jsonl. Needs the extra `tensorboard`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ffjax.errors import InputError

SECONDS = 5
"""Between two visits to the disk: what a kill may lose of the curves. metrics.jsonl loses nothing."""


def check() -> None:
    """InputError without the extra."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise InputError("tensorboard: needs the extra of that name: pip install 'ffjax[tensorboard]'") from error


@contextmanager
def curves(folder: Path | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """write(row): every number of a row of metrics.jsonl but `step` becomes a scalar at that step; nothing for None.

    A run that goes on after a kill writes a file of its own, and what lies past its first step is taken back, as
    TensorBoard does it (purge_step). InputError as `check`.
    """
    if folder is None:
        yield lambda row: None
        return
    check()
    from tensorboardX import SummaryWriter

    opened: list[SummaryWriter] = []

    def write(row: Mapping[str, float]) -> None:
        step = int(row["step"])
        if not opened:
            opened.append(SummaryWriter(str(folder), purge_step=step, flush_secs=SECONDS))
        for name, value in row.items():
            if name != "step":
                opened[0].add_scalar(name, value, step)

    try:
        yield write
    finally:
        for one in opened:
            one.close()
