"""A data set certified: rows that depend on nothing but their image, and shares that say what they claim."""

import io

import jax
import numpy as np
import pytest
import toys
from rich.console import Console

from ffjax import certificates, certified, certified_figure, certified_thresholds, ledger, metrics
from ffjax.certified import Draws
from ffjax.certified_thresholds import BARE, Fitted, Level
from ffjax.data.codecs import to_float
from ffjax.data.sets import taken
from ffjax.defences import smoothing
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.types import ImageSet, Outputs

DRAWS = Draws(first=20, samples=90, alpha=0.01, tau=0.7, seed=4)
TWO = toys.two_headed().forward
SIGMAS = (0.2, 0.05)
AT = {0.2: smoothing.Thresholds(-0.5, 1.5), 0.05: smoothing.Thresholds(-0.625, -0.5)}
COMPUTE = Compute(batch=32, chunk=2)


def leveled(thresholds) -> dict[float, Level]:
    """sigma -> Thresholds, as if they had been calibrated."""
    return {BARE: Level(Fitted(0.25, 0.8))} | {
        sigma: Level(Fitted(at.margin, 0.9), Fitted(at.mask, 0.7)) for sigma, at in thresholds.items()
    }


LEVELS = leveled(AT)


def rows_of(path, data, compute=COMPUTE, levels=LEVELS):
    return certified.certify(path / "ledger.jsonl", data, TWO, levels, DRAWS, compute)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    data = toys.masked(20)
    return data, rows_of(tmp_path_factory.mktemp("made"), data)


def test_a_row_holds_the_votes_and_what_they_prove(made):
    data, rows = made
    assert [(row["sigma"], row["id"]) for row in rows] == [(sigma, i) for sigma in SIGMAS for i in range(20)]
    for sigma, some in ((0.2, rows[:20]), (0.05, rows[20:])):
        first, fresh = (
            smoothing.count(TWO, to_float(data.images), np.arange(20), sigma, DRAWS.seed, *ends, 8, AT[sigma])
            for ends in ((0, 20), (20, 110))
        )
        assert {(row["threshold"], row["mask_threshold"]) for row in some} == {AT[sigma]}
        assert [row["first"] for row in some] == first.fake.tolist()
        assert [row["fake"] for row in some] == fresh.fake.tolist()
        said = certificates.verdict(np.asarray(first.fake), 20, np.asarray(fresh.fake), 90, sigma, 0.01)
        for name, values in zip(("called", "p_lower", "radius"), said, strict=True):
            assert [row[name] for row in some] == values.tolist()
        right = np.where(data.labels == 1, fresh.fake, 90 - fresh.fake) / 90
        np.testing.assert_allclose([row["noisy"] for row in some], right)
        label = certificates.pixels(np.asarray(first.mask), 20, np.asarray(fresh.mask), 90, sigma, 0.7, 0.01).label
        true = data.masks > 0
        for k, row in enumerate(some):
            assert row["pixels"]["right"] == pytest.approx(np.mean(label[k] == true[k]))
            assert row["pixels"]["abstained"] == pytest.approx(np.mean(label[k] == -1))
            assert row["pixels"]["forged_right"] == pytest.approx(np.mean(label[k][true[k]] == 1))
            assert row["pixels"]["forged_abstained"] == pytest.approx(np.mean(label[k][true[k]] == -1))
    assert len({row["called"] for row in rows}) > 1 and 0 < np.mean([row["pixels"]["right"] for row in rows]) < 1


@pytest.mark.parametrize(
    "compute", [Compute(batch=24, chunk=7), Compute(batch=64, execution="fused"), Compute(batch=40, least=4)]
)
def test_rows_do_not_depend_on_how_they_are_computed(made, tmp_path, compute):
    data, rows = made
    assert rows_of(tmp_path, data, compute) == rows


def test_a_ledger_is_taken_up_where_it_ends(made, tmp_path):
    data, rows = made
    ledger.append(tmp_path / "ledger.jsonl", [rows[k] for k in (3, 25, 0)])
    told = []
    found = certified.certify(
        tmp_path / "ledger.jsonl", data, TWO, LEVELS, DRAWS, COMPUTE, lambda done, note: told.append((done, note))
    )
    assert found == rows and len(ledger.read(tmp_path / "ledger.jsonl")) == 40
    done = [k for k, _ in told]
    assert done[0] == 3 and done == sorted(done) and done[-1] == 40
    assert "sigma 0.2: 110 of 110 copies" in {note for _, note in told}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": 99}, "line 1 is of no image"),
        ({"sigma": 0.3}, "line 1 is of sigma 0.3"),
        ({"sigma": BARE}, "line 1 is of sigma 0"),
        ({"threshold": 0.5}, "line 1 was counted at threshold 0.5, not at -0.5"),
        ({"mask_threshold": 0.0}, "line 1 was counted at mask_threshold 0.0, not at 1.5"),
        ({}, "line 2 is of image 0"),
    ],
)
def test_a_ledger_of_something_else_is_refused(made, tmp_path, change, told):
    data, rows = made
    ledger.append(tmp_path / "ledger.jsonl", [rows[0] | change] + [rows[0]] * (not change))
    with pytest.raises(InputError, match=told):
        rows_of(tmp_path, data)


