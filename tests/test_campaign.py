"""A plan at work: cut anywhere it goes on to the same ledger, says where it is, and is tried harder before its robust
accuracy is believed."""

import gc
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from rich.console import Console

from ffjax import attempts, campaign, individual, ledger, underway
from ffjax.campaign import Plan
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import AttackResult, Batch

COMPUTE = Compute(batch=32, least=32, chunk=2, snapshot=4, devices=1, execution="stepped")
COMPUTE_8 = Compute(batch=8, least=8, devices=1, execution="stepped")
EPS = 6 / 255


def data(count=48, forward=None):
    """Random pictures, each with the label that the detector gives it."""
    found = toys.images(count)
    said = margin((forward or toys.forward())((found.images / 255).astype(np.float32)))
    return found._replace(labels=(np.asarray(said) > 0).astype(np.int32))


def attacked(folder, plan, hear=lambda done, note: None, compute=COMPUTE, eps=EPS, seed=0, forward=None):
    forward = forward or toys.forward()
    job = campaign.job(plan, forward, compute, folder, hear)
    rows = individual.attack(
        folder / "ledger.jsonl", data(forward=forward), forward, job.attack, job.noise, eps,
        minimal=campaign.minimal(plan), threshold=0.0, qualities=(), seed=seed, compute=compute, note=job.note,
        tell=job.tell,
    )  # fmt: skip
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class Cut(Exception):
    """Stands for a kill: nothing is tidied up after it. (Real ones: test_attack_eval.)"""


