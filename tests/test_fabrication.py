"""Cells run on a toy with two heads: what is written, what it amounts to by hand, and that a second start adds
nothing twice."""

import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import fabrication, goals, masks
from ffjax.detectors import Loaded
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.fabrication import ALONE, Cell
from ffjax.types import Array, Batch, Detector, Outputs, Variables

COMPUTE = Compute(batch=32, least=32, devices=1)


def apply(variables: Variables, images: Array) -> Outputs:
    """Two heads that read the same pixels: a mask as bright as each pixel is, and a verdict of the mean."""
    said = 8 * (images.mean(axis=3) - 0.5)
    score = said.mean(axis=(1, 2)) + variables["lean"]
    return Outputs(jnp.stack([-score / 2, score / 2], axis=1), said, OrderedDict())


TOY = Detector(lambda key: {"lean": jnp.float32(0)}, apply, lambda v, x, key: (apply(v, x), v), toys.SHAPE)
LOADED = Loaded("toy", TOY, TOY.init(jax.random.key(0)), {"arch": "toy", "size": toys.SIZE, "options": {}})


def said_of(images: np.ndarray) -> Outputs:
    """What the toy says of uint8 images."""
    return apply(LOADED.variables, jnp.asarray(images, jnp.float32) / 255)


def picture(count: int = 40, seed: int = 0):
    """Fakes are bright in their left half, which is their mask; reals are dark. Each identity has one of each."""
    data = toys.images(count, seed)
    images, truth = data.images // 8 + 90, np.zeros(data.images.shape[:3], np.uint8)
    truth[data.labels == 1, :, :6] = 255
    return data._replace(images=(images + (truth[..., None] > 0) * np.uint8(100)).astype(np.uint8), masks=truth)


DATA = picture()
VICTIM = fabrication.victim(LOADED, picture(seed=1), 1.0, COMPUTE)
CELLS = [
    Cell("verdict", "both", 99, "target_ce", 0, None, 120, 3, 0.5),
    Cell("mask", "fakes", 99, "none", ALONE, "all_real", 120, 3, 0.5),
    Cell("joint", "reals", 6, "activation", 1.0, "disc", 64, 3, 0.5),
]


