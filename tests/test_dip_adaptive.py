"""Deep Image Prior against an aware attacker: the driver as a user runs it, on pictures that are easy to tell apart;
and what becomes of verdicts."""

import json
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from driven import drive, refusal
from ground import pictures

from experiments import dip_adaptive as driver
from ffjax import detectors, dip_adaptive, dip_adaptive_sums, gradients, individual
from ffjax.attacks import rules
from ffjax.data import codecs
from ffjax.defences import dip_gradients
from ffjax.defences.dip import Prior
from ffjax.defences.skip_network import NETWORKS
from ffjax.detectors import weights
from ffjax.dip_adaptive import ATTACKS
from ffjax.dip_adaptive_sums import CHOSEN, CONTROLS, JUDGES, WORST
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.gradients import Estimator, Slope
from ffjax.types import Outputs

ROWS = (*CONTROLS, *ATTACKS)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """32 px pictures whose fakes are redder, two ResNet-10 of random weights, and a Meso-4 that fits 64 px alone."""
    folder = pictures(tmp_path_factory.mktemp("ground"), 48, ("train", "validation", "test"))
    for arch, seed, size in (("resnet10", 0, 32), ("resnet10", 1, 32), ("meso4", 0, 64)):
        variables = jax.jit(detectors.build(arch, size).init)(jax.random.key(seed))
        weights.save(folder / f"{arch}-{seed}.safetensors", variables, {"arch": arch, "size": size})
    return folder


def words(ground: Path, out: Path, *more: str) -> list[str]:
    given = ["--detector", f"resnet10:{ground}/resnet10-0.safetensors"]
    given += ["--other", f"resnet10:{ground}/resnet10-1.safetensors", "--data", str(ground / "labels.csv")]
    given += ["--whole", "32", "--size", "16", "--images", "2", "--calibrate", "4", "--eps", "16", "--steps", "2"]
    given += [
        "--prior.steps",
        "3",
        "--skip",
        "1",
        "--last",
        "2",
        "--cells",
        "2",
        "--queries",
        "2",
        "--few",
        "1",
        "--batch",
        "3",
    ]
    return [*given, "--out", str(out), *more]


def timeless(out: Path) -> dict[str, list]:
    paths = sorted(out.glob("attacks/*/ledger.jsonl"))
    rows = {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}
    return {name: [{k: v for k, v in row.items() if k != "seconds"} for row in some] for name, some in rows.items()}


