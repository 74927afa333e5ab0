"""Gandhi and Jain's attacks: which fakes and margins count, the paper's own rounding and returns, and the search over
c that fails where its range is set wrongly."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from toys import forward, images

from ffjax import engine, gandhi, gandhi_table, goals, gradients
from ffjax.attacks.carlini_wagner import cw
from ffjax.data import codecs
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.gandhi import Line, Setting
from ffjax.types import Batch

COMPUTE = Compute(batch=32)
SETTING = Setting(multiples=(0.0, 1.0), inner=60)
DATA = images(64)
NETWORKS = {"vgg16": forward(4), "resnet18": forward(9)}
"""Toys that call these pictures fake, nearly all."""
SAID = {name: margins(f, DATA.images, COMPUTE) for name, f in NETWORKS.items()}
FAKES, RIGHT = gandhi.both_right(SAID, DATA, 8, 0)
BATCH = Batch(codecs.to_float(FAKES.images), np.ones(8, np.int32), np.arange(8, dtype=np.int32))


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    """Every cell of the table on eight pictures."""
    folder, found = tmp_path_factory.mktemp("cells"), []
    medians = {name: gandhi.median_margin(said, DATA) for name, said in SAID.items()}
    for cell in gandhi.cells(medians, SETTING):
        place = folder / f"{cell.source}-{cell.name}"
        place.mkdir()
        found.append((cell, gandhi.attack(place, cell, FAKES, NETWORKS, COMPUTE, 0, lambda done, note: None)))
    return found


def test_the_fakes_are_those_that_both_call_rightly_and_fewer_are_the_first_of_more():
    few, _ = gandhi.both_right(SAID, DATA, 3, 0)
    assert few.names == FAKES.names[:3] and np.array_equal(few.images, FAKES.images[:3])
    every, count = gandhi.both_right(SAID, DATA, 1000, 0)
    right = (DATA.labels == 1) & (SAID["vgg16"] > 0) & (SAID["resnet18"] > 0)
    assert count == RIGHT == right.sum() == len(every.labels) < (DATA.labels == 1).sum()
    assert set(every.names) == {name for name, one in zip(DATA.names, right, strict=True) if one}
    with pytest.raises(InputError, match="images is a fake that all of vgg16, resnet18 call rightly"):
        gandhi.both_right({name: -np.abs(said) for name, said in SAID.items()}, DATA, 8, 0)


def test_kappas_are_multiples_of_each_sources_own_median_margin_of_fakes_called_rightly():
    said = np.array([-9.0, 1, 2, 6, 50])
    data = DATA._replace(labels=np.array([1, 1, 1, 1, 0], np.int32))
    assert gandhi.median_margin(said, data) == 2
    found = {(c.source, c.name): c.kappa for c in gandhi.cells({"vgg16": 2.0, "resnet18": 3.0}, Setting())}
    assert found["vgg16", "fgsm"] is None and found["vgg16", "cw-k200"] == found["resnet18", "cw-k200"] == 200
    assert [found["vgg16", f"cw-{k}m"] for k in (0, 1, 5, 20)] == [0, 2, 10, 40]
    assert found["resnet18", "cw-20m"] == 60 and len(found) == 12
    with pytest.raises(InputError, match="no fake of the validation split"):
        gandhi.median_margin(-np.abs(said), data)


def test_a_range_of_c_that_is_set_too_low_leaves_the_fakes_fake():
    """The authors' early attempt: c in [1e-7, 1e-4], kappa 1, one search step; 98.0 % of 101 fakes stayed fake."""
    goal, compute = goals.verdict("margin"), Compute(batch=32)
    amiss = cw(goal, search="gandhi", initial=1e-7, ceiling=1e-4, searches=1, kappa=1.0, inner=100)
    right = cw(goal, search="gandhi", kappa=1.0, inner=100)
    for f in NETWORKS.values():
        failed, found = (engine.run(p, f, BATCH, np.inf, 0, compute) for p in (amiss, right))
        assert not failed.success.any() and np.array_equal(failed.images, BATCH.images)
        assert (failed.gradients > 10).all()  # it tried, up to the first look at whether the loss drops
        assert found.success.all()


def test_greedy_rounding_is_the_papers_formula():
    """Up to ties: half a level is 0.499 of one here, so that an image in 8 bits stays as it is."""
    source = NETWORKS["vgg16"]
    rng = np.random.default_rng(0)
    moved = np.clip(BATCH.images + rng.uniform(-0.03, 0.03, BATCH.images.shape), 0, 1).astype(np.float32)
    got = gandhi.greedy(source, BATCH, moved, COMPUTE)
    nothing = jnp.zeros(8)
    slope = gradients.exact(goals.verdict("ce")).at(nothing, moved, BATCH, nothing, source).gradient
    lean = 255 * moved + 0.5 * np.sign(np.asarray(slope))
    clear = np.abs(np.abs(lean - np.rint(lean)) - 0.5) > 2e-3
    wanted = np.rint(np.clip(lean, 0, 255))
    assert clear.mean() > 0.95 and np.array_equal(np.rint(255 * got)[clear], wanted[clear])
    assert np.array_equal(got, codecs.png(got))
    assert np.array_equal(gandhi.greedy(source, BATCH, BATCH.images, COMPUTE), BATCH.images)
    one = Batch(BATCH.images[3:4], BATCH.labels[3:4], BATCH.ids[3:4])
    assert np.array_equal(gandhi.greedy(source, one, moved[3:4], COMPUTE), got[3:4])


