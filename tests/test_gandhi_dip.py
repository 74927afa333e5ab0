"""The paper's Deep Image Prior table: the rule and the strata by hand, and the driver to its end, cut and taken up."""

import json
import shutil
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from driven import drive, refusal
from ground import pictures
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments import gandhi_dip as driver
from ffjax import detectors, engine, gandhi_dip, gandhi_dip_rates, gandhi_dip_rules, gandhi_dip_table, metrics
from ffjax.data import codecs, sets
from ffjax.defences.dip import Drawn, Prior
from ffjax.defences.skip_network import NETWORKS, Skip
from ffjax.detectors import weights
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.gandhi_dip import Subject
from ffjax.gandhi_dip_rules import Early, Rule
from ffjax.metrics import Estimate
from ffjax.types import Outputs


def row(label: int, said: list[float], stratum: str = "clean", group: int = 0, margin: float = 1.0) -> dict:
    told = {"label": label, "said": said, "said_average": [9.0] * len(said), "stratum": stratum, "group": group}
    return told | {"margin": margin, "psnr": said}


def test_a_score_is_the_mean_of_the_last_looks():
    found = gandhi_dip_rules.scores([row(1, [0.0, np.log(3), -np.log(3), 0.0])], "drawn", 2)
    np.testing.assert_allclose(found, [[0.5, 0.375, 0.5, 0.625]])
    assert np.all(gandhi_dip_rules.scores([row(1, [0.0])], "average", 3) < 0.001)


def test_the_rule_takes_the_look_that_parts_the_classes_and_a_threshold_between_them():
    # both look fake at first; from the third look on reals (score near 0.88) and fakes (near 0.12) part
    rows = [row(0, [2, 2, -2, -2], group=k) for k in range(3)] + [row(1, [2, 2, 2, -2], group=k) for k in range(3)]
    rule = gandhi_dip_rules.calibrated(rows, 1)
    assert (rule.form, rule.look) == ("drawn", 2) and 0.3 < rule.threshold < 0.7
    found = gandhi_dip.figures(rows, rule)
    assert {name: e.value for name, e in found.items()} == dict.fromkeys(found, 1.0) and found["real_recall"].n == 3
    late = gandhi_dip.figures(rows, rule._replace(look=3))
    assert (late["fake_recall"].value, late["real_recall"].value, late["real_precision"].value) == (0, 1, 0.5)


def test_a_rule_parts_scores_however_near_to_one_they_are():
    """Margins of -9 to -10 and of -5 to -6: all of them beyond 0.99 on the scale of P(real)."""
    rows = [row(0, [-9 - 0.1 * k], group=k) for k in range(5)] + [row(1, [-5 - 0.2 * k], group=k) for k in range(5)]
    rule = gandhi_dip_rules.calibrated(rows, 1)
    assert gandhi_dip_rules.rightly(rows, rule).all() and rule.threshold > 0.99


