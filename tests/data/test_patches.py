"""Patches of photographs: what each operation does, and how photographs are split."""

import io

import numpy as np
import pytest
from photographs import photograph, save, write_thirty
from PIL import Image
from scipy import ndimage

from ffjax.data import patches
from ffjax.data.operations import OPERATIONS, chosen
from ffjax.data.patches import SPLITS, Patches, parse
from ffjax.data.recapture import recapture
from ffjax.errors import InputError

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_thirty(tmp_path_factory.mktemp("photographs"))


def load(folder, split="train", size=SIZE, **settings):
    return patches.load(Patches(folder=folder, **settings), split, size)


def photographs(data) -> set[str]:
    return {name.split("/")[-2] for name in data.names}


def test_pairs_labels_names_and_groups(folder):
    data = load(folder, patches=4, operation="median5")
    count = len(photographs(data))
    assert data.images.shape == (8 * count, SIZE, SIZE, 3) and data.images.dtype == np.uint8 and data.masks is None
    assert data.labels.tolist() == [0, 1] * 4 * count and data.labels.dtype == data.groups.dtype == np.int32
    assert data.names[:2] == ("0/p00.png/000-original", "0/p00.png/000-median5") and len(set(data.names)) == 8 * count
    assert sorted(np.bincount(data.groups)) == [8] * count
    for group in set(data.groups):
        assert len({data.names[i].split("/")[1] for i in np.flatnonzero(data.groups == group)}) == 1


def test_an_original_is_a_cut_of_the_file_and_its_twin_the_same_place_processed(folder):
    data = load(folder, patches=3)
    for i in range(0, len(data.names), 2):
        whole = np.asarray(Image.open(folder / data.names[i].rsplit("/", 1)[0]))
        places = np.lib.stride_tricks.sliding_window_view(whole, (SIZE, SIZE, 3))[:, :, 0]
        (top, left), *others = np.argwhere((places == data.images[i]).all(axis=(2, 3, 4)))
        filtered = ndimage.median_filter(whole, (3, 3, 1), mode="mirror")
        assert not others
        np.testing.assert_array_equal(data.images[i + 1], filtered[top : top + SIZE, left : left + SIZE])


def test_a_photograph_is_in_one_split_for_good(folder, tmp_path):
    parts = {split: photographs(load(folder, split, patches=1)) for split in SPLITS}
    assert set.union(*parts.values()) == {f"p{i:02d}.png" for i in range(30)}
    assert sum(map(len, parts.values())) == 30 and len(parts["train"]) > max(len(parts["validation"]), 10)
    for i in (3, 7):
        save(tmp_path / f"p{i:02d}.png", photograph(i))  # alone, each is where it was
        split = next(split for split in SPLITS if f"p{i:02d}.png" in parts[split])
        assert f"p{i:02d}.png/000-original" in load(tmp_path, split, patches=1).names