def test_a_full_margin_that_nothing_reaches_gives_the_clean_image_back_and_the_other_count_tells(ledgers):
    for cell, rows in ledgers:
        if cell.name != "cw-k200":
            continue
        cost = gandhi.costs(cell, rows)
        assert cost["full"] == 0 < cost["misclassified"] == 8 and cost["full_l2"] is None
        for network in NETWORKS:
            for form in gandhi.FORMS:
                whole = gandhi.accuracy(rows, cell, Line(cell.name, True), network, "attacked", form)
                assert whole == gandhi.accuracy(rows, cell, Line(cell.name), network, "clean", form)
        assert gandhi.accuracy(rows, cell, Line(cell.name), cell.source, "attacked", "float").value == 0
        assert gandhi.accuracy(rows, cell, Line(cell.name, True), cell.source, "attacked", "float").value == 1


def test_margins_in_the_ledger_are_those_of_the_networks_they_are_named_after(ledgers):
    for cell, rows in ledgers:
        (other,) = set(NETWORKS) - {cell.source}
        for network in NETWORKS:
            again = margins(NETWORKS[network], FAKES.images, COMPUTE)
            got = [gandhi.said(row, cell, Line(cell.name), network, "clean", "float") for row in rows]
            np.testing.assert_allclose(got, again, rtol=1e-5, atol=1e-6)
        assert all(set(row["transfer"]["attacked"]["png"]) == {other} for row in rows)
        assert all(row["label"] == 1 and row["margins"]["clean"]["float"] > 0 for row in rows)


def test_more_confidence_costs_distance_and_every_figure_has_its_noise_and_denominator(ledgers):
    at = {(c.source, c.name): gandhi.costs(c, rows) for c, rows in ledgers}
    for source in NETWORKS:
        zero, one = at[source, "cw-0m"], at[source, "cw-1m"]
        assert zero["full"] == zero["misclassified"] == 8
        assert one["full"] == 0 or one["full_l2"][1] > zero["l2"][1]
    assert any(at[source, "cw-1m"]["full"] for source in NETWORKS)
    entries = list(gandhi.entries(ledgers, SETTING))
    assert len(entries) == 2 * 2 * len(gandhi.FORMS) * 5  # evaluated, box, form, FGSM and four ways of Carlini-Wagner
    assert all(e.attacked.n == e.noise.n == e.clean.n == 8 for e in entries)
    assert all(e.clean.value == 1 for e in entries if e.form in ("float", "png"))
    own = [e for e in entries if e.box == "white" and e.form == "float" and e.line == Line("cw-0m")]
    assert [e.attacked.value for e in own] == [0, 0] and all(e.noise.value == 1 for e in own)


def test_the_printed_table_has_both_papers_figures_and_says_what_it_is_not(ledgers):
    entries = list(gandhi.entries(ledgers, SETTING))
    costs = [gandhi.costs(cell, rows) for cell, rows in ledgers]
    clean = {name: gandhi.clean(said, DATA) for name, said in SAID.items()}
    wanting = gandhi.incompetent(clean)
    assert wanting == ["vgg16", "resnet18"]  # they call everything fake
    told = gandhi_table.differs("toys", 12, (8, RIGHT, 32), SETTING, dict.fromkeys(NETWORKS, "a toy"))
    console = Console(file=io.StringIO(), width=250)
    gandhi_table.show(console, clean, entries, costs, SETTING, wanting, told)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("detector not competent (vgg16, resnet18): ") == 6  # one table each
    heads = [line for line in text.splitlines() if line.count(gandhi_table.UNTRAINED) >= 5]
    assert len(heads) == 5  # of every table with shares, in every column
    assert all(f"{x:.1f}" in text for row in gandhi_table.PUBLISHED.values() for x in row)
    assert "What differs. Data: toys at 12 px" in text and "60 steps; theirs 5 of 1000" in text
    rows = json.loads(json.dumps(gandhi_table.plain(entries), allow_nan=False))
    found = {(r["evaluated"], r["box"], r["attack"]): r["published_percent"] for r in rows}
    assert found["vgg16", "black", "cw-0m"] == 26.6 and found["resnet18", "white", "fgsm"] == 7.5
    assert {r["pretraining"] for r in rows} == {gandhi_table.UNTRAINED}


def test_a_competent_detector_is_not_called_otherwise():
    labels, groups = np.array([1] * 20 + [0] * 20), np.arange(40)
    data = images(40)._replace(labels=labels, groups=groups)
    said = np.where(labels == 1, 1.0, -1.0)
    worse = np.where(np.arange(40) < 5, -1.0, said)  # 15 of 20 fakes: 87.5 % balanced
    scores = {"vgg16": gandhi.clean(said, data), "resnet18": gandhi.clean(worse, data)}
    assert gandhi.incompetent(scores) == ["resnet18"] and gandhi_table.head([]) == ""
    assert scores["resnet18"]["fake_accuracy"].value == 0.75 and scores["resnet18"]["fake_accuracy"].n == 20
    assert scores["resnet18"]["real_accuracy"].value == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (Setting(eps=-0.1), "eps: must not be negative"),
        (Setting(kappa=-1.0), "kappa: must not be negative"),
        (Setting(multiples=(1.0, 1.0)), "multiples: no two alike"),
        (Setting(multiples=(-2.0,)), "multiples: -2: must not be negative"),
        (Setting(inner=0), "inner: must be at least 1, got 0"),
        (Setting(searches=0), "searches: must be at least 1, got 0"),
    ],
)
def test_settings_that_no_attack_can_use(setting, told):
    with pytest.raises(InputError, match=told):
        gandhi.check(setting)
