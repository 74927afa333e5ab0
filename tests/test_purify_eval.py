"""The evaluation of purifiers as a user runs it, its sums by hand, and attackers held to what they must find."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from driven import drive, refusal
from ground import lay

from experiments import purify_eval
from ffjax import detectors, goals, gradients, individual, purifying, study
from ffjax import purifying_sums as sums
from ffjax.data import codecs, sets
from ffjax.defences import purifiers
from ffjax.defences.purifiers import Purifier
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.purifying import Setting
from ffjax.types import AttackResult, Batch, Forward, ImageSet

COMPUTE = Compute(batch=8)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """40 noise images of 32 px, of which a third of the groups is validation, and two Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 20, 2)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"meso4:{ground}/net0.safetensors", "--other", f"meso4:{ground}/net1.safetensors"]
    given += ["--data", f"{ground}/images", "--images", "4", "--few", "1", "--steps", "3", "--draws", "2"]
    given += [
        "--queries",
        "4",
        "--eps",
        "1",
        "--calibrate",
        "6",
        "--purifiers",
        "bits5",
        "random_pad",
        "--compute.batch",
        "8",
    ]
    return [*given, "--out", str(out), *more]


@pytest.mark.slow
def test_it_attacks_tells_draws_and_goes_on_where_it_was_cut(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    drive(monkeypatch, purify_eval, words(ground, out))
    told = capsys.readouterr().out
    assert "4 fakes" in told and "4 reals" in told and "most of 15 draws" in told and "noise" in told
    found = json.loads((out / "results.json").read_text())
    assert "clean AUC" in told and "untried" in told and "square on up to 1 of either class that still stand" in told
    assert sum("┃ longer" in line and "┃ square" in line for line in told.splitlines()) == 2
    assert all(f"flag {flag} ({name})" in told for name, flags in found["flags"].items() for flag in flags)
    assert list(found["purifiers"]) == ["none", "bits5", "random_pad"]
    share = {(e["purifier"], e["kind"], e["form"]): e for e in found["entries"]}
    for name in found["purifiers"]:
        for form in ("float", "png"):
            of = {kind: share[name, kind, form] for kind in (*purifying.kinds(name), "aware")}
            for side, n in (("every", 8), ("fake", 4), ("real", 4)):
                assert of["aware"][side]["value"] <= of["unaware"][side]["value"] <= of["clean"][side]["value"]
                assert of["noise"][side]["value"] <= of["clean"][side]["value"]
                assert of["aware"][side]["n"] == of["noise"][side]["n"] == n
    assert (out / "figures/purifiers.png").stat().st_size > 5000

    inputs = json.loads((out / "inputs.json").read_text())
    seen = [value for name, value in inputs.items() if name.endswith(f"images of {ground}/images")]
    assert len(seen) == len(set(seen)) == 2
    for name in found["purifiers"]:
        level, of = found["levels"][name], {path.stem: lines(path) for path in out.glob(f"cells/{name}/*.jsonl")}
        held = lines(out / f"calibration/{name}.jsonl")
        assert len(held) == 12 and not {r["name"] for r in held} & {r["name"] for r in of["clean"]}
        assert level["threshold"] == sums.calibrated(held, name) != 0 and f"{level['threshold']:.3g}" in told
        first = {kind: rows for kind, rows in of.items() if kind not in sums.LATE}
        left = [k for k in range(8) if any(stands(first, k, level["threshold"], form) for form in sums.FORMS)]
        assert [r["id"] for r in of["longer"]] == left
        for form in sums.FORMS:
            shown = share[name, "longer", form]["every"]
            kept = sum(stands({"longer": of["longer"]}, k, level["threshold"], form) for k in left)
            assert shown["n"] == len(left) and (not left or shown["value"] == pytest.approx(kept / len(left)))
            for side, label in sums.SIDES.items():
                mine = [r["id"] for r in of["longer"] if r["label"] == label]
                kept = sum(stands({"longer": of["longer"]}, k, level["threshold"], form) for k in mine)
                assert not mine or f" {kept} of {len(mine)} " in told, (name, form, side)
        before = {kind: rows for kind, rows in of.items() if kind != "square"}
        others = {r["id"]: r["label"] for r in of["clean"] if stands(before, r["id"], level["threshold"])}
        tried = [r["id"] for r in of.get("square", [])]
        assert tried == sorted(next(i for i in others if others[i] == k) for k in set(others.values()))
        assert share[name, "square", "float"]["every"]["n"] == len(tried)
        assert sum(level["untried"]["float"].values()) == len(others) - len(tried)
    assert any(sum(level["untried"]["float"].values()) for level in found["levels"].values())
    assert all(lines(out / f"cells/{name}/longer.jsonl") for name in found["purifiers"])

    ledgers = {path: path.read_bytes() for path in [*out.glob("cells/*/*.jsonl"), *out.glob("calibration/*.jsonl")]}
    assert len(ledgers) == 6 + 9 + 9 + 3
    rows = lines(out / "cells/random_pad/exact.jsonl")
    assert len(rows) == 8 and all(len(row["margins"]["png"]) == purifying.FRESH for row in rows)
    for victim in ("cells/bits5/bpda", "cells/random_pad/exact", "cells/none/noise", "calibration/random_pad"):
        path = out / f"{victim}.jsonl"
        path.write_bytes(b"".join(ledgers[path].splitlines(keepends=True)[:3]) + b'{"id": 7')
    (out / "cells/random_pad/square.jsonl").unlink()
    (out / "cells/random_pad/longer.jsonl").unlink()
    (out / "cells/none/longer.jsonl").write_bytes(ledgers[out / "cells/none/longer.jsonl"].splitlines(True)[0])
    (out / "cells/bits5/square.jsonl").write_bytes(ledgers[out / "cells/bits5/square.jsonl"].splitlines(True)[0])
    (out / "made/transfer.npy").unlink()
    (out / "results.json").unlink()
    drive(monkeypatch, purify_eval, words(ground, out))
    assert json.loads((out / "results.json").read_text()) == found
    assert {path: path.read_bytes() for path in ledgers} == ledgers
    assert "eps: 1.0 there, 9.0 asked" in refusal(monkeypatch, capsys, purify_eval, words(ground, out, "--eps", "9"))
    for setting in ("attackers", "draws that calibrate"):
        (out / "inputs.json").write_text(json.dumps({k: v for k, v in inputs.items() if k != setting}))
        told = refusal(monkeypatch, capsys, purify_eval, words(ground, out))
        assert f"the {setting} have changed since this run began; give another --out" in told


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stands(ledgers: dict[str, list[dict]], k: int, threshold: float, form: str = "float") -> bool:
    """By hand: whether most draws call image k rightly, as it is and under every attacker of these ledgers."""
    mine = [row for kind, rows in ledgers.items() if kind != "noise" for row in rows if row["id"] == k]
    calls = [[(m > threshold) == (row["label"] == 1) for m in row["margins"][form]] for row in mine]
    return all(np.mean(one) > 0.5 for one in calls)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--purifiers", "jpeg75", "jpg"], "unknown purifier 'jpg'; known: jpeg75, "),
        (["--purifiers", "bits5", "bits5"], "purifiers: needs at least one and no two alike"),
        (["--eps", "256"], "eps: must be from 0 to 255 (in 1/255), got 256"),
        (["--eps", "2.5"], "eps: must be a whole number (in 1/255), else rounding to 8 bits may take a stored"),
        (["--eps", "0.3"], "image past the bound, got 0.3"),
        (["--eps", "-1"], "eps: must be from 0 to 255 (in 1/255), got -1"),
        (["--images", "0"], "images, calibrate, few: must be at least 1, got 0, 6 and 1"),
        (["--calibrate", "0"], "images, calibrate, few: must be at least 1, got 4, 0 and 1"),
        (["--few", "0"], "images, calibrate, few: must be at least 1"),
        (["--draws", "0"], "draws: must be at least 1, got 0"),
        (["--queries", "0"], "queries: must be at least 1"),
        (["--steps", "0"], "steps: must be at least 1"),
        (["--seed", "-1"], "seed: must be from 0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(more, told, ground, tmp_path, monkeypatch, capsys):
    assert told in refusal(monkeypatch, capsys, purify_eval, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def coarse(key, image):
    """Five levels, and no derivative: what a bit depth is without straight through."""
    return jnp.round(image * 4) / 4


def unmoved(key, image):
    """The image as it is."""
    return image


def ramp(images) -> ImageSet:
    labels = np.arange(len(images)) % 2
    names = tuple(f"{k}.png" for k in range(len(images)))
    return ImageSet(images, labels.astype(np.int32), np.arange(len(images), dtype=np.int32), names)


def attacked(
    folder: Path, name: str, defence: Purifier, forward: Forward, data: ImageSet, setting: Setting, few: int
) -> dict[str, list[dict]]:
    """Every kind's rows, as the driver has them made. Whoever does not know of the purifier does nothing; without one,
    it is PGD on the detector as it is."""
    make_known = purifying.makers(purifying.named("none"), forward, {}, setting, COMPUTE)
    everything = individual.batch_of(data, np.arange(len(data.labels)))
    known = {"unaware": make_known["exact" if name == "none" else "clean"](everything), "transfer": everything.images}
    make, judged = purifying.makers(defence, forward, known, setting, COMPUTE), purifying.judges(defence, forward, 0)
    cells = {}
    folder.mkdir(exist_ok=True)
    for kind in purifying.kinds(name):
        ids = sums.tried_on(kind, cells, setting.threshold, data, few)
        cells[kind] = purifying.cell(folder / f"{kind}.jsonl", data, ids, make[kind], judged, COMPUTE)
    return cells


@pytest.mark.parametrize("label", [0, 1])
def test_a_purifier_whose_gradient_vanishes_holds_against_it_and_is_broken_by_bpda(label, tmp_path):
    """A linear detector of as many weights 1 as -1; every pixel lies just below a step of the purifier, 1.5 / 255 takes
    it over. Which ones to take is what the identity's derivative knows; a random start takes as many of either sign."""
    w = np.random.default_rng(0).permutation(np.resize([1, -1], toys.SHAPE).ravel()).reshape(toys.SHAPE)
    weights = {"params": {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(8 if label else -8)}}
    forward = jax.tree_util.Partial(toys.LINEAR.apply, weights)
    images = np.full((8, *toys.SHAPE), 95, np.uint8)  # 95 / 255 < 3 / 8 < 96 / 255
    data = toys.images(8)._replace(images=images, labels=np.full(8, label, np.int32))
    defence, setting = Purifier(coarse, False, True, ""), Setting(1.5 / 255, 10, 2, 20, 0)
    cells = attacked(tmp_path, "defended", defence, forward, data, setting, 8)
    right = {kind: sums.share_right(cells, [kind], "float", 8, 0.0).mean() for kind in cells}
    assert right["clean"] == right["exact"] == right["noise"] == 1 and right["bpda"] == 0
    assert {"zero_gradient", "bpda_beats_exact"} <= set(
        purifying.flags(defence, forward, data, cells, setting, COMPUTE)
    )
    (aware,) = (e for e in sums.entries("defended", cells, 0.0, data) if (e.kind, e.form) == ("aware", "float"))
    assert aware.every.value == 0 and aware.every.n == 8


def test_draws_side_by_side_give_the_gradient_of_those_in_turn():
    """gradients.averaged's own draws: of the margin, the mean of gradients is the gradient of the mean."""
    transform, forward, goal = purifiers.resize_pad(0.7), toys.forward(), goals.verdict()
    data = toys.images(4)
    batch = individual.batch_of(data, np.arange(4))
    keys, eps = jax.random.split(jax.random.key(3), 4), jnp.zeros(4)
    images = jnp.asarray(batch.images)
    own = gradients.averaged(goal, transform, 3).at(keys, images, batch, eps, forward)
    pooled = purifiers.pooled(transform, keys[:2], forward)
    found = purifying.anew(goal, transform, 3).at(keys, images, batch, eps, pooled)
    np.testing.assert_allclose(found.objective, own.objective, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gradient, own.gradient, rtol=1e-4, atol=1e-6)
    assert found.gradient.shape == images.shape and np.abs(found.gradient).max() > 0


def test_attackers_stay_inside_the_bound_and_noise_is_at_it():
    purifier, setting = purifiers.PURIFIERS["random_pad"], Setting(0.03, 2, 2, 3, 0)
    data, forward = toys.images(8), toys.forward()
    batch = individual.batch_of(data, np.arange(8))
    make = purifying.makers(purifier, forward, {}, setting, COMPUTE)
    for kind in ("clean", "noise", "exact", "bpda", "soft", "low", "longer", "square"):
        images = make[kind](batch)
        assert images.shape == batch.images.shape and images.min() >= 0 and images.max() <= 1
        assert np.abs(images - batch.images).max() <= 0.03 + 1e-6
        far = {"clean": 0, "low": 0.0149}.get(kind, 0.029)  # two steps of low frequencies go half the way
        assert np.abs(images - batch.images).max() >= far


@pytest.mark.parametrize(("levels", "far"), [(2, 2), (8, 8), (2.5, 3)])
def test_a_bound_of_whole_levels_is_kept_as_stored_and_another_is_not(levels, far):
    data = toys.images(8)
    batch = individual.batch_of(data, np.arange(8))
    make = purifying.makers(purifying.named("none"), toys.forward(), {}, Setting(levels / 255, 2, 1, 3, 0), COMPUTE)
    for kind in ("noise", "longer"):
        stored = 255 * (codecs.png(make[kind](batch)) - batch.images)
        assert round(float(np.abs(stored).max()), 3) == far


def test_every_whole_number_of_levels_is_a_bound():
    for eps in range(256):
        purifying.check(["bits5"], Setting(eps / 255, 1, 1, 1, 0))


def striped(bias: float, count: int) -> tuple[Forward, ImageSet]:
    """A linear detector of weights 1 and -1, and grey fakes of margin `bias`."""
    weights = {"params": {"w": jnp.float32(np.resize([1, -1], toys.SHAPE)), "b": jnp.float32(bias)}}
    images, labels = np.full((count, *toys.SHAPE), 128, np.uint8), np.ones(count, np.int32)
    data = toys.images(count)._replace(images=images, labels=labels)
    return jax.tree_util.Partial(toys.LINEAR.apply, weights), data


def test_square_goes_on_until_the_calibrated_threshold_is_passed():
    """From a margin of -5, on the real side of 0, to -8; the bound allows -48. Held to 0 it would stop at once."""
    forward, data = striped(-5.0, 8)
    setting = Setting(0.1, 1, 1, 300, 0, -8.0)
    make = purifying.makers(purifying.named("none"), forward, {}, setting, COMPUTE)
    said = forward(jnp.asarray(make["square"](individual.batch_of(data, np.arange(8))))).logits[:, 1]
    assert said.max() <= -8


def test_what_falls_to_larger_bounds_is_told_by_the_draws_that_judge():
    """Whatever the draws say that the attacker asked. Of margins -1, 1 and 3 two lie above 0 and one above 2."""
    judged, data = [striped(bias, 2)[0] for bias in (-1.0, 1.0, 3.0)], striped(0.0, 2)[1]
    batch, nothing = individual.batch_of(data, np.arange(2)), np.zeros(2)
    for threshold, falls in ((0.0, False), (2.0, True)):
        asked = AttackResult(batch.images, np.full(2, not falls), *[nothing] * 5)
        runner = purifying._judged(lambda *_, asked=asked: asked, judged, Setting(0, 1, 1, 1, 0, threshold), COMPUTE)
        assert runner(batch, nothing, 0).success.tolist() == [falls] * 2


def test_the_draws_that_judge_calibrate_and_answer_attackers_are_no_two_alike():
    purifier, forward = purifiers.PURIFIERS["random_jpeg"], toys.forward()
    judged, calibrating = (purifying.judges(purifier, forward, 0, *more) for more in ((), (purifying.CALIBRATED,)))
    keys = [one.args[0] for one in judged + calibrating]  # pyright: ignore[reportFunctionMemberAccess]
    keys += list(purifying._keys(purifying.ASKED, 64, 0))
    assert len(judged) == len(calibrating) == purifying.FRESH
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys) == 2 * purifying.FRESH + 64
    assert len(purifying.judges(purifiers.PURIFIERS["tv"], forward, 0)) == 1


def test_a_threshold_is_calibrated_by_other_draws_than_those_that_judge(tmp_path):
    """The purifier lays one of a draw's own 2^23 greys over the image: margins tell the draws apart."""
    defence = Purifier(lambda key, image: 0.5 * (image + jax.random.uniform(key)), True, True, "")
    forward = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": jnp.ones(toys.SHAPE), "b": jnp.float32(0)}})
    held = toys.images(2)._replace(labels=np.array([0, 1], np.int32))
    held = held._replace(images=np.stack([np.zeros(toys.SHAPE, np.uint8), np.full(toys.SHAPE, 255, np.uint8)]))
    purifying.calibrated(tmp_path / "drawn.jsonl", held, defence, forward, 0, COMPUTE)
    judged, make = purifying.judges(defence, forward, 0), lambda batch: np.asarray(batch.images)
    shown = purifying.cell(tmp_path / "clean.jsonl", held, np.arange(2), make, judged, COMPUTE)
    for held_row, shown_row in zip(lines(tmp_path / "drawn.jsonl"), shown, strict=True):
        calibrating, judging = (set(one["margins"]["float"]) for one in (held_row, shown_row))
        assert len(calibrating) == len(judging) == len(calibrating | judging) / 2 == purifying.FRESH


def row(k, label, *margins):
    return {"id": k, "name": f"{k}.png", "label": label, "group": k, "margins": {"float": margins, "png": margins}}


CELLS = {
    "clean": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, -1), row(2, 0, 1, 1, -1), row(3, 1, 2, 2, 2)],
    "noise": [row(0, 0, -1, -1, 1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "unaware": [row(0, 0, -1, 1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, -1, -1, 2)],
    "transfer": [row(0, 0, 1, 1, -1), row(1, 1, 1, 1, -1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "exact": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "bpda": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "longer": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, 1)],
    "square": [row(0, 0, -1, -1, -1), row(1, 1, -1, -1, -1)],
}
"""By hand: image 2 is called wrongly as it is; unaware breaks 3, transfer 0, square 1, gradients none."""

RAMP = ramp(np.zeros((4, *toys.SHAPE), np.uint8))


def test_an_image_is_right_where_most_draws_are_under_every_attacker_and_clean():
    np.testing.assert_allclose(sums.share_right(CELLS, ["noise"], "float", 4, 0.0), [2 / 3, 2 / 3, 1 / 3, 1])
    found = {(e.kind, e.form): e for e in sums.entries("x", CELLS, 0.0, RAMP)}
    told = {kind: (e.every.value, e.fake.value, e.real.value) for (kind, form), e in found.items() if form == "float"}
    assert told == {
        "clean": (0.75, 1, 0.5),
        "noise": (0.75, 1, 0.5),
        "unaware": (0.5, 0.5, 0.5),
        "transfer": (0.5, 1, 0),
        "exact": (0.75, 1, 0.5),
        "bpda": (0.75, 1, 0.5),
        "longer": (1, 1, 1),
        "square": (0.5, 0, 1),
        "aware": (0, 0, 0),
    }
    assert found["square", "float"].every.n == 2 and found["aware", "float"].every.n == 4
    assert found["noise", "float"].drawn.value == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1) / 4)