def cut_at(point, heard):
    def hear(done, note):
        heard.append((done, note))
        if len(heard) == point:
            raise Cut

    return hear


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The same process object for the same words, so that each is compiled once in this file."""
    build, made = attempts.built, {}

    def once(name, norm, goal, options=None, grid=False):
        words = (name, norm, goal.args, sorted((options or {}).items()), grid)
        if str(words) not in made:
            made[str(words)] = build(name, norm, goal, options, grid)
        return made[str(words)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "built", once)
        yield


PLANS = {
    "plain": Plan("cw", "l2", {"searches": 2, "inner": 10, "rate": 0.05}),
    "restarts": Plan("pgd", "linf", {"steps": 6}, restarts=3),
    "halvings": Plan("pgd", "linf", {"steps": 6}, smallest=3),
}
SIZE = {"plain": 2.0, "restarts": EPS / 4, "halvings": EPS}
PGD = Plan("pgd", "linf", {"steps": 8})


@pytest.mark.parametrize("name", PLANS)
def test_cut_at_any_chunk_it_goes_on_to_the_ledger_of_a_run_that_was_not(name, tmp_path):
    plan, heard = PLANS[name], []
    whole = attacked(tmp_path / "whole", plan, cut_at(0, heard), eps=SIZE[name])
    assert len(heard) > 8 and not (tmp_path / "whole" / "underway").exists()
    for point in range(1, len(heard), max(1, len(heard) // 3)):
        folder, before, after = tmp_path / str(point), [], []
        with pytest.raises(Cut):
            attacked(folder, plan, cut_at(point, before), eps=SIZE[name])
        assert attacked(folder, plan, cut_at(0, after), eps=SIZE[name]) == whole
        # two chunks to a snapshot, each told before it is saved: no more than the last three are done again
        assert len(after) <= len(heard) - len(before) + 3, "it began anew"
        assert not (folder / "underway").exists()


@pytest.mark.slow
def test_an_ensemble_cut_in_any_member_goes_on_and_says_who_broke_what(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "AUTO", {"apgd_ce": {}, "apgd": {}, "fab": {}})
    compute = Compute(batch=32, least=32, chunk=25, snapshot=25, devices=1, execution="stepped")
    plan, heard = Plan("auto", "linf", {}), []
    whole = attacked(tmp_path / "whole", plan, cut_at(0, heard), compute, eps=EPS / 4)
    assert any("by" in row for row in whole)
    for member in ("apgd_ce", "apgd", "fab"):
        point = next(k for k, (_, note) in enumerate(heard, 1) if f"{member}: step 52" in note)
        with pytest.raises(Cut):
            attacked(tmp_path / member, plan, cut_at(point, []), compute, eps=EPS / 4)
        assert attacked(tmp_path / member, plan, compute=compute, eps=EPS / 4) == whole


BATCH = Batch(np.zeros((2, 2, 2, 3), np.float32), np.ones(2, np.int32), np.arange(2, dtype=np.int32))


def test_snapshots_of_other_settings_bounds_seeds_or_images_are_never_taken_up(tmp_path):
    bounds, masks = np.full(2, EPS, np.float32), np.ones((2, 2, 2), np.float32)
    given = {"settings": (PGD, "pgd", 32), "batch": BATCH, "eps": bounds, "seed": 0}
    others = [
        {},
        {"settings": (PGD._replace(options={"steps": 7}), "pgd", 32)},
        {"settings": (PGD._replace(threshold=0.5), "pgd", 32)},
        {"settings": (PGD, "bim", 32)},
        {"settings": (PGD, "pgd", 40)},
        {"batch": BATCH._replace(images=BATCH.images + np.float32(1e-6))},
        {"batch": BATCH._replace(labels=1 - BATCH.labels)},
        {"batch": BATCH._replace(ids=BATCH.ids + 1)},
        {"batch": BATCH._replace(masks=masks)},
        {"batch": BATCH._replace(wanted=masks)},
        {"batch": BATCH._replace(masks=masks, wanted=1 - masks)},
        {"eps": bounds * 2},
        {"seed": 1},
    ]
    for number, other in enumerate(others):
        stage = underway.stage(tmp_path, **given | other)
        assert stage.restore({"x": np.zeros(3)})[0] == 0, other
        assert stage.save is not None
        stage.save(4, {"x": np.full(3, number, np.float32)})
    for number, other in enumerate(others):
        step, state = underway.stage(tmp_path, **given | other).restore({"x": jnp.zeros(3)})
        assert step == 4 and np.all(state["x"] == number), other


def test_a_batch_begun_with_another_bound_is_begun_anew(tmp_path):
    with pytest.raises(Cut):
        attacked(tmp_path / "run", PGD, cut_at(4, []), eps=EPS / 2)
    assert len(list((tmp_path / "run" / "underway").iterdir())) == 1
    heard = []
    assert attacked(tmp_path / "run", PGD, cut_at(0, heard)) == attacked(tmp_path / "fresh", PGD)
    assert "step 2 of" in heard[0][1] and not (tmp_path / "run" / "underway").exists()


def test_a_finished_stage_is_read_back_whole_and_a_half_written_one_is_not_there(tmp_path):
    def stage(seed=0):
        return underway.stage(tmp_path, ("a",), BATCH, np.full(2, EPS, np.float32), seed)

    found = AttackResult(BATCH.images + 0.25, *(np.array(x) for x in ([True, False], [False, True], [1.5, 2.5])),
                         np.float32([0.1, 0.2]), np.int32([3, 4]), np.int32([5, 6]))  # fmt: skip
    assert stage().found is None and not list(tmp_path.iterdir())
    stage().finish(found)
    back = stage().found
    assert back is not None
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(back, found, strict=True))
    assert stage(1).found is None
    (folder,) = tmp_path.iterdir()
    (folder / "result.npz").rename(folder / "result.part")  # as a kill while writing leaves it
    assert stage().found is None


def test_inside_a_batch_the_step_and_the_rows_at_work_are_told_beside_the_images_done(tmp_path):
    heard = []
    attacked(tmp_path, PGD, lambda done, note: heard.append((done, note)))
    assert heard[0][0] == 0 and re.fullmatch(r"pgd: step 2 of 8, \d+ at work", heard[0][1])
    steps = [(done, note) for done, note in heard if "step" in note]
    assert {done for done, _ in steps} == {0, 32} and heard[-1][0] == 48
    assert all(note.endswith("at work") for _, note in steps)
    assert any("broken; pgd: step" in note for done, note in steps if done == 32)


def test_snapshots_left_by_a_kill_right_after_the_last_batch_are_cleared_by_the_next_start(tmp_path):
    whole, left = attacked(tmp_path, PGD), tmp_path / "underway" / "batch"
    left.mkdir(parents=True)
    assert attacked(tmp_path, PGD) == whole and not left.exists()


def test_a_second_start_counts_from_what_the_ledger_holds(tmp_path):
    plan, heard = PGD, []
    whole = attacked(tmp_path / "whole", plan)
    (tmp_path / "cut").mkdir()
    ledger.append(tmp_path / "cut" / "ledger.jsonl", ledger.read(tmp_path / "whole" / "ledger.jsonl")[:32])
    assert attacked(tmp_path / "cut", plan, cut_at(0, heard)) == whole
    assert heard[0][0] == 32


def test_what_is_held_on_devices_does_not_grow_with_the_set(tmp_path):
    held = []

    def hear(done, note):
        if "step" not in note:
            gc.collect()
            held.append(sum(x.nbytes for x in jax.live_arrays()))

    attacked(tmp_path, PGD, hear, COMPUTE_8)
    assert len(held) > 4 and held[-2] <= held[1]


def _backwards(x):
    """The identity, whose gradient points the wrong way."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (-g,))
    return identity(x)


