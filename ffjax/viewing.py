"""Images for a viewing study: clean and attacked under names that do not tell which, and the key beside them."""

import csv

import numpy as np

from ffjax.data.codecs import png_bytes, to_float, to_uint8
from ffjax.run import Run
from ffjax.types import ImageSet


def export(folder: Run, data: ImageSet, delta: np.ndarray, pairs: int, seed: int = 0) -> None:
    """viewing/NNN.png, `pairs` images each twice (as it is, and plus delta (H, W, 3)), in random order, and
    viewing-key.csv: number, image, label, attacked. Both are 8-bit PNG, so the file format tells nothing."""
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(data.labels))[:pairs]
    shots = [(row, attacked) for row in picked for attacked in (0, 1)]
    key = []
    for number, j in enumerate(rng.permutation(len(shots))):
        row, attacked = shots[j]
        image = np.clip(to_float(data.images[row]) + attacked * delta, 0, 1)
        (folder / f"viewing/{number:03d}.png").write_bytes(png_bytes(to_uint8(image)))
        key.append((f"{number:03d}", data.names[row], int(data.labels[row]), attacked))
    with (folder / "viewing-key.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("number", "image", "label", "attacked"), *key])
