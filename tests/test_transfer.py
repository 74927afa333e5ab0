"""What a transfer cell amounts to, on margins whose answer is known; and the cells there are."""

import numpy as np
import pytest
import toys

from ffjax import run, transfer, transfer_table
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.transfer import Cell, Sheet
from ffjax.universal import named

LABELS = np.array([1] * 4 + [0] * 4, np.int32)
GROUPS = np.arange(8, dtype=np.int32)
CLEAN = np.array([2.0, 2, 2, -1, -2, -2, -2, 3], np.float32)  # image 3 and image 7 are called wrongly as they are


def sheet(noise=()) -> Sheet:
    return Sheet(LABELS, GROUPS, {"t|float": CLEAN, "t|png": CLEAN}, {"t|float": np.stack([*noise] or [CLEAN])})


def test_cells_are_baselines_first_then_every_pair():
    every = transfer.baselines(("a", "b")) + transfer.cells(("a", "b"), ("one", "two"), ("gd_uap",))
    assert every[:2] == [Cell("a", "", "clean"), Cell("b", "", "clean")]
    assert every[2:4] == [Cell("a", "", "noise"), Cell("b", "", "noise")]
    assert len(every) == 2 + 2 + 4 == len(set(every)) and every[-1] == Cell("b", "two", "gd_uap")
    assert every[-1].name == "two--gd_uap" and every[0].name == "clean"


def test_shares_are_of_the_images_called_rightly_each_way_apart():
    said = np.array([-1.0, -1, 2, -1, 5, -2, -2, 3], np.float32)  # two of three fakes turned, one of three reals
    found = transfer.told(sheet(), "t", "float", said[None])
    assert found.rates["fake_called_real"].value == pytest.approx(2 / 3) and found.rates["fake_called_real"].n == 3
    assert found.rates["real_called_fake"].value == pytest.approx(1 / 3) and found.rates["real_called_fake"].n == 3
    assert found.shift.value == pytest.approx((-2 + 1) / 8)
    for e in (*found.rates.values(), *found.over_noise.values(), found.shift):
        assert e.low <= e.value <= e.high


def test_noise_is_taken_away_image_by_image():
    """Two draws: image 0 is wrong under both, image 1 under one."""
    draws = [np.where(np.arange(8) < k, -1.0, CLEAN).astype(np.float32) for k in (1, 2)]
    said = np.array([-1.0, -1, 2, -1, -2, -2, -2, 3], np.float32)
    found = transfer.told(sheet(draws), "t", "float", said[None])
    assert found.over_noise["fake_called_real"].value == pytest.approx((0 + 0.5 + 0) / 3)
    alike = transfer.told(sheet([said]), "t", "float", said[None])
    assert alike.over_noise["fake_called_real"].value == 0


def test_seeds_are_averaged_and_widen_the_interval():
    """Two patterns, one turning every fake and one none: a half, and nobody knows which the next would be."""
    both = np.stack([np.where(LABELS == 1, -1.0, CLEAN), CLEAN])
    found = transfer.told(sheet(), "t", "float", both)
    rate = found.rates["fake_called_real"]
    assert rate.value == 0.5 and (rate.low, rate.high) == (0, 1)
    assert found.shift.value == pytest.approx(-3 / 8 / 2)
    assert found.over_noise["fake_called_real"].value == 0.5


def test_a_direction_without_images_is_left_out():
    wrong = Sheet(LABELS, GROUPS, {"t|float": np.full(8, -1.0)}, {"t|float": np.full((1, 8), -1.0)})
    found = transfer.told(wrong, "t", "float", np.full((1, 8), 1.0))
    assert set(found.rates) == {"real_called_fake"} and found.rates["real_called_fake"].value == 1


def laid(folder) -> transfer_table.Tensor:
    """A tensor whose every entry can be told by heart: detector `two` is turned by patterns of `one` alone."""
    kept, data = run.Run(folder), toys.images(40)
    rng = np.random.default_rng(0)
    able = np.where(data.labels == 1, 1.0, -1.0).astype(np.float32) * rng.uniform(0.5, 1.5, 40).astype(np.float32)
    every = transfer.baselines(("a",)) + transfer.cells(("a",), ("one", "two"), ("gd_uap",))
    for cell in every:
        turned = cell.source == "one"
        scores = {
            "one|float": -able if cell.source == "one" else able,
            "two|float": np.where(turned & (data.labels == 1), -able, able),
            "blind|float": np.full(40, 1.0 if cell.source else -1.0, np.float32),
        }
        run.save_arrays(transfer.path(kept, cell), {k: np.asarray(v, np.float32)[None] for k, v in scores.items()})
    return transfer_table.tensor(transfer.entries(kept, {"a": data}, every, ("one", "two", "blind"), ()))


