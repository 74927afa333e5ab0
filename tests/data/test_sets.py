"""Naming a data set: splits that are marked, splits that are made, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from ffjax.data import sets
from ffjax.errors import InputError


def draw(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(30):
        draw(tmp_path / "faces" / "real" / f"{i}.png", i)
        draw(tmp_path / "faces" / "fake" / f"{i}.png", 100 + i)
    return tmp_path / "faces"


def write_csv(folder, split_of):
    rows = [f"{label}/{i}.png,{label},{split_of(i)}" for label in ("real", "fake") for i in range(30)]
    (folder / "labels.csv").write_text("\n".join(["file,label,split", *rows]))


def names(folder, split, **kwargs):
    return set(sets.load(str(folder), split, 16, **kwargs).names)


def test_an_unmarked_folder_is_cut_into_validation_and_test_for_good(folder):
    validation, test = names(folder, "validation"), names(folder, "test")
    assert not validation & test and len(validation | test) == 60
    assert 0.15 < len(validation) / 60 < 0.5
    draw(folder / "real" / "new.png", 999)
    assert validation <= names(folder, "validation") and test <= names(folder, "test")
    with pytest.raises(InputError, match="no image is marked for training"):
        names(folder, "train")


def test_marked_splits_are_followed_whatever_validation_is_called(folder):
    write_csv(folder, lambda i: ("train", "val", "test")[i % 3])
    for split, rest in (("train", 0), ("validation", 1), ("test", 2)):
        found = names(folder, split)
        assert found == {f"{label}/{i}.png" for label in ("real", "fake") for i in range(30) if i % 3 == rest}


def test_without_a_marked_validation_split_part_of_training_becomes_it(folder):
    write_csv(folder, lambda i: "test" if i < 10 else "train")
    train, validation, test = (names(folder, split) for split in sets.SPLITS)
    assert not train & validation and len(train | validation) == 40 and len(test) == 20
    assert not (train | validation) & test


def test_a_group_is_never_cut(folder):
    rows = [f"{label}/{i}.png,{label},g{i // 2}" for label in ("real", "fake") for i in range(30)]
    (folder / "labels.csv").write_text("\n".join(["file,label,group", *rows]))
    groups = [{int(n.split("/")[1][:-4]) // 2 for n in names(folder, split)} for split in ("validation", "test")]
    assert not groups[0] & groups[1]


def test_the_limit_is_per_class_and_a_subset(folder):
    data = sets.load(str(folder), "test", 16, limit=5)
    assert list(np.bincount(data.labels)) == [5, 5] and set(data.names) <= names(folder, "test")
    with pytest.raises(InputError, match="at least one"):
        sets.load(str(folder), "test", 16, limit=0)


def test_two_sets_of_one_name_and_no_set_are_refused(folder):
    for specs in ((), (str(folder), str(folder))):
        with pytest.raises(InputError, match="data"):
            sets.load_all(specs, "test", 16)
    with pytest.raises(InputError, match="split"):
        sets.load(str(folder), "training", 16)


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("spec", ["a", "FOLDER", "patches:FOLDER", "faceforensics:FOLDER"])
def test_a_size_that_no_image_has_is_refused(folder, spec, size):
    with pytest.raises(InputError, match=f"size.* {size}"):
        sets.load(spec.replace("FOLDER", str(folder)), "test", size)


def test_a_set_marked_only_as_test_lends_validation_images_that_leave_test(folder):
    write_csv(folder, lambda i: "Test")
    validation, test = names(folder, "validation"), names(folder, "test")
    assert validation and not validation & test and len(validation | test) == 60


def test_split_names_in_any_case_and_several_for_one_are_followed(folder):
    write_csv(folder, lambda i: ("Train", "val", "VALID", "TEST")[i % 4])
    found = {split: {int(n.split("/")[1][:-4]) % 4 for n in names(folder, split)} for split in sets.SPLITS}
    assert found == {"train": {0}, "validation": {1, 2}, "test": {3}}


def test_an_unknown_split_name_is_refused(folder):
    write_csv(folder, lambda i: ("train", "hold-out")[i % 2])
    with pytest.raises(InputError, match="hold-out"):
        names(folder, "test")


def test_a_part_without_images_says_how_the_parts_are_made(folder):
    rows = [f"{label}/{i}.png,{label},one" for label in ("real", "fake") for i in range(30)]
    (folder / "labels.csv").write_text("\n".join(["file,label,group", *rows]))
    empty = "test" if sets.held_out("group:one") else "validation"
    with pytest.raises(InputError, match=r"by a hash of their names|what is left"):
        names(folder, empty)


def test_a_set_that_is_passed_on_keeps_all_but_its_pixels(folder):
    before, after = (sets.load(f"{prefix}{folder}", "test", 24) for prefix in ("", "resent:"))
    assert after.names == before.names and np.array_equal(after.labels, before.labels)
    assert after.images.shape == before.images.shape and after.images.dtype == np.uint8
    assert not np.array_equal(after.images, before.images)
    assert sets.short_name("resent:a") == "a-resent"


def test_short_names_are_those_of_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "labels.csv").write_text("file,label\n")
    for spec in (".", str(folder), f"{folder}/", "labels.csv", "../faces"):
        assert sets.short_name(spec) == "faces"
    assert sets.short_name("a") == "a" and sets.short_name("x/list.csv") == "list"
