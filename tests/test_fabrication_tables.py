"""What the tables say of made-up figures: what is claimed, of how many cells and images, and where nothing is."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from ffjax import fabrication_plan
from ffjax import fabrication_tables as tables
from ffjax.fabrication import Victim
from ffjax.fabrication_plan import IapConfig
from ffjax.findings import TRUSTED
from ffjax.individual import KINDS
from ffjax.metrics import Estimate

CELLS = fabrication_plan.plan(IapConfig(), 300, gates=True)
VICTIM = Victim(lambda images: images, lambda gate: lambda images: images, 0.0, 1.0, 0.1)  # type: ignore[arg-type]
MEASURES = ("wrong", "both", "disagree", *tables.IN_MASKS)


def estimate(value: float, n: int = 250) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01, n)


def told(n: int, attacked: float = 0.75) -> dict:
    """The measures of one class: noise moves nothing, the attack everything by as much; mask IoU by a half of it."""
    if not n:
        return {"n": 0}
    values = {kind: dict.fromkeys(MEASURES, estimate(attacked * (kind == "attacked"), n)) for kind in KINDS}
    values["attacked"]["iou_wanted"] = estimate(attacked / 2, n)
    shown = {kind: {form: values[kind] for form in ("float", "png", "jpeg75")} for kind in KINDS}
    return {"n": n, "is": shown, "over": dict.fromkeys(KINDS[:2], values["attacked"])}


def found(cells=CELLS, n: int = 250) -> dict:
    return {cell.name: {side: told(n) for side in ("fakes", "reals")} for cell in cells}


def printed(draw, *given) -> tuple[str, object]:
    file = io.StringIO()
    value = draw(Console(file=file, width=250), *given)
    return file.getvalue(), value


def lines(cells=CELLS, n: int = 250, lacking: str = "") -> dict[str, str]:
    every = found(cells, n)
    return tables.show(Console(file=io.StringIO()), cells, every, {"a": every, "b": found(cells, n)}, lacking)


def test_every_table_has_its_line_and_what_the_intervals_leave_out_is_said_once():
    text, said = printed(tables.show, CELLS, found(), {"a": found(), "b": found(n=90)}, "")
    assert set(said) == {*tables.TABLES, "sets"}  # type: ignore[call-overload]
    assert text.count(tables.LIMITS) == 1


def test_without_competence_nothing_is_claimed_and_it_is_said_why():
    for line in lines(lacking="clean mask IoU 0.3").values():
        assert line == "Nothing is claimed, the detector is not competent: clean mask IoU 0.3."
    text, _ = printed(tables.show, CELLS, found(), {}, "clean mask IoU 0.3")
    assert "Claim:" not in text and "Held" not in text and "Not held" not in text
    assert "Claim: individual perturbations fabricate the mask. Held" in lines()["mask"]


@pytest.mark.parametrize(
    ("iou", "right", "lacking"),
    [
        (0.7, 0.95, ""),
        (0.5, 0.95, "clean mask IoU 0.500 of 90 fakes, 0.6 is asked"),
        (0.7, TRUSTED - 0.1, f"clean balanced accuracy 0.800 on a, {TRUSTED:g} is asked"),
        (float("nan"), 0.95, "clean mask IoU nan of 90 fakes, 0.6 is asked"),
    ],
)
def test_competence_asks_for_the_mask_and_for_the_first_sets_verdicts(iou, right, lacking):
    def one(accuracy: float) -> dict[str, Estimate]:
        names = ("clean_accuracy", "clean_balanced_accuracy", "clean_disagree")
        return dict.fromkeys(names, estimate(accuracy, 190)) | {"clean_mask_iou": estimate(iou, 90)}

    text, said = printed(tables.show_clean, {"a": one(right), "b": one(0.5), "attacked": one(0.5)}, VICTIM, 0.6)
    assert said == lacking and ("detector not competent" in text) == bool(lacking)
    assert "Fewer than 200 images a class in 6 of 6 cases: n = 90 to 100." in text


def test_few_images_are_told_under_the_table_that_rests_on_them():
    assert not any("Fewer" in line for line in lines(n=200).values())
    for line in lines(n=199).values():
        assert re.search(r"\nFewer than 200 images a class in (\d+) of \1 cases: n = 199 to 199\.$", line)


def test_an_extreme_says_of_how_many_cells_and_nothing_is_called_best():
    said = lines()
    verdicts = sum(cell.part == "verdict" for cell in CELLS)
    masks = sum(cell.part == "mask" for cell in CELLS)
    assert said["verdict"].count(f"largest of {verdicts} cells") == 2 and "on these images" in said["verdict"]
    assert f"Largest of {masks} cells on these images" in said["mask"]
    assert f"smallest of {masks} cells on these images" in said["mask"]
    assert f"the largest of these {2 * verdicts} on these images" in said["disagree"]
    assert not any("best" in line for line in said.values())


def test_the_whole_sweep_of_weights_is_shown():
    text, _ = printed(tables.show, CELLS, found(), {}, "")
    sweep = text[text.index("3. Verdict and mask") : text.index("4. The gate")]
    for words in ("verdict alone", "weight 0.1", "weight 3", "weight 10", "mask alone"):
        assert sweep.count(words) == len(IapConfig().joint)


def test_shares_of_verdicts_and_overlaps_of_masks_are_averaged_apart():
    line = lines()["storage"]
    assert "verdict wrong float +75, png +75, jpeg75 +75; IoU wanted float +38, png +38, jpeg75 +38." in line


def test_sets_are_shown_apart_where_there_are_several():
    text, _ = printed(tables.show, CELLS, found(), {"a": found(), "b": found(n=90)}, "")
    apart = text[text.index("7. Table 1 set by set") :]
    assert len(re.findall(r"│ b +│ 90 ", apart)) == sum(cell.part == "verdict" for cell in CELLS)
    assert "7. Table 1" not in printed(tables.show, CELLS, found(), {"a": found()}, "")[0]


def test_of_no_image_and_no_wanted_mask_nothing_is_said():
    assert set(lines(n=0)) <= {"verdict", "sets"}
    few = dataclasses.replace(IapConfig(), targets=(), real_targets=(), joint=())
    cells = fabrication_plan.plan(few, 300, gates=False)
    assert set(lines(cells)) == {"verdict", "storage", "disagree", "sets"}
    for chosen, n in ((cells, 250), (CELLS, 0)):
        tables.front_figure(chosen, found(chosen, n), True)