def test_a_pair_does_not_depend_on_other_photographs_and_follows_the_seed(folder, tmp_path):
    whole = load(folder, operation="noise4", patches=2)
    name = whole.names[0].split("/")[1]
    save(tmp_path / "0" / name, np.asarray(Image.open(folder / "0" / name)))
    alone, other = (load(tmp_path, operation="noise4", patches=2, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(alone.images, whole.images[:4])
    np.testing.assert_array_equal(load(folder, operation="noise4", patches=2).images, whole.images)
    assert not np.array_equal(alone.images, other.images)


def test_splits_with_folders_of_their_own(folder, tmp_path):
    for i in range(3):
        save(tmp_path / "kodak" / f"k{i}.png", photograph(100 + i))
    only = {"test": str(tmp_path / "kodak")}
    parts = {split: photographs(load(folder, split, patches=1, **only)) for split in SPLITS}
    assert parts["test"] == {"k0.png", "k1.png", "k2.png"}
    assert len(parts["train"]) + len(parts["validation"]) == 30 and not parts["train"] & parts["validation"]
    save(tmp_path / "kodak" / "p04.tif", photograph(4))
    for split in SPLITS:
        with pytest.raises(InputError, match=r"p04.*a photograph of that name"):
            load(folder, split, **only)


def test_a_test_folder_inside_the_training_folder_is_refused(folder, tmp_path):
    for i in range(12):
        save(tmp_path / ("kodak" if i < 4 else "mine") / f"p{i}.png", photograph(i))
    for split in SPLITS:
        with pytest.raises(InputError, match="another split's folder"):
            load(tmp_path, split, test=str(tmp_path / "kodak"))


@pytest.mark.parametrize("operation", ["blur0.1", "noise0.1", "resample1.001", "jpeg75+blur0.1"])
def test_an_operation_that_changes_nothing_is_refused(folder, operation):
    with pytest.raises(InputError, match=operation.split("+")[-1]) as caught:
        load(folder, operation=operation, patches=4)
    assert "% of its patches as they were" in str(caught.value)


def test_a_few_flat_patches_are_kept_and_many_refused(tmp_path):
    image = photograph(0, 256, 256)
    image[:64] = 255
    save(tmp_path / "p.png", image)
    only = {"validation": "elsewhere", "test": "elsewhere", "patches": 400}
    with pytest.raises(InputError, match=r"median3 leaves \d+ %"):
        load(tmp_path, **only)
    image[:24] = photograph(1, 24, 256)
    save(tmp_path / "p.png", image)
    data = load(tmp_path, **only)
    same = (data.images[::2] == data.images[1::2]).all(axis=(1, 2, 3))
    assert 0 < same.mean() <= 0.05


def test_one_photograph_in_colour_and_grey_is_one_group(tmp_path):
    save(tmp_path / "colour" / "kodim03.png", photograph(0))
    save(tmp_path / "gray" / "kodim03.png", photograph(0, channels=1)[..., 0])
    split = next(s for s in SPLITS if patches._part("kodim03", list(SPLITS)) == s)
    data = load(tmp_path, split, patches=2)
    assert set(data.groups) == {0} and len(set(data.names)) == 8
    grey = data.images[[name.startswith("gray") for name in data.names]]
    assert (grey[..., :1] == grey).all()


def test_grey_patches_are_the_luma(folder):
    grey, colour = (load(folder, patches=2, channels=channels) for channels in (1, 3))
    assert grey.images.shape[1:] == (SIZE, SIZE, 1)
    luma = np.asarray(Image.fromarray(colour.images[0]).convert("L"))
    np.testing.assert_array_equal(grey.images[0, ..., 0], luma)
    for operation in OPERATIONS:
        assert load(folder, patches=1, channels=1, operation=operation).images.shape[1:] == (SIZE, SIZE, 1)


def test_a_jpeg_is_halved_whatever_its_suffix_and_a_png_is_not(tmp_path):
    image = photograph(0, 96, 128)
    save(tmp_path / "a" / "p.jpg", image, quality=90)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "p.png").write_bytes((tmp_path / "a" / "p.jpg").read_bytes())
    save(tmp_path / "c" / "p.png", image)
    only = {"validation": "elsewhere", "test": "elsewhere"}
    a, b, c = (load(tmp_path / name, size=48, patches=9999, **only) for name in "abc")
    assert len(a.labels) == len(b.labels) == 2 * 1 * (64 - 48 + 1) and len(c.labels) == 2 * (96 - 47) * (128 - 47)
    stored = np.asarray(Image.open(tmp_path / "a" / "p.jpg"))
    half = np.asarray(Image.fromarray(stored).resize((64, 48), Image.Resampling.LANCZOS))
    cuts = [half[:, left : left + 48] for left in range(17)]
    assert all(any(np.array_equal(patch, cut) for cut in cuts) for patch in a.images[::2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_a_photograph_and_follows_its_generator(name, channels):
    image = photograph(1, channels=channels)
    (operation,) = chosen(name)
    first, again = (operation(image, np.random.default_rng(3)) for _ in range(2))
    assert operation.name == f"{name}{OPERATIONS[name].usual:g}" and first.dtype == np.uint8
    assert first.ndim == 3 and first.shape[2] == channels
    np.testing.assert_array_equal(first, again)
    if name == "resample":
        assert first.shape[:2] == (115, 154)
    else:
        assert first.shape == image.shape and not np.array_equal(first, image)
    flat = operation(np.full((40, 40, channels), 128, np.uint8), np.random.default_rng(0)).astype(float)
    assert abs(flat.mean() - 128) < (25 if name == "recapture" else 2)


def test_operations_do_what_they_are_called():
    image, rng = photograph(2), np.random.default_rng(0)
    np.testing.assert_array_equal(chosen("jpeg30")[0](image, rng), np.asarray(_round_trip(image, 30)))
    noise = chosen("noise3")[0](image, rng).astype(float) - image
    assert 2.7 < noise[(image > 20) & (image < 235)].std() < 3.3
    spike = np.zeros((31, 31, 1), np.uint8)
    spike[15, 15] = 255
    blurred = chosen("blur2")[0](spike, rng)[..., 0].astype(float)
    spread = (blurred.sum(axis=0) * (np.arange(31) - 15) ** 2).sum() / blurred.sum()
    assert 3 < spread < 4.5
    assert not chosen("median3")[0](spike, rng).any()
    assert chosen("resample0.5")[0](image, rng).shape == (48, 64, 3)


def _round_trip(image, quality):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(stream)


def test_recapture_beats_with_the_screen_and_keeps_the_picture():
    image = photograph(3, 120, 160) / np.float32(255)
    weak, strong = (recapture(image, s, np.random.default_rng(5)) for s in (0.05, 1.0))
    assert weak.shape == strong.shape == image.shape and strong.min() >= 0 and strong.max() <= 1
    assert np.abs(weak - image).mean() < 0.03 < np.abs(strong - image).mean()
    flat = np.full((128, 128, 3), 0.5, np.float32)
    seen = [recapture(flat, s, np.random.default_rng(5)) for s in (0.1, 1.0)]
    tints = [x[..., 0] - x[..., 1] for x in seen]  # of a picture that is grey
    assert tints[1].std() > 5 * tints[0].std()
    coarse = tints[1].reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert coarse.std() > 0.02  # a beat, wider than any stripe of the screen or pixel of the sensor


def test_several_operations_take_turns(folder):
    data = load(folder, patches=4, operation="median3+jpeg75")
    assert [name.split("-")[1] for name in data.names[:8]] == ["original", "median3", "original", "jpeg75"] * 2
    assert len(chosen("all")) == len(OPERATIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sharpen", "'sharpen' in 'sharpen' is unknown; known, each with its usual strength: median3, jpeg75"),
        ("median3+", "'' in 'median3+' is unknown"),
        ("median4", "odd window widths in pixels from 3 to 15"),
        ("jpeg0", "libjpeg qualities from 1 to 100"),
        ("median3.5", "odd window widths in pixels"),
        ("jpeg75.5", "whole libjpeg qualities from 1 to 100"),
        ("resample1", "changes nothing"),
        ("noise-3", "unknown"),
    ],
)
def test_unusable_operations_are_refused(text, said):
    with pytest.raises(InputError) as caught:
        chosen(text)
    assert said in str(caught.value)


def test_specs():
    assert parse("patches:x/y") == Patches(folder=patches.Path("x/y"))
    full = parse("patches:x?operation=jpeg80+blur&test=k&patches=3&channels=1&seed=7")
    assert (full.operation, full.test, full.patches, full.channels, full.seed) == ("jpeg80+blur", "k", 3, 1, 7)
    assert parse("patches:what?/now?patches=3") == Patches(folder=patches.Path("what?/now"), patches=3)


def test_specs_that_differ_differ_in_their_short_names():
    queries = ["", "operation=jpeg80", "patches=1", "patches=1&seed=3", "seed=3", "channels=1", "test=x/kodak"]
    queries += ["validation=x/kodak", "operation=jpeg80&test=mine"]
    names = [patches.short_name(f"patches:x/photos?{query}") for query in queries]
    assert names[:3] == ["photos-median3", "photos-jpeg80", "photos-median3-patches=1"]
    assert names[6] == "photos-median3-test=kodak" and len(set(names)) == len(names)
    assert not any("/" in name for name in names)
    assert patches.short_name("patches:x/photos?patches=16") == "photos-median3"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("patches:", "no folder is named"),
        ("patches:?patches=3", "no folder is named"),
        ("patches:x?channels=" + 5000 * "1", "channels must be a whole number"),
        ("patches:x?op=jpeg80", "'op' is unknown; known: validation, test, operation, patches, channels, seed"),
        ("patches:x?patches=3&patches=4", "'patches' is given twice"),
        ("patches:x?patches=many", "patches must be a whole number of at most 18 digits, got 'many'"),
        ("patches:x?patches=0", "at least 1"),
        ("patches:x?channels=2", "channels 1 or 3"),
        ("patches:x?operation=sharpen", "unknown"),
    ],
)
def test_unusable_specs_are_refused(spec, said):
    with pytest.raises(InputError) as caught:
        parse(spec)
    assert said in str(caught.value)


