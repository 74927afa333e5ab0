"""Universal perturbations, over the whole table: in the ball, apart from each other, resumable, blind to data."""

import itertools
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import balls, checkpoint, riders, uap
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.objectives import AGGREGATIONS, STATISTICS, over_fire
from ffjax.types import Batch, ImageSet, Outputs, UapState
from ffjax.uap import Source
from ffjax.universal import UapConfig, universal
from ffjax.universal.ascent import changed
from ffjax.universal.config import bounds
from ffjax.universal.patterns import lay_out, layer_weights
from ffjax.universal.shapes import additive
from ffjax.universal.slopes import shower

SOURCE = toys.source()
SEEDS = tuple(range(8))
NORMS = ("linf", "l2")  # those UapConfig takes
AXES = (
    tuple(STATISTICS),
    tuple(AGGREGATIONS),
    ("no_data", "range_prior", "with_data"),
    ("adam", "sign"),
    NORMS,
)
QUICK = Compute(chunk=4, snapshot=4, devices=1)


def covering(axes) -> list[tuple]:
    """Rows in which every pair of values of two axes occurs: each choice meets every other, at a tenth of the cost."""
    pairs = list(itertools.combinations(range(len(axes)), 2))
    missing = {(i, a, j, b) for i, j in pairs for a in axes[i] for b in axes[j]}
    rows = []
    while missing:
        row = max(itertools.product(*axes), key=lambda r: sum((i, r[i], j, r[j]) in missing for i, j in pairs))
        missing -= {(i, row[i], j, row[j]) for i, j in pairs}
        rows.append(row)
    return rows


TABLE = covering(AXES)


def config(**fields) -> UapConfig:
    small = {"seeds": SEEDS, "steps": 12, "check": 4, "eps": (0.5,) if fields.get("norm") == "l2" else (10.0,)}
    return UapConfig(**(small | fields))


def of_row(row) -> UapConfig:
    statistic, aggregation, mode, rule, norm = row
    return config(statistic=statistic, aggregation=aggregation, mode=mode, rule=rule, norm=norm)


def ridden(cfg: UapConfig) -> Batch:
    """Carriers of the shape the mode has; fixed, so that the objective can be followed."""
    return riders.at_step(cfg, toys.SHAPE, toys.masked())(0)


def followed(cfg: UapConfig, forwards=(SOURCE.forward,), laid=None, steps=None):
    """-> (patterns, [state before the first step, after it, ...], [infos]), on the host."""
    laid = laid or lay_out(cfg, [(f"toy{k}", toys.LAYERS) for k in range(len(forwards))])
    made, x = universal(cfg), ridden(cfg)
    state, step = made.init(laid.keys, laid.eps, toys.SHAPE), jax.jit(made.step)
    states, infos = [jax.device_get(state)], []
    for i in range(cfg.steps if steps is None else steps):
        state, info = step(jnp.int32(i), state, x, laid.eps, laid.weights, tuple(forwards), x)
        states.append(jax.device_get(state))
        infos.append(jax.device_get(info))
    return laid, states, infos


def made(cfg, folder, compute=QUICK, sources=(SOURCE,), watch=lambda done, infos: None, train=None, validation=None):
    shots = checkpoint.snapshots(folder)
    laid = lay_out(cfg, [(s.name, s.layers) for s in sources])
    try:
        return jax.device_get(uap.make(cfg, laid, sources, toys.SHAPE, compute, shots, watch, train, validation))
    finally:
        shots.close()


def inside(delta: np.ndarray, eps: np.ndarray, norm: str) -> bool:
    flat = delta.astype(np.float64).reshape(len(delta), -1)
    if norm == "linf":
        return bool((np.abs(flat).max(axis=1) <= eps).all())
    return bool((np.linalg.norm(flat, axis=1) <= eps * (1 + 2 * balls.SLACK)).all())


