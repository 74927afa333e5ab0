"""A pattern on a folder of images as a user puts it there: every pixel as it should be, taken up again, none lost."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from driven import drive, refusal
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import apply_uap
from ffjax import applying, pattern_card
from ffjax.data.codecs import decode, to_uint8
from ffjax.universal import shapes

SIDE, EPS = 24, 10 / 255


def photo(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Every level, black and white areas included, where sums are clipped."""
    levels = np.random.default_rng(seed).integers(-60, 316, (height, width, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


def signs(eps: float = EPS, side: int = SIDE) -> np.ndarray:
    return (np.random.default_rng(9).choice([-1, 1], (side, side, 3)) * eps).astype(np.float32)


@pytest.fixture
def ground(tmp_path) -> Path:
    """v.npy, and in/ with pictures of the pattern's size in folders."""
    np.save(tmp_path / "v.npy", signs())
    for i, name in enumerate(("a.png", "b.bmp", "deep/er/c.png", "deep/d.d.PNG")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(i)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    Image.fromarray(photo(9)).save(tmp_path / "in" / "scan.tif")
    (tmp_path / "in" / ".hidden.png").write_text("not one either")
    return tmp_path


NAMES = ["a.png", "b.png", "deep/d.d.png", "deep/er/c.png"]


def words(ground: Path, *more: str) -> list[str]:
    return [str(ground / "v.npy"), str(ground / "in"), str(ground / "out"), *more]


def go(monkeypatch, ground: Path, *more: str) -> None:
    drive(monkeypatch, apply_uap, words(ground, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def record(ground: Path) -> dict:
    return json.loads((ground / "out" / "applied.json").read_text())


def test_every_image_is_the_original_and_the_pattern_to_the_nearest_level(ground, monkeypatch, capsys):
    before = contents(ground)
    go(monkeypatch, ground)
    after = contents(ground)
    assert sorted(after.keys() - before) == sorted(f"out/{name}" for name in (*NAMES, "applied.json"))
    assert all(after[name] == data for name, data in before.items())
    for i, name in enumerate(("a.png", "b.png", "deep/er/c.png", "deep/d.d.png")):
        expected = np.rint(255 * np.clip(photo(i) / 255 + signs().astype(np.float64), 0, 1))
        assert (opened(ground / "out" / name) == expected).all()
    said = capsys.readouterr().out
    assert "4 written, 0 skipped as done, 0 broken" in said and "no card: bound measured" in said
    assert "largest l_inf 10/255, bound 10/255 (linf) and half a level for rounding" in said
    assert "resized" not in said and "converted" not in said
    rows = record(ground)["files"]
    assert sorted(rows) == NAMES
    for name, row in rows.items():
        assert (row["linf"], row["was"], row["resized"]) == (10, "", False)
        assert 28.1 < row["psnr"] < 32 and 0 < row["ssim"] < 1, name


def test_twice_the_same_bytes_and_a_second_run_writes_nothing(ground, monkeypatch, capsys):
    go(monkeypatch, ground)
    first, when = contents(ground / "out"), times(ground / "out")
    capsys.readouterr()
    go(monkeypatch, ground)
    told = capsys.readouterr().out
    assert "0 written, 4 skipped as done" in told and "largest l_inf 10/255" in told
    assert times(ground / "out") == when
    (ground / "out").rename(ground / "other")
    go(monkeypatch, ground)
    assert contents(ground / "out") == first


def test_an_image_that_has_changed_or_gone_is_made_again_and_no_other(ground, monkeypatch, capsys):
    go(monkeypatch, ground)
    when = times(ground / "out")
    Image.fromarray(photo(77)).save(ground / "in" / "a.png")
    (ground / "out" / "b.png").unlink()
    go(monkeypatch, ground)
    assert "2 written (1 again: the original has changed), 2 skipped" in capsys.readouterr().out
    now = times(ground / "out")
    changed = {path.name for path in now if path.is_file() and now[path] != when.get(path)}
    assert changed == {"a.png", "b.png", "applied.json"}
    assert (opened(ground / "out" / "a.png") == to_uint8(photo(77) / np.float32(255) + signs())).all()


def test_interrupted_it_keeps_what_it_has_and_goes_on(ground, monkeypatch, capsys):
    go(monkeypatch, ground)
    (ground / "out").rename(ground / "whole")
    stamped, count = applying.stamped, []

    def interrupted(*args):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return stamped(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(applying, "stamped", interrupted)
        go(patch, ground)
    assert sorted(record(ground)["files"]) == NAMES[:2]
    capsys.readouterr()
    go(monkeypatch, ground)
    assert "2 written, 2 skipped" in capsys.readouterr().out
    assert contents(ground / "out") == contents(ground / "whole")


def test_killed_it_goes_on(ground, monkeypatch, capsys):
    """SIGKILL: nothing is tidied up, and the record may lag behind the images."""
    for i in range(60):
        Image.fromarray(photo(i, 90, 90)).save(ground / "in" / f"more{i:02}.png")
    env = os.environ | {"XDG_CACHE_HOME": str(ground / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.apply_uap", *words(ground)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list((ground / "out").glob("*.png"))) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    there = len(list((ground / "out").rglob("*.png")))
    assert 3 <= there < 64
    go(monkeypatch, ground)
    cut = contents(ground / "out")
    (ground / "out").rename(ground / "cut")
    go(monkeypatch, ground)
    whole = contents(ground / "out")
    assert len(record(ground)["files"]) == 64
    rows = [json.loads(found.pop("applied.json")) for found in (cut, whole)]
    assert rows[0] == rows[1] and {name: cut[name] for name in whole} == whole
    assert all(name.endswith(".part") for name in cut.keys() - whole)


def broken(ground: Path) -> None:
    """One truncated, one that never was an image, one empty; the good ones stay."""
    whole = io.BytesIO()
    Image.fromarray(photo(5, 60, 60)).save(whole, "JPEG")
    (ground / "in" / "cut.jpg").write_bytes(whole.getvalue()[:900])
    (ground / "in" / "[text].png").write_text("hello")
    (ground / "in" / "zero.webp").write_bytes(b"")


def test_broken_images_are_named_left_out_and_counted_and_the_rest_is_done(ground, monkeypatch, capsys):
    broken(ground)
    with pytest.raises(SystemExit) as stop:
        go(monkeypatch, ground)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err == f"error: {ground / 'in'}: 3 of 7 images broken, named above and left out\n"
    lines = [line for line in said.out.splitlines() if line.startswith("broken")]
    assert [line.split(": ")[1] for line in lines] == [
        str(ground / "in" / n) for n in ("[text].png", "cut.jpg", "zero.webp")
    ]
    assert "4 written, 0 skipped as done, 3 broken" in said.out and "largest l_inf" in said.out
    assert sorted(contents(ground / "out").keys() - {"applied.json"}) == NAMES == sorted(record(ground)["files"])
    Image.fromarray(photo(5)).save(ground / "in" / "cut.jpg")
    (ground / "in" / "a.png").write_bytes(b"")
    said = refusal(monkeypatch, capsys, apply_uap, words(ground))
    assert "3 of 7 images broken" in said and (ground / "out" / "cut.png").exists()
    assert not (ground / "out" / "a.png").exists()  # of what a.png was
    assert sorted(record(ground)["files"]) == ["b.png", "cut.png", *NAMES[2:]]


def test_nothing_but_broken_images_is_told_as_that(ground, monkeypatch, capsys):
    (ground / "in").rename(ground / "good")
    (ground / "in").mkdir()
    broken(ground)
    assert "3 of 3 images broken" in refusal(monkeypatch, capsys, apply_uap, words(ground))
    assert list(contents(ground / "out")) == ["applied.json"]


def test_other_pixel_formats_become_rgb_and_are_counted(ground, monkeypatch, capsys):
    grey, alpha = photo(1)[..., 0], np.dstack([photo(2), photo(3)[..., 0]])
    Image.fromarray(grey).save(ground / "in" / "grey.png")
    Image.fromarray(alpha).save(ground / "in" / "alpha.webp", lossless=True, exact=True)
    Image.fromarray(photo(4)).convert("CMYK").save(ground / "in" / "cmyk.jpg")
    Image.fromarray(photo(4)).quantize(16).save(ground / "in" / "palette.png")
    film = [Image.fromarray(photo(i)) for i in (6, 7)]
    film[0].save(ground / "in" / "film.webp", save_all=True, append_images=film[1:], lossless=True)
    go(monkeypatch, ground)
    rows = record(ground)["files"]
    was = {"grey.png": "L", "alpha.png": "RGBA", "cmyk.png": "CMYK", "palette.png": "P", "film.png": "first frame"}
    assert {name: row["was"] for name, row in rows.items() if row["was"]} == was
    told = "converted to plain RGB: 5 of 9 images (CMYK 1, L 1, P 1, RGBA 1, first frame 1)"
    assert told in capsys.readouterr().out
    shown = opened(ground / "out" / "grey.png")
    assert (shown == to_uint8(np.repeat(grey[..., None], 3, 2) / np.float32(255) + signs())).all()
    assert (opened(ground / "out" / "film.png") == to_uint8(photo(6) / np.float32(255) + signs())).all()
    paper = alpha[..., 3:] / 255
    laid = alpha[..., :3] * paper + 255 * (1 - paper)
    assert np.abs(opened(ground / "out" / "alpha.png") - np.clip(laid + 255 * signs(), 0, 255)).max() <= 1.5


def test_an_image_on_its_side_is_turned_upright_before_the_pattern_is_added(ground, monkeypatch):
    lying = Image.fromarray(photo(3, SIDE, 12))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(ground / "in" / "lying.png", exif=exif)
    np.save(ground / "v.npy", signs()[:12])
    go(monkeypatch, ground)
    upright = np.rot90(photo(3, SIDE, 12), -1)
    assert (opened(ground / "out" / "lying.png") == to_uint8(upright / np.float32(255) + signs()[:12])).all()
    row = record(ground)["files"]["lying.png"]
    assert not row["resized"] and record(ground)["files"]["a.png"]["resized"]


def test_another_size_has_the_pattern_resized_inside_the_bound_and_is_counted(ground, monkeypatch, capsys):
    sizes = {"wide": (20, 70), "small": (9, 8), "dot": (1, 1)}
    for name, size in sizes.items():
        Image.fromarray(photo(8, *size)).save(ground / "in" / f"{name}.png")
    go(monkeypatch, ground)
    assert "pattern resized for 3 of 7 images\n" in capsys.readouterr().out
    for name, size in sizes.items():
        fitted = np.asarray(shapes.resized("additive", jnp.asarray(signs()), *size))
        shown = opened(ground / "out" / f"{name}.png")
        assert (shown == to_uint8(photo(8, *size) / np.float32(255) + fitted)).all()
        assert np.abs(shown.astype(int) - photo(8, *size)).max() <= 10
    rows = record(ground)["files"]
    assert rows["small.png"]["ssim"] is None and rows["wide.png"]["ssim"] is not None


def test_a_pattern_of_an_l2_bound_says_that_resizing_changes_it(ground, monkeypatch, capsys):
    array = signs(0.05)
    eps = float(np.linalg.norm(array)) * (1 + 1e-6)
    bound, digest = pattern_card.printed(eps, "l2"), pattern_card.sha256([array])
    card = pattern_card.Card("mine", "additive", array.shape, "l2", eps, bound, digest, (), {}, 0, None, (), "0")
    pattern_card.write(ground / "v.npy", array, card)
    Image.fromarray(photo(8, 30, 30)).save(ground / "in" / "large.png")
    go(monkeypatch, ground, "--need-card")
    said = capsys.readouterr().out
    assert "mine (additive, 24x24 px, l2 2.07846)" in said
    assert "resized for 1 of 5 images: its l_2 norm changes with the number of pixels" in said


def test_strength_scales_the_pattern_and_a_pattern_of_nothing_changes_nothing(ground, monkeypatch, capsys):
    go(monkeypatch, ground, "--strength", "0.25")
    assert (opened(ground / "out" / "a.png") == to_uint8(photo(0) / np.float32(255) + signs() / 4)).all()
    assert "bound 0.25 x 10/255 (linf) and half a level" in capsys.readouterr().out
    np.save(ground / "v.npy", 0 * signs())
    drive(monkeypatch, apply_uap, [str(ground / "v.npy"), str(ground / "in" / "a.png"), str(ground / "none")])
    assert "median PSNR inf dB, SSIM 1.0000" in capsys.readouterr().out
    assert (opened(ground / "none" / "a.png") == photo(0)).all()


def test_a_filter_is_applied_to_every_size_as_it_is(ground, monkeypatch, capsys):
    kernel = np.random.default_rng(0).laplace(size=(5, 5, 3)).astype(np.float32)
    kernel *= np.float32(EPS) / np.abs(kernel).sum(axis=(0, 1)).max()
    np.save(ground / "v.npy", kernel)
    Image.fromarray(photo(8, 17, 40)).save(ground / "in" / "wide.png")
    assert "5x5 may be a filter" in refusal(monkeypatch, capsys, apply_uap, words(ground))
    go(monkeypatch, ground, "--kind", "filter")
    assert "resized" not in capsys.readouterr().out
    for name, image in (("a", photo(0)), ("wide", photo(8, 17, 40))):
        shown = opened(ground / "out" / f"{name}.png")
        expected = shapes.shown("filter", jnp.asarray(kernel), jnp.asarray(image[None] / np.float32(255)))[0]
        assert (shown == to_uint8(np.asarray(expected))).all() and (shown != image).any()
        assert np.abs(shown.astype(int) - image).max() <= 10
    assert "made with kind filter, not additive" in refusal(
        monkeypatch, capsys, apply_uap, words(ground, "--kind", "additive")
    )


def test_jpeg_is_written_on_request_and_measured_as_stored(ground, monkeypatch, capsys):
    go(monkeypatch, ground, "--jpeg", "60")
    path = ground / "out" / "deep" / "er" / "c.jpg"
    with Image.open(path) as image:
        assert image.format == "JPEG"
    stored, row = decode(path.read_bytes()), record(ground)["files"]["deep/er/c.jpg"]
    assert row["linf"] == np.abs(stored.astype(int) - photo(2)).max() > 10
    assert "as stored; bound 10/255 (linf) and half a level for rounding hold before JPEG" in capsys.readouterr().out
    assert record(ground)["settings"]["stored"] == "jpeg 60"


def test_one_image_goes_into_a_folder(ground, monkeypatch):
    drive(monkeypatch, apply_uap, [str(ground / "v.npy"), str(ground / "in" / "b.bmp"), str(ground / "in" / "one")])
    assert sorted(contents(ground / "in" / "one")) == ["applied.json", "b.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strength", "0"], "strength: must be above 0 and at most 1, got 0"),
        (["--strength", "1.01"], "strength: must be above 0 and at most 1, got 1.01"),
        (["--strength", "nan"], "strength: must be above 0 and at most 1, got nan"),
        (["--jpeg", "0"], "jpeg: quality must be from 1 to 100, got 0"),
        (["--jpeg", "101"], "jpeg: quality must be from 1 to 100, got 101"),
        (["--need-card"], "v.npy: has no card"),
    ],
)
def test_settings_that_cannot_be_are_refused(ground, monkeypatch, capsys, more, message):
    before = contents(ground)
    assert message in refusal(monkeypatch, capsys, apply_uap, words(ground, *more))
    assert contents(ground) == before and not (ground / "out").exists()


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("in", "in", "in: is or holds the images, or lies among them"),
        ("in", "in/out", "in/out: is or holds the images, or lies among them"),
        ("in", "in/../in/out", "is or holds the images, or lies among them"),
        ("in", "link/out", "link/out: is or holds the images, or lies among them"),
        ("in/deep", "in", "in: is or holds the images, or lies among them"),
        ("in/a.png", "in", "in: is or holds the images, or lies among them"),
        ("in/a.png", "in/a.png", "in/a.png: is or holds the images, or lies among them"),
        ("in/a.png", "new.png", "new.png: OUT must be a folder, not a file"),
        ("in", "v.npy", "v.npy: OUT must be a folder, not a file"),
        ("in", "v.npy/x", "v.npy/x: cannot be written (Not a directory)"),
        ("in", "full", "full: not empty, and not made by this program (no applied.json)"),
        ("nowhere", "out", "nowhere: no such file or folder"),
        ("empty", "out", "empty: no images in it (.png, .jpg"),
    ],
)
def test_places_that_cannot_be_are_refused_and_nothing_is_touched(ground, monkeypatch, capsys, source, out, message):
    (ground / "empty").mkdir()
    (ground / "full").mkdir()
    (ground / "full" / "mine.png").write_bytes(b"precious")
    (ground / "link").symlink_to(ground / "in")
    before = contents(ground)
    given = [str(ground / "v.npy"), f"{ground}/{source}", f"{ground}/{out}"]
    assert message in refusal(monkeypatch, capsys, apply_uap, given)
    assert contents(ground) == before and not (ground / "out").exists()


def test_two_images_that_would_be_one_are_refused(ground, monkeypatch, capsys):
    Image.fromarray(photo(1)).save(ground / "in" / "deep" / "er" / "c.jpg")
    said = refusal(monkeypatch, capsys, apply_uap, words(ground))
    assert "in/deep/er/c.png and c.jpg: both would become deep/er/c.png; rename one" in said
    assert not (ground / "out").exists()


def test_another_pattern_or_setting_has_no_business_in_out(ground, monkeypatch, capsys):
    go(monkeypatch, ground)
    before = contents(ground / "out")
    for more, message in (
        (["--strength", "0.5"], "out: made with strength 1.0, not 0.5; give another OUT"),
        (["--jpeg", "90"], "out: made with stored png, not jpeg 90; give another OUT"),
    ):
        assert message in refusal(monkeypatch, capsys, apply_uap, words(ground, *more))
    (ground / "v.npy").rename(ground / "same.npy")
    drive(monkeypatch, apply_uap, [str(ground / "same.npy"), *words(ground)[1:]])
    assert "4 skipped" in capsys.readouterr().out
    np.save(ground / "v.npy", -signs())
    assert "out: made with another pattern (sha256" in refusal(monkeypatch, capsys, apply_uap, words(ground))
    assert contents(ground / "out") == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pattern": 3}', "files"])
def test_a_record_that_is_none_is_refused(ground, monkeypatch, capsys, text):
    go(monkeypatch, ground)
    path = ground / "out" / "applied.json"
    text = text if text != "files" else json.dumps(record(ground) | {"files": {"a.png": {"linf": 3}}})
    path.write_text(text)
    assert f"error: {path}: " in refusal(monkeypatch, capsys, apply_uap, words(ground))
    assert path.read_text() == text


def job(array: np.ndarray, kind: str, strength: float) -> tuple[applying.Work, float]:
    """The work of a pattern without a card, and its bound."""
    eps = strength * pattern_card.measured(kind, "linf", array)
    bound = pattern_card.printed(eps, "linf")
    card = pattern_card.Card("v", kind, array.shape, "linf", eps, bound, "", (), {}, None, None, (), "")
    return applying.work(array, card, strength, None), eps


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["additive", "filter"]),
    st.floats(0, 300),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.sampled_from([(24, 24), (31, 12), (5, 7)]),
)
def test_what_is_written_is_within_the_bound_and_half_a_level(seed, kind, levels, strength, size):
    rng = np.random.default_rng(seed)
    side = 5 if kind == "filter" else 24
    array = rng.uniform(-1, 1, (side, side, 3)) * rng.choice([0.1, 1, 30], (side, side, 3))
    array = np.clip(array, -1, 1) * levels / 255
    work, eps = job(array.astype(np.float32), kind, strength)
    file, image = io.BytesIO(), photo(seed % 1000, *size)
    Image.fromarray(image).save(file, "PNG")
    data, row = applying.stamped(file.getvalue(), work)
    moved = np.abs(decode(data).astype(int) - image).max()
    assert moved == row.linf <= 255 * eps * (1 + 1e-5) + 0.5 + 1e-4
