"""Every kind of image file becomes the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.segment.images import to_pixels, to_pixels_list

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


def test_floats_in_a_tiff():
    values = PICTURE[..., 0].astype(np.float32) / 255
    np.testing.assert_array_equal(to_pixels(encoded(Image.fromarray(values), "TIFF")), PICTURE)


def test_cmyk():
    image = Image.fromarray(PICTURE).convert("CMYK")
    np.testing.assert_array_equal(to_pixels(encoded(image, "TIFF")), PICTURE)
    np.testing.assert_allclose(to_pixels(encoded(image.resize((64, 48), 0), "JPEG"))[4::8, 4::8], PICTURE, atol=40)


def test_transparency_is_laid_on_white():
    seen = np.array([[[10, 20, 30], [255, 255, 255]]], np.uint8)
    rgba = np.array([[[10, 20, 30, 255], [90, 90, 90, 0]]], np.uint8)
    half = to_pixels(np.array([[[10, 20, 30, 128]]], np.uint8))
    assert half.tolist() == [[[132, 137, 142]]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 90, 90, 90])
    images = [rgba, rgba / 255, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG")]
    images += [encoded(palette, "PNG", transparency=b"\xff\x00"), encoded(palette, "GIF", transparency=1)]
    for image in images:
        np.testing.assert_array_equal(to_pixels(image), seen)


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
