"""The evaluation of purifiers as a user runs it, its sums by hand, and attackers held to what they must find."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from driven import drive, refusal
from ground import lay

from experiments import purify_eval
from ffjax import goals, gradients, individual, purifying
from ffjax.defences import purifiers
from ffjax.defences.purifiers import Purifier
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.purifying import Setting
from ffjax.types import Batch, ImageSet

COMPUTE = Compute(batch=8)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """16 noise images of 32 px and two Meso-4 of random weights."""
    return lay(tmp_path_factory.mktemp("ground"), 8, 2)


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"meso4:{ground}/net0.safetensors", "--other", f"meso4:{ground}/net1.safetensors"]
    given += ["--data", f"{ground}/images", "--images", "4", "--few", "2", "--steps", "3", "--draws", "2"]
    given += ["--queries", "4", "--eps", "8", "--purifiers", "bits5", "random_pad", "--compute.batch", "8"]
    return [*given, "--out", str(out), *more]


@pytest.mark.slow
def test_it_attacks_tells_draws_and_goes_on_where_it_was_cut(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    drive(monkeypatch, purify_eval, words(ground, out))
    told = capsys.readouterr().out
    assert "4 fakes" in told and "4 reals" in told and "most of 15 draws" in told and "noise" in told
    found = json.loads((out / "results.json").read_text())
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
            assert of["square"]["every"]["n"] == 4
    assert (out / "figures/purifiers.png").stat().st_size > 5000

    ledgers = {path: path.read_bytes() for path in out.glob("cells/*/*.jsonl")}
    assert len(ledgers) == 5 + 7 + 7
    rows = [json.loads(line) for line in (out / "cells/random_pad/exact.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(len(row["margins"]["png"]) == purifying.FRESH for row in rows)
    for victim in ("bits5/bpda", "random_pad/exact", "none/noise"):
        path = out / f"cells/{victim}.jsonl"
        path.write_bytes(b"".join(ledgers[path].splitlines(keepends=True)[:3]) + b'{"id": 7')
    (out / "cells/random_pad/square.jsonl").unlink()
    (out / "made/transfer.npy").unlink()
    (out / "results.json").unlink()
    drive(monkeypatch, purify_eval, words(ground, out))
    assert json.loads((out / "results.json").read_text()) == found
    assert {path: path.read_bytes() for path in ledgers} == ledgers
    assert "eps: 8.0 there, 9.0 asked" in refusal(monkeypatch, capsys, purify_eval, words(ground, out, "--eps", "9"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--purifiers", "jpeg75", "jpg"], "unknown purifier 'jpg'; known: jpeg75, "),
        (["--purifiers", "bits5", "bits5"], "purifiers: needs at least one and no two alike"),
        (["--eps", "256"], "eps: must be from 0 to 255 (in 1/255), got 256"),
        (["--eps", "-1"], "eps: must be from 0 to 255 (in 1/255), got -1"),
        (["--images", "0"], "images, few: must be at least 1, got 0 and 2"),
        (["--few", "0"], "images, few: must be at least 1"),
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


def ramp(images) -> ImageSet:
    labels = np.arange(len(images)) % 2
    names = tuple(f"{k}.png" for k in range(len(images)))
    return ImageSet(images, labels.astype(np.int32), np.arange(len(images), dtype=np.int32), names)


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
    known = {kind: individual.batch_of(data, np.arange(8)).images for kind in purifying.MADE}
    make, judged = purifying.makers(defence, forward, known, setting, COMPUTE), purifying.judges(defence, forward, 0)
    cells = {
        kind: purifying.cell(tmp_path / f"{kind}.jsonl", data, np.arange(8), make[kind], judged, COMPUTE)
        for kind in purifying.kinds("defended")
    }
    right = {kind: purifying.share_right(cells, [kind], "float", 8).mean() for kind in cells}
    assert right["clean"] == right["exact"] == right["noise"] == 1 and right["bpda"] == 0
    assert {"zero_gradient", "bpda_beats_exact"} <= set(
        purifying.flags(defence, forward, data, cells, setting, COMPUTE)
    )
    (aware,) = (e for e in purifying.entries("defended", cells, data) if (e.kind, e.form) == ("aware", "float"))
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
    for kind in ("clean", "noise", "exact", "bpda", "square"):
        images = make[kind](batch)
        assert images.shape == batch.images.shape and images.min() >= 0 and images.max() <= 1
        assert np.abs(images - batch.images).max() <= 0.03 + 1e-6
        assert kind == "clean" or np.abs(images - batch.images).max() > 0.029


def test_the_draws_that_judge_are_none_that_attackers_ask():
    purifier = purifiers.PURIFIERS["random_jpeg"]
    judged = purifying.judges(purifier, toys.forward(), 0)
    told = {jax.random.key_data(one.args[0]).tobytes() for one in judged}  # pyright: ignore[reportFunctionMemberAccess]
    asked = purifying._keys(purifying.ASKED, 64, 0)
    assert len(told) == purifying.FRESH == len(judged)
    assert not told & {jax.random.key_data(key).tobytes() for key in asked}
    assert len(purifying.judges(purifiers.PURIFIERS["tv"], toys.forward(), 0)) == 1


def row(k, label, *margins):
    return {"id": k, "name": f"{k}.png", "label": label, "group": k, "margins": {"float": margins, "png": margins}}


CELLS = {
    "clean": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, -1), row(2, 0, 1, 1, -1), row(3, 1, 2, 2, 2)],
    "noise": [row(0, 0, -1, -1, 1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "unaware": [row(0, 0, -1, 1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, -1, -1, 2)],
    "transfer": [row(0, 0, 1, 1, -1), row(1, 1, 1, 1, -1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "exact": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "bpda": [row(0, 0, -1, -1, -1), row(1, 1, 1, 1, 1), row(2, 0, -1, -1, -1), row(3, 1, 2, 2, 2)],
    "square": [row(0, 0, -1, -1, -1), row(1, 1, -1, -1, -1)],
}
"""By hand: image 2 is called wrongly as it is; unaware breaks 3, transfer 0, square 1, gradients none."""


def test_an_image_is_right_where_most_draws_are_under_every_attacker_and_clean():
    np.testing.assert_allclose(purifying.share_right(CELLS, ["noise"], "float", 4), [2 / 3, 2 / 3, 1 / 3, 1])
    found = {(e.kind, e.form): e for e in purifying.entries("x", CELLS, ramp(np.zeros((4, *toys.SHAPE), np.uint8)))}
    told = {kind: (e.every.value, e.fake.value, e.real.value) for (kind, form), e in found.items() if form == "float"}
    assert told == {
        "clean": (0.75, 1, 0.5),
        "noise": (0.75, 1, 0.5),
        "unaware": (0.5, 0.5, 0.5),
        "transfer": (0.5, 1, 0),
        "exact": (0.75, 1, 0.5),
        "bpda": (0.75, 1, 0.5),
        "square": (0.5, 0, 1),
        "aware": (0, 0, 0),
    }
    assert found["square", "float"].every.n == 2 and found["aware", "float"].every.n == 4
    assert found["noise", "float"].drawn.value == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1) / 4)


def test_an_attacker_that_knows_less_and_breaks_more_is_flagged():
    data = ramp(np.random.default_rng(0).integers(0, 256, (4, *toys.SHAPE), np.uint8))
    defence = purifiers.PURIFIERS["bits5"]
    setting = Setting(0.0, 10, 2, 20, 0)
    found = purifying.flags(defence, toys.forward(), data, CELLS, setting, COMPUTE)
    late = {"unaware_beats_white_box", "transfer_beats_white_box", "black_box_beats_white_box"}
    # the ledgers are made up: the toy calls some wrongly that stand in them, which counts as broken by more steps
    assert set(found) - {"more_steps_help"} == late
    strong = CELLS | {"exact": [row(0, 0, 1, 1, 1), row(1, 1, -1, -1, -1), *CELLS["exact"][2:]]}
    assert set(purifying.flags(defence, toys.forward(), data, strong, setting, COMPUTE)) <= {"more_steps_help"}


@pytest.mark.parametrize(
    ("clean", "told", "bias"),
    [
        (lambda key, image: image, {"more_steps_help": "twice the steps break 4 of 4"}, -6.0),
        (coarse, {"unbounded_fails": "4 of 4 images stand with no bound at all"}, -100.0),
    ],
)
def test_what_more_steps_break_or_no_bound_does_not_is_flagged(clean, told, bias):
    """A linear detector of weights 1 and -1, and grey reals of margin `bias`. Steps are a tenth of the bound: two move
    the margin by 0.2 x 0.05 x 432 = 4.3 and four by 8.6; where the purifier has no derivative, none does anything."""
    w = np.resize([1, -1], toys.SHAPE)
    weights = {"params": {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(bias)}}
    forward = jax.tree_util.Partial(toys.LINEAR.apply, weights)
    data = toys.images(4)._replace(images=np.full((4, *toys.SHAPE), 128, np.uint8), labels=np.zeros(4, np.int32))
    cells = {kind: [row(k, 0, -1.0) for k in range(4)] for kind in purifying.kinds("defended")}
    found = purifying.flags(Purifier(clean, False, True, ""), forward, data, cells, Setting(0.05, 2, 2, 20, 0), COMPUTE)
    assert all(found[flag].startswith(words) for flag, words in told.items())
    assert ("unbounded_fails" in found) != ("more_steps_help" in found)


def test_a_ledger_of_another_set_is_refused(tmp_path):
    path = tmp_path / "clean.jsonl"
    path.write_text(json.dumps(row(5, 0, 1.0) | {"name": "other.png"}) + "\n")
    with pytest.raises(InputError, match="line 1 is of no image of this set"):
        purifying.cell(path, toys.images(8), np.arange(8), lambda batch: np.asarray(batch.images), [], COMPUTE)


def test_the_none_of_the_table_is_the_image_as_it_is():
    batch: Batch = individual.batch_of(toys.images(2), np.arange(2))
    (bare,) = purifying.judges(purifying.named("none"), toys.forward(), 0)
    np.testing.assert_array_equal(bare(batch.images).logits, toys.forward()(batch.images).logits)
    assert purifying.kinds("none") == ["clean", "noise", "unaware", "transfer", "square"]
