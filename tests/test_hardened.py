"""gradnorm_train and adversarial_train, as a user runs them, on pictures that are easy to tell apart."""

import json
from functools import partial

import ground
import jax
import numpy as np
import pytest
import toys
from driven import drive, refusal

from experiments import adversarial_train, gradnorm_train
from ffjax import defences, detectors, train
from ffjax.data.batches import batch_at

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return ground.pictures(tmp_path_factory.mktemp("p") / "pictures", 80, ("train", "train", "validation", "test"))


def words(pictures, out, *more):
    given = ["--arch", "meso4", "--size", "32", "--data", str(pictures), "--others", "--dropout", "0.1"]
    return [*given, "--train.epochs", "4", "--train.batch", "16", "--train.rate", "1e-2", "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "more"),
    [
        (gradnorm_train, ["--weight", "0.05", "--beside", "resnet10-a0"]),
        (adversarial_train, ["--attack.eps", "4", "--penalty", "0.05"]),
        (adversarial_train, ["--method", "trades", "--attack.steps", "2", "--attack.start", "near"]),
        (adversarial_train, ["--attack.heap", "4", "--attack.no-ranged"]),
        (adversarial_train, ["--method", "attacked", "--attack.start", "uniform", "--attack.stride", "1.25"]),
        (adversarial_train, ["--method", "offline", "--copies", "meso4-a0"]),
    ],
)
def test_it_trains_chooses_under_attack_and_says_what_holds(driver, more, pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made-0"
    drive(monkeypatch, driver, words(pictures, out, *more))
    told = capsys.readouterr().out
    assert "no claim of robustness" in told and "flag " in told
    loaded = detectors.load(f"meso4:{out}/weights.safetensors")
    assert loaded.meta["command"].startswith(f"python -m {driver.__name__}")
    robust = json.loads((out / "robust.json").read_text())
    (found,) = robust["test"].values()
    assert robust["eps"] == 2 and set(found) == {
        *(f"{how}_{kind}" for how in ("clean", "noise", "pgd") for kind in ("fake", "real")), "slope"
    }  # fmt: skip
    assert all(found[f"pgd_{kind}"]["value"] <= found[f"clean_{kind}"]["value"] for kind in ("fake", "real"))
    beside = robust["beside"]
    assert (beside is None) == ("--beside" not in more) == (not robust["matched"])
    if beside is not None:
        (shares,) = (shares for name, shares in beside.items() if name != "detector")
        assert beside["detector"] == "resnet10-a0" and set(shares) == set(found) and shares != found
        assert "resnet10-a0" in told and "that both call rightly" in " ".join(told.split())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    by = "validation_clean_then_pgd"
    chosen = [row[by] for row in rows if by in row]
    assert len(chosen) == 4 and max(chosen) == pytest.approx(loaded.meta[by], rel=1e-6)


@pytest.mark.parametrize(
    ("driver", "fields"),
    [
        (gradnorm_train, {"weight": 0.1}),
        (gradnorm_train, {"weight": 0.1, "through": "training"}),
        (adversarial_train, {}),
        (adversarial_train, {"method": "attacked"}),
        (adversarial_train, {"method": "trades"}),
        (adversarial_train, {"method": "offline", "penalty": 0.1}),
        (adversarial_train, {"attack": adversarial_train.Attack(heap=4, ranged=False)}),
    ],
)
def test_the_defence_is_in_the_loss_that_is_trained(driver, fields):
    plain, some, variables = train.cross_entropy(toys.TOY), batch_at(toys.images(20), 8, 0, 0), toys.TOY.init(KEY)
    defended = driver._defence(driver.Config(**fields), toys.TOY)(plain)
    told, bare = (np.mean(loss(variables, some, KEY)[0]) for loss in (defended, plain))
    assert told > bare + 1e-4


def test_trades_weighs_masks_as_the_training_does():
    two, some = toys.masking(), batch_at(toys.masked(20), 6, 0, 0)
    variables, attack = two.init(KEY), adversarial_train.Attack(ranged=False)
    found = []
    for mask in (0.0, 2.0):
        loss = train.cross_entropy(two, mask)
        cfg = adversarial_train.Config(method="trades", attack=attack, train=train.TrainConfig(mask=mask))
        climb = defences.climb(2 / 255, start="near", up=partial(defences.kl, mask=mask))
        expected = defences.trades(loss, two, climb, 6.0, mask)(variables, some, KEY)[0]
        told = adversarial_train._defence(cfg, two)(loss)(variables, some, KEY)[0]
        np.testing.assert_allclose(told, expected, rtol=1e-5)
        found.append(told - loss(variables, some, KEY)[0])
    assert not np.allclose(found[0], found[1], rtol=0.01)


def test_trades_does_not_start_where_its_divergence_has_no_gradient():
    some, forward = batch_at(toys.images(20), 8, 0, 0), toys.forward()
    asked = adversarial_train.Config(method="trades", attack=adversarial_train.Attack(ranged=False))
    images = adversarial_train._attacker(asked)(forward, some, KEY)
    assert np.abs(images - some.images).max(axis=(1, 2, 3)).min() > 0.9 * 2 / 255


@pytest.mark.parametrize(
    ("driver", "more", "told"),
    [
        (gradnorm_train, ["--weight", "-1"], "weight"),
        (gradnorm_train, ["--validation", "0"], "validation"),
        (gradnorm_train, ["--through", "training"], "BatchNorm"),
        (gradnorm_train, ["--train.accumulate", "100000"], "accumulate: 100000 batches are more"),
        (gradnorm_train, ["--train.augment.flip", "-3"], "train.augment.flip"),
        (adversarial_train, ["--attack.heap", "4", "--attack.no-ranged", "--attack.start", "near"], "attack.start"),
        (adversarial_train, ["--method", "trades", "--share", "0.8"], "share"),
        (adversarial_train, ["--beta", "3"], "beta"),
        (adversarial_train, ["--share", "2"], "share"),
        (adversarial_train, ["--attack.steps", "0"], "steps"),
        (adversarial_train, ["--eps", "300"], "eps"),
        (adversarial_train, ["--beside", "meso5"], "unknown weights 'meso5'"),
        (adversarial_train, ["--attack.heap", "3", "--attack.no-ranged"], "heap: 16 images"),
        (adversarial_train, ["--attack.heap", "4"], "no-ranged"),
        (adversarial_train, ["--method", "offline"], "copies"),
        (adversarial_train, ["--copies", "meso4-a0"], "copies"),
        (adversarial_train, ["--attack.stride", "0"], "stride"),
        (adversarial_train, ["--method", "trades", "--attack.start", "clean"], "attack.start"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(driver, more, told, pictures, tmp_path, monkeypatch, capsys):
    assert told in refusal(monkeypatch, capsys, driver, words(pictures, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