def test_longer_comes_to_all_that_stand_square_to_the_first_of_what_is_left_and_the_rest_is_told():
    """Eight images of alternating classes, rightly called with margins 2 beyond a threshold of 5; unaware breaks 0,
    longer 6, exact 3 in memory and 5 stored."""
    data = ramp(np.zeros((8, *toys.SHAPE), np.uint8))
    right = [5 + 2 * (2 * int(label) - 1) for label in data.labels]
    cells = {kind: [row(k, k % 2, right[k]) for k in range(8)] for kind in ("clean", "noise", *sums.MADE, *sums.WHITE)}
    cells["unaware"][0]["margins"] = {"float": [5.5], "png": [5.5]}
    cells["exact"][3]["margins"] = {"float": [4.5], "png": [5.5]}
    cells["exact"][5]["margins"] = {"float": [5.5], "png": [4.5]}
    cells["noise"][1]["margins"] = {"float": [0.0], "png": [0.0]}  # which is no attacker
    assert all(sums.tried_on(kind, cells, 5.0, data, 1).tolist() == list(range(8)) for kind in cells)
    assert sums.tried_on("longer", cells, 5.0, data, 1).tolist() == [1, 2, 3, 4, 5, 6, 7]
    cells["longer"] = [row(k, k % 2, 5.5 if k == 6 else right[k]) for k in range(1, 8)]
    for few, ids in ((2, [1, 2, 4, 5]), (3, [1, 2, 4, 5, 7]), (4, [1, 2, 3, 4, 5, 7])):  # 3 stands stored: it is last
        assert sums.tried_on("square", cells, 5.0, data, few).tolist() == ids
    assert sums.tried_on("square", cells, 0.0, data, 4).tolist() == [1, 3, 5, 7]  # where every image is called fake
    cells["square"] = [row(1, 1, 4.0), row(2, 0, 3.0)]
    level = sums.level(cells, 5.0, data, 10)
    assert level.untried == {"float": {"fake": 2, "real": 1}, "png": {"fake": 2, "real": 1}}
    assert (level.threshold, level.auc.value, level.auc.n) == (5.0, 1.0, 8)
    found = {(e.kind, e.form): e for e in sums.entries("x", cells, 5.0, data, 10)}
    assert (found["square", "float"].fake.value, found["square", "float"].real.value) == (0, 1)
    assert (found["longer", "float"].fake.n, found["longer", "float"].real.n) == (4, 3)
    assert (found["longer", "float"].fake.value, found["longer", "float"].real.value) == (1, pytest.approx(2 / 3))
    assert (found["aware", "float"].fake.value, found["aware", "float"].real.value) == (0.5, 0.5)
    assert sums.tried_on("square", cells, 5.0, data, 2).tolist() == [1, 2, 4, 5]  # whatever square did
    assert sums.tried_on("longer", cells, 5.0, data, 2).tolist() == [1, 2, 3, 4, 5, 6, 7]  # whatever both did


