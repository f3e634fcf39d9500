"""Tar files are read by webdataset's rule for names, and damage in them is told."""

import io
import tarfile
from pathlib import Path

import pytest
from absl import logging
from PIL import Image

from zeroseg_jax.data.convert import main
from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.data.sources.tar import TarSource
from zeroseg_jax.errors import InputError


def png(level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def items(folder: Path) -> list[tuple[str, str | None, int]]:
    """Key, caption and level of every image."""
    source = TarSource(folder)
    return [(source.key(i), source.text(i), int(source[i]["image"][0, 0, 0])) for i in range(len(source))]


class TestNames:
    def test_a_key_ends_at_the_first_dot_of_the_last_part(self, tmp_path):
        members = [("./a.b/1.depth.png", png(9)), ("./a.b/1.JPG", png(1)), ("./a.b/1.TXT", b"one")]
        members += [("2.seg.png", png(9)), ("2.png", png(2)), ("2.old.txt", b"no"), ("2.json", b'{"text": "two"}')]
        write_tar(tmp_path / "x.TAR", members)
        assert items(tmp_path) == [("x.TAR/./a.b/1.JPG", "one", 1), ("x.TAR/2.png", "two", 2)]

    def test_names_with_more_dots_are_told(self, tmp_path, monkeypatch):
        said: list[str] = []
        monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
        dotted = [(f"v1.0 {name}", name.encode()) for name in ("red.png", "red.txt", "blue.png", "blue.txt")]
        write_tar(tmp_path / "x.tar", dotted)
        words = r"hold no images, .*; 1 look like images, .* of x\.tar/v1\.0 red\.png begins its field '0 red\.png'"
        with pytest.raises(InputError, match=words):
            TarSource(tmp_path)
        assert not said
        write_tar(tmp_path / "x.tar", [*dotted, ("2.png", png(2))])
        assert items(tmp_path) == [("x.tar/2.png", None, 2)]
        assert len(said) == 1 and "hold 1 images; 1 look like images" in said[0]

    @pytest.mark.parametrize("names", [("1.jpg", "1.JPG"), ("d/1.png", "./d/1.png"), ("1.txt", "1.Txt")])
    def test_a_field_that_is_there_twice(self, tmp_path, names):
        write_tar(tmp_path / "x.tar", [(names[0], png()), ("1.cls", b"0"), (names[1], png()), ("2.png", png())])
        with pytest.raises(InputError, match=r"x\.tar holds .*, both the field '\w+' of the sample .* webdataset"):
            TarSource(tmp_path)

    def test_the_image_of_several_formats(self, tmp_path):
        write_tar(tmp_path / "x.tar", [("1.png", png(9)), ("1.jpg", png(1))])
        assert items(tmp_path) == [("x.tar/1.jpg", None, 1)]

    def test_what_macos_adds(self, tmp_path):
        added = [("._1.png", b"?"), ("__MACOSX/1.png", png(9)), (".git/1.png", png(9)), (".DS_Store", b"?")]
        write_tar(tmp_path / "x.tar", [*added, ("1.png", png(1))])
        (tmp_path / "._x.tar").write_bytes(b"?")
        (tmp_path / "folder.tar").mkdir()
        assert items(tmp_path) == [("x.tar/1.png", None, 1)]

    def test_names_that_are_no_utf8(self, tmp_path, capsys):
        write_tar(tmp_path / "train-0.tar", [("caf\udce9.png", png(1)), ("a\nb.png", b"?")])
        assert TarSource(tmp_path).key(0) == r"train-0.tar/caf\xe9.png"
        assert main(["--source", "tar", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        assert ArrayRecordSource(tmp_path / "out").key(0) == r"train-0.tar/caf\xe9.png"
        assert r"the first of them train-0.tar/a\nb.png (" in capsys.readouterr().err


class TestCaptions:
    @pytest.mark.parametrize(
        ("name", "content", "caption"),
        [
            ("txt", b"\xef\xbb\xbfa cat\r\n", "a cat"),
            ("json", b'\xef\xbb\xbf{"caption": "a cat"}', "a cat"),
            ("json", b'{"caption": null, "text": "a dog"}', "a dog"),
            ("json", b'{"caption": null}', None),
            ("json", '{"caption": "a\u2028b"}'.encode(), "a\u2028b"),
        ],
    )
    def test_good(self, tmp_path, name, content, caption):
        write_tar(tmp_path / "x.tar", [("1.png", png(1)), (f"1.{name}", content)])
        assert items(tmp_path) == [("x.tar/1.png", caption, 1)]

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("json", b"3", "it is no JSON object but a int"),
            ("json", b"null", "it is no JSON object but a NoneType"),
            ("json", b'"caption"', "it is no JSON object but a str"),
            ("json", b"{", "Expecting property name"),
            ("json", b"[" * 100_000, "recursion"),
            ("json", b'{"caption": 3}', "it has 3, which is not a text"),
            ("json", b'{"caption": "\\ud83d"}', "which is not a text"),
            ("txt", b"caf\xe9", "'utf-8' codec can't decode"),
        ],
    )
    def test_bad_ones_are_counted(self, tmp_path, capsys, name, content, reason):
        write_tar(tmp_path / "train-0.tar", [("1.png", png(1)), (f"1.{name}", content), ("2.png", png(2))])
        with pytest.raises(BrokenImage, match=rf"its caption train-0\.tar/1\.{name} is broken: .*{reason}"):
            TarSource(tmp_path).text(0)
        assert main(["--source", "tar", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        assert "1 images cannot be read and were left out" in capsys.readouterr().err
        assert len(ArrayRecordSource(tmp_path / "out")) == 1


def changed(path: Path, member: int, size: bytes) -> None:
    """Another size in the header of a member of 1024 bytes in all, with the checksum that it then must have."""
    data = bytearray(path.read_bytes())
    header = data[1024 * member : 1024 * member + 512]
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024 * member : 1024 * member + 512] = header
    path.write_bytes(data)


class TestDamage:
    @pytest.fixture
    def tar(self, tmp_path) -> Path:
        return write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(3)])

    @pytest.mark.parametrize("member", range(3))
    @pytest.mark.parametrize(
        "size",
        [b"77777777777\0", b"00000000000\0", b"\xff" * 12, b"\xff" * 10 + b"\xf0\0", b"\x80" + b"\x7f" * 11],
        ids=["8 GB", "none", "-1", "-4096", "2**87"],
    )
    def test_sizes_that_lie(self, tar, member, size):
        changed(tar, member, size)
        with pytest.raises(InputError, match=r"the tar file .*x\.tar cannot be read \(.*fetch it again"):
            TarSource(tar.parent)

    def test_a_size_in_its_last_block_changes_no_image(self, tar):
        changed(tar, 1, b"00000001000\0")  # 512, of which the PNG is the beginning
        assert [level for _, _, level in items(tar.parent)] == [0, 1, 2]
        changed(tar, 1, b"00000000020\0")  # 16
        with pytest.raises(BrokenImage, match=r"x\.tar/1\.png"):
            items(tar.parent)

    def test_a_damaged_header_is_not_the_end(self, tar):
        data = bytearray(tar.read_bytes())
        data[1024 + 3] ^= 1
        tar.write_bytes(data)
        with pytest.raises(InputError, match=r"cannot be read \(damaged at byte 1024\)"):
            TarSource(tar.parent)

    @pytest.mark.parametrize("length", [700, 1024 + 100, 1024 + 600, 3 * 1024 + 100])
    def test_a_tar_that_was_cut_off(self, tar, length):
        tar.write_bytes(tar.read_bytes()[:length])
        with pytest.raises(InputError, match="cannot be read"):
            TarSource(tar.parent)

    def test_a_tar_without_an_end(self, tar, monkeypatch):
        said: list[str] = []
        monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
        tar.write_bytes(tar.read_bytes()[: 3 * 1024])
        assert len(TarSource(tar.parent)) == 3
        assert said == [f"the tar file {tar} has no mark of its end, so it may have been cut off"]
