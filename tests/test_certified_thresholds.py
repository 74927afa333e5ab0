"""Thresholds under noise: of the vote's own score, by noise that no certificate uses, the best there is, and kept."""

import json

import jax
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from ffjax import certified_thresholds as thresholds
from ffjax.certified_thresholds import BARE, Fitted, Level, used
from ffjax.data.codecs import to_float
from ffjax.data.sets import taken
from ffjax.defences import smoothing
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import Outputs

TWO = toys.two_headed().forward
HELD = toys.masked(20)
SIGMA, COPIES, SEED = 0.2, 5, 4
OTHER = SEED + 2**31
COMPUTE = Compute(batch=32)
FORWARD = jax.jit(lambda forward, x: forward(x))


def calibrated(folder, forward=TWO, held=HELD, sigmas=(SIGMA,), compute=COMPUTE, tell=lambda done, note: None):
    return thresholds.calibrate(folder / "t.json", held, forward, sigmas, COPIES, SEED, compute, tell)


def test_scores_are_medians_over_copies_by_noise_of_another_seed():
    """Each draw by the stated folds, in a loop of its own; without noise, what the detector says of the image."""
    images, said = to_float(HELD.images), []
    for k in range(COPIES):
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(OTHER)), i), k) for i in range(20)]
        n = np.stack([jax.random.normal(key, toys.SHAPE) for key in keys])
        said.append(FORWARD(TWO, images + np.float32(SIGMA) * n))
    found = thresholds.medians(HELD.images, TWO, SIGMA, COPIES, SEED, COMPUTE)
    bare = thresholds.medians(HELD.images, TWO, BARE, 1, SEED, COMPUTE)
    for (margins, mask), some in ((found, said), (bare, [FORWARD(TWO, images)])):
        middle = len(some) // 2
        np.testing.assert_allclose(margins, np.sort([margin(one) for one in some], axis=0)[middle], atol=1e-5)
        np.testing.assert_allclose(mask, np.sort([one.mask for one in some], axis=0)[middle], atol=1e-5)
    assert np.abs(found[0] - bare[0]).max() > 0.01


@pytest.mark.parametrize("seed", [0, 4, 2**31, 2**32 - 1])
def test_noise_of_calibration_is_not_that_of_certificates(seed):
    """Of the same ids and numbers, as seen by a detector whose margin is a component of black images under noise."""
    shown = jax.tree_util.Partial(_shown)
    drawn, _ = thresholds.medians(np.zeros((6, *toys.SHAPE), np.uint8), shown, 1.0, 1, seed, COMPUTE)
    numbers = np.arange(6, dtype=np.int32)
    same = np.asarray(smoothing.noise(np.uint32(seed), numbers, numbers[:1], toys.SHAPE))[:, 0, 0, 0, 0]
    other = np.asarray(smoothing.noise(np.uint32((seed + 2**31) % 2**32), numbers, numbers[:1], toys.SHAPE))
    np.testing.assert_array_equal(drawn, other[:, 0, 0, 0, 0])
    assert np.all(np.abs(drawn - same) > 1e-4)


def _shown(images) -> Outputs:
    """The margin is the first component of the image."""
    one = images[:, 0, 0, 0]
    return Outputs(np.float32([[0, 1]]) * one[:, None], None, {})


def test_the_score_is_above_a_threshold_just_where_most_copies_are():
    margins, mask = thresholds.medians(HELD.images, TWO, SIGMA, COPIES, SEED, COMPUTE)
    at = smoothing.Thresholds(float(np.quantile(margins, 0.43)), float(np.quantile(mask, 0.58)))
    votes = smoothing.count(TWO, to_float(HELD.images), np.arange(20), SIGMA, np.uint32(OTHER), 0, COPIES, 1, at)
    apart = np.abs(margins - at.margin) > 1e-4, np.abs(mask - at.mask) > 1e-4  # of what rounding may not move
    np.testing.assert_array_equal((2 * np.asarray(votes.fake) > COPIES)[apart[0]], (margins > at.margin)[apart[0]])
    np.testing.assert_array_equal((2 * np.asarray(votes.mask) > COPIES)[apart[1]], (mask > at.mask)[apart[1]])
    assert apart[0].mean() > 0.9 and 0 < np.mean(margins > at.margin) < 1


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=9))
def test_no_other_threshold_is_better(drawn):
    """By trying them all; None just where none beats a coin."""
    said, fake = np.array([s for s, _ in drawn], np.float32), np.array([f for _, f in drawn])
    found = thresholds.fitted(said, fake)
    if fake.all() or not fake.any():
        assert found == Fitted(None, None)
        return
    tried = [(np.mean(said[fake] > t) + np.mean(said[~fake] <= t)) / 2 for t in np.arange(-4, 4) + 0.5]
    if max(tried) == 0.5:
        assert found == Fitted(None, (np.mean(said[fake] > 0) + np.mean(said[~fake] <= 0)) / 2)
    else:
        assert found.balanced_accuracy == pytest.approx(max(tried)) and found.calibrated is not None
        at = (np.mean(said[fake] > found.calibrated) + np.mean(said[~fake] <= found.calibrated)) / 2
        assert at == pytest.approx(max(tried))