def test_the_matrix_says_what_the_margins_say(tmp_path):
    found = laid(tmp_path)
    at = lambda source, method, target: found.at["a", source, method, target, "float"]  # noqa: E731
    assert transfer_table.cell(at("one", "gd_uap", "one"), None) == "100|100*"
    assert transfer_table.cell(at("one", "gd_uap", "two"), None) == "100|0"
    assert transfer_table.cell(at("two", "gd_uap", "one"), None) == "0|0"
    assert transfer_table.cell(at("", "clean", "one"), None) == "0|0"
    assert transfer_table.cell(at("one", "gd_uap", "two"), "fake_called_real").startswith("100 [")
    # what cannot tell clean images apart is not broken: only a change is told of it
    assert transfer_table.cell(at("one", "gd_uap", "blind"), None) == "~+100"
    assert not at("one", "gd_uap", "blind")["competent"] and at("one", "gd_uap", "two")["competent"]
    table = transfer_table.matrix(found, "a", "gd_uap", "float")
    assert [str(x) for x in table.columns[0].cells] == ["one", "two", "sign noise", "clean"]


def test_sentences_keep_kinds_of_target_and_directions_apart(tmp_path):
    found = laid(tmp_path)
    told = transfer_table.sentences(found, {"one": "meso4", "two": "resnet10"})
    assert len(told) == 4  # two directions x (itself, another architecture); `blind` counts nowhere
    itself = next(t for t in told if "fakes called real, the same detector" in t)
    other = next(t for t in told if "reals called fake, another architecture" in t)
    assert "in 1 of 2 cells" in itself and "in 0 of 2 cells" in other and "+0 points" in other


def test_heat_maps_hold_a_number_for_every_cell(tmp_path):
    found = laid(tmp_path)
    figure = transfer_table.heat_map(found, "gd_uap", "fake_called_real")
    assert len(figure.axes[0].texts) == 4 * 3
    assert sorted(t.get_text() for t in figure.axes[0].texts)[-1] == "100"


def test_an_individual_attack_goes_to_its_bound():
    data, source = toys.images(20), toys.source()
    made = transfer.individually("pgd", source, data, 4 / 255, Compute(batch=32))
    moved = np.abs(made - data.images / np.float32(255)).max(axis=(1, 2, 3))
    assert made.shape == data.images.shape and (moved <= 4 / 255 + 1e-6).all() and (moved > 3.9 / 255).all()


def test_patterns_are_made_once_one_a_seed(tmp_path):
    cfg = named("gd_uap", seeds=(0, 1, 2), steps=8, check=4)
    first, scores = transfer.patterns(
        tmp_path, cfg, [toys.source()], toys.SIZE, Compute(devices=1), None, toys.images()
    )
    again, _ = transfer.patterns(tmp_path, cfg, [toys.source()], toys.SIZE, Compute(devices=1), None, toys.images())
    assert np.array_equal(first, again) and first.shape == (3, *toys.SHAPE) and np.isfinite(scores).all()


def test_a_pattern_of_another_size_is_resized_and_keeps_its_bound():
    data, coarse = toys.images(4), np.full((6, 6, 3), -0.05, np.float32)
    coarse[:3] = 0.05
    made = transfer.universally(data, coarse, named("gd_uap"))
    clean = data.images / np.float32(255)
    moved = made - clean
    inside = (clean > 0.06) & (clean < 0.94)
    assert made.shape == clean.shape and np.abs(moved).max() <= 0.05 + 1e-6
    np.testing.assert_allclose(moved[:, :4][inside[:, :4]], 0.05, atol=1e-6)
    np.testing.assert_allclose(moved[:, -4:][inside[:, -4:]], -0.05, atol=1e-6)


def test_noise_of_the_bound_is_the_same_wherever_it_is_drawn():
    one, two = (transfer.noisy(toys.images(4), draw, 0.1) for draw in (0, 1))
    assert not np.array_equal(one, two)
    assert np.array_equal(one, transfer.noisy(toys.images(4), 0, 0.1))
    assert np.abs(one - toys.images(4).images / np.float32(255)).max() <= 0.1 + 1e-6


def test_methods_are_checked():
    transfer.check_methods(("gd_uap", "mi_fgsm"))
    for wrong in (("luck",), (), ("pgd", "pgd"), ("cw",), ("noise",)):
        with pytest.raises(InputError, match="method"):
            transfer.check_methods(wrong)
