"""The FaceForensics++ layout on tiny folders made here: which videos, frames and faces, and what is refused."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from films import HEIGHT, WIDTH, film, frame, write_frames, write_video
from PIL import Image

from ffjax import run
from ffjax.data import faceforensics, sequences, sets, video
from ffjax.data.examples import example
from ffjax.data.sequences import Sequences, clips, parse
from ffjax.errors import InputError

COUNT = 12
PAIRS = {"train": ("000", "001"), "val": ("003", "002"), "test": ("004", "005")}
METHODS = ("Deepfakes", "FaceSwap")
LEVELS = {"youtube": 40, "Deepfakes": 120, "FaceSwap": 200}  # what the right half of a frame tells
BOX = [70, 30, 30, 20]  # cut: top 20, left 66, side 39, all in the right half


def videos(root: Path, compression: str = "c23") -> dict[str, Path]:
    """Name of a clip -> its place, without suffix, for the whole tiny data set."""
    found = {}
    for a, b in PAIRS.values():
        for who in (a, b):
            found[f"youtube/{who}"] = root / "original_sequences" / "youtube" / compression / "KIND" / who
        for method in METHODS:
            for who in (f"{a}_{b}", f"{b}_{a}"):
                found[f"{method}/{who}"] = root / "manipulated_sequences" / method / compression / "KIND" / who
    return found


def place(path: Path, kind: str) -> Path:
    return Path(str(path).replace("KIND", kind))


def write_rest(root: Path) -> None:
    """Split files, and a box for every frame but the eighth of each."""
    (root / "splits").mkdir(parents=True)
    for name, pair in PAIRS.items():
        (root / "splits" / f"{name}.json").write_text(json.dumps([pair]))
    boxes = {name: {str(i): BOX for i in range(COUNT) if i != 7} for name in videos(root)}
    (root / "boxes.json").write_text(json.dumps(boxes))


def mask(number: int) -> np.ndarray:
    """White from column 80 on in even frames, black in odd ones."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, 80:] = 255 * (number % 2 == 0)
    return image


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """The data set as folders of extracted frames, which need no video library."""
    root = tmp_path_factory.mktemp("extracted")
    for name, path in videos(root).items():
        write_frames(place(path, "images"), film(COUNT, LEVELS[name.split("/")[0]]))
        if "youtube" not in name:
            write_frames(
                place(path, "images").parents[2] / "masks" / "images" / path.name, list(map(mask, range(COUNT)))
            )
    write_rest(root)
    return root


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """The data set as videos."""
    pytest.importorskip("av", reason="needs the video extra")
    root = tmp_path_factory.mktemp("filmed")
    for name, path in videos(root).items():
        file = place(path, "videos").with_suffix(".mp4")
        write_video(file, film(COUNT, LEVELS[name.split("/")[0]]))
        if "youtube" not in name:
            write_video(file.parents[2] / "masks" / "videos" / file.name, list(map(mask, range(COUNT))))
    write_rest(root)
    return root


def settings(root: Path, **changes) -> Sequences:
    usual = {"methods": "Deepfakes+FaceSwap", "frames": 3, "boxes": str(root / "boxes.json")}
    return Sequences(folder=root, **(usual | changes))


def load(root: Path, split: str, where: Path, size: int = 13, **changes):
    told: list[str] = []
    return faceforensics.load(settings(root, **changes), split, size, where, told.append), told


def check(root: Path, where: Path) -> None:
    """What both forms of the data set give."""
    data, told = load(root, "validation", where, masks=1)
    who = ["youtube/003", "youtube/002", *(f"{m}/{pair}" for m in METHODS for pair in ("003_002", "002_003"))]
    assert data.names == tuple(f"{clip}/{i:04d}" for clip in who for i in (2, 6, 10)) and told == []
    assert data.labels.tolist() == [0] * 6 + [1] * 12 and set(data.groups) == {2}
    assert data.images.shape == (18, 13, 13, 3) and data.images.dtype == np.uint8
    for image, name in zip(data.images, data.names, strict=True):
        assert np.abs(image.astype(int) - LEVELS[name.split("/")[0]]).max() <= 3
    assert data.masks is not None and set(np.unique(data.masks)) == {0, 255}
    assert not data.masks[:6].any()
    columns = data.masks[6:].any(axis=1)  # the cut begins at 66; white from 80 on is from a third of 13 columns on
    assert (columns == (np.arange(13) >= 5)).all()
    assert load(root, "validation", where)[0].masks is None


def test_extracted_frames(extracted, tmp_path):
    check(extracted, tmp_path)


def test_videos(filmed, tmp_path):
    check(filmed, tmp_path)


def test_masks_are_of_their_own_frames(extracted, tmp_path):
    data, _ = load(extracted, "test", tmp_path, masks=1, frames=12)
    assert data.masks is not None
    for label, name, area in zip(data.labels, data.names, data.masks, strict=True):
        assert area.any() == (label == 1 and int(name[-4:]) % 2 == 0)


