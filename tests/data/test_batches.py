"""Batches are a function of (seed, step): resumable, every example once an epoch, ids that are true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffjax.data.batches import batch_at
from ffjax.errors import InputError
from ffjax.types import ImageSet


def marked(count: int, masks: bool = False) -> ImageSet:
    """A set whose every pixel is the number of its example."""
    numbers = np.arange(count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 2, 2, 3)).astype(np.uint8)
    mask = np.where(np.indices((count, 2, 2))[0] % 2, 255, 0).astype(np.uint8) if masks else None
    return ImageSet(images, (numbers % 2).astype(np.int32), numbers.astype(np.int32), tuple(map(str, numbers)), mask)


cases = {"count": st.integers(1, 40), "size": st.integers(1, 12), "seed": st.integers(0, 2**40)}


@given(**cases, step=st.integers(0, 10**12))
def test_rows_are_those_that_the_ids_name(count, size, seed, step):
    batch = batch_at(marked(count, masks=True), size, seed, step)
    assert batch.masks is not None
    ids = np.asarray(batch.ids)
    assert batch.images.shape == (size, 2, 2, 3) and batch.masks.shape == (size, 2, 2)
    assert (batch.images.dtype, batch.masks.dtype) == (np.float32, np.float32)
    assert (batch.labels.dtype, batch.ids.dtype) == (np.int32, np.int32)
    assert np.array_equal(np.rint(np.asarray(batch.images)[:, 0, 0, 0] * 255), ids)
    assert np.array_equal(batch.labels, ids % 2)
    assert np.array_equal(np.asarray(batch.masks)[:, 0, 0], ids % 2)


@given(**cases)
def test_fault_15_every_example_once_an_epoch(count, size, seed):
    data = marked(count)
    line = np.concatenate([batch_at(data, size, seed, step).ids for step in range(-(-3 * count // size))])
    for epoch in range(3):
        assert sorted(line[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(**cases, step=st.integers(0, 50))
def test_a_step_alone_is_the_step_in_sequence(count, size, seed, step):
    data = marked(count)
    in_sequence = [batch_at(data, size, seed, k) for k in range(step + 1)][-1]
    batch_at(data, size + 1, seed + 1, step)  # what was asked for in between is of no concern
    assert np.array_equal(in_sequence.ids, batch_at(data, size, seed, step).ids)


def test_epochs_and_seeds_differ():
    data = marked(30)
    orders = [tuple(np.asarray(batch_at(data, 30, seed, step).ids)) for seed in range(3) for step in range(3)]
    assert len(set(orders)) == 9


def test_the_order_is_frozen():
    """A change of NumPy or of this code that changed training data order would show here."""
    assert np.asarray(batch_at(marked(8), 8, 5, 0).ids).tolist() == [2, 4, 3, 1, 5, 0, 6, 7]


def test_a_batch_does_not_share_memory_with_the_set():
    data = marked(4)
    np.asarray(batch_at(data, 4, 0, 0).labels)[:] = 9
    assert data.labels.max() == 1


@pytest.mark.parametrize(("count", "size", "seed", "step"), [(0, 2, 0, 0), (3, 0, 0, 0), (3, 2, -1, 0), (3, 2, 0, -1)])
def test_what_makes_no_batch_is_refused(count, size, seed, step):
    with pytest.raises(InputError):
        batch_at(marked(count), size, seed, step)