def test_a_rule_that_has_nothing_to_go_by_is_seen_by_leaving_photographs_out():
    """Random walks of 200 looks: a rule is always found that parts them, and says nothing of the others."""
    rng = np.random.default_rng(0)
    rows = [row(k % 2, np.cumsum(rng.normal(size=200)).tolist(), group=k) for k in range(20)]
    found = gandhi_dip_rules.left_out(rows, 5)
    assert found["images"] == found["photographs"] == 20
    assert found["own"] > 0.7 and found["left_out"] < 0.65
    # and one that has: the classes part from the look 100 on, whichever photograph is left out
    ends = [[4.0 * one["label"] - 2] * 100 for one in rows]
    sure = [row(one["label"], one["said"][:100] + ends[k], group=k // 2) for k, one in enumerate(rows)]
    found = gandhi_dip_rules.left_out(sure, 5)
    assert (found["photographs"], found["own"], found["left_out"]) == (10, 1, 1)
    assert np.isnan(gandhi_dip_rules.left_out([row(0, [1.0], group=0), row(1, [2.0], group=1)], 1)["left_out"])


def test_a_given_threshold_has_the_look_that_suits_it():
    """Scores go down together: threshold 0.5 lies between the classes at the first look, 0.25 at the second alone."""
    rows = [row(0, [-1, 0.5], group=k) for k in range(3)] + [row(1, [1, 2], group=k) for k in range(3)]
    assert gandhi_dip_rules.calibrated(rows, 1, 0.5) == Rule("drawn", 0, 0.5, 1)
    assert gandhi_dip_rules.calibrated(rows, 1, 0.25) == Rule("drawn", 1, 0.25, 1)


def test_a_score_on_the_threshold_is_called_fake_everywhere():
    """Reals score 0.73, fakes 0.5: by the calibration, the table, the strata and along the way alike."""
    rows = [row(0, [-1.0], "clean real", k) for k in range(3)] + [row(1, [0.0], "clean fake", k) for k in range(3)]
    rule = gandhi_dip_rules.calibrated(rows, 1, 0.5)
    assert rule == Rule("drawn", 0, 0.5, 1)  # parts them without error only if 0.5 is called fake
    found = gandhi_dip.figures(rows, rule)
    assert {name: e.value for name, e in found.items()} == dict.fromkeys(found, 1.0)
    assert [e.value for e in gandhi_dip.by_stratum(rows, rule).values()] == [1, 1]
    assert gandhi_dip_rules.early(rows, rule, Early(1, 0))[0].tolist() == [False] * 3 + [True] * 3


PRIOR = Prior(NETWORKS["small"], 20)


def test_what_differs_says_which_iteration_is_the_papers_and_which_ours():
    rules = {"calibrated": Rule("drawn", 9, 0.8, 5), "threshold 0.25": Rule("average", 299, 0.25, 5)}
    told = gandhi_dip_table.differs("a", 128, Prior(NETWORKS["small"], 2995), "ResNet", rules, 20, [])
    assert "The paper's iteration is 6,000 of 10,000" in told and "calibrated for each threshold on 20 images" in told
    assert "calibrated: iteration 100, what was drawn, 0.8; threshold 0.25: iteration 2,995, the running mean" in told


def test_a_rule_needs_both_classes():
    with pytest.raises(InputError, match="both classes"):
        gandhi_dip_rules.calibrated([row(1, [0.0, 1.0])], 1)


def test_the_papers_table_comes_back_from_its_counts():
    """PAPERS.md 2.7: 100 images, 90 % of 10 reals and 97.8 % of 90 fakes right make 97 %, 98.9, 81.8."""
    real = [row(0, [-1.0 if k < 9 else 1.0], group=k) for k in range(10)]
    fake = [row(1, [1.0 if k < 88 else -1.0], group=10 + k) for k in range(90)]
    found = gandhi_dip.figures([*real, *fake], Rule("drawn", 0, 0.5, 1))
    shown = [round(100 * found[c].value, 1) for c in ("accuracy", "fake_precision", "fake_recall", "real_precision")]
    assert shown == [97.0, 98.9, 97.8, 81.8]


def part(*values: int, first: int = 0, apart: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, bool), first + np.arange(len(values)) // apart


def test_rates_of_all_attacked_fakes_weigh_strata_by_how_often_they_occur():
    pool = part(*[1] * 8, *[0] * 2)
    found = gandhi_dip_rates.population(pool, {True: part(1, 0, 1, 0), False: part(1, 1, first=8)})
    assert found is not None and found.value == pytest.approx(0.8 * 0.5 + 0.2) and found.n == 6
    assert found.low < found.value < found.high
    assert gandhi_dip_rates.population(pool, {True: part(1, 0)}) is None
    every = gandhi_dip_rates.population(part(1, 1, 1, 1), {True: part(1, 0, 0, 0)})
    assert every is not None and every.value == 0.25


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=20), st.integers(1, 3), st.integers(0, 9))
def test_of_a_pool_drawn_whole_the_rate_and_its_interval_are_those_of_its_images(pairs, apart, seed):
    """Then the mixture of the strata is the plain mean, in every resample; only shares of all or none are wider."""
    fooled, right = (np.array(x) for x in zip(*pairs, strict=True))
    groups = np.arange(len(pairs)) // apart
    strata = {bool(o): (right[fooled == o], groups[fooled == o]) for o in np.unique(fooled)}
    found = gandhi_dip_rates.population((fooled, groups), strata, 200, seed)
    plain = metrics.average(right.astype(float), groups, 200, seed)
    assert found is not None and found.value == pytest.approx(plain.value)
    if any(len(np.unique(g)) < 2 for _, g in strata.values()):
        assert np.isnan([found.low, found.high]).all()
    elif all(0 < r.mean() < 1 for r, _ in strata.values()):
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    else:
        assert found.low <= plain.low + 1e-9 and found.high >= plain.high - 1e-9
    assert found == pytest.approx(gandhi_dip_rates.population((fooled, groups), strata, 200, seed), nan_ok=True)


