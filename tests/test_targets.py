"""Wanted masks: what each is, that they are masks, and that nobody gets his own identity's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffjax import targets
from ffjax.errors import InputError
from ffjax.targets import TARGETS


def blobs(count=7, height=12, width=10, seed=0) -> np.ndarray:
    """(N, H, W) uint8 in {0, 255}: a rectangle each, and the last one, of a real image, empty."""
    rng, masks = np.random.default_rng(seed), np.zeros((count, height, width), np.uint8)
    for mask in masks[:-1]:
        top, left = rng.integers(0, 6, 2)
        mask[top : top + rng.integers(2, 6), left : left + rng.integers(2, 4)] = 255
    return masks


MASKS, GROUPS = blobs(), np.array([4, 4, 9, 9, 9, 1, 2])


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_a_mask_the_same_for_the_same_seed_and_leaves_its_input_alone(name):
    before = MASKS.copy()
    wanted = TARGETS[name](MASKS, GROUPS, 3)
    assert wanted.shape == MASKS.shape and wanted.dtype == np.float32
    assert set(np.unique(wanted)) <= {0, 1}
    assert np.array_equal(wanted, TARGETS[name](MASKS, GROUPS, 3))
    for other in (MASKS > 0, (MASKS / 255).astype(np.float32)):
        assert np.array_equal(wanted, TARGETS[name](other, GROUPS, 3))
    wanted[:] = 1  # its own array, to be written to
    assert np.array_equal(MASKS, before)
    assert TARGETS[name](MASKS[:0], GROUPS[:0], 3).shape == (0, *MASKS.shape[1:])


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"another"}))
def test_a_row_does_not_depend_on_the_others(name):
    rows = np.array([5, 0, 3])
    assert np.array_equal(TARGETS[name](MASKS[rows], GROUPS[rows], 8), TARGETS[name](MASKS, GROUPS, 3)[rows])


def test_everything_nothing_and_the_opposite():
    assert TARGETS["all_real"](MASKS, GROUPS, 0).sum() == 0
    assert TARGETS["all_fake"](MASKS, GROUPS, 0).mean() == 1
    np.testing.assert_array_equal(TARGETS["inverted"](MASKS, GROUPS, 0), 1 - MASKS / 255)


def test_shifted_moves_by_shares_of_the_sides_and_comes_in_at_the_other_end():
    mask = np.zeros((1, 12, 10), np.uint8)
    mask[0, 10, 1] = 255
    found = targets.shifted(mask, GROUPS, 0, down=0.25, across=-0.5)
    assert np.argwhere(found[0]).tolist() == [[1, 6]]
    np.testing.assert_array_equal(TARGETS["shifted"](MASKS, GROUPS, 0).sum((1, 2)), (MASKS > 0).sum((1, 2)))
    np.testing.assert_array_equal(targets.shifted(MASKS, GROUPS, 0, down=0, across=1), MASKS / 255)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 5))
def test_another_is_a_permutation_without_own_groups_wherever_there_is_one(groups, seed):
    groups = np.array(groups)
    numbered = np.zeros((len(groups), 6, 6), np.uint8)
    for i, mask in enumerate(numbered):  # the image's number, in bits
        mask.flat[:6] = [(i >> k) & 1 for k in range(6)]
    if 2 * np.unique(groups, return_counts=True)[1].max() > len(groups):
        with pytest.raises(InputError, match="more than half"):
            targets.another(numbered, groups, seed)
        return
    given_to = targets.another(numbered, groups, seed).reshape(len(groups), -1)[:, :6] @ (1 << np.arange(6))
    assert sorted(given_to) == list(range(len(groups)))
    assert np.all(groups[given_to.astype(int)] != groups)


def test_another_depends_on_the_seed():
    found = {TARGETS["another"](MASKS, GROUPS, seed).tobytes() for seed in range(8)}
    assert len(found) > 4


@pytest.mark.parametrize(("shape", "area"), [("disc", np.pi / 4), ("square", 1), ("cross", 5 / 9)])
def test_drawn_shapes_have_their_area_in_the_middle(shape, area):
    large = np.zeros((1, 180, 240), np.uint8)
    for size in (0.5, 1.0):
        found = targets.drawn(large, GROUPS, 0, shape=shape, size=size)[0]
        np.testing.assert_allclose(found.sum(), area * (size * 180) ** 2, rtol=0.03)
        assert np.array_equal(found, found[::-1]) and np.array_equal(found, found[:, ::-1])
        rows = np.flatnonzero(found.any(axis=1))
        np.testing.assert_allclose(rows[-1] - rows[0] + 1, size * 180, atol=1)
    with pytest.raises(KeyError, match="star"):
        targets.drawn(large, GROUPS, 0, shape="star")
