"""Attacks that only hear yes or no: how near they come on a linear detector, what they ask, and when they stop."""

import functools

import interior
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import balls, engine, goals
from ffjax.attacks import decision
from ffjax.engine import Compute
from ffjax.types import Goal

FUSED = Compute(batch=16, devices=1, execution="fused")
MARGINS = interior.alternating(0.5, 4, 16)
GOAL = goals.verdict()
BLIND = Goal(lambda outputs, batch: jnp.full(len(batch.labels), jnp.nan), GOAL.reached)
"""The same decisions, and an objective that tells nothing."""
TWO = [("boundary", "l2"), ("hop_skip_jump", "l2")]
EVERY = pytest.mark.parametrize(("name", "norm"), [*TWO, ("hop_skip_jump", "linf")])
NEVER = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": jnp.zeros(toys.SHAPE), "b": jnp.float32(1)}})
"""Everything is fake, whatever is shown."""


@functools.cache
def built(name: str, norm: str, goal: Goal):
    return getattr(decision, name)(goal, norm)


def process(name: str, norm: str, steps: int, goal: Goal = GOAL):
    """The same functions whatever `steps`, so that they are compiled once: nothing in them depends on it."""
    return built(name, norm, goal)._replace(steps=steps)


def attacked(name, norm, steps, goal=GOAL, forward=interior.FORWARD, batch=None):
    batch = interior.batch(MARGINS) if batch is None else batch
    return engine.run(process(name, norm, steps, goal), forward, batch, np.inf, 0, FUSED)


@EVERY
def test_comes_within_1_5_of_the_distance_in_5000_queries(name, norm):
    result = attacked(name, norm, 5000)
    ratio = result.distance / interior.distances(MARGINS, norm)
    assert result.success.all() and ratio.min() > 0.999 and ratio.max() < 1.5
    np.testing.assert_array_equal(result.queries, 5001)
    assert not result.gradients.any()


@EVERY
def test_only_decisions_are_seen(name, norm):
    told, blind = attacked(name, norm, 60), attacked(name, norm, 60, BLIND)
    np.testing.assert_array_equal(told.images, blind.images)
    assert told.success.all()


@EVERY
def test_more_queries_never_take_it_farther(name, norm):
    few, more = attacked(name, norm, 60), attacked(name, norm, 300)
    assert np.all(more.distance <= few.distance * (1 + 1e-5)) and np.mean(more.distance < 0.9 * few.distance) > 0.5


@EVERY
def test_a_row_that_nothing_moves_gives_up_with_the_clean_image(name, norm):
    """PEERS.md 4a, 1. The first question is the clean image, then come 25 flat and noisy ones."""
    batch = interior.batch(MARGINS)._replace(labels=np.arange(16, dtype=np.int32) % 2)
    result = attacked(name, norm, 60, forward=NEVER, batch=batch)
    wrong = batch.labels == 0  # called fake as it is: nothing is left to do
    np.testing.assert_array_equal(result.success, wrong)
    np.testing.assert_array_equal(result.images, batch.images)
    np.testing.assert_array_equal(result.queries, np.where(wrong, 1, 26))


@functools.cache
def walked(name, norm, steps=400):
    """Each question with the phase it belongs to, (steps, 16, ...), and the distances of `at`."""
    run, batch, forward = process(name, norm, steps), interior.batch(MARGINS), interior.FORWARD
    state = jax.jit(run.init)(forward, batch, jnp.zeros(16), jnp.zeros(16, jnp.uint32))
    step, seen = jax.jit(run.step), []
    for i in range(steps):
        memory = state.own[1]
        way = memory.way if name == "hop_skip_jump" else memory[0]
        seen.append((state.own[0], way.phase, way.at, way.high - way.low))
        state = step(jnp.int32(i), state, forward)
    return [np.stack(leaf) for leaf in zip(*seen, strict=True)]


def sizes(images, norm):
    delta = (images - interior.batch(MARGINS).images).reshape(*images.shape[:2], -1)
    return np.abs(delta).max(axis=2) if norm == "linf" else np.linalg.norm(delta, axis=2)


@EVERY
def test_every_question_is_an_image_and_every_phase_occurs(name, norm):
    questions, phases, *_ = walked(name, norm)
    assert questions.min() >= 0 and questions.max() <= 1
    assert np.array_equal(questions[0], interior.batch(MARGINS).images)
    for phase in range(4):
        assert (phases == phase).any(axis=0).all()
    assert (np.diff(phases, axis=0) != 0).any()


@EVERY
def test_what_is_walked_from_reaches_the_goal(name, norm):
    _, phases, at, _ = walked(name, norm)
    for i in range(0, len(at), 23):
        lead = np.asarray(GOAL.objective(interior.FORWARD(at[i]), interior.batch(MARGINS)))
        assert np.all(lead[phases[i] > decision.SEEK] > -1e-4)


