"""Scores of masks: counted by hand, empty masks included, and of one mind with the goal that attacks are after."""

from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ffjax import goals, masks
from ffjax.errors import InputError
from ffjax.types import Batch, Outputs

EMPTY, FULL = np.zeros((1, 2, 4), bool), np.ones((1, 2, 4), bool)
LEFT = np.array([[[1, 1, 0, 0], [1, 1, 0, 0]]], bool)
TOP = np.array([[[1, 1, 1, 1], [0, 0, 0, 0]]], bool)
some_masks = arrays(bool, (3, 4, 5))


def test_counted_by_hand():
    found = masks.scores(LEFT, TOP, FULL)
    assert {name: value[0] for name, value in found.items()} == {
        "iou_true": 2 / 6,
        "pixels_true": 4 / 8,
        "area": 4 / 8,
        "iou_wanted": 4 / 8,
        "pixels_wanted": 4 / 8,
        "shown": 0,
    }
    assert set(masks.scores(LEFT, TOP)) == set(masks.MEASURES)
    assert set(found) == {*masks.MEASURES, *masks.TOWARDS}


def test_two_empty_masks_overlap_wholly_and_an_empty_one_with_no_other():
    assert masks.iou(EMPTY, EMPTY).tolist() == [1]
    assert masks.iou(EMPTY, LEFT).tolist() == [0]
    found = masks.scores(EMPTY, LEFT, EMPTY)
    assert found["iou_wanted"] == 1 and found["iou_true"] == 0 and found["area"] == 0 and found["shown"] == 1


@given(some_masks, some_masks)
def test_overlap_is_symmetric_and_one_only_where_all_pixels_agree(first, second):
    assert np.array_equal(masks.iou(first, second), masks.iou(second, first))
    same = masks.pixel_accuracy(first, second) == 1
    assert np.array_equal(masks.iou(first, second) == 1, same)
    assert np.all(masks.iou(first, second) <= 1) and np.all(masks.iou(first, ~first) == 0)


@given(some_masks, some_masks, st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_shown_is_what_attacks_on_masks_are_after(said, wanted, share):
    outputs = Outputs(jnp.zeros((3, 2)), jnp.where(said, 1.0, -1.0), OrderedDict())
    batch = Batch(None, jnp.zeros(3), jnp.arange(3), None, jnp.asarray(wanted, jnp.float32))
    reached = goals.mask(share=share).reached(outputs, batch)
    assert np.array_equal(masks.shown(said, wanted, share), np.asarray(reached))


def test_heads_disagree_where_one_says_fake_and_the_other_does_not():
    said, areas = np.array([2.0, 2.0, -2.0, -2.0, 0.0]), np.array([0.3, 0.0, 0.3, 0.0, 0.1])
    assert masks.disagree(said, areas, 0.0, 0.1).tolist() == [False, True, True, False, False]
    assert masks.disagree(said, areas, 3.0, 0.1).tolist() == [True, False, True, False, False]


@given(arrays(np.int8, st.tuples(st.integers(1, 8), st.just(2)), elements=st.integers(0, 4)))
def test_the_front_is_what_nothing_dominates(points):
    on = masks.front(points)
    assert on.any()
    for i, one in enumerate(points):
        dominated = any(np.all(other >= one) and np.any(other > one) for other in points)
        assert on[i] == (not dominated)


def test_shapes_must_agree():
    with pytest.raises(InputError, match="of one shape"):
        masks.scores(LEFT, LEFT[:, :1])
    with pytest.raises(InputError, match="of one shape"):
        masks.scores(LEFT, LEFT, LEFT[0])