@pytest.mark.parametrize("row", TABLE, ids="-".join)
def test_every_iterate_is_in_the_ball_and_the_objective_rises(row):
    cfg = of_row(row)
    laid, states, infos = followed(cfg)
    for state in states:
        assert all(np.isfinite(leaf).all() for leaf in (state.delta, state.best, *jax.tree.leaves(state.optimiser)))
        assert inside(state.delta, np.asarray(laid.eps), cfg.norm)
        assert inside(state.best, np.asarray(laid.eps), cfg.norm)
        assert np.abs(state.delta).max() <= 1
    best = np.maximum.reduce([info.objective for info in infos[1:]])
    assert (best > infos[0].objective).all()
    assert (states[-1].best_score >= infos[0].objective).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_eps_zero_gives_nothing(norm, rule):
    _, states, _ = followed(config(norm=norm, rule=rule, eps=(0.0,)))
    assert all(not state.delta.any() and not state.best.any() for state in states)


@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_patterns_do_not_influence_each_other(rule):
    """24 and 32 patterns side by side: bit-equal. (From 8 rows up on the real networks; this toy's sums over so few
    numbers are compiled otherwise below some 20 rows, and then agree to rounding.)"""
    many = config(seeds=tuple(range(32)), rule=rule)
    few = replace(many, seeds=tuple(range(4, 28)))
    _, beside, _ = followed(many)
    _, apart, _ = followed(few)
    for a, b in zip(beside, apart, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.array_equal(x[4:28], y)


def test_a_pattern_beside_any_others_takes_the_same_step_to_rounding():
    alone = followed(config(seeds=(5,)), steps=1)[2][0]
    beside = followed(config(seeds=(0, 5, 9)), steps=1)[2][0]
    np.testing.assert_allclose(alone.objective[0], beside.objective[1], rtol=1e-6)


def test_fault_14_a_seed_starts_alike_whatever_is_beside_it():
    alone = lay_out(config(seeds=(3,)), [("toy", toys.LAYERS)])
    among = lay_out(config(seeds=(7, 3), layers=("all", "first"), eps=(4.0, 10.0)), [("toy", toys.LAYERS)])
    keys = jax.random.key_data(among.keys)
    for k, name in enumerate(among.names):
        assert np.array_equal(keys[k], jax.random.key_data(alone.keys)[0]) is name.endswith("seed3")


def test_patterns_are_laid_out_right():
    laid = lay_out(
        config(seeds=(7, 3), layers=("all", "conv2", "first", "conv1+conv2"), eps=(4.0, 10.0)), [("t", toys.LAYERS)]
    )
    assert len(laid.names) == len(set(laid.names)) == 16
    assert laid.names[:5] == ("all-4-seed7", "all-4-seed3", "all-10-seed7", "all-10-seed3", "conv2-4-seed7")
    assert laid.groups[:5] == ("all-4", "all-4", "all-10", "all-10", "conv2-4")
    np.testing.assert_allclose(laid.eps[:5], np.array([4, 4, 10, 10, 4]) / 255, rtol=1e-6)
    rows = {group: laid.weights[0][k].tolist() for k, group in enumerate(laid.groups)}
    assert rows["all-10"] == rows["conv1+conv2-10"] == [1, 1]
    assert rows["conv2-4"] == [0, 1]
    assert rows["first-4"] == [1, 0]
    assert layer_weights("last", toys.LAYERS) == [0, 1]
    assert bounds(config(norm="l2"), 0.5) == 0.5


def test_each_pattern_follows_its_own_layers_and_bound():
    cfg = config(seeds=(0,), layers=("first", "last"), eps=(2.0, 10.0), rule="sign", steps=10)
    laid, states, infos = followed(cfg)
    sizes = np.abs(states[-1].best).max(axis=(1, 2, 3))
    np.testing.assert_allclose(sizes, laid.eps, rtol=1e-6)
    x = jnp.asarray(states[0].delta)
    for row, layer in ((0, 0), (2, 1)):
        act = list(SOURCE.forward(x).acts.values())[layer]
        np.testing.assert_allclose(infos[0].objective[row], np.log(np.linalg.norm(act[row])), rtol=1e-5)


def test_an_unknown_layer_is_refused_naming_the_known():
    for choice in ("conv9", "conv1+conv9", "", "All"):
        with pytest.raises(InputError, match="known: all, first, last, conv1, conv2") as caught:
            lay_out(config(layers=(choice,)), [("toy", toys.LAYERS)])
        assert "\n" not in str(caught.value) and "toy" in str(caught.value)


def test_a_detector_that_names_no_activations_is_refused_as_source():
    with pytest.raises(InputError, match="box: names no activations"):
        lay_out(config(), [("box", ())])


def test_no_pattern_is_refused():
    for field in ("seeds", "eps", "layers"):
        with pytest.raises(InputError, match=field):
            lay_out(config(**{field: ()}), [("toy", toys.LAYERS)])


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("check", 0), ("carriers", -1), ("seeds", (1, 1)), ("eps", (-1.0,)), ("seeds", (-1,))],
)
def test_values_no_optimisation_can_use_are_refused(field, value):
    with pytest.raises(InputError, match=r"^uap"):
        lay_out(config(**{field: value}), [("toy", toys.LAYERS)])