def test_a_network_or_a_set_without_masks_has_no_pixels(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    few = taken(toys.masked(20), np.arange(4))
    one = leveled({0.2: AT[0.2]})
    bare = rows_of(tmp_path / "a", few._replace(masks=None), levels=one)
    single = certified.certify(tmp_path / "b/ledger.jsonl", few, toys.forward(0), one, DRAWS, COMPUTE)
    assert all("pixels" not in row and "mask_threshold" not in row for row in bare + single)
    assert rows_of(tmp_path / "a", few._replace(masks=None), levels=one) == bare
    assert [row["fake"] for row in bare] == [row["fake"] for row in single]


def test_draws_too_few_to_certify_a_pixel_are_refused_and_not_where_there_is_no_mask(tmp_path):
    few = taken(toys.masked(20), np.arange(2))
    assert few.masks is not None
    pixels = few.masks[0].size
    needed = certificates.fewest(DRAWS.tau, DRAWS.alpha, pixels)
    short, one = DRAWS._replace(samples=needed - 1), leveled({0.2: AT[0.2]})
    with pytest.raises(InputError, match=f"no pixel of {pixels} at tau 0.7 at alpha 0.01: at least {needed} are"):
        certified.certify(tmp_path / "ledger.jsonl", few, TWO, one, short, COMPUTE)
    assert not (tmp_path / "ledger.jsonl").exists()
    bare = few._replace(masks=None)
    assert len(certified.certify(tmp_path / "ledger.jsonl", bare, TWO, one, short, COMPUTE)) == 2


def energy(images) -> Outputs:
    """A detector of contrast, which noise adds to."""
    x = images - images.mean(axis=(1, 2, 3), keepdims=True)
    score = 1000 * ((x * x).mean(axis=(1, 2, 3)) - 0.003)
    return Outputs(np.float32([[0, 1]]) * score[:, None], None, {})


def contrasts(count: int, seed: int) -> ImageSet:
    """Grey images of low contrast, and fakes of somewhat higher."""
    data, rng = toys.images(count), np.random.default_rng(seed)
    height = np.where(data.labels == 1, 20, 8)[:, None, None, None]
    return data._replace(images=(128 + height * rng.choice([-1, 1], data.images.shape)).astype(np.uint8))


def test_what_noise_does_to_margins_alone_costs_nothing(tmp_path):
    """At sigma 0.1 every margin rises by 10, past 0: of which threshold 0 makes that all reals are lost."""
    test, held, forward = contrasts(12, 0), contrasts(16, 1), jax.tree_util.Partial(energy)
    found = {}
    for name in ("calibrated", "as trained"):
        (tmp_path / name).mkdir()
        levels = certified_thresholds.calibrate(tmp_path / name / "t.json", held, forward, (0.1,), 5, 4, COMPUTE)
        if name == "as trained":
            levels = {sigma: Level(Fitted(None, 0.5)) for sigma in levels}
        rows = certified.certify(tmp_path / name / "ledger.jsonl", test, forward, levels, DRAWS, COMPUTE)
        found[name] = certified.summary(rows, levels, DRAWS, (0.01,))
    (told,), (plain,) = (one["sigmas"] for one in found.values())
    assert plain["real"]["accuracy"].value == 0 and plain["fake"]["accuracy"].value == 1
    assert told["real"]["accuracy"].value == told["fake"]["accuracy"].value == 1 and told["real"]["noisy"].value > 0.9
    assert told["threshold"]["used"] == told["threshold"]["calibrated"] > 5
    assert told["threshold"]["balanced_accuracy"] == 1
    assert found["calibrated"]["undefended_threshold"]["used"] < 5
    assert all(e.value == 1 for one in found.values() for e in one["undefended"].values())


def row(i, label, called, radius, sigma=0.1, margin=1.0, noisy=0.5, **more):
    return {
        "id": i, "name": f"{i}", "label": label, "group": i, "sigma": sigma, "margin": margin, "first": 1, "fake": 1,
        "noisy": noisy, "called": called, "p_lower": 0.6, "radius": radius,
    } | more  # fmt: skip


def test_shares_by_hand():
    """Abstaining and the wrong class are both wrong; a radius must exceed what it is held against."""
    pixels = dict(zip(certified.PIXELS, (0.5, 0.2, None, None), strict=True))
    rows = [
        row(0, 1, 1, 0.05), row(1, 1, 1, 0.02, margin=-1.0), row(2, 1, -1, 0.0, noisy=0.1), row(3, 1, 0, 0.09),
        row(4, 0, 0, 0.03, pixels=pixels, margin=0.2), row(5, 0, -1, 0.0, pixels=pixels | {"right": 0.7}),
    ]  # fmt: skip
    found = certified.summary(
        rows, leveled({0.1: smoothing.Thresholds(1.5, -2.5)}), Draws(samples=1000), (0.0, 0.02, 0.04, 9.0)
    )
    (one,) = found["sigmas"]
    assert found["undefended"]["fake"].value == 0.75 and found["undefended"]["real"].value == 0.5
    assert found["undefended_threshold"] == {"used": 0.25, "calibrated": 0.25, "balanced_accuracy": 0.8}
    assert one["threshold"] == {"used": 1.5, "calibrated": 1.5, "balanced_accuracy": 0.9}
    assert one["mask_threshold"] == {"used": -2.5, "calibrated": -2.5, "balanced_accuracy": 0.7}
    assert (one["fake"]["accuracy"].value, one["fake"]["abstained"].value) == (0.5, 0.25)
    assert one["fake"]["noisy"].value == pytest.approx(0.4)
    assert [e.value for e in one["fake"]["certified"]] == [0.5, 0.25, 0.25, 0]
    assert one["fake"]["certified"][0].n == 4 and np.isnan(one["fake"]["certified"][3].low)
    assert one["fake"]["margins_of_safety"] == [0.02, 0.05] and "pixels" not in one["fake"]
    assert [e.value for e in one["real"]["certified"]] == [0.5, 0.5, 0, 0]
    assert one["real"]["pixels"]["right"].value == pytest.approx(0.6) and "forged_right" not in one["real"]["pixels"]
    assert one["reach"] == pytest.approx(0.1 * 2.462, rel=1e-3)
    assert one["pixel_radius"] == pytest.approx(0.1 * 0.67449, rel=1e-4)

    told = printed(found)
    assert "reals (recall)" in told and "0.246" in told
    assert "│ 0.1   │ 1.5 (90 %) │ fakes" in told and "undefended: threshold 0.25 (80 %)" in told
    pixels = "mask pixels (%), sigma 0.1, reals, threshold -2.5 (70 %), radius 0.0674: right 60 ["
    assert pixels in told and "0.1, fakes, threshold" not in told
    assert legend(found)[0] == "σ = 0.1, threshold 1.5 (90 %)"
    assert "undefended, clean (certifies nothing), threshold 0.25 (80 %)" in legend(found)


def printed(found) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    certified.show(console, found)
    return console.export_text()


def legend(found) -> list[str]:
    drawn = certified_figure.certified(metrics.plain(found | {"shape": [12, 12, 3]}), "toy")
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_a_sigma_that_could_not_be_calibrated_is_told(tmp_path):
    """A detector that says one thing of all images: the run goes on at 0, and results, table and figure say so."""
    data, forward = toys.images(8), jax.tree_util.Partial(constant)
    levels = certified_thresholds.calibrate(tmp_path / "t.json", data, forward, (0.2,), 3, 0, COMPUTE)
    rows = certified.certify(tmp_path / "ledger.jsonl", data, forward, levels, DRAWS, COMPUTE)
    found = certified.summary(rows, levels, DRAWS, (0.1,))
    (one,) = found["sigmas"]
    none = {"used": 0.0, "calibrated": None, "balanced_accuracy": 0.5}
    assert one["threshold"] == found["undefended_threshold"] == none
    assert one["fake"]["accuracy"].value == 1 and one["real"]["accuracy"].value == 0
    assert metrics.plain(one)["threshold"]["calibrated"] is None
    assert "│ 0.2   │ 0 (uncalibrated) │ fakes" in printed(found)
    assert legend(found)[0] == "σ = 0.2, threshold 0 (uncalibrated)"


def constant(images) -> Outputs:
    return Outputs(np.float32([[0, 1.5]]) + 0 * images[:, 0, 0, :2], None, {})