def test_strata_that_are_all_alike_have_the_exact_interval_of_their_groups():
    found = gandhi_dip_rates.population(part(1, 1, 0, 0), {True: part(1, 1), False: part(1, 1, first=2)})
    assert found is not None and (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025**0.5)
    single = gandhi_dip_rates.population(part(1, 1, 0, 0), {True: part(1), False: part(1, 1, first=2)})
    assert single is not None and single.value == 1 and np.isnan([single.low, single.high]).all()


def test_clean_images_have_rates_too_and_the_printout_says_of_what(capsys):
    clean = [row(0, [-1.0 if k else 1.0], "clean real", k) for k in range(4)] + [row(1, [1.0], "clean fake", 9)]
    drawn = [row(1, [1.0 if k else -1.0], "FGSM white fooled", k) for k in range(3)]
    ledger = [{"group": k, "margins": {"attacked": {"png": -1.0}}} for k in range(6)]
    alone = {"clean real": Estimate(0.8, 0.7, 0.9, 50), "clean fake": Estimate(0.9, 0.8, 1.0, 50)}
    rules = {"calibrated": Rule("drawn", 0, 0.5, 1)}
    found = gandhi_dip_rates.tables([*clean, *drawn], rules, {"resnet18-fgsm": ledger}, "resnet18", alone)
    rates = found["rates"]
    assert list(rates) == ["clean real", "clean fake", "FGSM white"]
    assert (rates["clean real"]["images"], rates["clean fake"]["images"], rates["FGSM white"]["images"]) == (40, 45, 6)
    assert rates["clean real"]["undefended"].value == 1 and rates["FGSM white"]["undefended"].value == 0
    assert rates["clean real"]["calibrated"].value == 0.75 and rates["clean fake"]["calibrated"].value == 1
    assert rates["FGSM white"]["calibrated"].value == pytest.approx(2 / 3)
    held = {"calibrated": {"images": 20, "photographs": 14, "own": 0.8, "left_out": 0.55}}
    told = gandhi_dip_table.stands_on(alone, held)
    gandhi_dip_table.show(Console(width=250), found["table"], found["strata"], rates, told)
    shown = capsys.readouterr().out
    e = rates["FGSM white"]["calibrated"]
    assert 0 <= e.low < e.value < e.high <= 1 and metrics.percent(e) in shown
    assert "chosen on 20 images of 14 photographs" in shown and "calibrated 80 and 55" in shown
    assert "Real recall is over reals that the detector alone already calls rightly (80 [70, 90] % of all 50" in shown


def test_deciding_along_the_way_takes_the_first_run_of_looks_above_the_threshold():
    rows = [row(0, [1, -1, -1, 1, 1]), row(0, [-1, 1, -1, 1, -1]), row(1, [1, 1, 1, 1, -1])]
    called, took = gandhi_dip_rules.early(rows, Rule("drawn", 4, 0.5, 1), Early(2, 0))
    assert called.tolist() == [False, False, False] and took.tolist() == [3, 5, 5]
    called, took = gandhi_dip_rules.early(rows, Rule("drawn", 3, 0.5, 1), Early(2, 0))
    assert called.tolist() == [False, True, True] and took.tolist() == [3, 4, 4]


def test_along_the_way_is_chosen_so_that_it_costs_its_own_images_nothing():
    """Reals look real from the third look on, fakes at the first look alone: to wait for it is right, and enough."""
    rows = [row(0, [3, 3, -3, -3, -3, -3]), row(1, [-3, 3, 3, 3, 3, 3])]
    rule = Rule("drawn", 5, 0.5, 1)
    how = gandhi_dip_rules.hasty(rows, rule)
    called, took = gandhi_dip_rules.early(rows, rule, how)
    assert called.tolist() == [False, True] and took.tolist() == [3, 6] and how.first > 0
    found = gandhi_dip_rules.hastened(rows, rule, Prior(look=10), how)
    assert (found["accuracy"], found["accuracy_of_rule"]) == (1, 1)
    assert (found["iterations"], found["iterations_of_reals"]) == (45, 30)
    assert np.isnan(gandhi_dip_rules.hastened(rows[1:], rule, Prior(look=10), how)["iterations_of_reals"])
    told = gandhi_dip_table.along_the_way(found, Prior(look=10))
    assert "accuracy 100 % where the rule has 100, mean 45 iterations, of reals 30" in told


