"""What patterns ride on: pure functions of the step, with what is wanted written on every image."""

import jax
import numpy as np
import pytest
import toys

from ffjax import riders
from ffjax.errors import InputError
from ffjax.universal import UapConfig, carriers, named


def test_noise_carriers_are_images_of_the_stated_statistics():
    x = np.asarray(carriers.noise(jax.random.key(0), 64, (32, 32, 3)))
    assert x.min() >= 0 and x.max() <= 1
    drawn = np.random.default_rng(0).normal(carriers.MEAN, carriers.SD, (200_000, 3))
    expected = np.clip(drawn / 255, 0, 1)
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), expected.mean(axis=0), atol=5e-3)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), expected.std(axis=0), atol=5e-3)


@pytest.mark.parametrize(("side", "labels"), [("both", {0, 1}), ("fakes", {1}), ("reals", {0})])
def test_a_side_has_images_of_that_side_alone(side, labels):
    inputs = riders.at_step(named("uap_pgd", side=side), toys.SHAPE, toys.images(20))
    seen = np.concatenate([inputs(i).labels for i in range(6)])
    assert set(seen.tolist()) == labels
    bank = riders.bank(named("uap_pgd", side=side), toys.SHAPE, toys.images(20))
    assert len(bank.labels) == (20 if side == "both" else 10) and set(np.asarray(bank.labels).tolist()) == labels


def test_at_most_so_many_images_are_seen():
    few = riders.of_side(named("uap_pgd", images=3), toys.images(20))
    assert len(few.labels) == 6 and few.labels.sum() == 3
    assert len(riders.bank(named("uap_pgd", images=3), toys.SHAPE, toys.images(20)).labels) == 20  # selection's are not
    inputs = riders.at_step(named("uap_pgd", images=3), toys.SHAPE, toys.images(20))
    assert len({x.tobytes() for i in range(10) for x in np.asarray(inputs(i).images)}) == 6


def test_the_aim_is_written_into_the_labels():
    """A fake called real is a wrong verdict, so who wants all called real has all labelled fake."""
    for aim, expected in (("real", {1}), ("fake", {0}), ("wrong", {0, 1})):
        inputs = riders.at_step(named("uap_pgd", aim=aim), toys.SHAPE, toys.images(20))
        assert set(np.asarray(inputs(0).labels).tolist()) == expected


def test_the_wanted_mask_is_nothing_everything_or_the_opposite():
    for mask in ("erase", "fill", "invert"):
        batch = riders.at_step(named("joint", side="both", mask=mask), toys.SHAPE, toys.masked())(0)
        true = toys.masked().masks[np.asarray(batch.ids)] / 255
        expected = {"erase": 0 * true, "fill": 0 * true + 1, "invert": 1 - true}[mask]
        assert np.array_equal(batch.wanted, expected) and batch.masks is None
    assert riders.at_step(named("uap_pgd"), toys.SHAPE, toys.masked())(0).wanted is None


def test_deepfool_keeps_a_batch_for_all_its_linearisations():
    inputs = riders.at_step(named("deepfool", inner=3), toys.SHAPE, toys.images(20))
    ids = [int(inputs(i).ids[0]) for i in range(9)]
    assert ids[0] == ids[1] == ids[2] and ids[3] == ids[4] == ids[5] and len(set(ids)) == 3


def test_what_a_data_set_lacks_is_said():
    with pytest.raises(InputError, match="no masks"):
        riders.at_step(named("joint", mask="invert"), toys.SHAPE, toys.images(20))(0)
    reals = toys.images(20)._replace(labels=np.zeros(20, np.int32))
    with pytest.raises(InputError, match="side fakes: the data set has no such images"):
        riders.at_step(named("to_real"), toys.SHAPE, reals)
    with pytest.raises(InputError, match="train split"):
        riders.at_step(UapConfig(mode="with_data"), toys.SHAPE, None)
