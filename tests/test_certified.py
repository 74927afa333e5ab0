"""A data set certified: rows that depend on nothing but their image, and shares that say what they claim."""

import io

import numpy as np
import pytest
import toys
from rich.console import Console

from ffjax import certificates, certified, ledger
from ffjax.certified import Draws
from ffjax.data.codecs import to_float
from ffjax.data.sets import taken
from ffjax.defences import smoothing
from ffjax.engine import Compute
from ffjax.errors import InputError

DRAWS = Draws(first=20, samples=90, alpha=0.01, tau=0.7, seed=4)
TWO = toys.two_headed().forward
SIGMAS = (0.2, 0.05)
COMPUTE = Compute(batch=32, chunk=2)


def rows_of(path, data, compute=COMPUTE, sigmas=SIGMAS):
    return certified.certify(path / "ledger.jsonl", data, TWO, sigmas, DRAWS, compute)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    data = toys.masked(20)
    return data, rows_of(tmp_path_factory.mktemp("made"), data)


def test_a_row_holds_the_votes_and_what_they_prove(made):
    data, rows = made
    assert [(row["sigma"], row["id"]) for row in rows] == [(sigma, i) for sigma in SIGMAS for i in range(20)]
    for sigma, some in ((0.2, rows[:20]), (0.05, rows[20:])):
        votes = (sigma, DRAWS.seed)
        first = smoothing.count(TWO, to_float(data.images), np.arange(20), *votes, 0, 20)
        fresh = smoothing.count(TWO, to_float(data.images), np.arange(20), *votes, 20, 110)
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
        tmp_path / "ledger.jsonl", data, TWO, SIGMAS, DRAWS, COMPUTE, lambda done, note: told.append((done, note))
    )
    assert found == rows and len(ledger.read(tmp_path / "ledger.jsonl")) == 40
    done = [k for k, _ in told]
    assert done[0] == 3 and done == sorted(done) and done[-1] == 40
    assert "sigma 0.2: 110 of 110 copies" in {note for _, note in told}


@pytest.mark.parametrize(
    ("change", "told"),
    [({"id": 99}, "line 1 is of no image"), ({"sigma": 0.3}, "line 1 is of sigma 0.3"), ({}, "line 2 is of image 0")],
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
    bare = rows_of(tmp_path / "a", few._replace(masks=None), sigmas=(0.2,))
    single = certified.certify(tmp_path / "b/ledger.jsonl", few, toys.forward(0), (0.2,), DRAWS, COMPUTE)
    assert all("pixels" not in row for row in bare + single)
    assert [row["fake"] for row in bare] == [row["fake"] for row in single]


def test_draws_too_few_to_certify_a_pixel_are_refused_and_not_where_there_is_no_mask(tmp_path):
    few = taken(toys.masked(20), np.arange(2))
    assert few.masks is not None
    pixels = few.masks[0].size
    needed = certificates.fewest(DRAWS.tau, DRAWS.alpha, pixels)
    short = DRAWS._replace(samples=needed - 1)
    with pytest.raises(InputError, match=f"no pixel of {pixels} at tau 0.7 at alpha 0.01: at least {needed} are"):
        certified.certify(tmp_path / "ledger.jsonl", few, TWO, (0.2,), short, COMPUTE)
    assert not (tmp_path / "ledger.jsonl").exists()
    bare = few._replace(masks=None)
    assert len(certified.certify(tmp_path / "ledger.jsonl", bare, TWO, (0.2,), short, COMPUTE)) == 2


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
        row(4, 0, 0, 0.03, pixels=pixels), row(5, 0, -1, 0.0, pixels=pixels | {"right": 0.7}),
    ]  # fmt: skip
    found = certified.summary(rows, (0.1,), Draws(samples=1000), (0.0, 0.02, 0.04, 9.0))
    (one,) = found["sigmas"]
    assert found["undefended"]["fake"].value == 0.75 and found["undefended"]["real"].value == 0
    assert (one["fake"]["accuracy"].value, one["fake"]["abstained"].value) == (0.5, 0.25)
    assert one["fake"]["noisy"].value == pytest.approx(0.4)
    assert [e.value for e in one["fake"]["certified"]] == [0.5, 0.25, 0.25, 0]
    assert one["fake"]["certified"][0].n == 4 and np.isnan(one["fake"]["certified"][3].low)
    assert one["fake"]["margins_of_safety"] == [0.02, 0.05] and "pixels" not in one["fake"]
    assert [e.value for e in one["real"]["certified"]] == [0.5, 0.5, 0, 0]
    assert one["real"]["pixels"]["right"].value == pytest.approx(0.6) and "forged_right" not in one["real"]["pixels"]
    assert one["reach"] == pytest.approx(0.1 * 2.462, rel=1e-3)
    assert one["pixel_radius"] == pytest.approx(0.1 * 0.67449, rel=1e-4)

    console = Console(record=True, width=200, file=io.StringIO())
    certified.show(console, found)
    told = console.export_text()
    assert "reals (recall)" in told and "0.246" in told
    assert "mask pixels (%), sigma 0.1, reals, radius 0.0674: right 60 [" in told and "fakes, radius" not in told
