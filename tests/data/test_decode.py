"""Decoding: every kind of image becomes uint8 RGB, and damage is named."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data import decode
from zeroseg_jax.data.decode import BrokenImage, EncodedImage, decode_image, read_image
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import decode_mask


def encode(image: Image.Image, ending: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    """Left half (200, 40, 90), right half (10, 120, 250)."""
    pixels = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    pixels[:, 15:] = (10, 120, 250)
    return Image.fromarray(pixels)


def len_of(data: bytes | None) -> str:
    return "none" if data is None else str(len(data))


def test_rgb_is_exact():
    assert np.array_equal(decode_image(encode(picture(), "PNG"), "a"), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    ending = "TIFF" if mode == "CMYK" else "PNG"
    image = picture().quantize() if mode == "P" else picture().convert(mode)
    decoded = decode_image(encode(image, ending), "a")
    assert decoded.shape == (20, 30, 3) and decoded.dtype == np.uint8
    if mode in ("P", "RGBA", "CMYK"):
        assert np.abs(decoded.astype(int) - np.asarray(picture())).max() <= 1


def test_cmyk_jpeg():
    decoded = decode_image(encode(picture().convert("CMYK"), "JPEG", quality=100), "a")
    assert np.abs(decoded[:, :12].astype(int) - (200, 40, 90)).max() < 8


def test_transparency_is_laid_on_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([7, 8, 9, 70, 80, 90])
    data = encode(palette, "PNG", transparency=b"\x00\xff")
    assert decode_image(data, "a").tolist() == [[[255, 255, 255], [70, 80, 90]]]


def test_sixteen_bits_are_scaled():
    pixels = np.array([[0, 65535, 32896]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"), "a")
    assert decoded[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    decoded = decode_image(encode(picture(), "PNG", exif=exif), "a")
    assert decoded.shape == (30, 20, 3)
    assert np.array_equal(decoded, np.rot90(np.asarray(picture()), -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all", "not in an image format"),
        (encode(picture(), "JPEG")[:300], "[Tt]runcated"),
        (encode(picture(), "PNG")[:-30], ""),
        (encode(picture(), "WEBP")[:60], ""),
        (encode(picture(), "PNG").replace(b"IDAT", b"IDAX"), ""),
    ],
)
def test_damage_is_named(data, reason):
    with pytest.raises(BrokenImage, match=rf"holiday\.jpg cannot be read.*{reason}") as caught:
        decode_image(data, "holiday.jpg")
    assert isinstance(caught.value, InputError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.key, copy.reason, str(copy)) == ("holiday.jpg", caught.value.reason, str(caught.value))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(mode: int, size: tuple[int, int], *chunks: bytes) -> bytes:
    """A PNG of 8 bits whose pixels are 0 to 5."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, mode, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0\0\1\2\0\3\4\5"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("palette", [None, b"", b"\1\2", bytes(9), bytes(17), bytes(18), bytes(3 * 300)], ids=len_of)
@pytest.mark.parametrize("transparency", [None, b"", b"\0\xff", bytes(300)], ids=len_of)
def test_palettes_that_are_broken(palette, transparency):
    chunks = [] if palette is None else [chunk(b"PLTE", palette)]
    chunks += [] if transparency is None else [chunk(b"tRNS", transparency)]
    try:
        assert decode_image(png(3, (3, 2), *chunks), "a").shape == (2, 3, 3)
    except BrokenImage as error:
        assert "the image a cannot be read (" in str(error)
        assert len(palette or b"") != 18 or len(transparency or b"") == 300  # else nothing is broken


@pytest.mark.parametrize("size", [(30000, 30000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_images_that_say_they_are_huge(size):
    for mode in (0, 2, 3):
        with pytest.raises(BrokenImage, match="a cannot be read"):
            decode_image(png(mode, size), "a")
        with pytest.raises(InputError, match="the mask a cannot be read"):
            decode_mask(png(mode, size), "a")


def test_texts_that_grow():
    """100 MB of text in 100 kB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20), 9))
    with pytest.raises(BrokenImage, match="Decompressed data too large"):
        decode_image(png(3, (3, 2), chunk(b"PLTE", bytes(18)), text), "a")


def test_a_message_can_be_printed_whatever_the_name():
    assert str(BrokenImage("caf\udce9.png", "?")) == r"the image caf\udce9.png cannot be read (?); repair or remove it"


def test_missing_file(tmp_path):
    with pytest.raises(BrokenImage, match="No such file"):
        read_image(tmp_path / "gone.png")


def noise(width: int, height: int) -> Image.Image:
    """Coarse and fine noise."""
    rng = np.random.default_rng((width, height))
    coarse = Image.fromarray(rng.integers(0, 200, (3, 4, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray(np.asarray(coarse) + rng.integers(0, 56, (height, width, 3), dtype=np.uint8))


JPEGS = {
    "usual": encode(noise(90, 61), "JPEG"),
    "all chroma": encode(noise(90, 61), "JPEG", quality=95, subsampling=0),
    "half chroma": encode(noise(61, 90), "JPEG", subsampling=1),
    "progressive": encode(noise(90, 61), "JPEG", progressive=True),
    "restarts": encode(noise(90, 61), "JPEG", restart_marker_rows=1),
    "RGB": encode(noise(90, 61), "JPEG", keep_rgb=True),
    "grey": encode(noise(90, 61).convert("L"), "JPEG"),
    "CMYK": encode(noise(90, 61).convert("CMYK"), "JPEG"),
} | {f"{w} x {h}": encode(noise(w, h), "JPEG") for w, h in [(1, 1), (3, 2), (7, 7), (8, 5), (6, 9), (17, 16)]}


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_jpegs_for_training_are_what_pillow_decodes(data, reduction):
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if min(width, height) < reduction:
            pytest.skip("too small for that")
        image.draft(None, (width // reduction, height // reduction))
        expected = np.asarray(image.convert("RGB"))
    actual = EncodedImage(data, "a").decode(reduction)
    assert actual.extent == (height, width) and actual.reduction == reduction
    assert np.array_equal(actual.pixels, expected)


@pytest.mark.parametrize("data", [JPEGS["usual"], JPEGS["progressive"], JPEGS["restarts"]])
def test_damaged_jpegs_are_shown_or_named_as_pillow_does(data, monkeypatch):
    """Whatever the damage: the same pixels, or the same reason why there are none."""

    def outcome(damaged: bytes) -> tuple:
        try:
            result = EncodedImage(damaged, "a").decode(2)
        except BrokenImage as error:
            return (error.reason,)
        return result.pixels.shape, result.pixels.tobytes(), result.extent, result.reduction

    rng = np.random.default_rng(0)
    damaged = [data[: int(rng.integers(1, len(data)))] for _ in range(15)] + [data[:-2], data + b"more"]
    for _ in range(30):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] = int(rng.integers(256))
        damaged.append(bytes(changed))
    result = [outcome(one) for one in damaged]
    monkeypatch.setattr(decode, "_decode_jpeg", lambda *_: None)
    assert result == [outcome(one) for one in damaged]
    assert {len(one) for one in result} == {1, 4}