def test_a_split_holds_its_pairs_and_no_other(extracted):
    found = {split: {clip.name for clip in clips(settings(extracted), split)} for split in sequences.SPLITS}
    assert set.union(*found.values()) == set(videos(extracted))
    assert all(len(part) == 6 for part in found.values())
    assert {clip.pair for clip in clips(settings(extracted), "train")} == {0}


def test_a_frame_without_a_face_is_left_out_and_told_of(extracted, tmp_path):
    data, told = load(extracted, "test", tmp_path, frames=12)
    assert len(data.names) == 6 * 11 and not any(name.endswith("/0007") for name in data.names)
    assert told == ["FaceForensics++ test: no face in 6 of 72 frames, left out (most in youtube/004: 1 of 12)"]
    assert load(extracted, "test", tmp_path, frames=12)[1] == told, "also when the faces were kept from before"


def test_faces_are_kept_until_a_file_changes(extracted, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(extracted, root)
    first, _ = load(root, "test", tmp_path / "kept")
    with monkeypatch.context() as patched:
        patched.setattr(faceforensics, "faces", None)
        again, _ = load(root, "test", tmp_path / "kept")
        np.testing.assert_array_equal(again.images, first.images)
    boxes = json.loads((root / "boxes.json").read_text())
    boxes["youtube/004"] = {str(i): [8, 8, 16, 16] for i in range(COUNT)}
    (root / "boxes.json").write_text(json.dumps(boxes))
    changed, _ = load(root, "test", tmp_path / "kept")
    assert (changed.images[0] != first.images[0]).any()


def test_a_size_and_a_box_decide_the_cut(extracted, tmp_path):
    data, _ = load(extracted, "test", tmp_path, size=39)
    np.testing.assert_array_equal(data.images[0], frame(2, LEVELS["youtube"])[20:59, 66:105])


def refused(root: Path, where: Path, split: str = "test", **changes) -> str:
    with pytest.raises(InputError) as caught:
        load(root, split, where, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_printed_but_what_there_is_to_tell(extracted, tmp_path, capfd, caplog):
    faceforensics.load(settings(extracted, frames=12), "test", 13, tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("FaceForensics++ test: no face in 6 of 72 frames") and err.count("\n") == 1
    assert caplog.records == []


@pytest.fixture
def copy(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_missing_is_named(copy, tmp_path):
    assert "nowhere: no such folder. FaceForensics++ is given to researchers" in refused(tmp_path / "nowhere", tmp_path)
    assert "split dev: unknown; known: train, validation, test" in refused(copy, tmp_path, "dev")
    said = refused(copy, tmp_path, compression="c40")
    assert "youtube: no compression c40; there: c23" in said
    assert "Face2Face: no such folder" in refused(copy, tmp_path, methods="Face2Face")
    assert "gone.json: no such file of boxes" in refused(copy, tmp_path, boxes="gone.json")
    shutil.rmtree(copy / "original_sequences/youtube/c23/images/004")
    assert "004.mp4: no such video, nor frames in" in refused(copy, tmp_path)
    (copy / "splits/val.json").write_text('[["002"]]')
    assert "val.json: is not a list of pairs" in refused(copy, tmp_path, "validation")
    (copy / "splits/val.json").write_text("{")
    assert "val.json: cannot be read as JSON" in refused(copy, tmp_path, "validation")
    (copy / "splits/test.json").unlink()
    assert "test.json: no such split file" in refused(copy, tmp_path)


@pytest.mark.parametrize(
    ("split", "pairs", "said"),
    [
        ("train", [["000", "001"], ["005", "004"]], "005"),  # a pair of test.json, reversed
        ("train", [["000", "001"], ["006", "004"]], "004"),
        ("test", [["004", "005"], ["004", "005"]], "004"),
        ("test", [["004", "005"], ["005", "004"]], "005"),
        ("test", [["004", "005"], ["006", "005"]], "005"),
        ("test", [["004", "004"]], "004"),
    ],
)
def test_an_identity_is_in_one_pair_of_one_split(copy, tmp_path, split, pairs, said):
    (copy / f"splits/{split}.json").write_text(json.dumps(pairs))
    message = refused(copy, tmp_path)
    assert f"{said} is in" in message and "test.json" in message and f"{split}.json" in message
    assert any("_".join(pair) in message for pair in pairs)


def test_split_files_that_are_not_there_are_not_missed(copy, tmp_path):
    (copy / "splits/train.json").unlink()
    (copy / "splits/val.json").unlink()
    assert len(load(copy, "test", tmp_path)[0].labels) == 18


def test_what_cannot_be_used_is_refused_and_nothing_is_kept(copy, tmp_path):
    (copy / "none.json").write_text("{}")
    assert "copy: no face found in any frame of test" in refused(copy, tmp_path, boxes=str(copy / "none.json"))
    (copy / "far.json").write_text(json.dumps({"youtube/004": {"2": [500, 10, 20, 20]}}))
    said = refused(copy, tmp_path, boxes=str(copy / "far.json"))
    assert "far.json: youtube/004 frame 2: the middle of the box" in said
    (copy / "dot.json").write_text(json.dumps({"youtube/004": {"2": [50, 10, 0.1, 0.1]}}))
    said = refused(copy, tmp_path, boxes=str(copy / "dot.json"))
    assert "dot.json: youtube/004 frame 2: " in said and "at least 8 pixels" in said
    for size in (0, -1):
        assert f"size {size}: " in refused(copy, tmp_path, size=size)
    masks = copy / "manipulated_sequences/Deepfakes/masks/images/004_005"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks / "0002.png")
    assert "004_005: 9x9 pixels, but" in refused(copy, tmp_path, masks=1)
    (masks / "0002.png").unlink()
    assert "004_005: no frame 2" in refused(copy, tmp_path, masks=1)
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_a_video_cut_short_stops_a_driver_with_code_2(filmed, tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    shutil.copytree(filmed, root)
    file = root / "manipulated_sequences/FaceSwap/c23/videos/005_004.mp4"
    file.write_bytes(file.read_bytes()[:-400])
    spec = f"faceforensics:{root}?methods=FaceSwap&boxes={root / 'boxes.json'}"
    monkeypatch.setenv("FFJAX_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(sys, "argv", ["driver", "--data", spec])
    with pytest.raises(SystemExit) as left:
        run.main(Driver, lambda config: sets.load(config.data, "test", 16))
    printed = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2 and len(printed) == 1 and str(file) in printed[0]


@dataclass(frozen=True)
class Driver:
    data: str = ""


def test_faces_are_found_where_no_boxes_are_given(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip(f"OpenCV {cv2.__version__} carries no cascade; the video extra asks for 4.x")
    face = Image.fromarray(example(0, "a", "test", 0).image).resize((160, 160))
    images = [np.full((240, 320, 3), (90, 110, 130), np.uint8) for _ in range(4)]
    for image in images[:3]:
        image[40:200, 60:220] = np.asarray(face)
    for path in videos(tmp_path).values():
        write_frames(place(path, "images"), images)
    write_rest(tmp_path)
    data, told = load(tmp_path, "test", tmp_path / "kept", size=64, boxes="", methods="Deepfakes", frames=4)
    assert len(data.names) == 4 * 3
    assert told == ["FaceForensics++ test: no face in 4 of 16 frames, left out (most in youtube/004: 1 of 4)"]
    box = video.largest_face(images[0])
    assert box is not None
    top, left, side = video.square(box, 240, 320)
    cut = Image.fromarray(images[0][top : top + side, left : left + side]).resize((64, 64), Image.Resampling.LANCZOS)
    assert all(np.array_equal(image, cut) for image in data.images)


def test_specs():
    assert parse("faceforensics:x/y") == Sequences(folder=Path("x/y"))
    full = parse("faceforensics:x?compression=c40&methods=FaceShifter&frames=32&boxes=b.csv&splits=s")
    assert (full.compression, full.methods, full.frames, full.boxes, full.splits) == (
        "c40",
        "FaceShifter",
        32,
        "b.csv",
        "s",
    )
    assert sets.short_name("faceforensics:x?methods=Deepfakes") == "c23-Deepfakes"
    named = sets.short_name("faceforensics:x?methods=Deepfakes&frames=3&masks=1&boxes=y/b.csv")
    assert named == "c23-Deepfakes-frames=3-boxes=b.csv-masks=1"
    assert sets.short_name("patches:x/photos") == "photos-median3"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("faceforensics:x?compression=c32", "compression 'c32'; known: raw, c23, c40"),
        (
            "faceforensics:x?methods=DeepFake",
            "method 'DeepFake' is unknown or given twice; known: Deepfakes, Face2Face",
        ),
        ("faceforensics:x?methods=FaceSwap+FaceSwap", "given twice"),
        ("faceforensics:?frames=3", "no folder is named"),
        ("faceforensics:x?frames=0", "frames must be at least 1"),
        ("faceforensics:x?quality=c23", "'quality' is unknown; known: compression, methods, frames, boxes"),
    ],
)
def test_unusable_specs_are_refused(spec, said):
    with pytest.raises(InputError) as caught:
        parse(spec)
    assert said in str(caught.value)


def test_both_kinds_load_by_name(extracted, tmp_path, monkeypatch):
    monkeypatch.setenv("FFJAX_DATA", str(tmp_path))
    spec = f"faceforensics:{extracted}?methods=Deepfakes&frames=3&boxes={extracted / 'boxes.json'}"
    data = sets.load(spec, "test", 16, limit=2)
    assert data.labels.tolist() == [0, 0, 1, 1]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(12):
        image = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(image).save(photographs / f"p{i}.png")
    patches = sets.load(f"patches:{photographs}?patches=2&operation=blur", "train", 16, limit=3)
    assert sorted(patches.labels) == [0, 0, 0, 1, 1, 1]