def test_unusable_photographs_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no photographs for train \(0 image files"):
        load(tmp_path)
    with pytest.raises(InputError, match="split dev"):
        load(tmp_path, "dev")
    only = {"validation": "elsewhere", "test": "elsewhere"}
    save(tmp_path / "p.jpg", photograph(0, 60, 60))
    with pytest.raises(InputError, match=r"p\.jpg: patches of 32 pixels do not fit into 30x30"):
        load(tmp_path, **only)
    with pytest.raises(InputError, match=r"p\.jpg: patches of 24 pixels do not fit into 15x15"):
        load(tmp_path, size=24, operation="resample0.5", **only)
    for height in (1, 2):
        save(tmp_path / "p.jpg", photograph(0, height, 60))
        with pytest.raises(InputError, match=r"p\.jpg: patches of 32 pixels do not fit into 30x1"):
            load(tmp_path, **only)
    (tmp_path / "p.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"p\.jpg: not an image"):
        load(tmp_path, **only)


@pytest.mark.shared
def test_real_photographs(shared):
    spec = f"patches:{shared / 'bsds500-subset'}?test={shared / 'kodak' / 'colour'}&patches=2"
    test = patches.load(parse(spec), "test", 64)
    assert len(test.labels) == 16 and len(set(test.groups)) == 4 and (test.images[::2] != test.images[1::2]).any()
    train, validation = (patches._photographs(parse(spec), split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 250 and not set(train) & set(validation)
