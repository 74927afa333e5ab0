"""What attackers want: closed forms on detectors linear in the image, and when a goal counts as reached."""

import functools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ffjax import engine, goals
from ffjax.attacks.fast_gradient import pgd
from ffjax.engine import Compute
from ffjax.targets import TARGETS
from ffjax.types import Array, Batch, Outputs, Variables

ROWS = 32
ALONE = Compute(batch=ROWS, least=ROWS, chunk=20, devices=1, execution="stepped")
CELLS = toys.SIZE // 2
PULL = np.array([1.0, -2.0, 0.5], np.float32)
"""How a cell's mask logit follows its mean colour."""


def apply(variables: Variables, images: Array) -> Outputs:
    """A mask at half the size, each logit linear in the mean colour of its own 2 x 2 pixels; the verdict is the mean
    logit of `seen` cells: by pixels that the mask is made of as well."""
    cells = images.reshape(-1, CELLS, 2, CELLS, 2, 3).mean(axis=(2, 4))
    mask = cells @ variables["pull"] + variables["shift"]
    score = jnp.mean(mask * variables["seen"][None], axis=(1, 2)) + variables["lean"]
    return Outputs(jnp.stack([jnp.zeros_like(score), score], axis=1), mask, OrderedDict())


def forward(shift=0.0, seen=1.0, lean=0.0):
    seen = np.broadcast_to(np.float32(seen), (CELLS, CELLS))
    numbers = {"pull": PULL, "shift": np.float32(shift), "seen": seen, "lean": np.float32(lean)}
    return jax.tree_util.Partial(apply, jax.tree.map(jnp.asarray, numbers))


def batch(wanted, low=0.3, high=0.7) -> Batch:
    """Pictures far from black and white; wanted (H, W) or (B, H, W)."""
    pictures = np.random.default_rng(0).uniform(low, high, (ROWS, *toys.SHAPE)).astype(np.float32)
    wanted = np.broadcast_to(wanted, (ROWS, *toys.SHAPE[:2])).astype(np.float32)
    return Batch(pictures, np.arange(ROWS, dtype=np.int32) % 2, np.arange(ROWS, dtype=np.int32), None, wanted)  # type: ignore[arg-type]


def outputs(mask=None, margins=(0.0,)) -> Outputs:
    score = jnp.asarray(margins, jnp.float32)
    return Outputs(jnp.stack([jnp.zeros_like(score), score], axis=1), mask, OrderedDict())


def labelled(*labels, wanted=None) -> Batch:
    count = len(labels)
    return Batch(jnp.zeros((count, 2, 2, 3)), jnp.array(labels), jnp.arange(count), None, wanted)


def disc() -> np.ndarray:
    return TARGETS["disc"](np.zeros((1, *toys.SHAPE[:2])), np.zeros(1), 0)[0]


def cells(wanted) -> np.ndarray:
    """(B, H, W) at the mask's own size, by Pillow."""
    small = [
        Image.fromarray(mask.astype(np.float32)).resize((CELLS, CELLS), Image.Resampling.BILINEAR) for mask in wanted
    ]
    return np.stack([np.asarray(mask) for mask in small]) > 0.5001


# ---- the verdict


def test_a_verdict_is_reached_past_the_threshold_strictly_where_fake_begins():
    said, who = outputs(margins=(0.5, 0.5, 0.2, 0.6, 0.5001)), labelled(1, 0, 1, 0, 0)
    reached = goals.verdict(threshold=0.5).reached(said, who)
    assert reached.tolist() == [True, False, True, True, True]  # at the threshold itself the detector says real
    np.testing.assert_allclose(goals.verdict(threshold=0.5).objective(said, who), [0, 0, 0.3, 0.1, 0.0001], atol=1e-6)
    assert goals.verdict(threshold=0.5, confidence=0.1).reached(said, who).tolist() == [False, False, True, True, False]


@given(st.floats(-50, 50), st.integers(0, 1))
def test_the_verdicts_cross_entropy_is_the_labels_and_no_constant_changes_it(lead, label):
    said, who = outputs(margins=(lead,)), labelled(label)
    expected = -jax.nn.log_softmax(said.logits)[0, label]
    objective = goals.verdict("ce").objective
    np.testing.assert_allclose(objective(said, who)[0], expected, rtol=1e-5, atol=1e-6)
    for loss in goals.VERDICT_LOSSES:
        raised = said._replace(logits=said.logits + 64)  # exact in float32 up to rounding of the logits themselves
        np.testing.assert_allclose(
            goals.verdict(loss).objective(raised, who), goals.verdict(loss).objective(said, who), atol=1e-5
        )


# ---- masks


