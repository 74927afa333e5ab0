"""DeepFool, DDN, FMN and FAB against closed forms on a linear detector, and FAB's projection against linear
programs."""

import dataclasses
import functools

import interior
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ffjax import balls, engine, goals, gradients
from ffjax.attacks import ATTACKS, nearest, trail
from ffjax.attacks.fab import to_plane
from ffjax.engine import Compute

COMPUTE = Compute(batch=32, least=32, devices=1, execution="stepped")
MARGINS = interior.alternating(0.2, 0.8)
WALKS = [
    ("deepfool", "l2"),
    ("deepfool", "linf"),
    ("ddn", "l2"),
    ("fmn", "linf"),
    ("fmn", "l2"),
    ("fmn", "l1"),
    ("fmn", "l0"),
    ("fab", "linf"),
    ("fab", "l2"),
    ("fab", "l1"),
]
walks = pytest.mark.parametrize(("name", "norm"), WALKS, ids=[f"{name}-{norm}" for name, norm in WALKS])


@functools.cache
def process(name, norm, loss="margin", confidence=0.0, **options):
    """One object for the same options, so that it is compiled once."""
    return ATTACKS[name].build(goals.verdict(loss, confidence=confidence), norm, **options)


def attacked(name, norm, batch=None, seed=0, eps=np.inf, **options):
    batch = interior.batch(MARGINS) if batch is None else batch
    return engine.run(process(name, norm, **options), interior.FORWARD, batch, eps, seed, COMPUTE)


def states(name, norm, seed=0, eps=np.inf, **options):
    """The state before the first step and after each."""
    seen, every = [], dataclasses.replace(COMPUTE, chunk=1, snapshot=1)

    def save(step, state):
        seen.append(jax.tree.map(np.copy, state))

    def restore(state):
        return save(0, state) or (0, state)

    batch = interior.batch(MARGINS)
    made = process(name, norm, **options)
    engine.run(made, interior.FORWARD, batch, eps, seed, every, save=save, restore=restore)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *seen)


def along(seen, norm):
    """(steps, B): how far each iterate is, in units of the distance to the boundary."""
    size = jax.vmap(jax.vmap(balls.BALLS[norm](1.0).norm))
    return np.asarray(size(seen.own[0] - seen.trail.batch.images)) / interior.distances(MARGINS, norm)


OPTIONS = {"ddn": {"initial": 0.1}}
"""DDN comes down from its first norm by a factor 0.95 a step, and the rows here lie at 0.01 to 0.04."""


@walks
def test_the_closest_within_a_twentieth_of_the_closed_form(name, norm):
    result = attacked(name, norm, **OPTIONS.get(name, {}))
    ratio = result.distance / interior.distances(MARGINS, norm)
    assert result.success.all()
    assert ratio.min() > 0.999 and ratio.max() < 1.05


@walks
def test_an_image_that_passes_as_it_is_costs_one_gradient_and_stays(name, norm):
    batch = interior.batch(MARGINS)
    result = attacked(name, norm, batch._replace(labels=1 - batch.labels), **OPTIONS.get(name, {}))
    assert result.success.all()
    np.testing.assert_array_equal(result.images, batch.images)
    np.testing.assert_array_equal((result.gradients, result.queries), np.ones((2, 32)))


@walks
def test_a_step_costs_one_gradient_and_the_end_one_query(name, norm):
    result = attacked(name, norm, **OPTIONS.get(name, {}))
    done = name == "deepfool"
    np.testing.assert_array_equal(result.gradients, np.full(32, 2 if done else process(name, norm).steps))
    np.testing.assert_array_equal(result.queries, result.gradients + (0 if done else 1))


@pytest.mark.parametrize(
    ("name", "norm", "loss", "confidence", "level"),
    [
        ("deepfool", "linf", "margin", 1.0, 1.0),
        ("ddn", "l2", "margin", 1.0, 1.0),
        ("fmn", "l2", "margin", 1.0, 1.0),
        ("fmn", "l1", "ce", 0.0, np.log(2)),
        ("fab", "linf", "margin", 1.0, 1.0),
        ("fab", "l1", "ce", 0.0, np.log(2)),
    ],
)
def test_the_level_is_where_the_goal_is_reached(name, norm, loss, confidence, level):
    """Past the boundary by a confidence, or another increasing function of the margin."""
    options = OPTIONS["ddn"] if name == "ddn" else {"level": float(level)}
    result = attacked(name, norm, loss=loss, confidence=confidence, **options)
    ratio = result.distance / interior.distances(MARGINS, norm, confidence)
    assert result.success.all()
    assert ratio.min() > 0.999 and ratio.max() < 1.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfools_one_step_is_exact(norm):
    result = attacked("deepfool", norm, steps=1)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, 1.02 * interior.distances(MARGINS, norm), rtol=1e-3)
    short = attacked("deepfool", norm, steps=1, overshoot=-0.02)
    assert not short.success.any()