def forward_of(change):
    return jax.tree_util.Partial(lambda v, images: toys.TOY.apply(v, change(images)), toys.forward().args[0])


def tried(plan, forward, eps):
    """The flags of effort, after the plan's attack on 32 images."""
    found = data(32, forward)
    batch = Batch((found.images / 255).astype(np.float32), found.labels, np.arange(32, dtype=np.int32))
    attack, _ = campaign.runners(plan, forward, COMPUTE, lambda name, ids: None)
    stands = ~attack(batch, np.full(32, eps, np.float32), 0).success
    assert stands.any()
    rows = [{"id": i, "success": not stands[i]} for i in range(32)]
    return campaign.effort(plan, forward, found, rows, COMPUTE, eps, 0, 16)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_an_honest_detector_raises_no_flag_of_effort(name):
    assert tried(Plan(name, "linf", {"steps": 20}), toys.forward(), 1 / 255) == {}


def test_steps_that_were_too_few_are_told():
    plan = Plan("bim", "linf", {"steps": 2, "step": 0.1})
    found = tried(plan, toys.forward(), 16 / 255)
    assert "twice the steps break" in found["more_steps_help"] and "path_not_rising" not in found


def test_gradients_that_lead_nowhere_or_the_wrong_way_are_told():
    plan = Plan("bim", "linf", {"steps": 10})
    found = tried(plan, forward_of(jax.lax.stop_gradient), 8 / 255)
    assert set(found) == {"unbounded_fails", "path_not_rising"}
    assert "16 of 16 images stand with no bound at all, and twice the steps break none" in found["unbounded_fails"]
    found = tried(plan, forward_of(_backwards), 8 / 255)
    assert "16 of 16" in found["path_not_rising"] and "unbounded_fails" in found


def test_there_is_nothing_to_tell_of_what_has_no_bound_to_climb_in_or_of_nothing_that_stands(tmp_path):
    forward, rows = toys.forward(), [{"id": 0, "success": False}]
    for plan in (Plan("cw", "l2", {}), Plan("noise", "linf", {}), Plan("square", "linf", {})):
        assert campaign.effort(plan, forward, data(), rows, COMPUTE, EPS, 0, 8) == {}
    for rows, most in (([{"id": 0, "success": True}, {"id": 1}], 8), ([{"id": 0, "success": False}], 0)):
        assert campaign.effort(Plan("pgd", "linf", {}), forward, data(), rows, COMPUTE, EPS, 0, most) == {}


@pytest.mark.parametrize("flags", [{}, {"random": "two outputs", "unbounded_fails": "3 of 8 stand"}])
def test_a_robust_accuracy_is_never_bare_where_a_flag_is_raised(flags, tmp_path):
    rows = attacked(tmp_path, Plan("fgsm", "linf", {}))
    said = io.StringIO()
    for found in (rows, [{k: v for k, v in row.items() if k != "success"} for row in rows]):
        said.truncate(said.seek(0))
        found = [row | ({"seconds": 0.0} if "success" in row else {}) for row in found]
        campaign.show(Console(file=said, width=100), individual.summary(found, 0.0, resamples=20), flags)
        (line,) = (line for line in said.getvalue().splitlines() if "% under attack" in line)
        assert all(name in line for name in flags) and ("flagged" in line) == bool(flags)
        assert all(f"flag {name}: {told}" in said.getvalue() for name, told in flags.items())


def test_settings_name_every_option_defaults_too_and_the_ensembles_budgets():
    told = campaign.settings(Plan("pgd", "linf", {"steps": 7}, threshold=0.25))
    assert told == {"options of pgd": "{'steps': 7, 'step': 0.1, 'stop': True}", "threshold": "0.25"}
    members = campaign.settings(Plan("auto", "linf", {}))
    assert len(members) == 5 and "'steps': 5000" in members["options of square"]


def test_what_is_not_known_is_refused_before_anything_is_loaded():
    for plan, message in (
        (Plan("pgdd", "linf", {}, restarts=2), "unknown attack"),
        (Plan("auto", "linf", {}, restarts=2), "auto has no options, loss, restarts"),
        (Plan("bim", "linf", {}, restarts=2), "bim starts from the clean image and draws nothing"),
        (Plan("pgdd", "linf", {}), "unknown attack"),
        (Plan("auto", "l0", {}), "auto knows no l0"),
        (Plan("pgd", "linf", {"stesp": 1}), "unknown option"),
    ):
        with pytest.raises(InputError, match=message):
            campaign.check(plan)