@pytest.mark.parametrize(("name", "norm"), TWO)
def test_halving_ends_at_the_boundary(name, norm):
    """On the straight way from the clean image to the far one the lead is linear: where it ends, the lead is within the
    gap's share of the whole rise."""
    _, phases, at, gap = walked(name, norm)
    batch = interior.batch(MARGINS)
    low = np.asarray(GOAL.objective(interior.FORWARD(batch.images), batch))
    wanted = 2.0**-10 if name == "boundary" else 432**-1.5
    ended = 0
    for i in np.flatnonzero(((phases[:-1] == decision.HALVE) & (phases[1:] == decision.TURN)).any(axis=1)):
        rows = (phases[i] == decision.HALVE) & (phases[i + 1] == decision.TURN)
        start, end = (np.asarray(GOAL.objective(interior.FORWARD(at[k]), batch)) for k in (i, i + 1))
        assert np.all((end > -1e-4) & (end <= wanted * (start - low) + 1e-4), where=rows)
        assert np.all(gap[i + 1][rows] <= wanted)
        ended += rows.sum()
    assert ended >= 16


def test_the_boundary_attack_steps_along_the_sphere_then_inwards():
    """Interior images, so that nothing is clipped: a step around keeps the distance, the next one shortens it."""
    questions, phases, at, _ = walked("boundary", "l2")
    asked, kept = sizes(questions, "l2"), sizes(at, "l2")
    inside = (questions.min(axis=(2, 3, 4)) > 0) & (questions.max(axis=(2, 3, 4)) < 1)
    around, inwards = (phases == decision.TURN) & inside, (phases == decision.STEP) & inside
    assert around.sum() > 100 and inwards.sum() > 100
    np.testing.assert_allclose(asked[around], kept[around], rtol=1e-4)
    assert np.all(asked[inwards] < kept[inwards])


def test_hop_skip_jump_asks_as_often_as_published():
    """samples sqrt(t) questions in round t; the radius of the first is 0.1, of later ones the distance over d."""
    questions, phases, at, _ = walked("hop_skip_jump", "l2")
    norm = balls.BALLS["l2"](1.0).norm
    for row in range(16):
        asked = np.flatnonzero(phases[:, row] == decision.TURN)
        rounds = np.split(asked, np.flatnonzero(np.diff(asked) > 1) + 1)
        assert [len(one) for one in rounds[:-1]] == [int(np.ceil(100 * np.sqrt(t))) for t in range(1, len(rounds))]
        first, second = rounds[0][5], rounds[1][5]
        np.testing.assert_allclose(norm(questions[first, row] - at[first, row]), 0.1, rtol=1e-2)
        distance = norm(at[second, row] - interior.batch(MARGINS).images[row])
        np.testing.assert_allclose(norm(questions[second, row] - at[second, row]), distance / 432, rtol=1e-2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hop_skip_jump_follows_the_published_estimate(norm):
    """Of the first round's questions v = sum (answer - mean answer) u, then x + r v / ||v||, in l_inf x + r sign(v)."""
    questions, phases, at, _ = walked("hop_skip_jump", norm)
    clean = interior.batch(MARGINS).images
    for row in range(16):
        first = np.argmax(phases[:, row] == decision.TURN)
        last = first + np.argmax(phases[first:, row] == decision.STEP)
        asked, x = questions[first:last, row], at[first, row]
        wrong = np.einsum("qyxc,yxc->q", asked, interior.W, dtype=np.float64) + 0.1
        answers = np.where((wrong > 0) != (MARGINS[row] > 0), 1.0, -1.0)
        v = np.einsum("q,qyxc->yxc", answers - answers.mean(), (asked - x) / 0.1)
        way = v / np.linalg.norm(v) if norm == "l2" else np.sign(v)
        far = np.linalg.norm(x - clean[row]) if norm == "l2" else np.abs(x - clean[row]).max()
        followed = questions[last, row] - x
        clear = (np.abs(v) > 1e-4) & (questions[last, row] > 0) & (questions[last, row] < 1)
        assert len(asked) == 100 and clear.mean() > 0.2
        np.testing.assert_allclose(followed[clear], (far * way)[clear], atol=2e-3 * far)


def test_it_begins_at_flat_colours_then_noise_of_every_size_then_fainter():
    """Mean, black, white; noise of pixels, then of squares of 2, 4, 8 and 16; of that 1, 1/2, 1/4 and 1/8."""
    batch = interior.batch(MARGINS)._replace(labels=np.ones(16, np.int32))
    run = process("boundary", "l2", 60)
    state = jax.jit(run.init)(NEVER, batch, jnp.zeros(16), jnp.zeros(16, jnp.uint32))
    step = jax.jit(run.step)
    flat = [batch.images.mean(axis=(1, 2), keepdims=True), 0.0, 1.0]
    for i in range(24):
        state = step(jnp.int32(i), state, NEVER)
        asked = np.asarray(state.own[0])
        if i < 3:
            np.testing.assert_allclose(asked, np.broadcast_to(flat[i], asked.shape), atol=1e-6)
            continue
        side, share = 2 ** ((i - 3) % 5), 0.5 ** ((i - 3) // 5 % 4)
        blocks = batch.images + (asked - batch.images) / share
        whole = np.repeat(np.repeat(blocks[:, ::side, ::side], side, 1), side, 2)[:, :12, :12]
        np.testing.assert_allclose(blocks, whole, atol=1e-6 / share)
        assert blocks.min() > -1e-5 and blocks.max() < 1 + 1e-5
        assert np.ptp(blocks, axis=0).min() > 0  # each row its own
        assert side == 16 or np.ptp(blocks, axis=1).min() > 0
