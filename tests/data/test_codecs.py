"""Storage: exact rounding, lossless PNG, JPEG like Pillow's own, and every pixel format that a file may hold."""

import io
import struct
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from ffjax.data import codecs
from ffjax.errors import InputError

units = hnp.arrays(np.float32, st.tuples(*[st.integers(1, 9)] * 2, st.just(3)), elements=st.floats(0, 1, width=32))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def file_of(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def hollow_png(width: int, height: int) -> bytes:
    """A PNG that claims to be of that size and holds hardly a pixel."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"few"))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


@given(units)
def test_to_uint8_is_the_nearest_level_and_the_same_as_on_the_device(images):
    levels = codecs.to_uint8(images)
    assert levels.dtype == np.uint8
    assert np.abs(levels - 255.0 * images).max() <= 0.5 + 1e-4
    assert np.array_equal(levels, np.asarray(jnp.round(images * 255)).astype(np.uint8))


def test_fault_16_to_uint8_rounds_up_where_truncation_would_not_and_clips():
    assert codecs.to_uint8(np.array([0.999, 1.5, -0.5, 127.6 / 255])).tolist() == [255, 255, 0, 128]


def test_nan_cannot_be_stored():
    with pytest.raises(ValueError, match="NaN"):
        codecs.to_uint8(np.array([0.5, np.nan]))


def test_to_float_is_undone_by_to_uint8():
    levels = np.arange(256, dtype=np.uint8)
    floats = codecs.to_float(levels)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (0, 1)
    assert np.array_equal(codecs.to_uint8(floats), levels)


@given(units)
def test_png_is_exactly_rounding(image):
    batch = np.stack([image, 1 - image])
    stored = codecs.png(batch)
    assert stored.dtype == np.float32
    assert np.array_equal(stored, codecs.to_float(codecs.to_uint8(batch)))


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_jpeg_is_pillows_own(quality):
    image = codecs.to_uint8(noise(24, 40, 3))
    expected = np.asarray(Image.open(io.BytesIO(file_of(Image.fromarray(image), "JPEG", quality=quality))))
    assert np.array_equal(codecs.decode(codecs.jpeg_bytes(image, quality)), expected)
    assert np.array_equal(codecs.jpeg(codecs.to_float(image)[None], quality)[0], codecs.to_float(expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", codecs.STORAGE)
def test_storage_keeps_shape_range_and_rows(name, channels):
    images = noise(5, 16, 24, channels)
    before = images.copy()
    stored = codecs.STORAGE[name](images)
    assert stored.shape == images.shape and stored.dtype == np.float32
    assert stored.min() >= 0 and stored.max() <= 1
    assert np.array_equal(stored[3:4], codecs.STORAGE[name](images[3:4]))
    assert np.array_equal(images, before)
    assert codecs.STORAGE[name](images[:0]).shape == (0, 16, 24, channels)


@pytest.mark.parametrize("name", codecs.STORAGE)
def test_grey_is_stored_as_its_three_equal_channels_would_be(name):
    grey = noise(3, 16, 24, 1)
    colour = codecs.STORAGE[name](np.repeat(grey, 3, axis=-1))
    assert np.array_equal(codecs.STORAGE[name](grey), colour[..., :1])
    levels = codecs.to_uint8(grey[0])
    assert np.array_equal(codecs.decode(codecs.png_bytes(levels), channels=1), levels)
    assert codecs.decode(codecs.png_bytes(levels)).shape == (16, 24, 3)


def test_storage_loses_more_the_further_down_the_table():
    images = np.kron(noise(4, 8, 8, 3), np.ones((1, 4, 4, 1), np.float32))
    lost = [float(np.mean((store(images) - images) ** 2)) for store in codecs.STORAGE.values()]
    assert lost[0] == 0 and lost == sorted(lost)


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_a_quality_that_does_not_exist_is_refused(quality):
    with pytest.raises(InputError, match=f"quality {quality}"):
        codecs.jpeg_bytes(np.zeros((8, 8, 3), np.uint8), quality)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF", "PPM"):
        levels = codecs.decode(file_of(Image.fromarray(deep), form))
        assert levels.shape == (1, 6, 3)
        assert levels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255], form


def test_float_tiff_in_the_unit_range_is_read_and_any_other_refused():
    unit = np.array([[0, 0.5, 1]], np.float32)
    assert codecs.decode(file_of(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (unit * 255, unit - 0.5, unit * np.float32(np.nan)):
        with pytest.raises(InputError, match="scale is unknown"):
            codecs.decode(file_of(Image.fromarray(wrong), "TIFF"))


def test_alpha_is_laid_on_white():
    for mode, colour in [("RGBA", (200, 100, 0, 0)), ("LA", (10, 0))]:
        levels = codecs.decode(file_of(Image.new(mode, (4, 4), colour)))
        assert (levels == 255).all(), mode
    half = codecs.decode(file_of(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))
    assert half[0, 0].tolist() == [255, 127, 127]


def test_palette_with_a_transparent_entry():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert codecs.decode(file_of(palette))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert codecs.decode(file_of(palette, transparency=1))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_plain_modes(mode):
    assert (codecs.decode(file_of(Image.new(mode, (3, 2), "white"))) == 255).all()


def test_cmyk_becomes_rgb():
    levels = codecs.decode(file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(levels.astype(int) - [255, 0, 0]).max() < 8


def test_first_frame_of_an_animation():
    frames = [Image.new("P", (5, 5), colour) for colour in (0, 255)]
    for frame in frames:
        frame.putpalette([255, 0, 0] + [0, 255, 0] * 255)
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert codecs.decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.fromarray(codecs.to_uint8(noise(16, 24, 3))), "JPEG", exif=exif)
    assert np.array_equal(codecs.decode(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_damaged_exif_does_not_lose_the_image():
    image = Image.fromarray(codecs.to_uint8(noise(16, 24, 3)))
    data = file_of(image, "JPEG", exif=b"Exif\x00\x00nonsense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert codecs.decode(data).shape == (16, 24, 3)


def test_damaged_files_are_refused_on_one_line():
    image = Image.fromarray(codecs.to_uint8(noise(32, 32, 3)))
    whole = {form: file_of(image, form) for form in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")}
    bad = {f"half a {form}": data[: len(data) // 2] for form, data in whole.items()}
    bad |= {"empty": b"", "text": b"just words, nothing else", "huge": hollow_png(10**4, 10**4)}
    bad |= {"very huge": hollow_png(10**5, 10**5), "hollow": hollow_png(16, 16)}
    for name, data in bad.items():
        with pytest.raises(InputError) as caught:
            codecs.decode(data)
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value), name
        assert ("more than" in str(caught.value)) == ("huge" in name), f"{name}: {caught.value}"


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]))
def test_a_flipped_byte_gives_an_image_or_an_input_error(position, byte, form):
    data = bytearray(file_of(Image.fromarray(codecs.to_uint8(noise(12, 12, 3))), form))
    data[position % len(data)] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert codecs.decode(bytes(data)).dtype == np.uint8
        except InputError as error:
            assert "\n" not in str(error)


def test_what_is_passed_on_keeps_smooth_pictures_and_loses_fine_texture():
    smooth = np.tile(np.linspace(0.2, 0.8, 64, dtype=np.float32)[None, :, None], (2, 64, 1, 3))
    texture = smooth + 0.1 * (-1.0) ** np.arange(64, dtype=np.float32)[None, None, :, None]
    inner = np.s_[:, 4:-4, 4:-4]
    assert np.abs(codecs.resent(smooth) - smooth)[inner].max() < 5 / 255
    assert np.abs(codecs.resent(texture) - smooth)[inner].mean() < 0.3 * 0.1


def test_a_crop_is_the_middle_enlarged():
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32)[None, :, None], (1, 100, 1, 1))
    found = codecs.cropped(ramp)
    assert found.shape == ramp.shape and abs(found[0, 50, 50, 0] - ramp[0, 50, 50, 0]) < 0.01
    np.testing.assert_allclose(found[0, :, [0, -1], 0].mean(axis=1), [0.05, 0.95], atol=0.01)
