"""What a run folder may not mix: weights, images, masks, and settings that config.json does not hold."""

import numpy as np
import pytest
import toys

from ffjax import run, study
from ffjax.errors import InputError

DATA = toys.images(4)._replace(masks=np.zeros((4, toys.SIZE, toys.SIZE), np.uint8))
SEEN = {"test": {"a": DATA}, "validation": {"a": DATA}}
SETTINGS = {"options of pgd": "{'steps': 40}"}


@pytest.mark.parametrize(
    ("seed", "sets", "settings", "message"),
    [
        (1, SEEN, SETTINGS, "weights of toy have changed"),
        (0, SEEN | {"test": {"a": DATA._replace(images=255 - DATA.images)}}, SETTINGS, "test images of a have changed"),
        (0, SEEN | {"test": {"a": DATA._replace(masks=DATA.masks + 255)}}, SETTINGS, "test images of a have changed"),
        (0, SEEN | {"validation": {"a": DATA._replace(labels=1 - DATA.labels)}}, SETTINGS, "validation images of a"),
        (0, SEEN, {"options of pgd": "{'steps': 41}"}, "options of pgd have changed"),
    ],
)
def test_a_second_start_on_anything_else_is_refused(seed, sets, settings, message, tmp_path):
    folder = run.Run(tmp_path)
    for _ in range(2):
        study.check_inputs(folder, {"toy": toys.source(0)}, SEEN, SETTINGS)
    before = (tmp_path / "inputs.json").read_bytes()
    with pytest.raises(InputError, match=message):
        study.check_inputs(folder, {"toy": toys.source(seed)}, sets, settings)
    assert (tmp_path / "inputs.json").read_bytes() == before