def test_where_nothing_stands_longer_and_square_are_tried_on_nothing():
    wrong = [row(k, k % 2, 1 - 2 * (k % 2)) for k in range(4)]
    cells: dict[str, list[dict]] = {kind: wrong for kind in ("clean", *sums.MADE, *sums.WHITE)}
    for kind in sums.LATE:
        ids = sums.tried_on(kind, cells, 0.0, RAMP, 2)
        assert ids.tolist() == [] and ids.dtype.kind == "i"
        cells[kind] = []
    entries = {(e.kind, e.form): e for e in sums.entries("x", cells, 0.0, RAMP, 10)}
    assert entries["longer", "float"].every.n == entries["square", "png"].every.n == 0
    assert entries["aware", "png"].every.value == 0


def test_a_threshold_is_of_what_most_draws_say_and_refused_where_nothing_parts_the_classes():
    """Means would part other images: a draw far off counts no more than any other."""
    held = [row(0, 0, 1, 2, 90), row(1, 1, 3, 4, -90), row(2, 0, 0, 1, 1), row(3, 1, 5, 5, 5)]
    assert sums.calibrated(held, "x") == 2.5
    assert all(sums.share_right({"clean": held}, [], "float", 4, 2.5) > 0.5)
    for wrong in ([row(0, 0, 1.0), row(1, 0, 2.0)], [row(0, 0, 2.0), row(1, 1, 1.0)]):
        with pytest.raises(InputError, match="median3: no threshold can be calibrated"):
            sums.calibrated(wrong, "median3")