@pytest.mark.slow
def test_it_attacks_judges_draws_and_goes_on_where_it_was_cut(ground, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made"
    drive(monkeypatch, driver, words(ground, out))
    told = capsys.readouterr().out
    assert (
        "moved to the wrong side (logits)" in told
        and "strongest per image" in told
        and "on its way back" in told
        and "central 16 px" in told
    )
    assert (out / "figures/adaptive.png").stat().st_size > 10_000
    found, rows = json.loads((out / "results.json").read_text()), timeless(out)
    assert set(rows) == {"held-out", *ROWS} and set(found["table"]) == {*ROWS, WORST, CHOSEN}
    for judge in JUDGES:  # the bare detector's threshold too is calibrated on the held-out images
        assert found["thresholds"][judge] == dip_adaptive_sums.calibrated(rows["held-out"], judge)[0]
        assert ("no claim of the" in told) >= (not found["competence"][judge]["trusted"])
    assert found["gradients"]["steps"] == [3, 2, 1, 0] and np.isfinite(found["gradients"]["params"]).all()
    for name in ROWS:
        assert len(rows[name]) == (2 if name == "square" else 4)
        assert all(row["linf"] <= 16 / 255 + 1e-6 for row in rows[name])
    assert all(row["linf"] > 0.9 * 16 / 255 for row in rows["noise"])
    assert all(1 <= row["queries"] <= 1 + 2 for row in rows["noises"])  # the clean image, then one a step of PGD
    inputs = json.loads((out / "inputs.json").read_text())
    for name in ("exact", "late", "truncated", "bpda", "low", "low-truncated", "transfer"):
        assert any(row["linf"] > 0 for row in rows[name])

    (out / "results.json").unlink()
    for name, kept in (("exact", 1), ("bpda", 0), ("held-out", 5)):
        path = out / "attacks" / name / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:kept]) + lines[kept][:9])
    drive(monkeypatch, driver, words(ground, out))
    assert timeless(out) == rows and json.loads((out / "results.json").read_text()) == found
    said = refusal(monkeypatch, capsys, driver, words(ground, out, "--queries", "3"))
    assert "queries: 2 there, 3 asked" in said
    (out / "inputs.json").write_text(json.dumps(inputs | {"attacks": "others"}))
    assert "the attacks have changed since" in refusal(monkeypatch, capsys, driver, words(ground, out))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prior.network", "huge"], "prior.network: unknown 'huge'; known: paper, denoising, small"),
        (["--prior.steps", "501"], "prior.steps: must be from 1 to 500, got 501"),
        (["--prior.average", "1"], "prior: rate must be above 0, and average from 0 to below 1"),
        (["--size", "64"], "size: at most whole"),
        (["--eps", "0"], "eps: above 0"),
        (["--eps", "2.5"], "eps: must be a whole number of 1/255, for images are shown in 8 bits; got 2.5"),
        (["--last", "1"], "last: must be at least 2, got 1"),
        (["--batch", "1"], "batch: must be at least 2, got 1"),
        (["--seed", "-1"], "seed: must be from 0 to 2^32 - 1, got -1"),
        (["--detector", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_is_made(
    ground, tmp_path, monkeypatch, capsys, more, message
):
    assert message in refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_images_are_not_carried_over_from_the_detector_itself(ground, tmp_path, monkeypatch, capsys):
    more = ["--other", f"resnet10:{ground}/resnet10-0.safetensors"]
    said = refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out", *more))
    assert "other: must be another than the detector" in said and not (tmp_path / "out").exists()


def test_a_detector_of_one_size_is_refused(ground, tmp_path, monkeypatch, capsys):
    more = ["--detector", f"meso4:{ground}/meso4-0.safetensors", "--size", "32"]
    assert "weights fit any size" in refusal(monkeypatch, capsys, driver, words(ground, tmp_path / "out", *more))


def row(i: int, label: int, own: float, fresh: float) -> dict:
    margins = {"undefended": own, "own": own, "fresh": fresh}
    return {"id": i, "name": f"{i}.png", "label": label, "group": i, "margins": margins}


def test_figures_by_hand():
    """Fakes 0, 1 and 2 (which is called real as it is), real 3; thresholds 0, 1 and 1."""
    ledgers = {
        "clean": [row(0, 1, 3, 3), row(1, 1, 3, 3), row(2, 1, 0.5, 3), row(3, 0, 0.9, 0)],
        "noise": [row(0, 1, -9, -9), row(1, 1, 3, 3), row(2, 1, 3, 3), row(3, 0, 0, 0)],
        "pgd": [row(0, 1, 0.9, 2), row(1, 1, 2, 0.5), row(2, 1, 3, 3), row(3, 0, 0, 2)],
        "square": [row(0, 1, 0.5, 2), row(3, 0, 0, 0)],
    }
    found = dip_adaptive_sums.figures(ledgers, {"undefended": 0.0, "own": 1.0, "fresh": 1.0})

    def share(name: str, judge: str, kind: str) -> float:
        return round(3 * found[name][judge][kind].value) / 3 if kind == "fakes" else found[name][judge][kind].value

    assert [share("clean", j, "fakes") for j in JUDGES] == [1, 2 / 3, 1]
    assert share("noise", "own", "fakes") == 1 / 3  # 2 was wrong as it is
    assert [share("pgd", j, "fakes") for j in JUDGES] == [1, 1 / 3, 2 / 3]
    assert [share(WORST, j, "fakes") for j in JUDGES] == [1, 1 / 3, 2 / 3]  # noise is no attack
    assert share(WORST, "fresh", "reals") == 0 and share(WORST, "own", "reals") == 1
    assert share(CHOSEN, "own", "fakes") == share(WORST, "own", "fakes")
    assert found["square"]["own"]["fakes"].n == 1


def test_a_threshold_is_where_balanced_accuracy_is_best_and_chance_is_refused():
    rows = [row(k, label, own, -own) for k, (label, own) in enumerate([(1, 3.0), (1, 2.0), (0, 1.0), (0, 0.0)])]
    assert dip_adaptive_sums.calibrated(rows, "own") == (1.5, 1.0)
    with pytest.raises(InputError, match="fakes score no higher than reals"):
        dip_adaptive_sums.calibrated(rows, "fresh")


def test_the_bare_detector_that_parts_nothing_is_named_so():
    rows = [row(k, label, said, 0.0) for k, (label, said) in enumerate([(1, 0.0), (0, 1.0)])]
    with pytest.raises(InputError, match="calibrated: undefended fakes score no higher"):
        dip_adaptive_sums.calibrated(rows, "undefended")


SETTING = dip_adaptive.Setting(Prior(NETWORKS["small"], 4), eps=8 / 255, steps=4, last=3, cells=3, batch=8)


@pytest.mark.parametrize("threshold", [-100.0, 100.0])
def test_attacks_that_know_nothing_of_dip_are_after_the_bare_detectors_calibrated_threshold(threshold):
    """Above every score all is called real, below every score all fake: who is wrongly called says which was meant."""
    thresholds = {"undefended": threshold, "own": -threshold, "fresh": -threshold}
    compute = Compute(batch=8)
    runners = dip_adaptive.runners(SETTING, thresholds, toys.forward(0), toys.forward(1), compute)
    data = toys.images(8)
    batch = individual.batch_of(data, np.arange(8))
    for name in ("pgd", "low", "transfer"):
        result = runners[name](batch, np.full(8, SETTING.eps, np.float32), 0)
        np.testing.assert_array_equal(result.success, data.labels == (threshold > 0), name)


def test_low_frequencies_are_climbed_through_dips_last_iterations_too(monkeypatch):
    """With a gradient that is known: it is asked of the defended goal, and followed among low frequencies alone."""
    asked, seen, way = [], [], np.random.default_rng(0).normal(size=(8, *toys.SHAPE)).astype(np.float32)

    def through(goal, prior, secrets, forward, last=None, straight=False):
        def at(keys, images, batch, eps, defended):
            asked.append(
                (last, straight, len(secrets), bool(goal.reached(toys.TOY.apply(variables, images), batch)[1]))
            )
            seen.append(images)
            return Slope(jnp.zeros(8), jnp.zeros(8, bool), jnp.asarray(way))

        return Estimator(at, 1, 1)

    variables, bare = toys.TOY.init(jax.random.key(0)), toys.forward(0)
    monkeypatch.setattr(dip_gradients, "through", through)
    monkeypatch.setattr(dip_gradients, "defended", lambda prior, secret, forward: forward)
    thresholds = {"undefended": -100.0, "own": 100.0, "fresh": 100.0}  # behind DIP all is called real
    runner = dip_adaptive.runners(SETTING, thresholds, bare, bare, Compute(batch=8))["low-truncated"]
    data = toys.images(8)._replace(images=np.full((8, *toys.SHAPE), 127, np.uint8))
    batch = individual.batch_of(data, np.arange(8))
    runner(batch, np.full(8, SETTING.eps, np.float32), 0)
    assert asked == [(SETTING.last, False, 1, True)] * SETTING.steps  # image 1 is fake
    rule = rules.coarse(SETTING.cells)
    low = jax.vmap(lambda g: jnp.asarray(rule.update(g, rule.init(g))[0]))(jnp.asarray(way))
    for k, images in enumerate(seen):
        np.testing.assert_allclose(images, batch.images + k * SETTING.eps * low, atol=0.51 / 255)
        np.testing.assert_array_equal(images, codecs.png(np.asarray(images)))  # as it will be judged


def test_who_knows_of_dip_goes_back_through_it_as_the_table_says(monkeypatch):
    """Iterations gone back through, identity or not, keys; in the order of the table."""
    asked = []

    def through(goal, prior, secrets, forward, last=None, straight=False):
        asked.append((last, straight, [s.code for s in secrets]))
        return Estimator(lambda *_: Slope(jnp.zeros(1), jnp.zeros(1, bool), jnp.zeros(1)), 1, 1)

    monkeypatch.setattr(dip_gradients, "through", through)
    setting = SETTING._replace(draws=3, skip=1, last=2)
    dip_adaptive.runners(setting, dict.fromkeys(JUDGES, 0.0), toys.forward(0), toys.forward(1), Compute(batch=8))
    one, three = [0], [0, 2, 4]
    exact, late, truncated, low = (None, False, one), (3, False, one), (2, False, one), (2, False, one)
    assert asked == [exact, late, truncated, (2, False, three), (None, True, one), low]


@pytest.mark.parametrize("eps", [1, 4, 16])
def test_what_an_attack_through_dip_scores_is_what_is_judged(monkeypatch, eps):
    """A detector that answers by the last bits of an image, as DIP does: every score that an attack keeps is that of
    the stored image, which moves by a level at the first step."""

    def salted(images):
        noisy = jnp.sin(1e5 * jnp.sum(images, axis=(1, 2, 3)))
        return Outputs(jnp.stack([jnp.zeros_like(noisy), noisy], axis=1), None, OrderedDict())

    def through(goal, prior, secrets, forward, last=None, straight=False):
        def at(keys, images, batch, eps, defended):
            seen.append(np.asarray(images))
            return gradients.exact(goal).at(keys, images, batch, eps, salted)

        return Estimator(at, 1, 1)

    seen = []
    monkeypatch.setattr(dip_gradients, "through", through)
    monkeypatch.setattr(dip_gradients, "defended", lambda prior, secret, forward: salted)
    setting = SETTING._replace(eps=eps / 255)
    runners = dip_adaptive.runners(setting, dict.fromkeys(JUDGES, 2.0), salted, salted, Compute(batch=8))
    batch = individual.batch_of(toys.images(8), np.arange(8))
    for name in ("exact", "low-truncated", "square", "noises"):
        seen.clear()
        found = runners[name](batch, np.full(8, setting.eps, np.float32), 0)
        told = np.asarray(salted(jnp.asarray(codecs.png(found.images))).logits[:, 1])
        if seen:
            assert np.abs(255 * (seen[1] - seen[0])).max() >= 1 - 1e-3
            tried = np.stack([np.asarray(salted(jnp.asarray(x)).logits[:, 1]) for x in seen])
            best = np.where(batch.labels == 1, tried.min(axis=0), tried.max(axis=0))
            worse = np.where(batch.labels == 1, told - best, best - told)
            assert worse.max() <= 1e-6, name  # the last iterate may be better still
        assert np.abs(255 * (codecs.png(found.images) - batch.images)).max() <= eps + 1e-3


def test_what_an_attack_moves_by_hand():
    """A fake by 2 and by 1 under the two keys, a real by -1 and by 3; square was tried on the fake alone."""
    ledgers = {
        "clean": [row(0, 1, 3.0, 3.0), row(1, 0, 1.0, 1.0)],
        "noises": [row(0, 1, -9.0, -9.0), row(1, 0, 9.0, 9.0)],
        "pgd": [row(0, 1, 1.0, 2.0), row(1, 0, 0.0, 4.0)],
        "square": [row(0, 1, 2.0, -2.0)],
    }
    found = {name: [one[j].value for j in ("own", "fresh")] for name, one in dip_adaptive_sums.moves(ledgers).items()}
    assert found["clean"] == [0, 0] and found["pgd"] == [0.5, 2.0] and found["square"] == [1.0, 5.0]
    assert found[WORST] == [0.5, 4.0] and found[CHOSEN] == [0.5, 2.0]  # noise is no attack


def test_competence_by_hand():
    """Two fakes above both reals, the threshold between the fakes: 1 of 2 and 2 of 2."""
    rows = [row(0, 1, 3.0, 0.0), row(1, 1, 1.0, 0.0), row(2, 0, 0.0, 0.0), row(3, 0, -1.0, 0.0)]
    found = dip_adaptive_sums.competence(rows, {"undefended": 0.5, "own": 2.0, "fresh": 0.5})
    assert [found[j]["balanced"] for j in JUDGES] == [1.0, 0.75, 0.5]
    assert [found[j]["auc"].value for j in JUDGES] == [1.0, 1.0, 0.5]
    assert [found[j]["trusted"] for j in JUDGES] == [True, False, False]


def test_the_middle_is_cut_out():
    data = toys.images(4)
    found = dip_adaptive.cropped(data, 6)
    np.testing.assert_array_equal(found.images, data.images[:, 3:9, 3:9])
    with pytest.raises(InputError, match="size: the middle 13 px of images of 12 px"):
        dip_adaptive.cropped(data, 13)


def test_the_fresh_key_is_none_that_the_attacker_averages_over():
    known, fresh = dip_adaptive.secrets((1 << 32) - 1, 4)
    every = [*known, fresh]
    assert len({s.code for s in every}) == len({s.start for s in every}) == 5
    assert known[0] == dip_adaptive.secrets((1 << 32) - 1)[0][0]
    assert not {s.code for s in every} & {s.code for s in (dip_adaptive.secrets(77)[0])}  # another seed, another code
