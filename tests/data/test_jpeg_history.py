"""The JPEG-history baseline: it finds the grid, scores any split, and says little where there is nothing to find."""

import numpy as np
import pytest
from photographs import jpeg, photograph, write_thirty

from ffjax.data import patches
from ffjax.data.jpeg_history import history_scorer, history_scores, jpeg_history
from ffjax.data.patches import SPLITS, Patches
from ffjax.errors import InputError
from ffjax.metrics import summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_thirty(tmp_path_factory.mktemp("photographs"))


def load(folder, split="train", size=64, **settings):
    return patches.load(Patches(folder=folder, **settings), split, size)


def test_history_is_found_at_any_offset_and_not_where_there_is_none():
    images = [photograph(i, 72, 72) for i in range(40)]
    coded = [jpeg(image) for image in images]
    crops = [(image[i % 8 :, i % 5 :][:64, :64], label) for label, of in enumerate((images, coded)) for i, image in
             enumerate(of)]  # fmt: skip
    features = jpeg_history(np.stack([image for image, _ in crops]))
    assert np.isfinite(features).all()
    plain, found = features[:40, 0], features[40:, 0]  # the strongest phase of the rows against the median
    assert found.min() > plain.max()
    comb = features[:, 8:].max(axis=1)
    assert np.median(comb[40:]) > np.median(comb[:40]) + 0.2
    assert np.isfinite(jpeg_history(np.zeros((1, 64, 64, 1), np.uint8))).all()
    with pytest.raises(InputError, match="at least 24"):
        jpeg_history(np.zeros((1, 16, 16, 3), np.uint8))


def test_the_baseline_tells_compression_and_says_little_of_noise(folder):
    def baseline(operation, **settings):
        sets = [load(folder, split, 64, operation=operation, patches=12, **settings) for split in ("train", "test")]
        scores = history_scores(*sets)
        assert len(scores.clean) == len(sets[1].labels) and (scores.groups == sets[1].groups).all()
        return summary(scores, resamples=100)["clean_balanced_accuracy"]

    assert baseline("jpeg50").low > 0.9
    assert baseline("noise0.5").value < 0.65
    one = load(folder, "train", 64, patches=1)
    with pytest.raises(InputError, match="both classes"):
        history_scores(one._replace(labels=np.zeros_like(one.labels)), one)


def test_one_fit_scores_every_split_as_history_scores_does(folder):
    train, validation, test = (load(folder, split, 64, operation="jpeg50", patches=2) for split in SPLITS)
    score = history_scorer(train)
    for data in (train, validation, test):
        for one, other in zip(score(data), history_scores(train, data), strict=True):
            np.testing.assert_array_equal(one, other)
    grey = score(test._replace(images=test.images[..., :1]))
    assert grey.clean.shape == test.labels.shape