def test_the_sign_rule_moves_by_the_rate():
    cfg = config(rule="sign", rate=0.5, eps=(200.0,))
    _, states, _ = followed(cfg, steps=3)
    for before, after in itertools.pairwise(states):
        free = np.abs(before.delta) < 199 / 255  # the ball does not stop these
        moves = np.abs(after.delta - before.delta)[free] * 255
        np.testing.assert_allclose(moves[moves > 0], 0.5, rtol=1e-3)
        assert (moves > 0).mean() > 0.9


def test_the_step_follows_the_gradient():
    cfg = config(rule="sign", eps=(200.0,))
    laid, states, _ = followed(cfg, steps=1)
    objective = over_fire()
    grad = jax.grad(lambda d: jnp.sum(objective(SOURCE.forward(d), laid.weights[0])))(jnp.asarray(states[0].delta))
    moved = states[1].delta - states[0].delta
    clear = np.abs(grad) > 1e-5
    assert clear.mean() > 0.5
    assert np.array_equal(np.sign(moved[clear]), np.sign(grad[clear]))


def test_several_sources_are_averaged():
    one, two = toys.forward(0), toys.forward(1)
    cfg = config(steps=1)
    _, states, both = followed(cfg, (one, two))
    singles = [followed(cfg, (f,))[2][0].objective for f in (one, two)]
    np.testing.assert_allclose(both[0].objective, np.mean(singles, axis=0), rtol=1e-5)
    twice = followed(cfg, (one, one))[1]
    np.testing.assert_allclose(twice[-1].delta, followed(cfg, (one,))[1][-1].delta, atol=1e-6)
    assert np.abs(states[-1].delta - twice[-1].delta).max() > 1e-3


def test_carriers_are_averaged():
    """Each pattern on each carrier, with the pattern's own layers; other carriers at every step."""
    cfg = config(mode="range_prior", steps=1, layers=("first", "last", "all"))
    laid, states, infos = followed(cfg)
    shown = np.clip(np.asarray(ridden(cfg).images)[:, None] + states[0].delta[None], 0, 1)
    values = [over_fire()(SOURCE.forward(jnp.asarray(row)), laid.weights[0]) for row in shown]
    np.testing.assert_allclose(infos[0].objective, np.mean(values, axis=0), rtol=1e-5)
    inputs = riders.at_step(cfg, toys.SHAPE, None)
    assert np.array_equal(inputs(5).images, inputs(5).images)
    assert not np.array_equal(inputs(5).images, inputs(6).images)


def hand_made(response) -> Source:
    """A detector whose one activation is `response` of the image."""

    def apply(variables, images):
        act = response(images + variables)
        return Outputs(jnp.stack([-jnp.sum(act, (1, 2, 3)), jnp.sum(act, (1, 2, 3))], 1), None, OrderedDict(only=act))

    return Source("made", jax.tree_util.Partial(apply, jnp.zeros((1, 1, 1, 1))), ("only",))


