"""The embedded data: procedural faces and forgeries of them as a TFDS builder, generated at first use.

Two domains, 'a' and 'b', differ in rendering, camera and compression; identities are shared by no two splits and no
two domains. The same seed gives the same bytes. Nothing here needs TensorFlow: records are array_record, pictures are
handed over as PNG bytes.
"""

import dataclasses
import functools
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from ffjax.data import kept
from ffjax.data.examples import DOMAINS, SPLITS, Example, example
from ffjax.data.faces import SIZE
from ffjax.errors import InputError
from ffjax.types import ImageSet

PARTS = {"train": ("train",), "evaluation": ("validation", "test")}
"""What is generated together: whoever only measures need not wait for a training split."""


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which domain and part to generate, from which seed."""

    domain: str = "a"
    part: str = "evaluation"
    seed: int = 0


@functools.cache  # tfds wants one object a name
def config(domain: str, part: str, seed: int) -> Config:
    """The configuration of a domain's part; its name is the folder it is kept in."""
    return Config(name=f"{domain}_{part}_{seed}", domain=domain, part=part, seed=seed)


class ForgedFaces(tfds.core.GeneratorBasedBuilder):
    """Procedural real and forged faces, 128x128 RGB, with masks of what was forged."""

    # To be raised whenever a pixel changes: generated sets are found again by it.
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [config(d, p, 0) for d in DOMAINS for p in PARTS]  # noqa: RUF012 (the name and type tfds asks for)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                "mask": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
                "label": tfds.features.Scalar(np.int32),
                "identity": tfds.features.Scalar(np.int32),
                "name": tfds.features.Text(),
            }
        )
        # The order of the records is the examples' number: shuffling is the loader's business.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        chosen = self.builder_config
        assert isinstance(chosen, Config)
        return {split: self._generate_examples(chosen, split) for split in PARTS[chosen.part]}

    def _generate_examples(self, chosen: Config, split: str):
        made = render(chosen.seed, chosen.domain, split, SPLITS[split].size)
        yield from enumerate(_progress(made, f"domain {chosen.domain}, {split}", SPLITS[split].size))


def load(
    domain: Literal["a", "b"],
    split: Literal["train", "validation", "test"],
    data_dir: Path | None = None,
    *,
    seed: int = 0,
) -> ImageSet:
    """A split of the embedded set, generated first if `data_dir` (kept.default_data_dir()) does not hold it yet.

    Returns images (N, 128, 128, 3) uint8, labels (N,) int32 with as many 1 (fake) as 0, groups (N,) int32 the number of
    the person in the picture, masks (N, 128, 128) uint8 that are all zero for real pictures, and names
    '<domain>/<split>/<number>-<family>', family being 'real' or a key of forgeries.FAMILIES. Rows are in the order of
    their number. A generation that was interrupted leaves nothing that loads. Raises InputError for a domain or split
    that does not exist.
    """
    if domain not in DOMAINS or split not in SPLITS:
        raise InputError(
            f"{domain}/{split}: no such part of the embedded set ({', '.join(DOMAINS)} x {', '.join(SPLITS)})"
        )
    part = "train" if split == "train" else "evaluation"
    return decode(kept.records(kept.prepared(ForgedFaces, config(domain, part, seed), data_dir), split))


def decode(records: list[dict]) -> ImageSet:
    """Stored records -> arrays."""
    return ImageSet(
        images=np.stack([_from_png(r["image"]) for r in records]),
        labels=np.array([r["label"] for r in records], np.int32),
        groups=np.array([r["identity"] for r in records], np.int32),
        names=tuple(r["name"] if isinstance(r["name"], str) else r["name"].decode() for r in records),
        masks=np.stack([_from_png(r["mask"]) for r in records]),
    )


def family(name: str) -> str:
    """'real', or the family of forgery, from an example's name."""
    return name.rsplit("-", 1)[-1]


def render(seed: int, domain: str, split: str, count: int) -> Iterator[dict]:
    """The split's first `count` records (see encode) in order, made by as many processes as there are cores.

    Spawned, not forked: JAX's threads do not survive a fork.
    """
    make, numbers = functools.partial(_record, seed, domain, split), range(count)
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    if workers == 1:
        yield from map(make, numbers)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make, numbers, chunksize=10)


def _record(seed: int, domain: str, split: str, k: int) -> dict:
    return encode(example(seed, domain, split, k))


def encode(made: Example) -> dict:
    """An example as it is stored."""
    fields = {"image": _to_png(made.image), "mask": _to_png(made.mask)}
    return fields | {"label": made.label, "identity": made.identity, "name": made.name}


def _to_png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _from_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _progress(rows: Iterator[dict], what: str, total: int) -> Iterator[dict]:
    """A bar on standard error, if somebody is watching."""
    hidden = not sys.stderr.isatty()
    yield from track(rows, f"Rendering {what}", total, console=Console(stderr=True), transient=True, disable=hidden)