def shifted(data: ImageSet, w: np.ndarray) -> ImageSet:
    """Grey pictures of 92 to 155, each 4 levels along w or against it, as the label says; but every fifth, which lies
    8 levels to the wrong side."""
    side, wrong = np.resize([1, -1], len(data.labels)), np.arange(len(data.labels)) % 5 == 0
    images = (data.images % 48 + 100 + (side * np.where(wrong, 8, 4))[:, None, None, None] * w[None]).astype(np.uint8)
    labels = (side > 0) ^ wrong
    return data._replace(images=images, labels=labels.astype(np.int32))


def test_a_purifier_that_only_darkens_is_worth_what_the_bare_detector_is_at_its_own_threshold(tmp_path):
    """A linear detector of weights 1, and half as many -1: darker by 0.2, every margin falls by 0.2 x 144. The bound
    moves a margin by 432 x 4 / 255 = 6.8, about as far as either class lies from the threshold."""
    w = np.resize([1, 1, -1], toys.SHAPE)
    forward = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": jnp.float32(w), "b": jnp.float32(-72.0)}})
    held, data = (shifted(toys.images(40, seed), w) for seed in (1, 0))
    dark = Purifier(lambda key, image: image - 0.2, False, True, "")
    found, at, flags = {}, {}, {}
    for name, defence in (("bare", purifying.named("none")), ("dark", dark)):
        path = tmp_path / f"{name}.jsonl"
        at[name] = purifying.calibrated(path, held, defence, forward, 0, COMPUTE)
        setting = Setting(4 / 255, 10, 2, 20, 0, at[name])
        cells = attacked(tmp_path / name, "defended", defence, forward, data, setting, 3)
        told = sums.entries("x", cells, at[name], data, 10)
        found[name] = [(e.kind, e.form, e.fake.value, e.real.value, e.every.n) for e in told]
        assert {row["id"] for row in cells["square"]} == set(sums.tried_on("square", cells, at[name], data, 3))
        level = sums.level(cells, at[name], data, 10)
        found[name].append((level.auc.value, level.untried))
        flags[name] = set(purifying.flags(defence, forward, data, cells, setting, COMPUTE))
        found[f"{name} at 0"] = sums.entries("x", cells, 0.0, data, 10)[0]
    assert at["dark"] == pytest.approx(at["bare"] - 28.8, abs=1e-3)
    assert found["dark"] == found["bare"] and flags["dark"] == flags["bare"]
    right = {(kind, form): (fakes, reals) for kind, form, fakes, reals, _ in found["dark"][:-1]}
    assert right["clean", "float"] == (0.8, 0.8) and 0 < sum(right["exact", "float"]) < 1.6
    assert (found["dark at 0"].fake.value, found["dark at 0"].real.value) == (0, 1)