def hand(cfg, response, steps=None):
    source = hand_made(response)
    return followed(cfg, (source.forward,), lay_out(cfg, [("made", source.layers)]), steps=steps)


@pytest.mark.parametrize(("statistic", "aggregation"), list(itertools.product(STATISTICS, AGGREGATIONS)))
def test_a_dead_network_leaves_the_pattern_where_it_is(statistic, aggregation):
    cfg = config(statistic=statistic, aggregation=aggregation, steps=4, rescale_at=2.0)
    _, states, infos = hand(cfg, lambda x: jax.nn.relu(x - 10.0))
    assert np.array_equal(states[-1].delta, states[0].delta)
    assert all(np.isfinite(info.objective).all() for info in infos)


def test_a_saturated_settled_pattern_is_halved():
    """Response = the image, so the sign rule walks straight to the corner: all at the bound, and no longer moving."""
    cfg = config(rule="sign", eps=(4.0,), rate=20.0, steps=6, check=100)
    laid, states, infos = hand(cfg, lambda x: x)
    corner = np.asarray(laid.eps)[:, None, None, None] * np.ones(toys.SHAPE)
    np.testing.assert_allclose(np.abs(states[1].delta), corner, rtol=1e-6)
    assert not infos[0].rescaled.any() and infos[0].saturation.min() == 1
    assert infos[1].rescaled.all()
    np.testing.assert_allclose(np.abs(states[2].delta), corner / 2, rtol=1e-6)
    assert np.array_equal(np.sign(states[2].delta), np.sign(states[1].delta))


def test_a_moving_or_unsaturated_pattern_is_not_halved():
    for fields in ({"rescale_at": 1.0}, {"settled": 0.0}):
        _, _, infos = hand(config(rule="sign", eps=(4.0,), rate=20.0, steps=6, **fields), lambda x: x)
        assert not any(info.rescaled.any() for info in infos)


def test_an_l2_pattern_keeps_the_size_it_may_have():
    """On the sphere no component is stuck, so nothing is halved; a smaller pattern would be a weaker one."""
    cfg = config(norm="l2", steps=40)
    laid, states, infos = followed(cfg)
    assert not any(info.rescaled.any() for info in infos)
    np.testing.assert_allclose(np.linalg.norm(states[-1].best.reshape(8, -1), axis=1), laid.eps, rtol=1e-4)


def test_best_is_the_highest_scored():
    """The steps are so large that patterns saturate and are halved time and again: the objective goes up and down."""
    cfg = config(rule="sign", rate=20.0, eps=(40.0,), steps=24, check=2, patience=100, settled=0.05)
    laid, states, infos = followed(cfg)
    objective = over_fire()
    scored = np.stack(
        [objective(SOURCE.forward(jnp.asarray(states[i].delta)), laid.weights[0]) for i in range(2, 25, 2)]
    )
    np.testing.assert_allclose(states[-1].best_score, scored.max(axis=0), atol=2e-4)  # less than `tolerance` is no gain
    assert (scored[-1] < scored.max(axis=0) - 1e-3).any()  # the case is one: some last iterate is not the best
    again = objective(SOURCE.forward(jnp.asarray(states[-1].best)), laid.weights[0])
    np.testing.assert_allclose(again, states[-1].best_score, rtol=1e-5)
    shown = np.stack([info.best_score for info in infos[1:]])
    assert (np.diff(shown, axis=0) >= 0).all()


def test_a_pattern_without_gain_stops_and_stays():
    cfg = config(steps=20, check=2, patience=2, tolerance=10.0, rescale_at=2.0)  # no gain is ever enough
    _, states, _ = followed(cfg)
    stopped = [int(state.done.all()) for state in states]
    assert stopped == [0] * 6 + [1] * 15  # the first score at step 2, two without gain at 4 and 6
    for state in states[6:]:
        assert np.array_equal(state.delta, states[6].delta)
        assert np.array_equal(state.best, states[2].delta)


