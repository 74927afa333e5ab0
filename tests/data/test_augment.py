"""Variations of a batch: reproducible, in range, each row by itself, masks moved with their images."""

import numpy as np
import pytest

from ffjax.data import augment
from ffjax.data.augment import Augment, augmented
from ffjax.errors import InputError
from ffjax.types import Batch

OFF = Augment(flip=0, shift=0, jpeg=0, blur=0, noise=0, light=0)
ALL = Augment(flip=1, shift=1, jpeg=1, blur=1, resize=1, noise=1, light=1)


def batch(rows: int = 6, channels: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.random((rows, 16, 16, channels), np.float32)
    masks = (images[..., 0] > 0.5).astype(np.float32)
    return Batch(images, np.arange(rows, dtype=np.int32) % 2, np.arange(rows, dtype=np.int32), masks)  # type: ignore[arg-type]


def test_switched_off_it_changes_nothing():
    np.testing.assert_array_equal(augmented(batch(), OFF, 0, 0).images, batch().images)


def test_it_is_a_function_of_seed_and_step():
    first, again = augmented(batch(), ALL, 3, 7), augmented(batch(), ALL, 3, 7)
    np.testing.assert_array_equal(first.images, again.images)
    for seed, step in ((3, 8), (4, 7)):
        assert np.any(augmented(batch(), ALL, seed, step).images != first.images)
    assert len({image.tobytes() for image in np.asarray(first.images)}) == 6


def test_rows_do_not_depend_on_their_company():
    np.testing.assert_array_equal(augmented(batch(6), ALL, 0, 1).images[:3], augmented(batch(3), ALL, 0, 1).images)


@pytest.mark.parametrize("channels", [1, 3])
def test_in_range_and_of_the_same_shape_and_the_input_is_left_alone(channels):
    given = batch(channels=channels)
    before = np.array(given.images)
    varied = augmented(given, ALL, 0, 0)
    assert varied.images.shape == before.shape and varied.images.dtype == np.float32
    assert varied.images.min() >= 0 and varied.images.max() <= 1
    np.testing.assert_array_equal(given.images, before)


@pytest.mark.parametrize("moves", [{"flip": 1.0}, {"shift": 1.0, "shift_pixels": 5}])
def test_masks_move_with_their_images(moves):
    settings = {"flip": 0, "shift": 0, "jpeg": 0, "blur": 0, "noise": 0, "light": 0} | moves
    moved = augmented(batch(), Augment(**settings), 0, 0)
    assert np.any(np.asarray(moved.images) != np.asarray(batch().images))
    np.testing.assert_array_equal(moved.masks, (np.asarray(moved.images)[..., 0] > 0.5).astype(np.float32))


def test_a_shift_repeats_the_border_and_keeps_the_middle():
    settings = Augment(flip=0, shift=1.0, shift_pixels=2, jpeg=0, light=0)
    moved, still = np.asarray(augmented(batch(), settings, 0, 0).images), np.asarray(batch().images)
    for image, original in zip(moved, still, strict=True):
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode="edge")
        places = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[y : y + 16, x : x + 16], image)]
        assert len(places) == 1


def test_resizing_there_and_back_loses_fine_texture_and_keeps_planes():
    settings = Augment(flip=0, shift=0, jpeg=0, light=0, resize=1, resize_scale=(0.5, 0.5))
    some = batch()
    images = np.array(some.images)
    images[0] = 0.3
    images[1] = np.indices((16, 16)).sum(axis=0)[..., None] % 2  # the finest there is
    found = np.asarray(augmented(some._replace(images=images), settings, 0, 0).images)
    np.testing.assert_allclose(found[0], 0.3, atol=1e-6)
    np.testing.assert_allclose(found[1][1:-1, 1:-1], 0.5, atol=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": -3.0},
        {"jpeg": 7.0},
        {"noise": float("nan")},
        {"shift_pixels": -1},
        {"blur_sigma": -1.0},
        {"noise_sd": float("inf")},
        {"jpeg_quality": (95, 75)},
        {"jpeg_quality": (0, 50)},
        {"resize_scale": (-1.0, -0.5)},
    ],
    ids=str,
)
def test_what_nothing_can_be_drawn_from_is_refused_by_name(wrong):
    augment.check(Augment())
    (name,) = wrong
    with pytest.raises(InputError, match=f"train.augment.{name}: "):
        augment.check(Augment(**wrong))
