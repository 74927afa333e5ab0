"""Other people's folders: both layouts, geometry, masks, and one line for everything that cannot be used."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffjax.data.codecs import decode
from ffjax.data.folder import load_folder
from ffjax.errors import InputError

SIZE = 16


def save(path: Path, image: np.ndarray | Image.Image | None = None, **options) -> Path:
    """An image file; without an image, noise that depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = np.random.default_rng(list(path.name.encode())).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three real and four fake images."""
    for name in ("real/a", "real/b", "real/c", "fake/a", "fake/b", "fake/c", "fake/d"):
        save(tmp_path / f"{name}.png")
    return tmp_path


def refused(path: Path, **options) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        load_folder(path, SIZE, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_real_and_fake_folders(folder):
    data = load_folder(folder, SIZE)
    assert data.names == (
        "real/a.png",
        "real/b.png",
        "real/c.png",
        "fake/a.png",
        "fake/b.png",
        "fake/c.png",
        "fake/d.png",
    )
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (data.images.dtype, data.labels.dtype, data.groups.dtype) == (np.uint8, np.int32, np.int32)
    assert len(set(data.groups.tolist())) == 7
    assert data.masks is None
    for name, image in zip(data.names, data.images, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(folder / name))), "right size: the bytes are untouched"


def test_every_format_at_any_depth_and_nothing_else(folder):
    for i, suffix in enumerate(["jpg", "JPEG", "PNG", "bmp", "webp", "tif", "tiff", "gif"]):
        save(folder / f"real/deeper/{i % 3}/x{i}.{suffix}")
    (folder / "real/README.md").write_text("words")
    (folder / "fake/Thumbs.db").write_bytes(b"\0")
    (folder / "fake/.DS_Store").write_bytes(b"\0")
    (folder / "fake/._a.jpg").write_bytes(b"a resource fork")
    save(folder / "real/.cache/small.png", np.zeros((1, 1), np.uint8))
    save(folder / "elsewhere/a.png")
    assert len(load_folder(folder, SIZE).names) == 7 + 8


def test_modes_of_one_grey_level_agree(folder):
    """The same picture in every mode gives the same pixels."""
    grey = np.full((SIZE, SIZE), 128, np.uint8)
    save(folder / "real/z16.png", grey.astype(np.uint16) * 257)
    save(folder / "real/zalpha.png", Image.fromarray(grey).convert("RGBA"))
    save(folder / "real/zcmyk.tif", Image.new("CMYK", (SIZE, SIZE), (127, 127, 127, 0)))
    save(folder / "real/zgrey.png", grey)
    save(folder / "real/zpalette.gif", Image.fromarray(grey).convert("P"))
    data = load_folder(folder, SIZE)
    for name, image in zip(data.names, data.images, strict=True):
        assert not name.startswith("real/z") or (image == 128).all(), name


def test_the_longer_side_is_cropped_and_the_shorter_resized(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    save(tmp_path / "real/wide.png", wide)
    save(tmp_path / "fake/tall.png", wide.transpose(1, 0, 2))
    save(tmp_path / "fake/long.png", np.full((SIZE, 5000, 3), 7, np.uint8))
    data = load_folder(tmp_path, SIZE)
    assert (data.images[0] == 255).all() and (data.images[2] == 255).all() and (data.images[1] == 7).all()


def test_resizing_is_antialiased_lanczos(tmp_path):
    checks = np.kron(np.indices((64, 64)).sum(0) % 2 * 255, np.ones((1, 1))).astype(np.uint8)
    save(tmp_path / "real/checks.png", checks)
    save(tmp_path / "fake/x.png")
    image = load_folder(tmp_path, SIZE).images[0]
    expected = Image.fromarray(checks).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    assert np.array_equal(image, np.asarray(expected))
    assert np.abs(image.astype(int) - 127).max() < 20, "a checkerboard finer than a pixel is grey, not aliased"


def test_orientation_before_the_crop(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((SIZE, SIZE, 3), np.uint8)
    stored[:, : SIZE // 2] = 255
    save(tmp_path / "real/turned.jpg", stored, exif=exif, quality=95)
    save(tmp_path / "fake/x.png")
    image = load_folder(tmp_path, SIZE).images[0]
    assert image[: SIZE // 2].min() > 200 and image[SIZE // 2 :].max() < 50


def test_limit_is_per_class_seeded_and_independent_of_the_other_class(folder):
    names = [load_folder(folder, SIZE, limit=2, seed=seed).names for seed in (0, 0, 1, 2, 3)]
    assert names[0] == names[1] and len(set(names)) > 1
    assert all([n.split("/")[0] for n in chosen] == ["real", "real", "fake", "fake"] for chosen in names)
    save(folder / "real/one_more.png")
    assert load_folder(folder, SIZE, limit=2).names[2:] == names[0][2:]
    assert len(load_folder(folder, SIZE, limit=100).names) == 8


def test_masks_by_stem(folder):
    for name in "abcd":
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:4] = {"a": 255, "b": 1, "c": 130, "d": 0}[name]
        save(folder / f"mask/{name}.{'bmp' if name == 'a' else 'png'}", mask)
    masks = load_folder(folder, SIZE).masks
    assert masks is not None and masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 255}
    assert not masks[:3].any(), "a real image has nothing forged"
    for mask, forged in zip(masks[3:], (True, True, True, False), strict=True):
        assert (mask[:4] == 255 * forged).all() and not mask[4:].any()


def test_a_mask_goes_through_its_images_geometry(tmp_path):
    image = np.zeros((64, 128, 3), np.uint8)
    image[16:48, 48:80] = 255
    save(tmp_path / "real/x.png")
    save(tmp_path / "fake/x.png", image)
    save(tmp_path / "mask/x.png", image[..., 0])
    data = load_folder(tmp_path, SIZE)
    assert data.masks is not None
    assert np.array_equal(data.masks[1] == 255, data.images[1, ..., 0] > 127) and data.masks[1].any()


def test_mask_faults(folder):
    for name in "abc":
        save(folder / f"mask/{name}.png", np.zeros((SIZE, SIZE), np.uint8))
    assert "d.png: no mask of that name" in refused(folder)
    save(folder / "mask/d.png", np.zeros((SIZE, SIZE + 1), np.uint8))
    assert f"d.png: {SIZE + 1}x{SIZE} pixels, but its image has {SIZE}x{SIZE}" in refused(folder)
    (folder / "mask/d.png").write_bytes(b"")
    assert "mask/d.png: empty file" in refused(folder)


def test_csv_in_the_folder_or_by_name(folder):
    text = "\ufeffLabel, file ,split,group,comment\nfake,fake/a.png,test,p1,x\n0,real/a.png,test,p1,x\n"
    text += "\nREAL,real/b.png,test\n"
    text += '1,fake/b.png,train,p2,"a, b"\n'
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    data = load_folder(folder, SIZE)
    assert data.names == ("real/a.png", "real/b.png", "fake/a.png", "fake/b.png")
    assert data.groups[0] == data.groups[2] and len(set(data.groups.tolist())) == 3
    test = load_folder(folder / "labels.csv", SIZE, split="test")
    assert test.names == data.names[:3] and test.labels.tolist() == [0, 0, 1]
    assert test.groups.max() == 1


def test_a_group_called_like_a_file_is_another_group(folder):
    (folder / "labels.csv").write_text("file,label,group\nreal/a.png,0,\nfake/a.png,1,real/a.png\n")
    assert len(set(load_folder(folder, SIZE).groups.tolist())) == 2


def test_csv_masks(folder):
    save(folder / "forged.png", np.full((SIZE, SIZE), 255, np.uint8))
    (folder / "labels.csv").write_text("file,label,mask\nreal/a.png,0,\nfake/a.png,1,forged.png\n")
    masks = load_folder(folder, SIZE).masks
    assert masks is not None and not masks[0].any() and masks[1].all()
    (folder / "labels.csv").write_text("file,label,mask\nreal/a.png,0,\nfake/a.png,1,forged.png\nfake/b.png,1,\n")
    assert "line 4: fake/b.png is fake and has no mask" in refused(folder)


CSV_FAULTS = {
    "": "no column 'file' (it has none)",
    "file,verdict\nreal/a.png,0\n": "no column 'label' (it has file, verdict)",
    "file,label\nreal/a.png,0\nfake/a.png,maybe\n": "line 3: label 'maybe' is none of",
    "file,label\nreal/a.png\n": "line 2: label '' is none of",
    "file,label\n,1\n": "line 2: no file named",
    "file,label\nreal/a.png,0\nreal/a.png,1\n": "line 3: real/a.png was already named in line 2",
    "file,label\nreal/a.png,0\nfake/nowhere.png,1\n": "nowhere.png: no such file",
    "file,label\nreal/a.png,0\nreal,1\n": "real: is a directory",
    'file,label\n"real/a.png,0\n': "cannot be read as CSV",
    "file,label\n": "no images found",
    "file,label\nreal/a.png,0\n": "holds only real images, no fake ones",
}


@pytest.mark.parametrize("text", CSV_FAULTS)
def test_csv_faults(folder, text):
    (folder / "labels.csv").write_text(text)
    message = refused(folder)
    assert CSV_FAULTS[text] in message and str(folder) in message


def test_csv_that_is_no_text(folder):
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00")
    assert "cannot be read as CSV" in refused(folder)


def test_split_faults(folder):
    assert "split 'test' needs a labels.csv" in refused(folder, split="test")
    (folder / "labels.csv").write_text("file,label\nreal/a.png,0\n")
    assert "no column 'split'" in refused(folder, split="test")
    (folder / "labels.csv").write_text("file,label,split\nreal/a.png,0,val\nfake/a.png,1,train\n")
    assert "no rows with split 'test' (it has train, val)" in refused(folder, split="test")


def test_folders_without_the_two_classes(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    assert "neither real/ and fake/ folders nor labels.csv" in refused(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "fake").mkdir()
    assert "no images found" in refused(tmp_path)
    save(tmp_path / "fake/a.png")
    assert f"{tmp_path}: holds only fake images, no real ones" in refused(tmp_path)


def test_sizes_and_limits_below_one(folder):
    for bad in ({"limit": 0}, {"limit": -1}):
        assert "at least 1" in refused(folder, **bad)
    with pytest.raises(InputError, match="at least 1"):
        load_folder(folder, 0)


def as_bytes(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


UNUSABLE = {
    "empty": (b"", "empty file"),
    "text": (b"this is not an image at all", "not an image"),
    "one_pixel": (as_bytes(Image.new("RGB", (1, 1))), "1x1 pixels is too small"),
    "sliver": (as_bytes(Image.new("RGB", (100, 7))), "100x7 pixels is too small"),
    "truncated": (as_bytes(Image.effect_noise((64, 64), 50))[:500], "damaged"),
    "huge": (as_bytes(Image.new("1", (10_000, 9_500))), "more than 80000000 pixels"),
    "larger_than_the_bound": (as_bytes(Image.new("1", (10_000, 8_001))), "10000x8001 is more than 80000000 pixels"),
    "enormous": (as_bytes(Image.new("1", (20_000, 10_000))), "more than 80000000 pixels"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_images_are_named(folder, name):
    data, fault = UNUSABLE[name]
    (folder / f"fake/b_{name}.png").write_bytes(data)
    message = refused(folder)
    assert f"fake/b_{name}.png: " in message and fault in message


def test_odd_metadata_is_no_reason_to_warn(folder):
    """Pillow warns of this file when it is decoded alone; here warnings are errors, and none comes through."""
    cut_short = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01"
    path = save(folder / "real/exif.jpg", exif=cut_short)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        decode(path.read_bytes())
    assert len(load_folder(folder, SIZE).names) == 8