def test_a_running_pattern_goes_on_beside_a_stopped_one():
    cfg = config(steps=8, check=100)
    made_of, laid = universal(cfg), lay_out(cfg, [("toy", toys.LAYERS)])
    state = made_of.init(laid.keys, laid.eps, toys.SHAPE)
    state = state._replace(done=jnp.arange(8) % 2 == 0)
    x = ridden(cfg)
    new, info = jax.jit(made_of.step)(0, state, x, laid.eps, laid.weights, (SOURCE.forward,), x)
    still = [np.array_equal(a, b) for a, b in zip(new.delta, state.delta, strict=True)]
    assert still == [True, False] * 4
    assert not info.rescaled[::2].any()


def test_the_fooling_score_counts_changed_verdicts():
    images = jnp.asarray(toys.images(10).images / np.float32(255))
    delta = jnp.stack([jnp.zeros(toys.SHAPE), jnp.full(toys.SHAPE, 0.6), jnp.full(toys.SHAPE, -0.6)])
    clean = np.asarray(SOURCE.forward(images).logits)
    expected = []
    for d in np.asarray(delta):
        now = np.asarray(SOURCE.forward(jnp.clip(images + d[None], 0, 1)).logits)
        expected.append(np.mean((now[:, 1] > now[:, 0]) != (clean[:, 1] > clean[:, 0])))
    bank = Batch(images, jnp.zeros(10, int), jnp.arange(10))
    found = jax.jit(partial(changed, shower(additive("linf"), (), clipped=True)))(delta, bank, SOURCE.forward)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[0] == 0 and max(expected) > 0


class Interrupted(Exception):
    pass


def killed_at(step: int):
    def watch(done, infos):
        if done >= step:
            raise Interrupted

    return watch


@pytest.mark.parametrize("mode", ["no_data", "range_prior", "with_data"])
def test_killed_anywhere_and_called_again_it_ends_bit_equal(mode, tmp_path):
    cfg = config(mode=mode, score="fooling" if mode == "with_data" else "objective")
    train = toys.images() if mode == "with_data" else None
    whole = made(cfg, tmp_path / "whole", train=train)
    for step in (4, 8, 12):
        folder = tmp_path / f"cut{step}"
        for _ in range(2):  # killed twice at the same place: before its snapshot was written
            with pytest.raises(Interrupted):
                made(cfg, folder, watch=killed_at(step), train=train)
        seen = []
        resumed = made(cfg, folder, watch=lambda done, infos, seen=seen: seen.append(done), train=train)
        assert seen == list(range(step, 13, 4))
        for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
            assert np.array_equal(a, b)