def test_ddns_norm_shrinks_after_a_success_and_grows_after_a_failure():
    seen = states("ddn", "l2", initial=0.1, steps=60)
    sizes = along(seen, "l2") * interior.distances(MARGINS, "l2")
    size, plan = np.full(32, 0.1), [np.zeros(32)]
    for _ in range(60):
        passed = plan[-1] > interior.distances(MARGINS, "l2")
        size = size * np.where(passed, 0.95, 1.05)
        plan.append(size)
    plan = np.array(plan)
    clear = np.all(np.abs(plan / interior.distances(MARGINS, "l2") - 1) > 1e-3, axis=0)  # rounding decides the others
    assert clear.sum() >= 8
    np.testing.assert_allclose(sizes[:, clear], plan[:, clear], rtol=1e-3)


def test_ddns_iterates_lie_on_the_lattice_of_8_bit_images():
    batch = interior.batch(interior.alternating(4, 8))
    batch = batch._replace(images=np.asarray(trail.rounded(batch.images)))
    result = attacked("ddn", "l2", batch, levels=256)
    assert result.success.all() and result.success_8bit.all()
    np.testing.assert_array_equal(result.images, np.asarray(trail.rounded(result.images)))
    assert np.all(result.distance > 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmns_first_ball_reaches_just_to_the_boundary(norm):
    first = states("fmn", norm, steps=1).own[1][1]
    np.testing.assert_allclose(first, interior.distances(MARGINS, norm), rtol=1e-3)


def test_fmn_counts_in_whole_components():
    seen = states("fmn", "l0", steps=30)
    np.testing.assert_array_equal(seen.own[1], np.round(seen.own[1]))
    changed = np.sum(seen.own[0] != seen.trail.batch.images, axis=(2, 3, 4))
    assert np.all(changed <= seen.own[1]) and np.all(seen.own[1][1] == 2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fabs_walk_on_a_linear_detector(norm):
    """One dimension: s -> (1 - a) (s + 1.05 (1 - s)) + 1.05 a towards the boundary at 1, back to 0.9 s from beyond."""
    places = along(states("fab", norm, steps=12), norm)
    s, plan = 0.0, [0.0]
    for _ in range(12):
        a = min(0.1, (1 - s) / (2 - s))
        s = 0.9 * s if s > 1 else (1 - a) * (s + 1.05 * (1 - s)) + 1.05 * a
        plan.append(s)
    np.testing.assert_allclose(places, np.tile(np.array(plan)[:, None], 32), rtol=5e-3)


def test_fab_starts_anew_from_another_seed_inside_half_the_bound():
    start = {"start": "random", "steps": 3}
    one, again, other = (attacked("fab", "l2", seed=seed, eps=0.1, **start) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, again.images)
    assert np.abs(one.images - other.images).max() > 1e-4
    np.testing.assert_array_equal(one.queries, one.gradients + 2)  # the clean image, and the last
    away = along(states("fab", "l2", eps=0.1, **start), "l2")[0] * interior.distances(MARGINS, "l2")
    assert np.all((away > 0.04) & (away < 0.05001))  # in 432 dimensions nearly all of a ball is its rim


@pytest.mark.parametrize(("push", "holds"), [(0.9995, True), (0.98, False)])
def test_a_success_lost_to_rounding_is_pushed_on_and_else_is_the_clean_image(push, holds):
    """Iterates taken for successes a little short of the boundary: by 0.05 %, as rounding has it, and by 2 %."""
    batch = interior.batch(MARGINS)
    way = -MARGINS[:, None, None, None] * interior.W / np.sum(interior.W**2)
    best = (batch.images + push * way).astype(np.float32)
    kept = trail.begin(jax.tree.map(jnp.asarray, batch), jnp.full(32, jnp.inf), jnp.zeros(32, jnp.uint32))
    kept = kept._replace(best=jnp.asarray(best), reached=jnp.ones(32, bool))
    result = nearest.finish(goals.verdict(), balls.l2(1.0))(trail.State(kept, ()), interior.FORWARD)
    assert np.all(np.asarray(result.success) == holds)
    if holds:
        ratio = np.asarray(result.distance) / interior.distances(MARGINS, "l2")
        assert np.all((ratio > 1) & (ratio < 1.001))
    else:
        np.testing.assert_array_equal(result.images, batch.images)


def test_an_estimator_stands_in_for_the_gradient():
    goal = goals.verdict()
    twice = gradients.averaged(goal, lambda key, x: x, 2)
    batch = interior.batch(MARGINS)
    mean = ATTACKS["deepfool"].build(goal, "l2", estimator=twice)
    other, plain = engine.run(mean, interior.FORWARD, batch, np.inf, 0, COMPUTE), attacked("deepfool", "l2")
    np.testing.assert_allclose(other.images, plain.images, atol=1e-5)
    np.testing.assert_array_equal(other.gradients, 2 * plain.gradients)


SMALL = 8


@functools.cache
def projection(norm):
    return jax.jit(functools.partial(to_plane, norm=norm))


@given(
    x=st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]), min_size=SMALL, max_size=SMALL),
    slope=st.lists(st.sampled_from([-3.0, -1.0, -0.01, 0.0, 0.5, 1.0, 2.0]), min_size=SMALL, max_size=SMALL),
    share=st.floats(0.01, 0.95),
    up=st.booleans(),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    scale=st.sampled_from([1e-12, 1.0, 1e6]),
)
def test_the_projection_is_the_smallest_step_to_the_plane_inside_the_box(x, slope, share, up, norm, scale):
    x, slope = np.float32(x), np.float32(slope)
    toward = slope if up else -slope
    most = np.sum(np.abs(slope) * np.where(toward > 0, 1 - x, np.where(toward < 0, x, 0)))
    gap = (1 if up else -1) * share * most
    delta = np.asarray(projection(norm)(x, slope * np.float32(scale), np.float32(gap * scale)), np.float64)
    assert np.all(x + delta >= -1e-6) and np.all(x + delta <= 1 + 1e-6)
    np.testing.assert_allclose(delta @ slope, gap, rtol=1e-4, atol=1e-6)
    size = {"linf": np.abs(delta).max(), "l2": np.linalg.norm(delta), "l1": np.abs(delta).sum()}[norm]
    np.testing.assert_allclose(size, least(x.astype(float), slope.astype(float), gap, norm), rtol=1e-3, atol=1e-5)


