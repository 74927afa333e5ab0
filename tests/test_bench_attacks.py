"""The benchmark of attacks: its judge, its bound and its pairs are right, the networks restated for the peers are the
same networks, and the driver runs, goes on where it was, and refuses what it cannot do in one line."""

import importlib.util
import json

import driven
import jax
import numpy as np
import pytest
import toys

from benchmarks import attacks, contest
from benchmarks.contenders import PEERS, Task, judged
from ffjax import balls, detectors
from ffjax.attacks import ATTACKS
from ffjax.detectors import weights
from ffjax.engine import Compute
from ffjax.types import Batch

COMPUTE = Compute(batch=8, devices=1)
FORWARD = toys.forward(0, toys.LINEAR)


def rows(count: int = 8) -> Batch:
    """Pictures away from black and white, labelled as the linear detector has them."""
    pictures = np.random.default_rng(0).uniform(0.3, 0.7, (count, *toys.SHAPE)).astype(np.float32)
    labels = (np.asarray(FORWARD(pictures).logits[:, 1]) > 0).astype(np.int32)  # type: ignore[arg-type]
    return Batch(pictures, labels, np.arange(count, dtype=np.int32))


def pushed(batch: Batch, share: float) -> np.ndarray:
    """Each row moved by `share` of the way to the boundary, along the weights, as float32 rounds it."""
    w = np.asarray(toys.LINEAR.init(jax.random.key(0))["params"]["w"], np.float64)
    said = np.asarray(FORWARD(batch.images).logits[:, 1], np.float64)
    return (batch.images - share * (said / np.sum(w**2))[:, None, None, None] * w).astype(np.float32)


def test_the_judge_asks_for_a_wrong_verdict_inside_bound_and_box():
    batch, task = rows(), Task("pgd", "l2", {})
    over, short = pushed(batch, 1.01), pushed(batch, 0.99)
    far = np.linalg.norm((over.astype(float) - batch.images).reshape(8, -1), axis=1)
    success, distance = judged(FORWARD, task, batch, over, float(far.max()), COMPUTE)
    assert success.all()
    np.testing.assert_allclose(distance, far)
    assert not judged(FORWARD, task, batch, short, 10.0, COMPUTE)[0].any()
    inside = judged(FORWARD, task, batch, over, float(np.sort(far)[3]), COMPUTE)[0]
    assert inside.sum() == 4  # the others lie beyond
    off = over.copy()
    off[0, 0, 0, 0], off[1, 0, 0, 0] = 1.001, np.nan
    assert judged(FORWARD, task, batch, off, 10.0, COMPUTE)[0].tolist() == [False, False] + [True] * 6


@pytest.mark.parametrize(("norm", "size"), [("linf", 0.2), ("l2", 0.4), ("l1", 0.8), ("l0", 4)])
def test_the_judge_measures_every_norm_and_allows_rounding_only(norm, size):
    batch = rows()
    images = batch.images.copy()
    images[:, 0, 0:2, 0:2] += np.float32(0.2)
    distance = judged(FORWARD, Task("pgd", norm, {}), batch, images, 100.0, COMPUTE)[1]
    np.testing.assert_allclose(distance, size, rtol=1e-5)
    over, task = pushed(batch, 1.01), Task("pgd", norm, {})
    far = judged(FORWARD, task, batch, over, 1e9, COMPUTE)[1]
    for part, holds in ((1 - balls.SLACK / 2, True), (0.999, False)):
        if norm != "l0" or not holds:
            assert np.all([judged(FORWARD, task, batch, over, float(f * part), COMPUTE)[0][k] == holds
                           for k, f in enumerate(far)])  # fmt: skip


@pytest.mark.parametrize("first", [1e-3, 0.3, 50.0])
def test_the_bound_is_where_the_share_lies_between(first):
    asked = []

    def share(eps: float) -> float:
        asked.append(eps)
        return float(np.mean(np.linspace(0.9, 1.1, 40) <= eps))

    eps, reached = contest.bound(share, first, tries=30)
    assert 0.3 <= reached <= 0.7 and reached == share(eps) and len(asked) <= 25


def test_a_share_that_jumps_gives_the_nearest_and_says_so():
    eps, reached = contest.bound(lambda eps: float(eps > 2), 0.1, whole=True)
    assert eps == int(eps) and reached in (0.0, 1.0)


def test_pairs_count_both_ways_and_flag_what_lies_below():
    groups = np.arange(40)
    ours, theirs = np.zeros(40, bool), np.zeros(40, bool)
    ours[:5], theirs[3:20] = True, True
    found = contest.paired(ours, theirs, groups)
    assert found["value"] == pytest.approx((5 - 17) / 40) and found["below"]
    assert (found["only_ours"], found["only_theirs"]) == (3, 15)
    level = contest.paired(ours, ours[::-1].copy(), groups)
    assert level["value"] == 0 and not level["below"] and level["low"] < 0 < level["high"]