def attacked(folder):
    return fabrication.attack(CELLS, folder, DATA, VICTIM, "bim", (90,), 0, COMPUTE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return attacked(tmp_path_factory.mktemp("cells"))


def timeless(rows):
    return {name: [{k: v for k, v in row.items() if k != "seconds"} for row in found] for name, found in rows.items()}


def test_images_are_counted_as_the_cells_choose_them():
    for cell in CELLS:
        for count in (1, 3, 1000):
            few = cell._replace(images=count)
            assert fabrication.images([few], DATA) == len(fabrication.subject(few, DATA).labels)


def test_each_cell_attacks_its_own_images(rows):
    assert list(rows) == [cell.name for cell in CELLS]
    verdict, mask, joint = rows.values()
    assert {row["label"] for row in verdict} == {0, 1} and len(verdict) == 40
    assert {row["label"] for row in mask} == {1} and len(mask) == 20
    assert {row["label"] for row in joint} == {0} and len(joint) == 6


def test_every_attack_goes_on_to_its_end(rows):
    tried = [(cell, row) for cell in CELLS for row in rows[cell.name] if "success" in row]
    assert all(row["gradients"] == cell.steps for cell, row in tried)
    assert any(row["success"] for cell, row in tried if cell.part == "verdict")  # some arrive before their last step


def test_what_is_written_of_a_mask_is_what_the_toy_shows(rows):
    cell = CELLS[1]
    for row in rows[cell.name]:
        clean = row["masks"]["clean"]["float"]
        data = fabrication.subject(cell, DATA)
        said = np.asarray(said_of(data.images[[row["id"]]]).mask) > 0
        assert data.masks is not None
        assert clean["area"] == said.mean() and clean["iou_true"] == masks.iou(said, data.masks[[row["id"]]] > 0)[0]
        assert set(row["masks"]["attacked"]) == {"float", "png", "jpeg90"}
        assert set(clean) == {*masks.MEASURES, *masks.TOWARDS} and "own" not in row
    assert "iou_wanted" not in rows[CELLS[0].name][0]["masks"]["clean"]["float"]


def test_bright_pixels_can_be_darkened_and_so_the_mask_emptied(rows):
    told = fabrication.measured(rows[CELLS[1].name], 1, VICTIM)
    before, after = (told["is"][kind]["float"] for kind in ("clean", "attacked"))
    assert before["iou_wanted"].value == 0 and after["iou_wanted"].value == 1 and after["area"].value == 0
    assert after["iou_true"].value == 0 and told["over"]["clean"]["iou_wanted"].value == 1


def test_measures_by_hand(rows):
    found = rows[CELLS[0].name]
    for label in (0, 1):
        told = fabrication.measured(found, label, VICTIM)
        tried = [row for row in found if row["label"] == label and "success" in row]
        margins = np.array([row["margins"]["attacked"]["jpeg90"] for row in tried])
        areas = np.array([row["masks"]["attacked"]["jpeg90"]["area"] for row in tried])
        at = told["is"]["attacked"]["jpeg90"]
        assert told["n"] == at["wrong"].n == len(tried)
        assert at["wrong"].value == np.mean((margins > 0) != (label == 1))
        assert at["disagree"].value == np.mean((margins > 0) != (areas > VICTIM.least))
        assert told["is"]["clean"]["float"]["wrong"].value == 0  # they were called rightly, by definition
        gains = told["over"]["noise"]["wrong"].value
        assert gains == pytest.approx(
            told["is"]["attacked"]["float"]["wrong"].value - told["is"]["noise"]["float"]["wrong"].value
        )
    both = fabrication.measured(rows[CELLS[2].name], 0, VICTIM)["is"]["attacked"]["float"]
    assert both["both"].value <= min(both["wrong"].value, both["shown"].value)


def test_of_no_image_nothing_is_said(rows):
    assert fabrication.measured(rows[CELLS[1].name], 0, VICTIM) == {"n": 0}


def test_killed_anywhere_it_ends_with_the_same_rows(rows, tmp_path):
    attacked(tmp_path)
    first, second, third = (tmp_path / f"{cell.name}.jsonl" for cell in CELLS)
    lines = second.read_text().splitlines(keepends=True)
    second.write_text("".join(lines[:7]) + '{"id": 3, "na')
    third.unlink()
    before = first.read_bytes()
    assert timeless(attacked(tmp_path)) == timeless(rows)
    assert first.read_bytes() == before and len(second.read_text().splitlines()) == 20


def test_sets_are_told_apart_by_their_images(tmp_path):
    data = fabrication.pooled({"a": picture(8), "b": picture(6, seed=3)}, 7)
    rows = fabrication.attack(CELLS[:2], tmp_path, data, VICTIM, "bim", (), 0, COMPUTE)
    apart = fabrication.by_set(CELLS[:2], rows, ("a", "b"), VICTIM)
    verdict = CELLS[0].name
    assert [list(found) for found in apart.values()] == [[verdict], [verdict]]
    counts = {name: [found[verdict][side]["n"] for side in ("fakes", "reals")] for name, found in apart.items()}
    assert counts == {"a": [4, 4], "b": [3, 3]}
    margins = [row["margins"]["attacked"]["float"] for row in rows[verdict] if row["id"] >= 8 and row["label"] == 1]
    assert apart["b"][verdict]["fakes"]["is"]["attacked"]["float"]["wrong"].value == np.mean(np.array(margins) <= 0)


def test_masks_that_the_images_do_not_allow_are_told_of_any_cell():
    one = DATA._replace(groups=np.zeros_like(DATA.groups))
    cells = [*CELLS, Cell("mask", "fakes", 99, "none", ALONE, "another", 4, 3, 0.5)]
    fabrication.check_targets(cells, DATA, 0)
    fabrication.check_targets(CELLS, one, 0)
    with pytest.raises(InputError, match="one has 20 of 20 images"):
        fabrication.check_targets(cells, one, 0)


def test_results_are_json_and_undefined_numbers_null(rows):
    found = fabrication.results(rows, VICTIM)
    one = fabrication.as_json(CELLS, found, VICTIM, lines={"verdict": "told"})
    again = json.loads(json.dumps(one, allow_nan=False))
    assert [cell["weight"] for cell in again["cells"]] == [0, None, 1.0]
    assert again["cells"][1]["reals"] == {"n": 0} and again["lines"] == {"verdict": "told"}


def test_what_is_tuned_is_tuned_on_the_validation_images():
    held = picture(seed=1)
    said = said_of(held.images)
    margins = np.asarray(said.logits[:, 1] - said.logits[:, 0])
    assert np.array_equal(margins > 0, held.labels == 1)
    assert VICTIM.confidence == pytest.approx(np.median(np.abs(margins)), rel=1e-5)
    assert 0 < VICTIM.least < 0.5  # reals show nothing, fakes half of the image
    assert fabrication.clean({"toy": DATA}, VICTIM, COMPUTE)["toy"]["clean_disagree"].value == 0


def test_a_detector_without_a_mask_is_refused():
    plain = LOADED._replace(detector=toys.TOY, variables=toys.TOY.init(jax.random.key(0)))
    with pytest.raises(InputError, match="toy: has no mask"):
        fabrication.victim(plain, DATA, 1.0, COMPUTE)


def test_a_mask_whose_area_tells_nothing_is_refused():
    held = picture(seed=1)
    same = held._replace(images=held.images[np.arange(40) // 2 * 2], labels=held.labels)
    with pytest.raises(InputError, match="toy: no area of its mask tells"):
        fabrication.victim(LOADED, same, 1.0, COMPUTE)


def test_pooled_sets_keep_identities_apart_and_take_the_first_set_first():
    second = picture(20, seed=3)
    data = fabrication.pooled({"a": DATA, "b": second}, 25)
    assert [int(np.sum(data.labels == label)) for label in (0, 1)] == [25, 25]
    assert data.names[:40] == tuple(f"a/{name}" for name in DATA.names) and data.names[40] == "b/0.png"
    assert not set(data.groups[:40]) & set(data.groups[40:])
    assert np.array_equal(data.images[40:], second.images[:10]) and np.asarray(data.masks).shape == (50, 12, 12)
    with pytest.raises(InputError, match="b: has no masks"):
        fabrication.pooled({"a": DATA, "b": second._replace(masks=None)}, 5)


def test_a_gate_means_for_each_class_the_half_that_it_says():
    gates = {way: {side: fabrication.gate(Cell("gate", side, 1, "none", ALONE, "disc", 1, 1, 0.1, gate=way))
                   for side in ("fakes", "reals")} for way in ("clean", "current", "target")}  # fmt: skip
    assert gates["clean"] == {"fakes": "fake", "reals": "real"}
    assert gates["target"] == {"fakes": "real", "reals": "fake"}
    assert gates["current"] == {"fakes": "current", "reals": "current"}


def test_the_activation_loss_by_hand_and_its_goal_is_the_verdicts():
    logits = jnp.array([[0.2, 0.9], [0.2, 0.9], [1.0, 0.0], [1.0, 0.0]])  # (real, fake)
    who = Batch(None, jnp.array([1, 0, 1, 0]), jnp.arange(4))
    said, goal = Outputs(logits, None, OrderedDict()), goals.activation(confidence=0.5)
    np.testing.assert_allclose(goal.objective(said, who), [-(0.9 + 0.8), -(0.1 + 0.2), 0, -2], atol=1e-6)
    assert np.array_equal(goal.reached(said, who), goals.verdict(confidence=0.5).reached(said, who))
    assert goal.reached(said, who).tolist() == [False, True, True, False]
