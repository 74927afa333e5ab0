"""zhao_defence as a user runs it, on pictures that are easy to tell apart; and its sums by hand."""

import json
from functools import partial

import ground
import jax
import numpy as np
import pytest
from driven import drive, refusal

from experiments import zhao_defence
from ffjax import detectors, zhao, zhao_table
from ffjax.zhao_table import Candidate


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return ground.pictures(tmp_path_factory.mktemp("p") / "pictures", 160, ("train", "train", "validation", "test"))


def words(pictures, out, *more):
    given = [
        "--data",
        str(pictures),
        "--size",
        "32",
        "--train.epochs",
        "3",
        "--train.batch",
        "16",
        "--train.rate",
        "1e-2",
    ]
    given += ["--weights", "0.05", "0.1", "--shares", "0.5", "--seeds", "0", "--bounds", "0.25", "2", "--few", "4"]
    return [*given, "--compute.batch", "16", "--out", str(out), *more]


@pytest.mark.slow
def test_it_trains_attacks_claims_and_taken_up_again_ends_the_same(pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made"
    drive(monkeypatch, zhao_defence, words(pictures, out))
    told = capsys.readouterr().out
    assert "constant classifier: 50 %" in told and "erased" in told and "chosen" in told
    found = json.loads((out / "results.json").read_text())["data"]["pictures"]
    assert [c["defence"] for c in found["candidates"]] == ["plain", "penalty", "penalty", "mix", "both"]
    assert sum(c["chosen"] for c in found["candidates"]) == 4
    assert {e["look"] for e in found["entries"]} == {"fgsm", "pgd-20", "pgd-100", "pgd-100 x 5", "auto"}
    for e in found["entries"]:
        assert e["accuracy"]["value"] <= e["clean"]["value"]
        assert e["accuracy"]["n"] == (8 if e["look"] in ("auto", "pgd-100 x 5") else 40)
    assert set(found["verdicts"]) == {"penalty", "mix", "both"} and len(found["claims"]) == 3
    assert all((out / f"figures/pictures-{name}.png").stat().st_size > 5000 for name in ("accuracy", "loss"))
    ledgers = {path: path.read_bytes() for path in out.glob("cells/**/ledger.jsonl")}
    assert len(ledgers) == 4 * (3 * 2 + 2)

    victim = next(iter(ledgers))
    victim.write_bytes(b"".join(ledgers[victim].splitlines(keepends=True)[:5]))
    (out / "results.json").unlink()
    drive(monkeypatch, zhao_defence, words(pictures, out))
    assert json.loads((out / "results.json").read_text())["data"]["pictures"] == found
    assert "made with other settings" in refusal(
        monkeypatch, capsys, zhao_defence, words(pictures, out, "--mix.eps", "1")
    )


@pytest.mark.slow
def test_trainings_begin_at_the_weights_given_and_refuse_others_later(pictures, tmp_path, monkeypatch, capsys):
    folder = ground.lay(tmp_path / "nets", 1, 2)
    net, spec = folder / "net0.safetensors", f"meso4:{folder}/net0.safetensors"
    out, rate = tmp_path / "made", ("--train.rate", "1e-9", "--train.epochs", "1")
    drive(monkeypatch, zhao_defence, words(pictures, out, *rate, "--start", spec))
    begun = jax.tree.leaves(detectors.load(spec).variables["params"])
    made = sorted(out.glob("models/*/*/weights.safetensors"))
    assert len(made) == 5
    for path in made:
        for x, y in zip(begun, jax.tree.leaves(detectors.load(f"meso4:{path}").variables["params"]), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)
    net.write_bytes((folder / "net1.safetensors").read_bytes())
    told = refusal(monkeypatch, capsys, zhao_defence, words(pictures, out, *rate, "--start", spec))
    assert "weights to start from have changed" in told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--start", "meso4-a0", "--arch", "resnet18"], "weights of another network"),
        (["--start", "resnet18-a0", "--arch", "resnet18", "--options", "width=8"], "weights of another network"),
        (["--arch", "resnet18", "--options", "depth=8"], "depth"),
        (["--eps", "3"], "eps: must be one of the bounds"),
        (["--weights", "0"], "0 is plain training"),
        (["--shares", "0.5", "1.5"], "at most 1"),
        (["--seeds", "1", "1"], "no two alike"),
        (["--mix.steps", "0"], "mix.steps"),
        (["--train.epochs", "0"], "train.epochs"),
        (["--seeds", "0", "4294967296"], "seed in 0 to 2^32 - 1"),
        (["--train.augment.jpeg-quality", "95", "75"], "train.augment.jpeg_quality"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(more, told, pictures, tmp_path, monkeypatch, capsys):
    assert told in refusal(monkeypatch, capsys, zhao_defence, words(pictures, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def row(k, label, clean, attacked=None, carried=None):
    """A ledger's row; attacked None: called wrongly as it is."""
    found = {"id": k, "name": str(k), "label": label, "group": k}
    if attacked is None:
        return found | {"margin": clean}
    margins = {"clean": {"float": clean}, "noise": {"float": clean}, "attacked": {"float": attacked}}
    return found | {"margins": margins, "transfer": {"attacked": {"float": {"mix": carried}}}}


ROWS = [row(0, 1, 3.0, 1.0, -1.0), row(1, 1, 3.0, -1.0, 2.0), row(2, 0, -3.0, -2.0, -1.0), row(3, 0, 5.0)]


def test_an_image_counts_where_it_is_called_rightly_clean_and_attacked():
    np.testing.assert_array_equal(zhao.right(ROWS, "clean", "float"), [1, 1, 1, 0])
    np.testing.assert_array_equal(zhao.right(ROWS, "attacked", "float"), [1, 0, 1, 0])


def test_what_carries_over_is_judged_by_the_other_and_an_unattacked_image_as_it_is():
    np.testing.assert_array_equal(zhao.carried(ROWS, np.array([1, 1, 1, 1]), "mix", "float"), [0, 1, 1, 1])
    np.testing.assert_array_equal(zhao.carried(ROWS, np.array([1, 0, 1, 0]), "mix", "float"), [0, 0, 1, 0])


LOOKS = [look for look in zhao.looks([2.0], 2.0, False) if look.name in (zhao.CLAIM, "auto")]


def standing(fakes: int, reals: int, count: int = 10):
    """A ledger of `count` fakes and as many reals, of which so many of ten still stand."""
    right = [k % count < (fakes if k < count else reals) for k in range(2 * count)]
    side = [1 if k < count else -1 for k in range(2 * count)]
    return [row(k, int(side[k] > 0), 3.0 * side[k], side[k] * (1 if right[k] else -1)) for k in range(2 * count)]


def shown(rows, fooled: int):
    """The same ledger, of whose images so many of either class fool 'mix' too."""
    names = {label: [r["name"] for r in rows if r["label"] == label][:fooled] for label in (0, 1)}
    margin = {r["name"]: (1 if r["label"] else -1) * (-1 if r["name"] in names[r["label"]] else 1) for r in rows}
    return [r | {"transfer": {"attacked": {"float": {"mix": margin[r["name"]]}}}} for r in rows]


def verdict(defended, few=None, seeds=(0, 1, 2), fooled=0):
    """Of 'mix' against plain training that 1 image of 10 of either class survives; few: what the ensemble leaves;
    fooled: how many of 10 the images of plain training fool."""
    claim, auto = LOOKS
    defended = defended * (len(seeds) // len(defended))
    plain = shown(standing(1, 1), fooled)
    seen = {("plain", seed): {claim.cell: plain, auto.cell: standing(1, 1)} for seed in seeds}
    for seed, (fakes, reals) in zip(seeds, defended, strict=True):
        ensemble = standing(*(few or (fakes, reals)))
        seen["mix", seed] = {claim.cell: standing(fakes, reals), auto.cell: ensemble}
    return zhao.verdict(seen, LOOKS, 2.0, "mix", seeds)


def test_matched_counts_the_images_that_every_training_of_both_calls_rightly_clean():
    def ledger(clean, attacked):
        return [one(k, 1 if k < 4 else -1, *said) for k, said in enumerate(zip(clean, attacked, strict=True))]

    def one(k, side, clean, attacked):
        found = {"name": str(k), "label": int(side > 0), "group": k}
        said = {"clean": clean, "noise": clean, "attacked": attacked}
        margins = {kind: dict.fromkeys(("float", "png"), side * value) for kind, value in said.items()}
        return found | ({"margins": margins} if clean > 0 else {"margin": side * clean})

    look = zhao.auto(2.0)
    nothing = {look.cell: ledger([1] * 5, [-1] * 5)}
    seen = {(d, s): nothing for d in zhao.DEFENCES for s in (0, 1)}
    seen["plain", 0] = {look.cell: ledger([1, 1, 1, 1, -1], [1, -1, -1, -1, 0])}
    seen["mix", 0] = {look.cell: ledger([1, 1, 1, -1, 1], [1, 1, -1, 0, 1])}  # images 0 to 2 are left
    seen["mix", 1] = {look.cell: ledger([1, 1, 1, 1, 1], [1, 1, 1, 1, 1])}
    found = {e.defence: e.matched for e in zhao.entries(seen, [look], [0, 1]) if e.form == "float"}
    plain, mix = found["mix"]
    assert (plain.value, mix.value) == pytest.approx((1 / 6, 5 / 6)) and plain.n == mix.n == 3
    assert found["plain"] is None

    seen["mix", 1] = {look.cell: ledger([-1] * 5, [0] * 5)}
    assert {e.defence: e.matched for e in zhao.entries(seen, [look], [0, 1])}["mix"] is None


@pytest.mark.parametrize(
    ("fakes", "reals", "held"),
    [(9, 9, True), (10, 4, False), (6, 5, False), (5, 7, True)],  # of 10: all well; a class below half; both; enough
)
def test_held_needs_lift_both_classes_and_the_worse_one(fakes, reals, held):
    found = verdict([(fakes, reals)])
    assert found.held == held and found.clean_loss == 0 and found.trainings == 3 * held
    assert not verdict([(fakes, reals)], seeds=(0, 1)).held  # two trainings are too few
    assert found.lift == pytest.approx((fakes + reals - 2) / 20) and found.worst == min(fakes, reals) / 10
    assert found.every == pytest.approx((fakes + reals) / 20)


def test_held_is_not_what_the_ensemble_breaks_or_most_trainings_miss():
    broken = verdict([(9, 9)], few=(9, 2))
    assert not broken.held and broken.every == pytest.approx(0.55)
    # medians of lift and of the worse class alike would do; two of three trainings lack one or the other
    mixed = verdict([(7, 7), (9, 3), (3, 9)])
    assert mixed.trainings == 1 and not mixed.held


def test_held_is_not_what_images_of_plain_training_break_or_where_that_cannot_tell_them_apart(monkeypatch):
    assert verdict([(9, 9)], fooled=1).every == pytest.approx(0.8)  # one of each class by PGD, another by transfer
    broken = verdict([(9, 9)], fooled=8)
    assert not broken.held and broken.every == pytest.approx(0.1) and broken.balanced == 0.9
    monkeypatch.setattr(zhao, "TRUSTED", 1.01)
    assert not verdict([(9, 9)]).held


def test_images_of_one_plain_training_are_shown_to_the_defended_of_its_seed_and_to_another_plain_training():
    claim = LOOKS[0]

    def rows(carried):
        return [one for side in (1.0, -1.0) for one in map(partial(made, side, carried), range(2))]

    def made(side, carried, k):
        margins = {kind: dict.fromkeys(("float", "png"), side) for kind in ("clean", "noise", "attacked")}
        transfer = {"attacked": {"float": {name: side * sign for name, sign in carried.items()}}}
        label = int(side > 0)
        return {"name": f"{k}{label}", "label": label, "group": k, "margins": margins, "transfer": transfer}

    # of seed 0 the images fool 'mix' of seed 0 and plain training of seed 1; of seed 1, nobody
    fooled = {"plain": -1.0, "penalty": 1.0, "mix": -1.0, "both": 1.0}
    seen = {
        (d, s): {claim.cell: rows(fooled if s == 0 else dict.fromkeys(fooled, 1.0))} for d in fooled for s in (0, 1)
    }
    found = {e.defence: e for e in zhao.entries(seen, [claim], [0, 1]) if e.look == "transfer"}
    assert {d: e.accuracy.value for d, e in found.items()} == {"plain": 0.5, "penalty": 1.0, "mix": 0.5, "both": 1.0}
    assert found["plain"].lift is None and found["mix"].lift.value == 0 and found["both"].lift.value == 0.5
    assert not [
        e for e in zhao.entries({k: v for k, v in seen.items() if k[1] == 0}, [claim], [0]) if e.look == "transfer"
    ]


def test_the_best_under_attack_is_chosen_among_those_that_lose_little():
    plain = Candidate("plain", 0, 0, 0.95, 0.1, 1.0)
    tried = [
        Candidate("mix", 0, s, clean, pgd, 1.0)
        for s, clean, pgd in ((0.2, 0.94, 0.4), (0.5, 0.91, 0.6), (0.8, 0.85, 0.8))
    ]
    assert [c.share for c in zhao_table.chosen(plain, tried) if c.chosen] == [0.5]
    assert [c.share for c in zhao_table.chosen(plain, tried[2:]) if c.chosen] == [0.8]


def test_the_surface_rises_along_the_gradient_of_a_linear_detector_and_begins_at_its_loss():
    import toys

    forward = toys.forward()
    grid = zhao.surface(forward, toys.images(20), 0.01, side=5)
    assert grid.shape == (5, 5) and (np.diff(grid[:, 2]) > 0).all()
