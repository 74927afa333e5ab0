"""Frames out of videos and folders, boxes out of files, faces out of frames, and one line for what is damaged."""

import sys

import numpy as np
import pytest
from films import HEIGHT, WIDTH, film, frame, write_frames, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ffjax.data import video
from ffjax.data.examples import example
from ffjax.data.video import Box
from ffjax.errors import InputError


def number_of(image: np.ndarray) -> int:
    return round((float(image[4:-4, 4 : WIDTH // 2 - 4].mean()) - 10) / 8)


def refused(call, *args) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.integers(1, 400), st.integers(1, 400))
def test_frames_are_spread_evenly(count, wanted):
    places = video.spread(count, wanted)
    assert len(places) == min(count, wanted) and places == sorted(set(places)) and 0 <= places[0] <= places[-1] < count
    steps = np.diff(places)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert abs(places[0] - (count - 1 - places[-1])) <= 1  # as far from the start as from the end


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_the_frames_asked_for_come_out_of_a_video(tmp_path, codec):
    av = pytest.importorskip("av", reason="needs the video extra")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write_video(tmp_path / "x.mp4", film(24), codec)
    assert video.numbers(path) == list(range(24))
    wanted = [0, 3, 4, 17, 23]
    found = list(video.frames(path, wanted))
    assert [number_of(image) for image in found] == wanted
    assert all(image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 for image in found)


def test_a_folder_of_frames_is_read_alike(tmp_path):
    folder = write_frames(tmp_path / "000", film(6))
    (folder / "0003.png").unlink()
    assert video.numbers(folder) == [0, 1, 2, 4, 5]
    for image, number in zip(video.frames(folder, [1, 4]), (1, 4), strict=True):
        np.testing.assert_array_equal(image, frame(number))
    assert "000: no frame 3" in refused(list, video.frames(folder, [2, 3]))
    (folder / "0004.png").write_bytes(b"no image")
    assert "0004.png: not an image" in refused(list, video.frames(folder, [4]))
    (folder / "cover.png").write_bytes(b"")
    assert "cover.png is not named by a number" in refused(video.numbers, folder)
    (tmp_path / "empty").mkdir()
    assert "empty: no frames" in refused(video.numbers, tmp_path / "empty")


def test_a_damaged_video_is_refused_by_name(tmp_path):
    pytest.importorskip("av", reason="needs the video extra")
    noise = list(np.random.default_rng(0).integers(0, 256, (20, HEIGHT, WIDTH, 3), np.uint8))
    whole = write_video(tmp_path / "whole.mp4", noise).read_bytes()
    early = write_video(tmp_path / "early.mp4", noise, movflags="faststart").read_bytes()  # its index comes first
    for data in (whole[: len(whole) // 2], early[: len(early) // 2], early[:-50], b"", b"not a video", whole[:40]):
        (tmp_path / "x.mp4").write_bytes(data)
        assert "x.mp4: " in refused(video.numbers, tmp_path / "x.mp4")
    assert "gone.mp4: no such video" in refused(video.numbers, tmp_path / "gone.mp4")
    assert "frame 20 is missing" in refused(list, video.frames(tmp_path / "whole.mp4", [20]))


def test_a_file_without_pictures_is_refused(tmp_path):
    av = pytest.importorskip("av", reason="needs the video extra")
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "x.mp4: holds no video stream" in refused(video.numbers, tmp_path / "x.mp4")


def test_a_crop_is_square_centred_and_inside():
    assert video.square(Box(40, 30, 20, 10), 96, 128) == (22, 37, 26)
    assert video.square(Box(0, 0, 20, 20), 96, 128) == (0, 0, 26)
    assert video.square(Box(110, 80, 18, 16), 96, 128) == (73, 105, 23)
    assert video.square(Box(10, 10, 200, 90), 96, 128) == (0, 32, 96)
    assert video.square(Box(40, 30, 20, 10), 96, 128, scale=1) == (25, 40, 20)


@given(st.floats(0, 128), st.floats(0, 96), st.floats(1, 300), st.floats(1, 300))
def test_a_crop_never_leaves_the_image(x, y, width, height):
    top, left, side = video.square(Box(x, y, width, height), 96, 128)
    assert 0 <= top <= 96 - side and 0 <= left <= 128 - side and side >= 1


def test_boxes_from_csv_and_json_agree(tmp_path):
    (tmp_path / "b.csv").write_text("video,frame,x,y,width,height\nyoutube/000,0,1,2,3,4\nyoutube/000,7,5,6,7,8.5\n")
    (tmp_path / "b.json").write_text('{"youtube/000": {"0": [1, 2, 3, 4], "7": [5, 6, 7, 8.5]}}')
    expected = {"youtube/000": {0: Box(1, 2, 3, 4), 7: Box(5, 6, 7, 8.5)}}
    assert video.read_boxes(tmp_path / "b.csv") == video.read_boxes(tmp_path / "b.json") == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("b.json", "[1]", "cannot be read as boxes"),
        ("b.json", "{", "cannot be read as boxes"),
        ("b.json", '{"v": [1]}', "cannot be read as boxes"),
        ("b.json", '{"v": {"0": [1, 2, 3]}}', "v frame 0: not a frame's number and four numbers"),
        ("b.json", '{"v": {"x": [1, 2, 3, 4]}}', "v frame x: not a frame's number"),
        ("b.json", '{"v": {"0": [1, 2, 0, 4]}}', "v frame 0: (1.0, 2.0, 0.0, 4.0) is no box"),
        ("b.json", '{"v": {"0": [NaN, 2, 3, 4]}}', "is no box"),
        ("b.csv", "video,frame,x,y\n", "no column width, height"),
        ("b.csv", "video,frame,x,y,width,height\nv,0,1,2,3\n", "v frame 0: not a frame's number and four numbers"),
    ],
)
def test_unusable_boxes_are_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    message = refused(video.read_boxes, tmp_path / name)
    assert said in message and name in message
    assert "nowhere" in refused(video.read_boxes, tmp_path / "nowhere.json")


def with_faces(*places: tuple[int, int, int]) -> np.ndarray:
    """A plain wall, 240x320, with painted faces at (top, left, side)."""
    wall = np.full((240, 320, 3), (90, 110, 130), np.uint8)
    face = Image.fromarray(example(0, "a", "test", 0).image)
    for top, left, side in places:
        wall[top : top + side, left : left + side] = np.asarray(face.resize((side, side)))
    return wall


@pytest.fixture
def cascade():
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip(f"OpenCV {cv2.__version__} carries no cascade; the video extra asks for 4.x")


def test_the_largest_face_is_found(cascade):
    alone, both = (
        video.largest_face(with_faces(*places)) for places in ([(20, 20, 160)], [(20, 20, 160), (150, 220, 80)])
    )
    assert alone is not None and alone == both
    assert 60 < alone.x + alone.width / 2 < 150 and 60 < alone.y + alone.height / 2 < 140 and 60 < alone.width < 130
    assert video.largest_face(with_faces()) is None


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "PyAV: pip install 'ffjax[video]'" in refused(video.numbers, tmp_path / "x.mp4")
    assert "OpenCV: pip install 'ffjax[video]', or give boxes=FILE" in refused(video.largest_face, with_faces())
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))
    sys.modules["cv2"].__version__ = "5.0.0"
    assert "OpenCV 5.0.0 carries no face detector" in refused(video.largest_face, with_faces())