def drawn_by(monkeypatch, folder: Path, compute: Compute, cut: bool) -> list[tuple[int, int]]:
    """Five images whose drawing is one snapshot, cut after it or not: (rows given, steps done before) of each batch."""
    seen = []

    def run(process, forward, batch, eps, seed, compute, *, restore, save, watch):
        done, state = restore({"x": jnp.zeros((engine.capacity(compute), 2))})
        seen.append((len(batch.labels), done))
        save(done + 7, state)
        if cut:
            raise KeyboardInterrupt
        looks = jnp.zeros((len(batch.labels), 3))
        return Drawn(batch.images, batch.images, looks, looks, looks, looks[:, 0], looks[:, 0])

    monkeypatch.setattr(engine, "run", run)
    some = [Subject("clean fake", k, f"{k}.png", 1, k, np.zeros((8, 8, 3), np.float32), 1.0) for k in range(5)]
    try:
        gandhi_dip.draw(folder, PRIOR, some, toys.forward(), compute, 0, lambda done, note: None)
    except KeyboardInterrupt:
        assert cut
    return seen


def test_as_many_are_drawn_at_once_as_asked_and_a_snapshot_of_other_capacity_is_not_taken_up(monkeypatch, tmp_path):
    two, four = Compute(batch=2), Compute(batch=4, least=8)
    assert drawn_by(monkeypatch, tmp_path / "a", two, cut=False) == [(2, 0), (2, 0), (1, 0)]
    assert drawn_by(monkeypatch, tmp_path / "b", two, cut=True) == [(2, 0)]
    assert drawn_by(monkeypatch, tmp_path / "b", two, cut=True) == [(2, 7)]
    assert drawn_by(monkeypatch, tmp_path / "c", Compute(batch=8), cut=True) == [(5, 0)]
    assert drawn_by(monkeypatch, tmp_path / "c", Compute(batch=16), cut=True) == [(5, 0)]
    assert drawn_by(monkeypatch, tmp_path / "c", Compute(batch=8), cut=False) == [(5, 7)]  # still there
    assert drawn_by(monkeypatch, tmp_path / "d", four, cut=False) == [(4, 0), (1, 0)]


def test_networks_begin_where_one_stood_that_is_made_once_and_kept(tmp_path):
    prior, compute = Prior(Skip((6,), (2,), 4), steps=8, look=2), Compute(batch=1, least=1)
    image = np.broadcast_to(np.linspace(0.2, 0.8, 16, dtype=np.float32)[:, None, None], (16, 16, 3))
    some = [Subject("clean fake", 0, "0.png", 1, 0, image, 1.0)]
    start = gandhi_dip.warmed(tmp_path / "a.npz", prior, image, 100, 0)
    cold, warm = (
        gandhi_dip.draw(tmp_path / name, prior, some, toys.forward(), compute, 0, lambda done, note: None, begun)
        for name, begun in (("cold", None), ("warm", start))
    )
    assert warm[0]["psnr"][-1] > cold[0]["psnr"][-1] + 5  # it has drawn this image before
    again = gandhi_dip.warmed(tmp_path / "b.npz", prior, image, 100, 0)
    kept = gandhi_dip.warmed(tmp_path / "a.npz", prior, 0 * image, 1, 7)
    for other in (again, kept):
        jax.tree.map(np.testing.assert_array_equal, start, other)


SMALL = {
    "vgg16": {"width": 2, "hidden": 4, "norm": "none", "pooled": 1},
    "resnet18": {"width": 2, "norm": "none"},
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """32 px pictures whose fakes are redder, and two small networks of random weights, told so that half of the
    pictures are called fake."""
    folder = pictures(tmp_path_factory.mktemp("ground"), 60, ("train", "validation", "test"))
    data = sets.load(str(folder / "labels.csv"), "validation", 32)
    for (name, options), last in zip(SMALL.items(), ("fc8", "dense"), strict=True):
        detector = detectors.build(name, 32, **options)
        variables = jax.jit(detector.init)(jax.random.key(0))
        dense = variables["params"][last]
        said = margins(jax.tree_util.Partial(detector.apply, variables), data.images, Compute(batch=8))
        way = 1.0 if np.median(said[data.labels == 1]) >= np.median(said[data.labels == 0]) else -1.0
        scale = way * np.array([-1, 1], np.float32) / max(float(np.std(said)), 1e-6)
        kernel = np.asarray(dense["kernel"])
        dense["kernel"] = (kernel[:, 1] - kernel[:, 0])[:, None] / 2 * scale[None]
        dense["bias"] = (np.float32(np.diff(np.asarray(dense["bias"]))[0]) - np.float32(np.median(said))) / 2 * scale
        weights.save(folder / f"{name}.safetensors", variables, {"arch": name, "size": 32, "options": options})
    return folder


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(ground / "labels.csv"), "--size", "32", "--each", "2", "--pool", "4", "--calibrate", "8"]
    given += ["--inner", "3", "--prior.network", "small", "--prior.steps", "6", "--prior.look", "2"]
    given += ["--prior.window", "1", "--prior.batch", "8", "--compute.batch", "8", "--compute.least", "1"]
    given += ["--vgg", f"{ground}/vgg16.safetensors", "--resnet", f"{ground}/resnet18.safetensors"]
    return [*given, "--out", str(out), *more]


