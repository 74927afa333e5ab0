"""Cells and claims on scores whose answer is known beforehand."""

import json

import numpy as np
import pytest

from ffjax import summary
from ffjax.evaluate import Condition
from ffjax.summary import Labelled, cells, claims

LABELS = np.tile([0, 1], 20)
GROUPS = np.repeat(np.arange(20), 2)
RIGHT = np.where(LABELS == 1, 1.0, -1.0)
TO_REAL, TO_FAKE = np.full(40, -1.0), np.full(40, 1.0)

CONDITIONS = [
    Condition("clean-float", "clean", "", None),
    Condition("clean-jpeg75", "clean", "", None, "jpeg75"),
    *(Condition(f"noise-g-{n}-float", "noise", "g", None) for n in range(3)),
    *(Condition(f"uap-g-seed{n}-float", "uap", "g", None) for n in range(3)),
    Condition("uap-g-seed0-jpeg75", "uap", "g", None, "jpeg75"),
    Condition("fixed-g-to-real-float", "fixed", "g", None),
    Condition("fixed-g-to-fake-float", "fixed", "g", None),
]


def said(labels=LABELS, groups=GROUPS, right=RIGHT, **by_kind) -> Labelled:
    """Every condition scores as its kind or name says, rightly where it is not named."""
    scores = {c.name: by_kind.get(c.name.replace("-", "_"), by_kind.get(c.kind, right)) for c in CONDITIONS}
    return Labelled("a", labels, groups, {"meso": scores})


def claim(test: Labelled, direction: str) -> dict:
    return next(row for row in claims(test, CONDITIONS) if row["direction"] == direction)


def test_a_pattern_that_flips_every_fake_where_noise_flips_none():
    test = said(uap=TO_REAL)
    row = claim(test, "fake_called_real")
    assert row["margin"] == [1.0, 1.0, 1.0]
    assert row["held"] is True
    assert row["uap"] == {"median": 1.0, "low": 1.0, "high": 1.0, "patterns": 3}
    assert row["noise"] == {"median": 0.0, "low": 0.0, "high": 0.0, "patterns": 3}
    assert (row["n"], row["groups"]) == (20, 20)
    other = claim(test, "real_called_fake")
    assert other["margin"] == [0.0, 0.0, 0.0]
    assert other["held"] is False
    assert (row["detector"], row["data"], row["group"]) == ("meso", "a", "g")


def test_a_fixed_pattern_that_does_as_well_means_not_held():
    row = claim(said(uap=TO_REAL, fixed_g_to_real_float=TO_REAL), "fake_called_real")
    assert row["margin"] == row["over_fixed"] == [0.0, 0.0, 0.0]
    assert row["over_noise"] == [1.0, 1.0, 1.0]
    assert row["held"] is False


def test_a_fixed_pattern_that_does_better_gives_a_negative_margin():
    row = claim(said(fixed_g_to_real_float=TO_REAL), "fake_called_real")
    assert row["margin"] == [-1.0, -1.0, -1.0]
    assert row["held"] is False


def test_each_direction_meets_the_fixed_pattern_chosen_for_it():
    test = said(uap=TO_FAKE, fixed_g_to_real_float=TO_FAKE)
    assert claim(test, "real_called_fake")["held"] is True
    assert claim(test, "real_called_fake")["fixed"]["patterns"] == 1
    test = said(uap=TO_FAKE, fixed_g_to_fake_float=TO_FAKE)
    assert claim(test, "real_called_fake")["held"] is False


def test_noise_that_does_as_well_means_not_held():
    assert claim(said(uap=TO_REAL, noise=TO_REAL), "fake_called_real")["held"] is False


def test_the_median_over_seeds_counts_and_one_lucky_seed_does_not():
    lucky = claim(said(uap_g_seed1_float=TO_REAL), "fake_called_real")
    assert lucky["margin"][0] == 0.0
    assert lucky["uap"] == {"median": 0.0, "low": 0.0, "high": 1.0, "patterns": 3}
    assert lucky["held"] is False
    most = claim(said(uap_g_seed1_float=TO_REAL, uap_g_seed2_float=TO_REAL), "fake_called_real")
    assert most["margin"][0] == 1.0
    assert most["held"] is False  # resamples of the seeds reach 0: with three seeds, two are not enough


def test_storage_other_than_float_does_not_enter_the_claim():
    assert claim(said(uap_g_seed0_jpeg75=TO_REAL), "fake_called_real")["uap"]["high"] == 0.0


