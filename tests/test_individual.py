"""A data set attacked: who counts, what is written, and that a second start adds nothing twice."""

import json

import numpy as np
import pytest
import toys

from ffjax import attempts, campaign, goals, individual, ledger
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.objectives import margin

COMPUTE = Compute(batch=8, least=8, devices=1)
EPS = 8 / 255


def runners():
    made = [attempts.named(name, "linf", goals.verdict, toys.forward(), COMPUTE) for name in ("fgsm", "noise")]
    return made[0], made[1]


def run(path, data, **options):
    attack, noise = runners()
    given = {"minimal": False, "threshold": 0.0, "qualities": (75,), "seed": 0, "compute": COMPUTE}
    return individual.attack(path, data, toys.forward(), attack, noise, EPS, **given | options)


@pytest.fixture(scope="module")
def data():
    return toys.images(30)


@pytest.fixture(scope="module")
def rows(data, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "ledger.jsonl", data)


def test_fault_20_only_what_was_called_rightly_is_attacked(rows, data):
    said = np.asarray(margin(toys.forward()((data.images / 255).astype(np.float32))))
    right = (said > 0) == (data.labels == 1)
    assert 0 < right.sum() < len(right)
    assert [row["id"] for row in rows] == list(range(30))
    assert [("success" in row) for row in rows] == right.tolist()


def test_what_is_written_is_what_is_so(rows, data):
    for row in rows:
        assert row["name"] == data.names[row["id"]] and row["label"] == data.labels[row["id"]]
        if "success" in row:
            wrong = (row["margins"]["attacked"]["float"] > 0) != (row["label"] == 1)
            assert row["success"] == wrong
            assert row["success_8bit"] == ((row["margins"]["attacked"]["png"] > 0) != (row["label"] == 1))
            assert row["linf"] <= EPS + 1e-6 and abs(row["distance"] - row["linf"]) < 1e-6
            assert set(row["margins"]) == set(individual.KINDS)
            assert set(row["margins"]["noise"]) == {"float", "png", "jpeg75"}
            assert row["psnr"] > 25 and 0 < row["ssim"] <= 1 and row["gradients"] == 1


def test_the_summary_counts_by_hand(rows):
    found = individual.summary(rows, 0.0, resamples=50)
    tried = [row for row in rows if "success" in row]
    fakes = [row for row in tried if row["label"] == 1]
    assert found["counts"] == {"images": 30, "attacked": len(tried), "fakes": 15}
    assert found["clean_accuracy"].value == len(tried) / 30 and found["clean_accuracy"].n == 30
    assert found["robust_accuracy"].value == sum(not row["success"] for row in tried) / 30
    assert found["fake_called_real"]["success"].value == np.mean([row["success"] for row in fakes])
    assert found["fake_called_real"]["success"].n == len(fakes)
    assert found["all"]["wrong"]["clean"]["float"].value == 0  # they were called rightly, by definition
    noise = [(row["margins"]["noise"]["float"] > 0) != (row["label"] == 1) for row in tried]
    assert found["all"]["wrong"]["noise"]["float"].value == np.mean(noise)
    assert found["of_successes"]["distance"][1] == pytest.approx(EPS, abs=1e-5)
    json.dumps(found)


@pytest.mark.parametrize("lines", [0, 1, 9, 17, 30])
def test_killed_after_any_line_it_ends_with_the_same_rows(rows, data, tmp_path, lines):
    path = tmp_path / "ledger.jsonl"
    first = [{k: v for k, v in row.items()} for row in rows[:lines]]
    ledger.append(path, first)
    with path.open("a") as file:
        file.write('{"id": 29, "na')  # what a kill leaves

    def timeless(found):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found]

    assert timeless(run(path, data)) == timeless(rows)
    assert sorted(row["id"] for row in ledger.read(path)) == list(range(30))


def test_another_threshold_moves_who_counts(data, tmp_path):
    said = np.asarray(margin(toys.forward()((data.images / 255).astype(np.float32))))
    middle = float(np.median(said))
    attack = attempts.named("fgsm", "linf", lambda loss: goals.verdict(loss, threshold=middle), toys.forward(), COMPUTE)
    _, noise = runners()
    rows = individual.attack(
        tmp_path / "ledger.jsonl", data, toys.forward(), attack, noise, EPS, minimal=False, threshold=middle,
        qualities=(), seed=0, compute=COMPUTE,
    )  # fmt: skip
    right = (said > middle) == (data.labels == 1)
    assert [("success" in row) for row in rows] == right.tolist()
    for row in rows:
        if "success" in row:
            assert row["success"] == ((row["margins"]["attacked"]["float"] > middle) != (row["label"] == 1))


def test_nothing_called_rightly_is_no_error(data, tmp_path):
    wrong = data._replace(labels=1 - (np.asarray(margin(toys.forward()(data.images / np.float32(255)))) > 0))
    rows = run(tmp_path / "ledger.jsonl", wrong._replace(labels=wrong.labels.astype(np.int32)))
    found = individual.summary(rows, 0.0, resamples=20)
    assert found["counts"]["attacked"] == 0 and found["clean_accuracy"].value == 0 and found["all"] == {}


def test_a_ledger_of_other_images_or_of_one_twice_is_refused(rows, data, tmp_path):
    path = tmp_path / "ledger.jsonl"
    for wrong, message in (
        (rows[:3] + rows[1:2], "line 4 is of image 1, which another line is of"),
        ([rows[0] | {"name": "another"}], "line 1 is of no image of this set"),
        ([rows[0] | {"id": 30}], "line 1 is of no image"),
        ([{"id": None}], "line 1 is of no image"),
    ):
        path.unlink(missing_ok=True)
        ledger.append(path, wrong)
        with pytest.raises(InputError, match=message):
            run(path, data)


def test_the_ledger_says_how_large_the_noise_was(rows):
    assert all(row["noise_distance"] == pytest.approx(EPS) for row in rows if "success" in row)


def test_the_noise_beside_a_minimal_attack_has_each_images_own_distance(data, tmp_path):
    attack = attempts.named("deepfool", "l2", goals.verdict, toys.forward(), COMPUTE)
    _, noise = runners()
    bounds = {}

    def spied(batch, eps, seed):
        bounds.update(zip(batch.ids.tolist(), eps.tolist(), strict=True))
        return noise(batch, eps, seed)

    rows = individual.attack(
        tmp_path / "ledger.jsonl", data, toys.forward(), attack, spied, 10.0, minimal=True, threshold=0.0,
        qualities=(), seed=0, compute=COMPUTE,
    )  # fmt: skip
    tried = [row for row in rows if "success" in row]
    assert any(row["success"] for row in tried) and len({row["distance"] for row in tried}) > 1
    for row in tried:
        assert bounds[row["id"]] == pytest.approx(row["distance"] if row["success"] else 0)


def test_the_calibrated_threshold_has_the_best_balanced_accuracy(data):
    said = np.asarray(margin(toys.forward()((data.images / 255).astype(np.float32))))

    def balanced(threshold):
        return np.mean([np.mean((said > threshold)[data.labels == k] == k) for k in (0, 1)])

    found = campaign.calibrated(toys.forward(), data, COMPUTE)
    assert balanced(found) == max(map(balanced, [*said, -np.inf])) > balanced(0.0)