def test_a_threshold_between_neighbouring_floats_parts_them_in_single_precision():
    one = np.nextafter(np.float32(1), np.float32(2))
    for low in (one, np.nextafter(one, np.float32(2)), -one, np.float32(-1)):
        said = np.array([low, np.nextafter(low, np.float32(9))])
        found = thresholds.fitted(said, np.array([False, True]))
        assert found.balanced_accuracy == 1 and found.calibrated is not None
        np.testing.assert_array_equal(said > np.float32(found.calibrated), (False, True))


def test_verdicts_and_pixels_have_each_their_own(tmp_path):
    """Pixels of all images together, real ones' too."""
    held = taken(HELD, np.arange(12))._replace(masks=255 * np.eye(12, dtype=np.uint8)[None].repeat(12, 0))
    levels = calibrated(tmp_path, held=held)
    assert list(levels) == [BARE, SIGMA]
    for sigma, copies in ((BARE, 1), (SIGMA, COPIES)):
        margins, mask = thresholds.medians(held.images, TWO, sigma, copies, SEED, COMPUTE)
        assert mask is not None and held.masks is not None
        assert levels[sigma] == Level(
            thresholds.fitted(margins, held.labels == 1), thresholds.fitted(mask.ravel(), held.masks.ravel() > 0)
        )
    assert levels[BARE] != levels[SIGMA] and levels[SIGMA].mask != levels[SIGMA].verdict
    (tmp_path / "bare").mkdir()
    bare = calibrated(tmp_path / "bare", held=held._replace(masks=None))
    assert bare == {sigma: Level(level.verdict) for sigma, level in levels.items()}
    assert used(bare[SIGMA]).mask == 0 != used(levels[SIGMA]).mask


def test_a_true_mask_is_brought_to_the_networks_size():
    mask = np.zeros((2, 12, 12), np.uint8)
    mask[0, :, :6] = mask[1, 4:] = 255
    found = thresholds.forged(mask, (2, 6, 6))
    np.testing.assert_array_equal(found[0], np.arange(6)[None].repeat(6, 0) < 3)
    np.testing.assert_array_equal(found[1], np.arange(6)[:, None].repeat(6, 1) >= 2)


@pytest.mark.parametrize("compute", [Compute(batch=24), Compute(batch=64)])
def test_levels_do_not_depend_on_how_they_are_computed(tmp_path, compute):
    (tmp_path / "other").mkdir()
    assert calibrated(tmp_path / "other", compute=compute) == calibrated(tmp_path)


def test_what_was_calibrated_is_kept_and_the_rest_is_made(tmp_path):
    """A run that was cut goes on with the thresholds that it had, whatever would be found now."""
    told = []
    whole = calibrated(tmp_path, sigmas=(SIGMA, 0.5), tell=lambda done, note: told.append((done, note)))
    assert told == [(1, "undefended"), (2, "sigma 0.2"), (3, "sigma 0.5")]
    kept = json.loads((tmp_path / "t.json").read_text())
    assert list(kept) == ["0.0", "0.2", "0.5"]
    del kept["0.5"]
    kept["0.2"]["verdict"]["calibrated"] = 7.5
    (tmp_path / "t.json").write_text(json.dumps(kept))
    found = calibrated(tmp_path, sigmas=(SIGMA, 0.5))
    changed = whole[SIGMA]._replace(verdict=whole[SIGMA].verdict._replace(calibrated=7.5))
    assert found == {**whole, SIGMA: changed} and used(found[SIGMA]).margin == 7.5
    assert list(json.loads((tmp_path / "t.json").read_text())) == ["0.0", "0.2", "0.5"]


def test_where_nothing_parts_the_classes_it_is_0_and_said_so(tmp_path):
    """A detector that says one thing of all images."""
    levels = calibrated(tmp_path, jax.tree_util.Partial(_constant))
    assert set(levels.values()) == {Level(Fitted(None, 0.5))}
    assert used(levels[SIGMA]) == smoothing.AS_TRAINED
    assert json.loads((tmp_path / "t.json").read_text())["0.2"]["verdict"]["calibrated"] is None


def _constant(images) -> Outputs:
    return Outputs(np.float32([[0, 1.5]]) + 0 * images[:, 0, 0, :2], None, {})


@pytest.mark.parametrize(
    ("images", "copies", "told"),
    [
        (0, 15, "calibrate: must be at least 1, got 0"),
        (5, 4, "copies: must be odd, so that most say one thing, and at least 1, got 4"),
        (5, 0, "copies: must be odd, .*, got 0"),
        (5, -1, "copies: must be odd, .*, got -1"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(images, copies, told):
    with pytest.raises(InputError, match=told):
        thresholds.check(images, copies)