def test_an_attacker_that_knows_less_and_breaks_more_is_flagged():
    data = ramp(np.random.default_rng(0).integers(0, 256, (4, *toys.SHAPE), np.uint8))
    defence = purifiers.PURIFIERS["bits5"]
    setting = Setting(0.0, 10, 2, 20, 0)
    found = purifying.flags(defence, toys.forward(), data, CELLS, setting, COMPUTE)
    late = {"unaware_beats_white_box", "transfer_beats_white_box", "black_box_beats_white_box"}
    assert set(found) == late
    strong = CELLS | {"exact": [row(0, 0, 1, 1, 1), row(1, 1, -1, -1, -1), *CELLS["exact"][2:]]}
    assert not purifying.flags(defence, toys.forward(), data, strong, setting, COMPUTE)


@pytest.mark.parametrize(
    ("name", "defence", "threshold", "flag", "told"),
    [
        ("none", purifying.named("none"), 50.0, "more_steps_help", "twice the steps break 4 of 4 images that stood"),
        ("same", Purifier(unmoved, False, True, ""), -50.0, "more_steps_help", "twice the steps break 4 of 4"),
        ("drawn", Purifier(unmoved, True, True, ""), 0.0, "more_steps_help", "twice the steps break 4 of 4"),
        ("coarse", Purifier(coarse, False, True, ""), 0.0, "unbounded_fails", "4 of 4 images stand with no bound"),
        ("coarse", Purifier(coarse, False, True, ""), 50.0, "unbounded_fails", "4 of 4 images stand with no bound"),
    ],
)
def test_what_more_steps_break_counts_as_broken_and_is_flagged_and_so_is_what_no_bound_breaks(
    name, defence, threshold, flag, told, tmp_path
):
    """A linear detector of weights 1 and -1, and grey reals 6 below the threshold. Steps are a tenth of the bound: two
    move the margin by 0.2 x 0.05 x 432 = 4.3 and four by 8.6. Where the purifier has no derivative, none does anything,
    and the reals are 100 below it, out of reach for the others."""
    bias = -100.0 if name == "coarse" else -6.0
    w = np.resize([1, -1], toys.SHAPE)
    weights = {"params": {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(bias + threshold)}}
    forward = jax.tree_util.Partial(toys.LINEAR.apply, weights)
    data = toys.images(4)._replace(images=np.full((4, *toys.SHAPE), 128, np.uint8), labels=np.zeros(4, np.int32))
    setting = Setting(0.05, 2, 2, 20, 0, threshold)
    cells = attacked(tmp_path, name, defence, forward, data, setting, 4)
    found = purifying.flags(defence, forward, data, cells, setting, COMPUTE)
    assert found[flag].startswith(told) and ("unbounded_fails" in found) != ("more_steps_help" in found)
    shares = {(e.kind, e.form): e.every for e in sums.entries(name, cells, threshold, data, 10)}
    stood = float(flag == "unbounded_fails")
    assert shares["longer", "float"].n == 4 and shares["unaware" if name == "none" else "exact", "float"].value == 1
    assert shares["longer", "float"].value == shares["aware", "float"].value == stood


