"""Masks, lists of splits and classes as users have them: the values that they were made with, or one sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import check, open_benchmark
from zeroseg_jax.evaluate.benchmarks.masks import (
    UnknownValues,
    apply_table,
    decode_mask,
    make_example,
    read_classes,
    read_mask,
    value_table,
)

BOM = "\ufeff"
VALUES = np.array([[0, 1, 2], [3, 1, 0]])


def encoded(image: Image.Image, ending: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def raw_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of any number of bits, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    unpacked = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=-1)[..., 16 - bits :]
    rows = np.packbits(unpacked.reshape(height, -1), axis=-1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class TestValues:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_grey_of_any_number_of_bits(self, bits):
        values = np.minimum(VALUES, 2**bits - 1)
        assert decode_mask(raw_png(values, bits), "a").tolist() == values.tolist()
        if bits == 16:
            assert decode_mask(raw_png(VALUES * 20_000, bits), "a").max() == 60_000

    @pytest.mark.parametrize("colours", [2, 4, 16, 256])
    def test_palettes_of_any_number_of_bits(self, colours):
        values = np.minimum(VALUES, colours - 1).astype(np.uint8)
        image = Image.fromarray(values, "P")
        image.putpalette([7 * i % 256 for i in range(3 * colours)])
        assert decode_mask(encoded(image, bits=colours.bit_length() - 1), "a").tolist() == values.tolist()

    def test_values_above_255_are_never_others(self, folder):
        # 257 is 1 and 511 is 255, if the high byte is lost
        Image.fromarray((VALUES * 257).astype(np.uint16)).save(folder / "masks/a.png")
        with pytest.raises(UnknownValues, match=r"a\.png holds 257, 514, 771, but 4 values from 0 to 3") as caught:
            opened(folder)
        assert caught.value.values == (257, 514, 771)
        Image.fromarray(VALUES.astype(np.uint16)).save(folder / "masks/a.png")
        assert opened(folder)[0].mask.tolist() == VALUES.tolist()

    def test_tensors_of_32_bits(self):
        table = value_table(range(3))
        assert apply_table(np.array([[0, 2], [255, 1]], np.int32), table, "a").tolist() == [[0, 2], [255, 1]]
        with pytest.raises(UnknownValues) as caught:
            apply_table(np.array([[0, 257], [-1, 65536]], np.int32), table, "a")
        assert caught.value.values == (-1, 257, 65536)

    @pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", "PPM", "GIF"])
    def test_other_formats_do_not_keep_values(self, form):
        data = encoded(Image.fromarray(VALUES.astype(np.uint8)), form)
        with pytest.raises(InputError, match="the mask a cannot be read, as it is no PNG"):
            decode_mask(data, "a")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_colours_and_transparency(self, mode):
        with pytest.raises(InputError, match=f"the mask a has the mode {mode}; it must be a palette or a grey PNG"):
            decode_mask(encoded(Image.new(mode, (3, 2))), "a")


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image with a mask, and four classes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    add(tmp_path, "a")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\nhen\n")
    return tmp_path


def add(folder: Path, name: str, ending: str = ".png") -> None:
    Image.new("RGB", (3, 2)).save(folder / f"images/{name}.jpg", "JPEG")
    Image.fromarray(VALUES.astype(np.uint8)).save(folder / f"masks/{name}{ending}", "PNG")


def opened(folder: Path, split: str = "val"):
    config = default_config()
    config.eval.update(dataset="folder", root=str(folder), split=split)
    return open_benchmark(config.eval)


def names(folder: Path, split: str = "val") -> list[str]:
    return [example.name for example in opened(folder, split)]


def test_a_mask_of_another_size_is_told_before_anything_is_read(folder):
    add(folder, "b")
    Image.new("L", (5, 4)).save(folder / "masks/b.png")
    with pytest.raises(InputError, match=r"masks/b\.png has 5x4 pixels, its image 3x2; they must agree"):
        opened(folder)


class TestTurned:
    """EXIF turns an image: its mask is turned with it."""

    STORED = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4
    LABELS = np.arange(20, dtype=np.uint8).reshape(4, 5)

    def data(self, orientation: int, stored: np.ndarray = STORED) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(Image.fromarray(stored), exif=exif)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_pixel_keeps_its_label(self, orientation):
        example = make_example("a", self.data(orientation), "a", self.LABELS, "a")
        turned = dict(zip(self.LABELS.ravel().tolist(), self.STORED.reshape(-1, 3).tolist(), strict=True))
        assert example.image.shape[:2] == example.mask.shape == ((4, 5) if orientation < 5 else (5, 4))
        for label, colour in zip(example.mask.ravel().tolist(), example.image.reshape(-1, 3).tolist(), strict=True):
            assert turned[label] == colour

    @pytest.mark.parametrize("orientation", [5, 6, 7, 8])
    def test_a_mask_of_the_upright_image_stays(self, orientation):
        upright = self.LABELS.reshape(5, 4)
        example = make_example("a", self.data(orientation), "a", upright, "a")
        assert example.image.shape == (5, 4, 3) and np.array_equal(example.mask, upright)

    def test_neither_size(self):
        with pytest.raises(InputError, match="the mask m has 3x2 pixels, its image 4x5; they must agree"):
            make_example("a", self.data(6), "a", np.zeros((2, 3), np.uint8), "m")

    def test_in_a_folder(self, folder):
        (folder / "images/a.jpg").write_bytes(self.data(3, self.STORED[:2, :3]))
        assert opened(folder)[0].mask.tolist() == np.rot90(VALUES, 2).tolist()
        config = default_config()
        config.eval.update(dataset="folder", root=str(folder))
        (note,) = check(config)["notes"]
        assert note.startswith("1 images are turned by their EXIF orientation, and their masks with them")
        assert np.array_equal(opened(folder)[0].image, np.rot90(self.STORED[:2, :3], 2))


class TestNamesOfFiles:
    def test_endings_in_capitals(self, folder):
        add(folder, "b", ".PNG")
        (folder / "images/b.jpg").rename(folder / "images/b.JPG")
        assert names(folder) == ["a", "b"]

    def test_what_macos_and_windows_add(self, folder):
        for place in ("images", "masks"):
            for name in ("._a.png", "._a.jpg", ".DS_Store", "Thumbs.db"):
                (folder / place / name).write_bytes(b"?")
            (folder / place / "__MACOSX").mkdir()
            (folder / place / "more.png").mkdir()
        assert names(folder) == ["a"]

    def test_two_files_of_one_name(self, folder):
        (folder / "masks/a.PNG").write_bytes(b"")
        with pytest.raises(InputError, match=r"masks has a\.PNG and a\.png, which differ only in the ending"):
            opened(folder)

    def test_names_that_are_no_utf8(self, folder):
        add(folder, "caf\udce9")
        assert names(folder) == ["a", r"caf\xe9"]
        (folder / "masks/caf\udce9.png").write_bytes(b"?")
        with pytest.raises(InputError, match=r"masks/caf\\xe9\.png cannot be read, as it is no PNG"):
            opened(folder)


class TestClasses:
    def test_a_byte_order_mark_and_odd_line_ends(self, folder):
        (folder / "classes.txt").write_bytes(f"{BOM}cat\r\nthe\u2028dog \r\n\r\ncow\x0b1\nhen".encode())
        assert tuple(opened(folder).classes) == ("cat", "the\u2028dog", "cow\x0b1", "hen")

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32", "cp437"])
    def test_other_encodings(self, tmp_path, encoding):
        (tmp_path / "classes.txt").write_bytes("cat\ncafé\n".encode(encoding))
        with pytest.raises(InputError, match=r"classes\.txt is not UTF-8 text \(see its line \d\); save it again"):
            read_classes(tmp_path / "classes.txt")

    def test_names_that_look_like_markup(self, folder, capsys):
        (folder / "classes.txt").write_text("cat\n[/dog]\n[red]cow\nhen\n")
        config = default_config()
        config.eval.update(dataset="folder", root=str(folder))
        assert "[red]cow" in check(config)["pixels"]
        said = capsys.readouterr().out
        assert "[/dog]" in said and "[red]cow" in said

    def test_no_file_at_all(self, tmp_path):
        (tmp_path / "classes.txt").mkdir()
        with pytest.raises(InputError, match=r"there is no .*classes\.txt"):
            read_classes(tmp_path / "classes.txt")


class TestLists:
    @pytest.fixture
    def listed(self, folder):
        def write(content: str) -> Path:
            (folder / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
            (folder / "ImageSets/Segmentation/val.txt").write_text(content)
            return folder

        return write

    @pytest.mark.parametrize(
        "content",
        [
            f"{BOM}a\r\nb c\r\n",
            "a 1\nb c -1\n",
            "a\tx\nb c\ty z\n",
            "images/a.jpg masks/a.png\n/images/b c.jpg\tmasks/b c.png\n",
            "a.JPG\n\n  b c  \n",
        ],
    )
    def test_spaces_columns_paths_and_byte_order_marks(self, listed, content):
        folder = listed(content)
        add(folder, "b")
        add(folder, "b c")
        assert names(folder) == ["a", "b c"]

    def test_names_that_are_not_there(self, listed):
        for content, name in (("a\ngone far\n", "gone far"), ("a\ngone 1\n", "gone"), ("gone a.png\n", "gone")):
            with pytest.raises(InputError, match=rf"files of folder are missing, the first is .*images/{name}\.jpg"):
                opened(listed(content))

    def test_a_name_twice(self, listed):
        with pytest.raises(InputError, match=r"val\.txt has 'a' in line 1 and again in line 3; remove one"):
            opened(listed("a\n\na.jpg\n"))

    def test_endings_of_lists(self, listed):
        folder = listed("a\n")
        lists = folder / "ImageSets/Segmentation"
        (lists / "val.txt").rename(lists / "val.TXT")
        (lists / "._val.txt").write_bytes(b"\xff")
        assert names(folder) == ["a"]
        (lists / "val.TXT").write_bytes(b"\xff")
        with pytest.raises(InputError, match=r"val\.TXT is not UTF-8 text"):
            opened(folder)


def test_a_mask_that_is_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="there is no mask"):
        read_mask(tmp_path / "a.png")
