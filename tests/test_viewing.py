"""The export for a viewing study: names tell nothing, the key tells all, and the bytes are what a viewer sees."""

import csv

import numpy as np
import toys
from PIL import Image

from ffjax import viewing
from ffjax.data.codecs import to_float, to_uint8
from ffjax.run import Run


def test_every_picture_is_there_twice_under_a_number_and_the_key_fits(tmp_path):
    data, delta = toys.images(10), np.full(toys.SHAPE, 8 / 255, np.float32)
    viewing.export(Run(tmp_path), data, delta, pairs=6)
    with (tmp_path / "viewing-key.csv").open() as file:
        key = list(csv.DictReader(file))
    files = sorted(path.name for path in (tmp_path / "viewing").iterdir())
    assert files == [f"{i:03d}.png" for i in range(12)] == [f"{row['number']}.png" for row in key]
    pairs = {(row["image"], row["attacked"]) for row in key}
    assert len(pairs) == 12 and len({image for image, _ in pairs}) == 6
    for row in key:
        k = data.names.index(row["image"])
        expected = to_uint8(np.clip(to_float(data.images[k]) + int(row["attacked"]) * delta, 0, 1))
        shown = np.asarray(Image.open(tmp_path / "viewing" / f"{row['number']}.png"))
        np.testing.assert_array_equal(shown, expected)
        assert int(row["label"]) == data.labels[k]
    # clean and attacked do not alternate in any way a viewer could follow
    order = [row["attacked"] for row in key]
    assert order not in (["0", "1"] * 6, ["1", "0"] * 6, ["0"] * 6 + ["1"] * 6, ["1"] * 6 + ["0"] * 6)
