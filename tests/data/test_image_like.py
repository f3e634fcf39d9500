"""Every kind of image file becomes the same pixels."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from zeroseg_jax import InputError
from zeroseg_jax.data.image_like import to_pixels, to_pixels_list
from zeroseg_jax.models.preprocessing import Preprocessing

PICTURE = np.random.default_rng(0).integers(0, 2, (6, 8, 1), dtype=np.uint8).repeat(3, -1) * 255
"""Black and white, so that every mode can hold it."""


def encoded(image: Image.Image, ending: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, ending, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode,ending", [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG")])
def test_grey_palette_and_one_bit(mode, ending):
    image = Image.fromarray(PICTURE).convert(mode)
    np.testing.assert_array_equal(to_pixels(encoded(image, ending)), PICTURE)
    np.testing.assert_array_equal(to_pixels(image), PICTURE)


def test_sixteen_bits(tmp_path):
    deep = PICTURE[..., 0].astype(np.uint16) * 257
    for image in (Image.fromarray(deep), deep, deep[..., None], encoded(Image.fromarray(deep), "PNG")):
        np.testing.assert_array_equal(to_pixels(image), PICTURE)
    np.testing.assert_array_equal(to_pixels(encoded(Image.fromarray(deep), "TIFF")), PICTURE)
    grey = np.full((2, 2), 32896, np.uint16)
    np.testing.assert_array_equal(to_pixels(grey), np.full((2, 2, 3), 128))


def test_sixteen_bit_colour(sixteen_bit_colour):
    np.testing.assert_allclose(to_pixels(sixteen_bit_colour), [[[255, 128, 0], [16, 32, 64]]], atol=1)


@pytest.fixture
def sixteen_bit_colour() -> bytes:
    """A PNG of two pixels with three channels of 16 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + np.array([65535, 32896, 0, 4112, 8224, 16448], ">u2").tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "I"])
def test_every_mode_of_pillow(mode):
    """One that the pixels are put in by Pillow itself; I has 8 bits then."""
    image = Image.fromarray(PICTURE).convert("RGB" if mode != "PA" else "P").convert(mode)
    np.testing.assert_allclose(to_pixels(image), PICTURE, atol=1)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_sixteen_bits_are_the_same_in_every_form(dtype):
    deep = np.array([[0, 300, 1000, 32896, 65000, 65535]], dtype)
    expected = [[[round(value / 257)] * 3 for value in (0, 300, 1000, 32896, 65000, 65535)]]
    assert to_pixels(Image.fromarray(deep)).tolist() == expected
    small = Image.fromarray(deep.astype("<u2"))
    for image in (deep.astype("<u2"), deep.astype(">u2"), encoded(small, "PNG"), encoded(small, "TIFF")):
        assert to_pixels(image).tolist() == expected
    dark = encoded(Image.fromarray(np.full((1, 1), 200, "<u2")), "PPM")  # a file that Pillow opens in mode I
    for image in (dark, Image.open(io.BytesIO(dark))):
        assert to_pixels(image).tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize("value", [70000, -1])
def test_integers_that_no_image_has(value):
    image = Image.fromarray(np.full((2, 2), value, np.int32))
    with pytest.raises(InputError, match=f"has values from {value} to {value}, expected 16 bits, 0 to 65535"):
        to_pixels(image)


def test_floats_of_every_kind():
    expected = np.array([[[0, 128, 255]]], np.uint8)
    values = expected / 255
    for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
        assert np.abs(to_pixels(values.astype(dtype)).astype(int) - expected).max() <= (dtype == jnp.bfloat16)
    np.testing.assert_array_equal(to_pixels(jnp.asarray(values)), expected)
    np.testing.assert_array_equal(to_pixels(values + np.array([-1e-7, 0, 1e-7])), expected)  # rounding of their own
    with pytest.raises(InputError, match=r"an image array has float values from 0 to 1.01, expected \[0, 1\]"):
        to_pixels(values * 1.01)


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(PICTURE), "PNG"))
    for path in ("~/a.png", Path("~/a.png"), epath.Path(tmp_path) / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(to_pixels(path), PICTURE)


def test_avif():
    image = np.asarray(Image.fromarray(PICTURE).resize((64, 48), 0))
    np.testing.assert_allclose(to_pixels(encoded(Image.fromarray(image), "AVIF", quality=100)), image, atol=8)


def test_floats_in_a_tiff():
    values = PICTURE[..., 0].astype(np.float32) / 255
    np.testing.assert_array_equal(to_pixels(encoded(Image.fromarray(values), "TIFF")), PICTURE)


def test_cmyk():
    image = Image.fromarray(PICTURE).convert("CMYK")
    np.testing.assert_array_equal(to_pixels(encoded(image, "TIFF")), PICTURE)
    np.testing.assert_allclose(to_pixels(encoded(image.resize((64, 48), 0), "JPEG"))[4::8, 4::8], PICTURE, atol=40)


def test_transparency_is_laid_on_white():
    expected = np.array([[[10, 20, 30], [255, 255, 255]]], np.uint8)
    rgba = np.array([[[10, 20, 30, 255], [90, 90, 90, 0]]], np.uint8)
    half = to_pixels(np.array([[[10, 20, 30, 128]]], np.uint8))
    assert half.tolist() == [[[132, 137, 142]]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 90, 90, 90])
    images = [rgba, rgba / 255, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG")]
    images += [encoded(palette, "PNG", transparency=b"\xff\x00"), encoded(palette, "GIF", transparency=1)]
    for image in images:
        np.testing.assert_array_equal(to_pixels(image), expected)


def test_a_turned_photograph():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    data = encoded(Image.fromarray(PICTURE), "PNG", exif=exif)
    np.testing.assert_array_equal(to_pixels(data), np.rot90(PICTURE, -1))
    np.testing.assert_array_equal(to_pixels(Image.open(io.BytesIO(data))), np.rot90(PICTURE, -1))


def test_the_first_picture_of_an_animation():
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(to_pixels(data), PICTURE)


def test_lists_and_stacks():
    for images in ([PICTURE, Image.fromarray(PICTURE)], np.stack([PICTURE, PICTURE]), (PICTURE,)):
        for pixels in to_pixels_list(images):
            np.testing.assert_array_equal(pixels, PICTURE)


def test_the_models_preprocessing_takes_the_same_images():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(PICTURE), "PNG", exif=exif)
    preprocessing = Preprocessing(resize=None, crop=None)
    expected = preprocessing([np.rot90(PICTURE, -1)])
    for image in (turned, Image.open(io.BytesIO(turned)), np.rot90(PICTURE, -1) / 255):
        np.testing.assert_array_equal(preprocessing([image]), expected)