def test_resumed_with_another_chunk_it_ends_bit_equal(tmp_path):
    whole = made(config(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        made(config(), tmp_path / "cut", watch=killed_at(8))
    resumed = made(config(), tmp_path / "cut", Compute(chunk=5, snapshot=3, devices=1))
    assert np.array_equal(resumed.best, whole.best) and np.array_equal(resumed.delta, whole.delta)


def test_a_finished_job_called_again_does_nothing(tmp_path):
    for name, cfg in (("steps", config()), ("patience", config(steps=40, patience=1, tolerance=10.0))):
        first = made(cfg, tmp_path / name)
        again = made(cfg, tmp_path / name, watch=lambda done, infos: pytest.fail("a step was run"))
        assert np.array_equal(first.best, again.best)
        assert name == "steps" or bool(first.done.all())


@pytest.mark.parametrize(("chunk", "snapshot", "expected"), [(4, 4, [4, 8, 12]), (5, 6, [10, 12]), (3, 100, [12])])
def test_snapshots_come_at_the_first_visit_after_each_interval(chunk, snapshot, expected, tmp_path):
    saved = []
    shots = checkpoint.Snapshots(lambda step, state: saved.append(step), lambda like: (0, like), lambda: None)
    cfg = config()
    laid = lay_out(cfg, [("toy", toys.LAYERS)])
    compute = Compute(chunk=chunk, snapshot=snapshot, devices=1)
    uap.make(cfg, laid, [SOURCE], toys.SHAPE, compute, shots, lambda done, infos: None)
    assert saved == expected


class Poison:
    """Whatever is asked of it fails."""

    def __getattr__(self, name):
        raise AssertionError(f"images were touched ({name})")


@pytest.mark.parametrize("mode", ["no_data", "range_prior"])
@pytest.mark.parametrize("score", ["objective", "fooling"])
def test_modes_that_see_no_data_never_touch_it(mode, score, tmp_path):
    cfg = config(mode=mode, score=score, steps=4)
    without = made(cfg, tmp_path / "without")
    poison: ImageSet = Poison()  # type: ignore[assignment]
    beside = made(cfg, tmp_path / "beside", train=poison, validation=poison)
    for a, b in zip(jax.tree.leaves(without), jax.tree.leaves(beside), strict=True):
        assert np.array_equal(a, b)


def test_modes_that_need_data_say_so(tmp_path):
    with pytest.raises(InputError, match="train split"):
        made(config(mode="with_data"), tmp_path / "a")
    with pytest.raises(InputError, match="validation split"):
        made(config(bank="data"), tmp_path / "b", train=toys.images())


def test_with_data_and_a_data_bank_use_them(tmp_path):
    cfg = config(mode="with_data", bank="data", score="objective", steps=4, carriers=20)
    one = made(cfg, tmp_path / "one", train=toys.images(seed=1), validation=toys.images(seed=2))
    two = made(cfg, tmp_path / "two", train=toys.images(seed=3), validation=toys.images(seed=2))
    three = made(cfg, tmp_path / "three", train=toys.images(seed=1), validation=toys.images(seed=4))
    assert not np.array_equal(one.delta, two.delta)
    assert np.array_equal(one.delta, three.delta)
    assert not np.array_equal(one.best_score, three.best_score)


def test_stepped_and_fused_tell_the_same_story(tmp_path):
    seen = {}
    for execution in ("stepped", "fused"):
        rows = seen[execution] = []
        compute = Compute(execution=execution, chunk=4, devices=1)
        made(config(mode="range_prior"), tmp_path / execution, compute, watch=lambda d, i, rows=rows: rows.append(i))
    first = [seen[e][0].objective[0] for e in seen]
    np.testing.assert_allclose(*first, rtol=1e-6)
    trajectories = [np.concatenate([info.objective for info in seen[e]]) for e in seen]
    np.testing.assert_allclose(*trajectories, rtol=1e-4)


def test_one_trace_for_other_weights_bounds_layers_and_seeds(tmp_path):
    traces = []

    def counted(variables, images):
        traces.append(1)
        return toys.TOY.apply(variables, images)

    cfg = config(steps=12)
    made_of, x = universal(cfg), ridden(cfg)
    step = jax.jit(made_of.step)
    before = step._cache_size()  # other tests may have asked for the same step
    for seed, eps, layers in ((0, 4.0, "all"), (1, 10.0, "first"), (2, 1.0, "conv2")):
        laid = lay_out(replace(cfg, eps=(eps,), layers=(layers,)), [("toy", toys.LAYERS)])
        forward = jax.tree_util.Partial(counted, toys.TOY.init(jax.random.key(seed)))
        state: UapState = made_of.init(laid.keys, laid.eps, toys.SHAPE)
        for i in range(3):
            state, _ = step(jnp.int32(i), state, x, laid.eps, laid.weights, (forward,), x)
    assert len(traces) <= 3  # objective, its gradient, the score: each once
    assert step._cache_size() - before == 1


def test_the_same_config_gives_the_same_step():
    """So that a job made again in one process does not compile again."""
    assert universal(config()) is universal(config())
    assert universal(config()) is not universal(config(rate=2.0))


def test_chosen_is_the_best_of_each_group():
    laid = lay_out(config(seeds=(0, 1, 2), eps=(4.0, 10.0)), [("toy", toys.LAYERS)])
    assert uap.chosen(laid, np.array([1.0, 3.0, 2.0, 9.0, 7.0, 8.0])) == [1, 3]
