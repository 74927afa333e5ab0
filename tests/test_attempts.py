"""Restarts, ensembles and the search for the smallest bound, on runners that are told what to answer and on real
ones."""

import dataclasses

import jax
import numpy as np
import pytest
import toys

from ffjax import attempts, goals
from ffjax.attempts import ensemble, named, once, restarts, smallest, within
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.types import AttackResult, Batch

COMPUTE = Compute(batch=32, least=32, devices=1)
ROWS = 6


def batch(rows: int = ROWS) -> Batch:
    return Batch(np.zeros((rows, 2, 2, 3), np.float32), np.ones(rows, np.int32), np.arange(rows, dtype=np.int32))


def scripted(breaks, loss=0.0, size=0.5, seen=None):
    """A runner that breaks the ids for which breaks(id, eps, seed) holds, with images that hold `loss`."""

    def run(batch, eps, seed):
        if seen is not None:
            seen.append((batch.ids.tolist(), seed))
        won = np.array([breaks(i, e, seed) for i, e in zip(batch.ids, eps, strict=True)], bool)
        images = np.full_like(batch.images, loss)
        count = len(won)
        one = np.ones(count, np.int32)
        return AttackResult(images, won, won, np.full(count, loss), np.float32(size) * eps, one, 2 * one)

    return run


def bounds(value=1.0, rows=ROWS):
    return np.full(rows, value, np.float32)


def test_members_of_an_ensemble_see_only_what_stands_and_costs_add_up():
    seen, broken = [], {}
    runners = {
        "first": scripted(lambda i, e, s: i < 2, 0.1, seen=seen),
        "second": scripted(lambda i, e, s: i == 4, 0.9, seen=seen),
        "third": scripted(lambda i, e, s: False, 0.5, seen=seen),
    }
    found = ensemble(runners, lambda name, ids: broken.update({name: ids.tolist()}))(batch(), bounds(), 3)
    assert [ids for ids, _ in seen] == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 5]]
    assert broken == {"first": [0, 1], "second": [4], "third": []}
    assert found.success.tolist() == [True, True, False, False, True, False]
    assert found.gradients.tolist() == [1, 1, 3, 3, 2, 3] and found.queries.tolist() == [2, 2, 6, 6, 4, 6]
    np.testing.assert_allclose(found.images[:, 0, 0, 0], [0.1, 0.1, 0.1, 0.1, 0.9, 0.1])


def test_restarts_differ_in_seed_and_keep_the_best_failure():
    seeds = []

    def run(batch, eps, seed):
        seeds.append(seed)
        return scripted(lambda i, e, s: i == len(seeds), loss=float(len(seeds) % 3))(batch, eps, seed)

    found = restarts(run, 4)(batch(), bounds(), 7)
    assert len(set(seeds)) == 4 and seeds[0] == 7
    assert found.success.tolist() == [False, True, True, True, True, False]
    assert found.loss[0] == 2.0  # of losses 1, 2, 0, 1


def test_restarts_of_neighbouring_seeds_share_none():
    def seeds(seed):
        seen = []
        restarts(scripted(lambda i, e, s: False, seen=seen), 5)(batch(), bounds(), seed)
        return {s for _, s in seen}

    assert not seeds(0) & seeds(1)


def test_a_minimal_attack_is_held_to_eps_and_fails_as_the_clean_image():
    found = within(scripted(lambda i, e, s: True, 0.3, size=2.0))(batch(), bounds(), 0)
    assert not found.success.any() and not found.success_8bit.any()
    np.testing.assert_array_equal(found.images, batch().images)
    assert within(scripted(lambda i, e, s: True, size=0.9))(batch(), bounds(), 0).success.all()


@pytest.mark.parametrize("tries", [1, 6, 12])
def test_the_smallest_bound_is_found_to_within_two_to_the_minus_tries(tries):
    needed = np.array([0.05, 0.1, 0.35, 0.6, 0.99, 1.7])
    found = smallest(scripted(lambda i, e, s: e >= needed[i], size=1.0), tries)(batch(), bounds(), 0)
    assert found.success.tolist() == [True] * 5 + [False]
    assert np.all(found.distance[:5] >= needed[:5] - 1e-6)
    assert np.all(found.distance[:5] <= needed[:5] + 2.0**-tries + 1e-6)
    assert found.distance[5] == 0 and np.all(found.images[5] == 0)


def linear_case(count=32, seed=0):
    """Images inside the box, with the label the linear detector gives them, and their l_inf distance to its
    boundary."""
    variables = toys.LINEAR.init(jax.random.key(seed))
    w, b = (np.asarray(variables["params"][k], np.float64) for k in "wb")
    images = np.random.default_rng(seed).uniform(0.3, 0.7, (count, *toys.SHAPE)).astype(np.float32)
    score = (images * w).sum(axis=(1, 2, 3)) + b
    forward = jax.tree_util.Partial(toys.LINEAR.apply, variables)
    data = Batch(images, (score > 0).astype(np.int32), np.arange(count, dtype=np.int32))
    return forward, data, np.abs(score) / np.abs(w).sum()


def test_halving_fgsm_finds_the_closed_form_distance_of_a_linear_detector():
    forward, data, exact = linear_case()
    fgsm = named("fgsm", "linf", goals.verdict, forward, COMPUTE)
    found = smallest(fgsm, 12)(data, np.full(32, 0.2, np.float32), 0)
    assert found.success.all()
    np.testing.assert_allclose(found.distance, exact, atol=0.2 / 2**12 + 1e-5)
    assert np.all(found.distance >= exact * (1 - 1e-3))


def test_progress_is_told():
    told = []
    forward, data, _ = linear_case()
    from ffjax.attacks.fast_gradient import bim

    once(bim(goals.verdict(), steps=10, stop=False), forward, dataclasses.replace(COMPUTE, chunk=4),
         lambda *a: told.append(a))(data, np.full(32, 0.01, np.float32), 0)  # fmt: skip
    assert told == [(4, 10, 32), (8, 10, 32), (10, 10, 32)]


@pytest.mark.parametrize(
    ("name", "norm", "options", "message"),
    [
        ("pgdd", "linf", {}, "unknown attack 'pgdd'; known: noise, fgsm"),
        ("fgsm", "l0", {}, "fgsm knows no l0; it knows linf, l2"),
        ("pgd", "linf", {"stesp": 3}, "unknown option 'stesp' of pgd; known: steps, step, stop"),
        ("pgd", "linf", {"steps": 0}, "steps"),
        ("cw", "l2", {"search": "gahndi"}, "option 'search' of cw: unknown 'gahndi'; known: original, gandhi"),
        ("cw", "l2", {"estimator": 3}, "unknown option 'estimator' of cw; known: search, "),
        ("pgd", "linf", {"steps": "ten"}, "option 'steps' of pgd must be of the kind of 40"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(name, norm, options, message):
    with pytest.raises(InputError, match=message) as caught:
        attempts.named(name, norm, goals.verdict, toys.forward(), COMPUTE, options)
    assert "\n" not in str(caught.value)
