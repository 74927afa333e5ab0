"""The plan of cells: every ledger has a name of its own, and what cannot be attacked is told before anything runs."""

import dataclasses

import pytest

from ffjax import fabrication_plan
from ffjax.errors import InputError
from ffjax.fabrication import ALONE
from ffjax.fabrication_plan import IapConfig

DEFAULT = IapConfig()


def test_no_two_cells_share_a_ledger():
    everything = dataclasses.replace(DEFAULT, losses=("activation", "ce"), mask_eps=(1.0, 1.5), step=0.5)
    for config in (DEFAULT, everything):
        cells = fabrication_plan.plan(config, 10, gates=True)
        assert len({cell.name for cell in cells}) == len(cells)


def test_the_plan_is_what_was_asked():
    cells = fabrication_plan.plan(DEFAULT, 300, gates=True)
    verdicts = [cell for cell in cells if cell.part == "verdict"]
    asked = {(loss, steps, eps) for loss in DEFAULT.losses for steps in (10, 100) for eps in (1, 2, 4, 8)}
    assert {(cell.loss, cell.steps, cell.eps) for cell in verdicts} == asked
    assert {cell.images for cell in verdicts if cell.steps == 10} == {300}
    assert {cell.images for cell in verdicts if cell.steps == 100} == {DEFAULT.long_images}
    alone = {(cell.side, cell.target) for cell in cells if cell.part == "mask"}
    targets = ("all_real", "all_fake", "inverted", "shifted", "another", "disc")
    assert alone == {("fakes", t) for t in targets} | {("reals", "all_fake"), ("reals", "disc")}
    sweep = [cell.weight for cell in cells if cell.part == "joint" and cell.target == "disc"]
    assert sweep == [*DEFAULT.weights, ALONE] and 0 in sweep
    ways = [cell.gate for cell in cells if cell.part == "gate"]
    assert {way: ways.count(way) for way in ways} == dict.fromkeys(("clean", "current", "target"), 3)


def test_without_a_gate_there_is_no_cell_of_it():
    cells = fabrication_plan.plan(DEFAULT, 300, gates=False)
    assert {cell.part for cell in cells} == {"verdict", "mask", "joint"}
    assert {cell.gate for cell in cells} == {"current"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"losses": ("hinge",)}, "losses: unknown 'hinge'; known: activation"),
        ({"targets": ("star",)}, "targets: unknown 'star'; known: all_real"),
        ({"joint": ("fakes",)}, "joint: 'fakes' is neither"),
        ({"joint": ("both:disc",)}, "joint: 'both:disc' is neither"),
        ({"eps": ()}, "eps: at least one"),
        ({"eps": (1.0, 1.0)}, "eps: at least one is needed, and none twice"),
        ({"eps": (-1.0,)}, "eps: must be at least 0, got -1"),
        ({"steps": (0,)}, "steps: must be at least 1, got 0"),
        ({"mask_steps": 0}, "mask_steps: must be at least 1, got 0"),
        ({"step": 0.0}, "step: a share of the bound in"),
    ],
)
def test_what_cannot_be_attacked_is_told_in_one_line(wrong, message):
    with pytest.raises(InputError, match=message) as told:
        fabrication_plan.check(dataclasses.replace(DEFAULT, **wrong))
    assert "\n" not in str(told.value)


def test_the_defaults_can():
    fabrication_plan.check(DEFAULT)