def least(x, slope, gap, norm):
    """The optimum by other means: a linear program for l_inf and l_1; for l_2 the dual function, on a fine grid."""
    n, one, eye = len(x), np.ones((len(x), 1)), np.eye(len(x))
    box = [(-a, 1 - a) for a in x]
    if norm == "l2":  # weak duality: every multiplier's value is a lower bound, the best one's the optimum
        top = max(np.max(np.abs(slope)), 1e-9)
        multipliers = np.concatenate([[0], np.geomspace(1e-4, 1e4, 20001)]) / top * np.sign(gap or 1)
        inner = np.clip(multipliers[:, None] * slope / 2, -x, 1 - x)
        return np.sqrt(max(0, np.max(np.sum(inner**2, axis=1) + multipliers * (gap - inner @ slope))))
    if norm == "linf":  # delta and t: |delta_j| <= t
        cost = np.r_[np.zeros(n), 1]
        above, extra = np.block([[eye, -one], [-eye, -one]]), [(0, None)]
    else:  # delta and t_j: |delta_j| <= t_j
        cost = np.r_[np.zeros(n), np.ones(n)]
        above, extra = np.block([[eye, -eye], [-eye, -eye]]), [(0, None)] * n
    equal = np.r_[slope, np.zeros(len(cost) - n)][None]
    return linprog(cost, above, np.zeros(2 * n), equal, [gap], bounds=box + extra).fun


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_out_of_reach_takes_the_projection_to_the_boxs_corner(norm):
    x, slope = np.float32([0.25, 0.5, 1.0, 0.0]), np.float32([1.0, -2.0, 0.5, 0.0])
    np.testing.assert_allclose(projection(norm)(x, slope, np.float32(50)), [0.75, -0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(projection(norm)(x, 0 * slope, np.float32(1)), np.zeros(4))


@pytest.mark.parametrize(("name", "norm"), [("ddn", "linf"), ("cw", "linf")])
def test_a_norm_that_an_attack_does_not_know_is_refused(name, norm):
    with pytest.raises(ValueError, match="l2 only"):
        process(name, norm)