def test_the_papers_size_is_for_a_gpu(ground, tmp_path, monkeypatch, capsys):
    given = words(ground, tmp_path / "no", "--size", "512", "--prior.rate", "0")
    for there, told in ((False, "size: above 256 px a drawing is for a GPU"), (True, "prior.rate: must be above 0")):
        monkeypatch.setattr(driver.devices, "accelerated", lambda there=there: there)
        assert told in refusal(monkeypatch, capsys, driver, given)


def test_where_memory_is_told_as_many_are_drawn_at_once_as_it_holds(monkeypatch):
    cfg, prior = driver.Config(size=16), Prior(Skip((6,), (2,), 4))
    assert driver._batch(cfg, prior) == 8  # a CPU does not say
    monkeypatch.setattr(driver.devices, "memory", lambda on: 8 * 10**6)
    monkeypatch.setattr(driver.dip, "images_in", lambda memory, *asked: 40 if memory == 6 * 10**6 else 0)
    assert driver._batch(cfg, prior) == 40
    monkeypatch.setattr(driver.dip, "images_in", lambda memory, *asked: 10**9)
    assert driver._batch(cfg, prior) == 100  # no more than there are
    assert driver._batch(replace(cfg, prior=driver.Draw(batch=3)), prior) == 3


def test_images_are_drawn_on_a_larger_canvas_and_shown_at_their_own_size(tmp_path):
    """The network draws 16 px, and the detector, which takes 8, sees them shrunk back: of a smooth image, itself."""
    prior, seen = Prior(Skip((6,), (2,), 4), 4, look=2), []

    def detector(images):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        said = jnp.mean(images, axis=(1, 2, 3))
        return Outputs(jnp.stack([0 * said, said], axis=1), None, OrderedDict())

    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 8, dtype=np.float32)[:, None, None], (8, 8, 3))
    some = [Subject("clean", k, f"{k}.png", 0, k, ramp, 0.0) for k in range(2)]
    draw = partial(gandhi_dip.draw, prior=prior, these=some, compute=Compute(batch=2), seed=0, tell=lambda *_: None)
    rows = draw(folder=tmp_path / "large", forward=jax.tree_util.Partial(detector), canvas=16)
    jax.effects_barrier()
    assert len(rows) == 2 and seen and {x.shape for x in seen} == {(2, 8, 8, 3)}
    back = gandhi_dip.resized(gandhi_dip.resized(ramp[None], 16), 8)[0]
    np.testing.assert_allclose(back[1:-1], ramp[1:-1], atol=2e-3)
    plain = draw(folder=tmp_path / "plain", forward=jax.tree_util.Partial(detector))
    assert plain[0]["psnr"] != rows[0]["psnr"]