def test_every_task_is_an_attack_of_ours_with_options_that_it_has():
    for name, task in contest.TASKS.items():
        assert name.removesuffix("-near") == f"{task.attack}-{task.norm}" and task.norm in ATTACKS[task.attack].norms
        ATTACKS[task.attack].build(None, task.norm, **task.options)  # type: ignore[arg-type]


def installed(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra `bench`)")


@pytest.mark.parametrize("arch", ["meso4", "resnet18"])
def test_the_restated_network_says_the_same(arch, tmp_path):
    """At a running mean and a scale of its own in every normalisation, so that none can be left out unseen."""
    installed("torch", "torchvision")
    torch, peers = importlib.import_module("torch"), importlib.import_module("benchmarks.peers")
    detector, rng = detectors.build(arch, 64), np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.asarray(x) + rng.uniform(0, 0.2, x.shape).astype(np.float32) * (x.ndim == 1),
        jax.jit(detector.init)(jax.random.key(0)),
    )
    weights.save(tmp_path / "net.safetensors", variables, {"arch": arch, "size": 64})
    model = peers.restated(detectors.load(f"{arch}:{tmp_path}/net.safetensors"))
    images = rng.uniform(0, 1, (8, 64, 64, 3)).astype(np.float32)
    said = model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    ours = np.asarray(jax.jit(detector.apply)(variables, images).logits)
    assert np.ptp(ours[:, 1]) > 1e-3
    np.testing.assert_allclose(said[:, 1] - said[:, 0], ours[:, 1] - ours[:, 0], atol=2e-5 * np.abs(ours).max())
    assert model.asked == 8


def test_peers_begin_where_ours_does_image_by_image():
    """A network that calls fake what is brighter than a half: its mean keeps the verdict, black or white turns it."""
    installed("torch", "torchvision")
    torch, peers = importlib.import_module("torch"), importlib.import_module("benchmarks.peers")

    class Bright(torch.nn.Module):
        def forward(self, x):
            return 100 * (x.mean((1, 2, 3))[:, None] - 0.5)

    model = peers.Verdict(Bright(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images = torch.full((3, 3, 8, 8), 0.9)
    images[1] = 0.1
    found = importlib.import_module("benchmarks.starts").found(model, images, torch.tensor([1, 0, 0]))
    assert torch.equal(found[0], torch.zeros(3, 8, 8)) and torch.equal(found[1], torch.ones(3, 8, 8))
    assert torch.equal(found[2], images[2].mean((1, 2), keepdim=True).expand(3, 8, 8))  # called otherwise as it is


def drive(monkeypatch, *words: str) -> None:
    driven.drive(monkeypatch, attacks, list(words))


@pytest.mark.slow
def test_the_driver_measures_all_contenders_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    installed("torch", "torchvision", *PEERS)
    small = ["--detectors", "meso4", "--size", "32", "--images", "60", "--held", "8", "--rows", "8", "--steps", "3"]
    small += ["--repeats", "1", "--cw-images", "4", "--out", str(tmp_path / "figures.json")]
    drive(monkeypatch, *small, "--only", "pgd-linf", "deepfool-l2", "--parts", "contest")
    first = json.loads((tmp_path / "figures.json").read_text())
    assert first["machine"]["foolbox"] and set(first["figures"]) == {"meso4 pgd-linf", "meso4 deepfool-l2"}
    for figures in first["figures"].values():
        assert {"ffjax", *PEERS} <= set(figures["contenders"]) and set(figures["ours_minus_peer"]) == {*PEERS}
        for one in figures["contenders"].values():
            assert one["images_per_second"] > 0 and one["peak_mb"] >= one["attack_mb"] >= 0 and not one["error"]
    assert first["figures"]["meso4 pgd-linf"]["contenders"]["ffjax_all_steps"]["forwards"] >= 3
    drive(monkeypatch, *small, "--only", "pgd-linf", "--parts", "contest", "costs", "cw")
    second = json.loads((tmp_path / "figures.json").read_text())
    assert second["figures"].items() >= first["figures"].items()
    assert set(second["figures"]) - set(first["figures"]) == {"meso4 overhead", "meso4 memory", "meso4 cw"}
    assert second["figures"]["meso4 cw"]["unabridged"]["gradients"] == 9 * 3
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        drive(monkeypatch, *small, "--seed", "1")
    assert stop.value.code == 2 and "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "pdg-linf"], "unknown attack 'pdg-linf'; known: "),
        (["--images", "0"], "images: must be at least 1"),
        (["--steps", "0"], "steps: must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, monkeypatch, capsys, words, message):
    assert message in driven.refusal(monkeypatch, capsys, attacks, [*words, "--out", str(tmp_path / "out.json")])
