"""The first paper's claims as comparisons: means over patterns and images, rungs, and the words under the tables."""

import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import crossed, huang, huang_cells, masks, study, transfer
from ffjax.engine import Compute
from ffjax.evaluate import Condition
from ffjax.huang import Said
from ffjax.metrics import Estimate
from ffjax.transfer import Cell, Sheet

N = 40
LABELS = (np.arange(N) % 2).astype(np.int32)
GROUPS = (np.arange(N) // 2).astype(np.int32)
CLEAN = np.where(LABELS == 1, 1.0, -1.0).astype(np.float32)


def sheet() -> Sheet:
    return Sheet(LABELS, GROUPS, {"t|float": CLEAN}, {})


def flipped(share: float, patterns: int, seed: int = 0) -> np.ndarray:
    """(P, N) margins whose verdicts are changed in about that share of the images."""
    turned = np.random.default_rng(seed).random((patterns, N)) < share
    return np.where(turned, -CLEAN, CLEAN)


def test_a_mean_has_the_interval_of_a_population_it_was_drawn_from():
    """Of 200 draws of 40 images and 4 patterns, the interval holds the truth about as often as it says."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        chance = np.clip(0.4 + 0.15 * rng.normal(size=(4, 1)) + 0.2 * rng.normal(size=(1, 20)), 0, 1)
        values = (rng.random((4, N)) < np.repeat(chance, 2, axis=1)).astype(float)
        e = crossed.mean(values, GROUPS)
        assert e.low <= e.value <= e.high and e.value == pytest.approx(values.mean())
        held += e.low <= 0.4 <= e.high
    assert 160 <= held <= 199


def test_a_difference_is_paired_by_image():
    """Two patterns that do the same to every image differ by nothing, however uneven the images are."""
    values = flipped(0.5, 1)
    wrong = ((values > 0) != (CLEAN > 0)).astype(float)
    e = crossed.difference(wrong, wrong, GROUPS)
    assert e.value == 0 and -0.5 < e.low < 0 < e.high < 0.5  # 20 identities cannot tell more than that
    apart = crossed.difference(wrong, 1 - wrong, GROUPS)
    assert apart.value == pytest.approx(2 * wrong.mean() - 1)


def test_where_all_are_alike_the_interval_is_not_a_point():
    e = crossed.mean(np.ones((3, N)), GROUPS)
    assert e.value == 1 and 0.7 < e.low < 1
    e = crossed.difference(np.ones((3, N)), np.zeros((2, N)), GROUPS)
    assert e.value == 1 and 0.5 < e.low < 1


def test_one_identity_has_no_interval():
    e = crossed.mean(flipped(0.5, 2), np.zeros(N, int))
    assert np.isnan(e.low) and np.isnan(e.high)


def test_measures_count_what_they_say():
    said = CLEAN.copy()[None].repeat(2, axis=0)
    said[0, :4] *= -1  # two reals and two fakes change their verdict under the first pattern
    found = huang.row(sheet(), "t", "float", Said(said, CLEAN[None]), "fooling")
    assert found["rate"].value == pytest.approx(4 / N / 2) and found["rate"].n == N
    assert found["noise"].value == found["clean"].value == 0 and found["seeds"] == [pytest.approx(4 / N), 0]
    fakes = huang.row(sheet(), "t", "float", Said(said, CLEAN[None]), "fake_called_real")
    assert fakes["rate"].value == pytest.approx(2 / (N / 2) / 2) and fakes["rate"].n == N / 2
    assert huang.row(
        sheet()._replace(clean={"t|float": -np.abs(CLEAN)}), "t", "float", Said(said, CLEAN[None]), "fake_called_real"
    ) is None  # fmt: skip


def test_rungs_are_each_over_the_one_below():
    said = {
        "gd_uap": Said(flipped(0.6, 3, 1), flipped(0.1, 3, 2)),
        "gd_uap_range": Said(flipped(0.62, 3, 3), flipped(0.1, 3, 2)),
        "gd_uap_data": Said(flipped(0.98, 3, 4), flipped(0.1, 3, 2)),
        "uap_pgd": Said(flipped(1.0, 3, 5), flipped(0.1, 3, 2)),
    }
    found = huang.rungs(sheet(), "t", said)
    assert [(r["method"], r["over"], r["held"]) for r in found] == [
        ("gd_uap", "noise", True),
        ("gd_uap_range", "gd_uap", False),
        ("gd_uap_data", "gd_uap_range", True),
    ]
    weak = huang.rungs(sheet(), "t", {"gd_uap": Said(flipped(0.3, 3, 1), flipped(0.1, 3, 2))})
    assert 0 < weak[0]["gain"].value < 0.5 and not weak[0]["held"]  # above noise, not by 20 points for sure


def test_the_words_follow_the_intervals():
    good, bad = Estimate(0.3, 0.1, 0.5, 10), Estimate(0.1, -0.1, 0.3, 10)
    assert huang.verdict([good, good]).startswith("held: more than noise by a whole interval in 2 of 2")
    assert huang.verdict([good, bad]).startswith("held in part") and "+10 to +30" in huang.verdict([good, bad])
    assert huang.verdict([bad]).startswith("not held")
    assert huang.verdict([None]).startswith("no claim") and "1 of 1" in huang.verdict([None, good])


def test_only_who_tells_clean_images_apart_can_be_broken():
    assert transfer.competent(sheet(), "t")
    rng = np.random.default_rng(0)
    assert not transfer.competent(sheet()._replace(clean={"t|float": rng.normal(size=N).astype(np.float32)}), "t")


def test_quality_is_that_of_the_images():
    data = toys.images(10)
    pattern = np.full(toys.SHAPE, 0.1, np.float32)
    same, noisy = (study.quality("toys", data, Condition("c", "uap", "", v)) for v in (None, pattern))
    assert same["ssim"] == pytest.approx(1) and same["psnr"] is None
    assert noisy["ssim"] < 1 and 15 < noisy["psnr"] < 25 and noisy["n"] == 10


def test_masks_are_measured_against_the_true_ones_on_fakes_called_rightly():
    """By hand, on a detector with a mask: clean, a pattern and noise."""
    source, data, compute = toys.two_headed(), toys.masked(), Compute(devices=1)
    clean = data.images / np.float32(255)
    found = huang_cells.scored([clean, 1 - clean], {"two": source}, data, (), compute)
    says = [np.asarray(source.forward(jnp.asarray(x)).mask) > 0 for x in (clean, 1 - clean)]
    expected = [masks.iou(one, data.masks > 0) for one in says]
    np.testing.assert_allclose(found["iou|two|float"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["area|two|float"], [one.mean(axis=(1, 2)) for one in says], rtol=1e-6)
    assert 0 < np.mean(expected) < 1
    before = {key: said[0] for key, said in found.items()}
    own = Sheet(data.labels, data.groups, before, found)
    rows = (data.labels == 1) & (found["two|float"][0] > 0)
    cell = Cell("a", "two", "joint")
    told, area = huang_cells._masks(own, cell, {k: v[1:] for k, v in found.items()})
    assert told["found"]["clean"].value == pytest.approx(expected[0][rows].mean())
    assert told["measure"] == "IoU with the true mask" and told["found"]["rate"].n == rows.sum() > 0
    assert told["found"]["rate"].value == pytest.approx(expected[1][rows].mean())
    assert area["found"]["rate"].value == pytest.approx(says[1][rows].mean())
    without = huang_cells.scored([clean], {"toy": toys.source()}, data, (), compute)
    assert set(without) == {"toy|float"}