@pytest.mark.slow
def test_the_driver_ends_and_a_run_whose_ledger_was_cut_ends_alike(ground, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drive(monkeypatch, driver, words(ground, whole))
    told = capsys.readouterr().out
    assert "DIP, published [S]" in told and "97.8" in told and "What differs." in told and "fewer than there" in told
    found = json.loads((whole / "results.json").read_text())
    assert set(found["table"]) == {
        "DIP, calibrated", "DIP, threshold 0.25", "DIP, threshold 0.5", "detector alone"
    }  # fmt: skip
    assert set(found["rules"]) == {"calibrated", "threshold 0.25", "threshold 0.5"}
    alone = found["table"]["detector alone"]  # strata are filled by what it says
    assert all(e["low"] is None and e["value"] is not None for e in alone.values())
    assert set(found["rates"]) == {*gandhi_dip.CLEAN, "FGSM white", "FGSM black", "CW white", "CW black"}
    assert "Real recall is over reals" in told
    assert (whole / "figures/trajectories.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (whole / "drawn/ledger.jsonl").read_text().splitlines()]
    assert {"clean real", "clean fake"} <= {r["stratum"] for r in rows} and all(len(r["said"]) == 3 for r in rows)
    # what was drawn is what is in the files: the detector's own word of an attacked image is the ledger's
    one = next(r for r in rows if r["stratum"].startswith("FGSM white"))
    image = codecs.decode((whole / f"attacked/resnet18-fgsm/images/{one['number']:06d}.png").read_bytes())
    loaded = detectors.load(f"resnet18:{ground}/resnet18.safetensors")
    said = margins(jax.tree_util.Partial(loaded.detector.apply, loaded.variables), image[None], Compute(batch=8))
    assert said[0] == pytest.approx(one["margin"], abs=1e-4)

    shutil.copytree(whole, cut)
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps(config | {"out": str(cut)}))
    (cut / "results.json").unlink()
    lines = (cut / "drawn/ledger.jsonl").read_text().splitlines(keepends=True)
    (cut / "drawn/ledger.jsonl").write_text("".join(lines[:8]) + (lines[8][:30] if len(lines) > 8 else ""))
    drive(monkeypatch, driver, words(ground, cut))
    assert (cut / "drawn/ledger.jsonl").read_text() == "".join(lines)
    assert json.loads((cut / "results.json").read_text()) == found

    # drawn as far as the rules look: the same verdicts
    drive(monkeypatch, driver, words(ground, tmp_path / "early", "--prior.early"))
    short = json.loads((tmp_path / "early/results.json").read_text())
    assert short["rules"] == found["rules"] and short["table"] == found["table"]
    looks = 1 + max(rule["look"] for rule in found["rules"].values())
    early = [json.loads(line) for line in (tmp_path / "early/drawn/ledger.jsonl").read_text().splitlines()]
    assert [r["said"] for r in early] == [r["said"][:looks] for r in rows]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--prior.network", "deeper"], "prior.network: unknown 'deeper'"),
        (["--each", "0"], "each: must be at least 1"),
        (["--calibrate", "3"], "calibrate: must be at least 4"),
        (["--prior.rate", "0"], "prior.rate: must be above 0"),
        (["--prior.warm", "-1"], "prior.warm: must not be negative"),
        (["--prior.window", "9"], "prior.window"),
        (["--prior.canvas", "31"], "prior.canvas: must be at least size 32, got 31"),
        (["--prior.canvas", "257"], "prior.canvas: above 256 px a drawing is for a GPU"),
        (["--eps", "0.022"], "eps: images are stored in 8 bits, which takes 0.022 past itself"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(ground, tmp_path, monkeypatch, capsys, more, fault):
    assert fault in refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "no", *more))
    assert not (tmp_path / "no").exists()


def test_a_test_split_of_which_no_real_is_called_rightly_is_refused_before_anything_is_attacked(
    ground, tmp_path, monkeypatch, capsys
):
    """Both networks call every image of the test split fake."""
    test, said_of = sets.load(str(ground / "labels.csv"), "test", 32), driver.margins

    def margins(forward, images, compute):
        return said_of(forward, images, compute) + 99 * np.array_equal(images, test.images)

    monkeypatch.setattr(driver, "margins", margins)
    said = refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out"))
    assert "nothing can be told of the test split" in said and "no real is among them" in said
    assert not (tmp_path / "out/calibration").exists()


def test_a_detector_that_calls_no_real_rightly_is_refused_before_anything_is_attacked(
    ground, tmp_path, monkeypatch, capsys
):
    loaded, path = detectors.load(f"resnet18:{ground}/resnet18.safetensors"), tmp_path / "fake.safetensors"
    params = loaded.variables["params"]
    dense = params["dense"] | {"bias": np.asarray(params["dense"]["bias"]) + np.array([-99, 99], np.float32)}
    variables = {**loaded.variables, "params": params | {"dense": dense}}
    weights.save(path, variables, {"arch": "resnet18", "size": 32, "options": SMALL["resnet18"]})
    out = tmp_path / "out"
    said = refusal(monkeypatch, capsys, driver, words(ground, out, "--resnet", str(path)))
    assert "both classes are needed" in said and "no real is among them" in said
    assert not (out / "calibration").exists() and not (out / "calibrating").exists()