def test_a_partial_effect_has_an_interval_around_it():
    half = np.where((LABELS == 1) & (GROUPS % 2 == 0), -1.0, RIGHT)
    value, low, high = claim(said(uap=half), "fake_called_real")["margin"]
    assert value == 0.5
    assert 0.2 < low < 0.5 < high < 0.8


def test_identities_are_resampled_whole():
    """Ten images of each of four people say as much as four people: a wide interval."""
    groups = np.repeat(np.arange(4), 10)
    half = np.where((LABELS == 1) & (groups < 2), -1.0, RIGHT)
    _, low, high = claim(said(groups=groups, uap=half), "fake_called_real")["margin"]
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("label", [0, 1])
def test_a_set_of_one_class_says_nothing_of_the_other_direction(label):
    keep = np.equal(LABELS, label)
    test = said(LABELS[keep], GROUPS[keep], RIGHT[keep], uap=(TO_FAKE if label == 0 else TO_REAL)[keep])
    there, missing = ("real_called_fake", "fake_called_real")[:: 1 if label == 0 else -1]
    assert claim(test, there)["held"] is True
    row = claim(test, missing)
    assert (row["n"], row["margin"], row["held"]) == (0, [None, None, None], False)
    assert row["uap"] == {"median": None, "low": None, "high": None, "patterns": 3}
    json.dumps([claims(test, CONDITIONS), cells(test, None, CONDITIONS)], allow_nan=False)


def test_one_identity_proves_nothing():
    row = claim(said(groups=np.zeros(40, int), uap=TO_REAL), "fake_called_real")
    assert row["margin"] == [1.0, None, None]
    assert row["held"] is False
    json.dumps(row, allow_nan=False)


def test_cells_hold_every_metric_and_none_where_undefined():
    keep = LABELS == 1
    test = said(LABELS[keep], GROUPS[keep], RIGHT[keep], uap=TO_REAL[keep])
    rows = cells(test, None, CONDITIONS)
    assert [row["condition"] for row in rows] == [c.name for c in CONDITIONS]
    metrics = next(row for row in rows if row["condition"] == "uap-g-seed0-float")["metrics"]
    assert metrics["attacked_fake_called_real"] == [1.0, 1.0, 1.0, 20]
    assert metrics["attacked_real_called_fake"] == [None, None, None, 0]
    assert metrics["attacked_auc"][0] is None
    assert "refit_balanced_accuracy" not in metrics
    json.dumps(rows, allow_nan=False)


def test_clean_means_clean_in_float():
    rows = cells(said(clean_jpeg75=TO_REAL), None, CONDITIONS)
    row = next(row for row in rows if row["condition"] == "clean-jpeg75")["metrics"]
    assert row["clean_accuracy"][0] == 1.0
    assert row["attacked_accuracy"][0] == 0.5


def test_a_threshold_is_refitted_where_validation_scores_are_there():
    """A pattern that only shifts all scores is undone by moving the threshold."""
    shifted = RIGHT - 5
    test, held = said(uap=shifted), said(uap=shifted)
    held.scores["meso"] = {k: v for k, v in held.scores["meso"].items() if k != "uap-g-seed1-float"}
    by_name = {row["condition"]: row["metrics"] for row in cells(test, held, CONDITIONS)}
    assert by_name["uap-g-seed0-float"]["attacked_balanced_accuracy"][0] == 0.5
    assert by_name["uap-g-seed0-float"]["refit_balanced_accuracy"][0] == 1.0
    assert "refit_balanced_accuracy" not in by_name["uap-g-seed1-float"]


def test_claims_are_a_function_of_their_arguments():
    half = np.where((LABELS == 1) & (GROUPS % 2 == 0), -1.0, RIGHT)
    assert claims(said(uap=half), CONDITIONS) == claims(said(uap=half), CONDITIONS)
    assert summary.RESAMPLES >= 1000


def test_more_errors_than_noise_and_fixed_but_not_than_clean_are_not_held():
    """Noise that happens to repair the verdicts must not make a pattern without effect look like one."""
    wrong = np.where(LABELS == 1, -1.0, RIGHT)
    row = claim(said(clean=wrong, uap=wrong), "fake_called_real")
    assert row["over_noise"][1] > 0 and row["over_clean"] == [0.0, 0.0, 0.0]
    assert row["held"] is False
