"""Folders, prepared TFDS datasets, ArrayRecord shards: the same items from each."""

import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from array_records import write_records
from PIL import Image

from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.data.sources.folder import FolderSource
from zeroseg_jax.data.sources.open import open_held_out, open_source
from zeroseg_jax.data.sources.tfds import PreparedSource
from zeroseg_jax.errors import InputError


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(i)).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: Path, i: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(i)).save(path)


def config(source: str, root, split: str = "train", limit: int = 0) -> SimpleNamespace:
    return SimpleNamespace(source=source, root=str(root), split=split, limit=limit)


def keys(source) -> list[str]:
    assert [source[i]["key"] for i in range(len(source))] == [source.key(i) for i in range(len(source))]
    return [source.key(i) for i in range(len(source))]


class TestFolder:
    def test_any_folder(self, tmp_path):
        for i, name in enumerate(["b.PNG", "a.jpg", "sub/deep/c.webp", "sub/d.bmp", ".hidden.png", ".cache/x.png"]):
            save(tmp_path / name, i)
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / "sub/up").symlink_to(tmp_path)
        source = open_source(config("folder", tmp_path))
        assert keys(source) == ["a.jpg", "b.PNG", "sub/d.bmp", "sub/deep/c.webp"]
        assert np.array_equal(source[1]["image"], pixels(0)) and "text" not in source[1] and source.text(1) is None
        assert keys(open_source(config("folder", tmp_path, limit=2))) == ["a.jpg", "b.PNG"]

    def test_images_that_cannot_be_read_are_told(self, tmp_path, monkeypatch):
        save(tmp_path / "train/a.png")
        for name in ("train/b.HEIC", "train/deep/c.heic", "train/d.nef", "train/._e.heic", "train/notes.txt", "f.heic"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"?")
        told = []
        monkeypatch.setattr(logging, "warning", lambda said, *values: told.append(said % values))
        assert keys(open_source(config("folder", tmp_path))) == ["train/a.png"]
        (said,) = told
        assert "formats that are not read: 2 .heic, 1 .nef; they are left out" in said

    def test_a_linked_folder_is_followed(self, tmp_path):
        save(tmp_path / "elsewhere/a.png")
        (tmp_path / "root").mkdir()
        (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
        assert keys(FolderSource(tmp_path / "root")) == ["link/a.png"]

    def test_captions_and_splits_of_metadata(self, tmp_path):
        rows = [("x/0.png", "a star", "train"), ("x/1.png", "a fish", "val"), ("x/2.png", "a moon", "train")]
        for i, (name, _, _) in enumerate(rows):
            save(tmp_path / name, i)
        lines = [json.dumps({"file_name": n, "text": t, "split": s}) for n, t, s in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
        train = open_source(config("folder", tmp_path), "train")
        assert keys(train) == ["x/0.png", "x/2.png"]
        assert train[1]["text"] == train.text(1) == "a moon" and np.array_equal(train[1]["image"], pixels(2))
        assert keys(open_source(config("folder", tmp_path, "val"))) == ["x/1.png"]
        assert len(FolderSource(tmp_path, "all")) == 3
        with pytest.raises(InputError, match="no split 'test'; it has train, val"):
            FolderSource(tmp_path, "test")

    def test_voc_layout(self, tmp_path):
        for i in range(4):
            save(tmp_path / f"JPEGImages/{i}.jpg", i)
            save(tmp_path / f"SegmentationClass/{i}.png", i)
        lists = tmp_path / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("1\n3\n")
        assert keys(FolderSource(tmp_path, "val")) == ["JPEGImages/1.jpg", "JPEGImages/3.jpg"]
        assert len(FolderSource(tmp_path, "train")) == 4  # there is no list of this name
        with pytest.raises(InputError, match="no split 'test'; it has val"):
            FolderSource(tmp_path, "test")

    def test_lists_with_columns_spaces_and_a_byte_order_mark(self, tmp_path, monkeypatch):
        said: list[str] = []
        monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
        for name in ("a", "b c", "b", "c", "1"):
            save(tmp_path / f"JPEGImages/{name}.jpg")
        lists = tmp_path / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        (lists / "val.TXT").write_text("\ufeffa 1\r\nb c 1\r\ngone\r\n")
        assert keys(FolderSource(tmp_path, "val")) == ["JPEGImages/a.jpg", "JPEGImages/b c.jpg"]
        assert len(said) == 1 and "1 of the 3 images that" in said[0] and "the first is gone; they are" in said[0]
        (lists / "val.TXT").write_text("gone\n")
        with pytest.raises(InputError, match=r"1 of the 1 images .*val\.TXT lists are missing, .*JPEGImages"):
            FolderSource(tmp_path, "val")

    def test_what_macos_and_windows_add(self, tmp_path):
        for name in ("a.png", "._a.png", "__MACOSX/a.png", "sub/._b.jpg"):
            save(tmp_path / name)
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (tmp_path / name).write_bytes(b"?")
        assert keys(FolderSource(tmp_path)) == ["a.png"]

    def test_names_that_are_no_utf8(self, tmp_path):
        save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "caf\udce9.png")
        source = FolderSource(tmp_path)
        assert keys(source) == [r"caf\xe9.png"] and source.path(0).name == "caf\udce9.png"
        assert np.array_equal(source[0]["image"], pixels(0))
        (tmp_path / "caf\udce9.png").write_bytes(b"?")
        with pytest.raises(BrokenImage, match=r"caf\\xe9\.png cannot be read"):
            source[0]

    def test_odd_lines_of_metadata(self, tmp_path):
        save(tmp_path / "a.png")
        save(tmp_path / "b.png")
        lines = [
            '\ufeff{"file_name": "a.png", "text": "one\u2028line\x85"}',
            "",
            '{"file_name": "b.png", "text": null}\r',
        ]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        source = FolderSource(tmp_path)
        assert [source.text(i) for i in range(len(source))] == ["one\u2028line\x85", None]
        for line, words in {
            '{"file_name": "a.png"}': r"metadata\.jsonl names a\.png in line 1 and again in line 2",
            '{"file_name": null}': "file_name in line 2 .* must be a string",
            '{"file_name": "b.png", "text": "\\ud83d"}': "line 2 .* holds half of a surrogate pair",
            "[" * 100_000: r"line 2 of .* must be a JSON object",
            "1" * 5_000: r"line 2 of .* must be a JSON object",
        }.items():
            (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + line)
            with pytest.raises(InputError, match=words):
                FolderSource(tmp_path)
        (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "café"}'.encode("latin-1"))
        with pytest.raises(InputError, match=r"metadata\.jsonl is not UTF-8 text \(see its line 1\)"):
            FolderSource(tmp_path)
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a\\u0000.png"}\n{"file_name": "\\ud800.png"}')
        source = FolderSource(tmp_path)
        for i in range(2):
            with pytest.raises(BrokenImage, match="cannot be read"):
                source[i]

    def test_a_subfolder_is_a_split(self, tmp_path):
        save(tmp_path / "train/n01/a.png")
        save(tmp_path / "val/n01/b.png")
        (tmp_path / "val/metadata.jsonl").write_text('{"file_name": "n01/b.png", "text": "a dog"}')
        assert keys(FolderSource(tmp_path, "train")) == ["train/n01/a.png"]
        val = FolderSource(tmp_path, "val")
        assert keys(val) == ["val/n01/b.png"] and val.text(0) == "a dog"

    def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
        save(tmp_path / "sub/a.png")
        scan = os.scandir

        def refuse(path):
            if os.path.basename(path) == "sub":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(
            InputError, match=r"the folder .*/sub cannot be read \(Permission denied\); change its permissions"
        ):
            FolderSource(tmp_path)

    def test_bad_folders(self, tmp_path):
        with pytest.raises(InputError, match=r"has no images; an image is a file that ends in \.jpg, \.jpeg, \.png"):
            FolderSource(tmp_path)
        with pytest.raises(InputError, match=r"there is no folder .*/gone"):
            FolderSource(tmp_path / "gone")
        save(tmp_path / "a.png")
        with pytest.raises(InputError, match=r"no split .val.; set data\.split to all"):
            FolderSource(tmp_path, "val")
        for line in ("{", '{"text": "no name"}', "[1]", '{"file_name": "a.png", "text": 3}'):
            (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + line)
            with pytest.raises(InputError, match=r"line 2 of .*metadata\.jsonl"):
                FolderSource(tmp_path)


class LittleImagenet(tfds.core.GeneratorBasedBuilder):
    """Image, label and file name, as `imagenet2012` has them."""

    VERSION = tfds.core.Version("1.0.0")
    COUNT = 1

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=5)}
        features["file_name"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(self.COUNT), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": png(i), "label": i % 5, "file_name": f"{i}.png"}


@pytest.fixture(scope="module")
def tfds_root(tmp_path_factory) -> Path:
    """Two prepared versions of `little_imagenet`; the newer one is not the last in alphabetical order."""
    root = tmp_path_factory.mktemp("tfds")
    for version, LittleImagenet.COUNT in (("1.9.0", 3), ("1.10.0", 5)):
        LittleImagenet.VERSION = tfds.core.Version(version)
        LittleImagenet(data_dir=str(root)).download_and_prepare(file_format="array_record")
    return root


class TestPrepared:
    def test_reads_newest_version_and_slices(self, tfds_root):
        source = open_source(config("tfds:little_imagenet", tfds_root))
        assert keys(source) == [f"train/{i:07d}" for i in range(5)]
        assert all(np.array_equal(source[i]["image"], pixels(i)) for i in range(5))
        assert len(PreparedSource("little_imagenet:1.9.0", tfds_root)) == 3
        assert len(PreparedSource("little_imagenet", tfds_root, "train[1:3]")) == 2
        assert len(PreparedSource("any", tfds_root / "little_imagenet/1.9.0", "validation")) == 2

    def test_bad_input(self, tfds_root, tmp_path):
        with pytest.raises(InputError, match="no prepared dataset imagenet2012 in"):
            PreparedSource("imagenet2012", tfds_root)
        with pytest.raises(InputError, match=r"no prepared dataset little_imagenet:2\.0\.0"):
            PreparedSource("little_imagenet:2.0.0", tfds_root)
        with pytest.raises(InputError, match="no split 'test'; it has train, validation"):
            PreparedSource("little_imagenet", tfds_root, "test")

    def test_another_format(self, tfds_root, tmp_path):
        folder = tmp_path / "little_imagenet/1.9.0"
        folder.mkdir(parents=True)
        for name in ("features.json", "dataset_info.json"):
            text = (tfds_root / "little_imagenet/1.9.0" / name).read_text()
            (folder / name).write_text(text.replace("array_record", "riegeli"))
        with pytest.raises(InputError, match="is in neither ArrayRecord nor TFRecord format"):
            PreparedSource("little_imagenet", tmp_path)


class TestArrayRecord:
    def test_written_shards_are_read(self, tmp_path):
        items = [{"image": png(i), "key": f"image {i}", "text": f"a caption {i}"} for i in range(5)]
        shards = write_records(tmp_path / "data/train", items, shards=2)
        write_records(tmp_path / "data/val", items[:1])
        (tmp_path / "data/._train-00000-of-00002.array_record").write_bytes(b"?")
        assert [path.name for path in shards] == [f"train-0000{i}-of-00002.array_record" for i in range(2)]
        source = open_source(config("arrayrecord", tmp_path / "data"))
        assert keys(source) == [f"image {i}" for i in (0, 2, 4, 1, 3)]
        assert source[1]["text"] == source.text(1) == "a caption 2"
        assert np.array_equal(source[1]["image"], pixels(2))
        assert len(ArrayRecordSource(tmp_path / "data", "all")) == 6

    def test_bare_images_and_broken_records(self, tmp_path):
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(tmp_path / "train.array_record"), "group_size:1")
        named = [msgpack.packb({"image": png(1), "key": key, "text": "a"}) for key in (3, None)]
        for record in (png(1), b"\x81\xa1a\x01", b"", b"text", *named):
            writer.write(record)
        writer.close()
        source = ArrayRecordSource(tmp_path)
        assert len(source) == 6 and np.array_equal(source[0]["image"], pixels(1))
        assert source.key(0).endswith("record 0") and source.text(0) is None
        for i in (1, 2, 3, 4, 5):
            assert source.key(i).endswith(f"record {i}")
            with pytest.raises(BrokenImage, match=f"record {i} cannot be read"):
                source[i]

    def test_a_damaged_record(self, tmp_path):
        items = [{"image": np.random.default_rng(i).bytes(70_000), "key": f"k{i}"} for i in range(3)]
        (path,) = write_records(tmp_path / "train", items)
        data = bytearray(path.read_bytes())
        data[data.index(items[1]["image"][:64]) + 100] ^= 1
        path.write_bytes(data)
        source = ArrayRecordSource(tmp_path)
        assert source.read(0) == items[0]["image"] and source.read(2) == items[2]["image"]
        with pytest.raises(BrokenImage, match=r"record 1 cannot be read \(its shard is damaged there"):
            source.read(1)

    def test_bad_folders(self, tmp_path):
        with pytest.raises(InputError, match="no ArrayRecord shards"):
            ArrayRecordSource(tmp_path)
        write_records(tmp_path / "val", [{"image": png(0)}])
        with pytest.raises(InputError, match=r"no shard in .* is named train-\*.array_record; it has val-00000"):
            ArrayRecordSource(tmp_path)
        (tmp_path / "train.array_record").write_bytes(b"")
        with pytest.raises(InputError, match="is damaged"):
            ArrayRecordSource(tmp_path)


def test_unknown_sources_and_missing_roots():
    with pytest.raises(InputError, match=r"data\.source is 'imagenet'; it must be scenes, folder"):
        open_source(config("imagenet", "/somewhere"))
    with pytest.raises(InputError, match=r"data\.source=folder needs a folder; set data\.root"):
        open_source(config("folder", ""))


def test_held_out_images_are_no_training_images(tmp_path):
    for i in range(7):
        save(tmp_path / f"{i}.png", i)
    options = SimpleNamespace(source="folder", root=str(tmp_path), split="all", limit=6, held_out=2)
    assert keys(open_held_out(options)) == ["0.png", "5.png"]
    assert keys(open_source(options)) == ["1.png", "2.png", "3.png", "4.png"]
    options.held_out = 6
    with pytest.raises(InputError, match="held_out=6 leaves nothing of 6 images to train on"):
        open_source(options)
