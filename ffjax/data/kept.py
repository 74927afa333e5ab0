"""Data sets that are made at first use and kept: where, by one process at a time, and read back undecoded."""

import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from filelock import AcquireReturnProxy, FileLock, Timeout


def default_data_dir() -> Path:
    """Where generated sets are kept: $FFJAX_DATA, or ~/.cache/ffjax."""
    return Path(os.environ.get("FFJAX_DATA") or Path.home() / ".cache" / "ffjax")


def prepared(
    builder: Callable[..., tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, data_dir: Path | None
) -> tfds.core.DatasetBuilder:
    """The builder of `config`, its records made first if `data_dir` (default_data_dir() if None) does not hold them.

    Of several processes that ask at once one makes them and the others wait, told so in one line on standard error; the
    lock dies with its holder, and an interrupted generation leaves nothing that loads.
    """
    where = data_dir or default_data_dir()
    make = functools.partial(builder, data_dir=str(where), config=config, file_format="array_record")
    tfds.disable_progress_bar()
    # tfds announces itself in prose, and warns of every configuration that its class does not list
    with contextlib.redirect_stdout(io.StringIO()), _without_warnings("absl"):
        made = make()
        if not made.is_prepared():
            with _locked(where, config.name):
                made = make()  # anew: a builder looks into its folder only when it is built
                made.download_and_prepare()
    return made


def records(builder: tfds.core.DatasetBuilder, split: str) -> list[dict]:
    """A split's examples in order, pictures as PNG bytes: left to itself tfds would decode with OpenCV, or warn."""
    raw = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split=split, decoders=raw))  # pyright: ignore[reportCallIssue] (tfds decorates it)


def _locked(where: Path, name: str) -> AcquireReturnProxy:
    where.mkdir(parents=True, exist_ok=True)
    lock = FileLock(where / f".{name}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"{where}: another process is making {name}; waiting for it", file=sys.stderr)
        return lock.acquire()


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """A logger kept to errors for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