def test_the_signs_of_effort_are_of_what_stands_in_the_ledgers():
    """A purifier without a derivative, so that no bound helps. Of 12 fakes unaware breaks 0 and bpda 1; longer, which
    came to the rest, breaks 2: one of ten. With image 0 standing it is one of eleven, below sanity.DEAD."""
    forward, data = striped(100.0, 12)
    cells = {kind: [row(k, 1, 1.0) for k in range(12)] for kind in purifying.kinds("defended")}
    cells["unaware"][0], cells["bpda"][1] = row(0, 1, -1.0), row(1, 1, -1.0)
    cells |= {"longer": [row(k, 1, -1.0 if k == 2 else 1.0) for k in range(2, 12)], "square": []}
    tell = partial(purifying.flags, Purifier(coarse, False, True, ""), forward, data)
    setting = Setting(0.05, 2, 2, 20, 0)
    found = tell(cells, setting, COMPUTE)
    assert found["more_steps_help"] == "twice the steps break 1 of 10 images that stood: it stopped too soon"
    assert found["unbounded_fails"].startswith("8 of 8 images stand with no bound at all: ")
    cells["unaware"][0], cells["longer"] = row(0, 1, 1.0), [row(0, 1, 1.0), *cells["longer"]]
    assert "more_steps_help" not in tell(cells, setting, COMPUTE)
    cells["longer"] = [row(k, 1, -1.0 if k < 9 else 1.0) for k in (0, *range(2, 12))]
    found = tell(cells, setting, COMPUTE)
    assert found["unbounded_fails"].startswith("3 of 3 images stand") and "8 of 11" in found["more_steps_help"]
    cells["square"] = [row(8, 1, -1.0), row(9, 1, -1.0)]  # 8 has fallen to longer in memory, and may stand stored
    assert tell(cells, setting, COMPUTE)["black_box_beats_white_box"].startswith("square broke 1 ")