@pytest.mark.parametrize("loss", goals.MASK_LOSSES)
def test_fault_24_the_masks_objective_is_a_mean_over_its_own_pixels(loss):
    """'ce' is the log-likelihood of the wanted mask, taken of the logit, so that it softmaxes once (fault 24)."""
    wanted = (np.random.default_rng(1).random((2, 6, 6)) < 0.5).astype(np.float32)
    said = 4 * np.random.default_rng(2).normal(size=(2, 6, 6)).astype(np.float32)
    probability = np.where(wanted == 1, 1 / (1 + np.exp(-said)), 1 / (1 + np.exp(said)))
    lead = np.minimum(np.where(wanted == 1, said, -said), 1)
    expected = {"ce": np.log(probability), "margin": lead}[loss].mean(axis=(1, 2))
    found = goals.mask(loss).objective(outputs(jnp.asarray(said), (0, 0)), labelled(1, 1, wanted=jnp.asarray(wanted)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", goals.MASK_LOSSES)
def test_pixels_that_are_wrong_by_far_still_pull(loss):
    """The more, the less they are right: a gradient that saturates on the wrong side looks like robustness."""
    wanted = jnp.ones((1, 2, 2))

    def objective(value):
        return goals.mask(loss).objective(outputs(jnp.full((1, 2, 2), value)), labelled(1, wanted=wanted))[0]

    pull = [jax.grad(objective)(value) for value in (-300.0, -30.0, 2.0)]
    np.testing.assert_allclose(pull[:2], 1, rtol=1e-5)
    assert 0 <= pull[2] < 0.2


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("size", [10, 300])
def test_reached_counts_whole_pixels_of_either_kind(share, size):
    """At exactly `share` of the pixels it is reached, with one fewer it is not, in images of any size."""
    wanted = np.zeros((size, size), np.float32)
    wanted[: size // 2] = 1
    half = size * size // 2
    enough = round(share * half)
    assert enough == pytest.approx(share * half)

    def reached(forged, real):
        """That many pixels of each kind are shown as wanted."""
        said = np.full(size * size, -1, np.float32)
        said[:forged] = 1
        said[half + real :] = 1
        said = outputs(jnp.asarray(said.reshape(1, size, size)))
        return bool(goals.mask(share=share).reached(said, labelled(1, wanted=jnp.asarray(wanted[None])))[0])

    assert reached(enough, enough) and reached(half, half)
    assert not reached(enough - 1, half) and not reached(half, enough - 1)


def test_an_empty_mask_is_no_disc():
    """Nine of ten pixels of the image are right, and not one of the disc."""
    wanted = np.zeros((1, 20, 20), np.float32)
    wanted[0, :6, :6] = 1
    assert wanted.mean() < 0.1
    empty = outputs(-jnp.ones((1, 20, 20)))
    assert not goals.mask(share=0.9).reached(empty, labelled(1, wanted=jnp.asarray(wanted)))[0]
    assert goals.mask(share=0.9).reached(empty, labelled(1, wanted=jnp.zeros((1, 20, 20))))[0]


def test_a_logit_of_zero_is_real_as_where_masks_are_scored():
    nothing = outputs(jnp.zeros((2, 4, 4)), (0, 0))
    wanted = jnp.stack([jnp.zeros((4, 4)), jnp.ones((4, 4))])
    assert goals.mask().reached(nothing, labelled(0, 1, wanted=wanted)).tolist() == [True, False]
    unknown = outputs(jnp.full((2, 4, 4), jnp.nan), (0, 0))
    assert not goals.mask().reached(unknown, labelled(0, 1, wanted=wanted)).any()


@pytest.mark.parametrize("size", [(6, 6), (12, 12), (24, 24), (4, 6), (5, 7)])
def test_a_wanted_mask_is_brought_to_the_networks_size(size):
    """What covers most of a cell is wanted there, a half is not; rows do not see one another."""
    wanted = np.zeros((3, 12, 12), np.float32)
    wanted[0, :, 4:] = 1
    wanted[1, 3:9] = 1  # covers half of two rows of cells in six
    said, there = goals._said_and_wanted(outputs(jnp.zeros((3, *size)), (0,) * 3), labelled(1, 1, 1, wanted=wanted))
    assert said.shape == there.shape == (3, *size)
    assert not there[2].any()
    x = (np.arange(size[1]) + 0.5) * 12 / size[1]
    clear = abs(x - 4) > 0.01  # else the border cuts the cell in half
    assert np.array_equal(there[0][:, clear], np.broadcast_to(x > 4, size)[:, clear])
    if size == (6, 6):
        assert np.array_equal(there[1].any(axis=1), [False, False, True, True, False, False])
    alone = goals._said_and_wanted(outputs(jnp.zeros((1, *size))), labelled(1, wanted=wanted[1:2]))[1]
    assert np.array_equal(alone[0], there[1])


def test_without_a_mask_or_a_wanted_one_there_is_no_attack():
    for said, who in (
        (outputs(), labelled(1, wanted=jnp.ones((1, 2, 2)))),
        (outputs(jnp.ones((1, 2, 2))), labelled(1)),
    ):
        for of in goals.mask():
            with pytest.raises(ValueError, match="needs a detector with a mask, and a wanted mask"):
                of(said, who)


def smallest(clean: Batch, share: float, shift: float = 0.0) -> np.ndarray:
    """(B,) l_inf bound from which the goal can be reached: a bound moves every cell by bound * |pull|_1 at most, each
    on its own, so the share-th easiest pixel of either kind decides."""
    wanted = cells(clean.wanted)
    said = np.asarray(forward(shift)(clean.images).mask)
    short = np.where(wanted, -said, said) / np.abs(PULL).sum()

    def easiest(row, kind):
        far = np.sort(row[kind])
        return far[int(np.ceil(share * len(far) - 1e-9)) - 1] if len(far) else -np.inf

    return np.array([max(easiest(s, w), easiest(s, ~w)) for s, w in zip(short, wanted, strict=True)])


@pytest.mark.parametrize("loss", goals.MASK_LOSSES)
@pytest.mark.parametrize("name", ["all_real", "all_fake", "inverted", "disc"])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_an_attack_on_a_linear_mask_needs_its_closed_form_bound(loss, name, share):
    true = np.broadcast_to(np.roll(disc(), 3, axis=1), (ROWS, *toys.SHAPE[:2]))
    clean = batch(TARGETS[name](true, np.arange(ROWS), 0))
    bound = smallest(clean, share, shift=0.2)
    assert bound.min() > 0 and bound.max() < 0.3
    attack = built(loss, share)
    for factor, expected in ((0.95, False), (1.05, True)):
        result = engine.run(attack, forward(0.2), clean, factor * bound, 0, ALONE)
        assert result.success.tolist() == [expected] * ROWS


@functools.cache
def built(loss, share):
    return pgd(goals.mask(loss, share=share), steps=25)


def test_a_mask_attack_makes_every_target():
    """Of masks that the detector does show: half of the picture is bright."""
    pictures = batch(0).images.copy()
    pictures[:, :, :6] += np.float32([0.2, -0.2, 0.2])
    shown = np.asarray(forward(0.15)(pictures).mask) > 0
    true = np.repeat(np.repeat(shown, 2, axis=1), 2, axis=2)
    assert 0.3 < true.mean() < 0.7
    for name, target in TARGETS.items():
        wanted = target(true, np.arange(ROWS) // 2, 0)
        result = engine.run(
            built("ce", 0.9), forward(0.15), batch(0)._replace(images=pictures, wanted=wanted), 0.3, 0, ALONE
        )
        assert result.success.all(), name
        said = np.asarray(forward(0.15)(result.images).mask) > 0
        there = cells(wanted)
        for kind in (there, ~there):
            right = ((said == there) & kind).sum(axis=(1, 2))
            assert np.all(right >= 0.9 * kind.sum(axis=(1, 2)) - 1e-6), name


# ---- both


def test_joint_adds_objectives_and_needs_both():
    said = outputs(jnp.asarray(np.stack([np.full((2, 2), v) for v in (1.0, 1.0, -1.0, -1.0)])), (0.3, -0.3, 0.3, -0.3))
    who = labelled(1, 1, 1, 1, wanted=jnp.zeros((4, 2, 2)))
    verdict, mask = goals.verdict(), goals.mask()
    both = goals.joint(verdict, mask, 0.25)
    np.testing.assert_allclose(
        both.objective(said, who), verdict.objective(said, who) + 0.25 * mask.objective(said, who), rtol=1e-6
    )
    assert both.reached(said, who).tolist() == [False, False, False, True]
    np.testing.assert_array_equal(goals.joint(verdict, mask, 0).objective(said, who), verdict.objective(said, who))


def test_the_joint_attack_brings_verdict_and_mask_to_agree_where_either_alone_does_not():
    """Here the verdict looks at a quarter of the cells only, and leans towards fake: to empty the mask is not enough
    for it, and to change it empties that quarter alone."""
    quarter = np.zeros((CELLS, CELLS), np.float32)
    quarter[:3, :3] = 4
    network = forward(shift=0.35, seen=quarter, lean=0.3)
    clean = batch(TARGETS["all_real"](np.ones((ROWS, 12, 12)), np.arange(ROWS), 0))
    clean = clean._replace(labels=np.ones(ROWS, np.int32))
    verdict, mask = goals.verdict(), goals.mask(share=0.8)
    both = goals.joint(verdict, mask, 1.0)

    def reached(goal):
        result = engine.run(pgd(goal, steps=25), network, clean, 0.16, 0, ALONE)
        said = network(jnp.asarray(result.images))
        who = jax.tree.map(jnp.asarray, clean)
        np.testing.assert_array_equal(result.success, goal.reached(said, who))
        return np.mean(verdict.reached(said, who)), np.mean(mask.reached(said, who))

    assert reached(both) == (1, 1)
    assert reached(verdict) == (1, 0)
    by_mask = reached(mask)
    assert by_mask[1] == 1 and by_mask[0] < 0.5