def test_a_ledger_of_another_set_is_refused(tmp_path):
    path = tmp_path / "clean.jsonl"
    path.write_text(json.dumps(row(5, 0, 1.0) | {"name": "other.png"}) + "\n")
    with pytest.raises(InputError, match="line 1 is of no image of this set"):
        purifying.cell(path, toys.images(8), np.arange(8), lambda batch: np.asarray(batch.images), [], COMPUTE)


def test_a_softer_derivative_is_of_jpeg_alone_and_of_the_same_value():
    key, image = jax.random.key(0), np.asarray(individual.batch_of(toys.images(1), np.arange(1)).images)[0]
    for name, purifier in purifiers.PURIFIERS.items():
        assert (purifier.soft is not None) == ("jpeg" in name) == ("soft" in purifying.kinds(name))
        if purifier.soft is not None:
            ways = (purifier.transform, purifier.soft)
            np.testing.assert_array_equal(ways[0](key, image), ways[1](key, image))
            own, soft = (jax.grad(lambda x, t=way: jnp.sum(jnp.square(t(key, x))))(jnp.asarray(image)) for way in ways)
            assert np.abs(own - soft).max() > 1e-2


@pytest.mark.slow
def test_the_softer_derivative_breaks_jpeg_where_passing_roundings_straight_through_does_not():
    """A shipped detector on its own faces: the trace that it goes by lies where JPEG's steps are coarse."""
    data, compute = sets.load("a", "test", 128, 6), Compute(batch=12)
    purifier, forward = purifiers.PURIFIERS["jpeg75"], detectors.load("meso4-a0")
    said = study.networks([forward], 128)["meso4-a0"].forward
    batch = individual.batch_of(data, np.arange(len(data.labels)))
    make = purifying.makers(purifier, said, {}, Setting(2 / 255, 20, 1, 1, 0), compute)
    (judge,) = purifying.judges(purifier, said, 0)
    way = np.where(data.labels == 1, -1, 1)
    past = {kind: way * margins(judge, make[kind](batch), compute) for kind in ("clean", "exact", "bpda", "soft")}
    assert np.mean(past["soft"]) > np.mean(past["exact"]) > np.mean(past["clean"])
    assert np.sum(past["soft"] > 0) > max(np.sum(past["exact"] > 0), np.sum(past["bpda"] > 0))


def test_the_none_of_the_table_is_the_image_as_it_is():
    batch: Batch = individual.batch_of(toys.images(2), np.arange(2))
    (bare,) = purifying.judges(purifying.named("none"), toys.forward(), 0)
    np.testing.assert_array_equal(bare(batch.images).logits, toys.forward()(batch.images).logits)
    assert purifying.kinds("none") == ["clean", "noise", "unaware", "transfer", "longer", "square"]
