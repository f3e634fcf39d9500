"""ImageNet as people have it becomes shards: ILSVRC's tar files, TFDS in TFRecord, Parquet, and `datasets`' own."""

import io
import shutil
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zeroseg_jax.data.convert import main
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.data.sources.open import open_source
from zeroseg_jax.data.sources.tfrecord import DamagedRecord, Shard, TFRecords
from zeroseg_jax.errors import InputError

FIXTURES = Path(__file__).parent / "sources/fixtures"


def jpeg(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12 + i), (20 * i, 255 - 20 * i, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


def convert(out: Path, source: str, root: Path | str = "", *more: str) -> int:
    return main(["--source", source, "--root", str(root), "--out", str(out), "--images-per-shard", "4", *more])


def heights(out: Path, split: str = "train") -> list[int]:
    """The heights of the images, which are 12 plus their numbers."""
    written = ArrayRecordSource(out, split)
    return [written[i]["image"].shape[0] for i in range(len(written))]


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class TestILSVRC:
    """`ILSVRC2012_img_train.tar` holds one tar file for each class, `ILSVRC2012_img_val.tar` the images."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        folder = tmp_path / "ilsvrc"
        folder.mkdir()
        classes = {
            f"n0144076{c}.tar": tar_of({f"n0144076{c}_{i}.JPEG": jpeg(3 * c + i) for i in range(3)}) for c in range(2)
        }
        (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
        (folder / "ILSVRC2012_img_val.tar").write_bytes(
            tar_of({f"ILSVRC2012_val_0000000{i}.JPEG": jpeg(6 + i) for i in range(2)})
        )
        return folder

    def test_tar_of_tars(self, folder, tmp_path):
        assert convert(tmp_path / "out", "tar", folder / "ILSVRC2012_img_train.tar") == 0
        assert heights(tmp_path / "out") == [12, 13, 14, 15, 16, 17]
        written = ArrayRecordSource(tmp_path / "out")
        assert written.key(4) == "ILSVRC2012_img_train.tar/n01440761.tar/n01440761_1.JPEG"
        assert written.read(4) == jpeg(4)
        assert convert(tmp_path / "out", "tar", folder / "ILSVRC2012_img_val.tar", "--split", "validation") == 0
        assert heights(tmp_path / "out", "validation") == [18, 19]

    def test_a_folder_of_both(self, folder, tmp_path):
        assert convert(tmp_path / "out", "tar", folder) == 0
        assert heights(tmp_path / "out") == [12, 13, 14, 15, 16, 17]

    def test_centre_crops(self, folder, tmp_path):
        assert convert(tmp_path / "out", "tar", folder, "--center_crop", "8") == 0
        assert heights(tmp_path / "out") == [8] * 6

    def test_damage(self, folder, tmp_path, capsys):
        train = folder / "ILSVRC2012_img_train.tar"
        whole = train.read_bytes()
        train.write_bytes(whole[: len(whole) // 2])
        assert convert(tmp_path / "out", "tar", folder) == 2
        assert "img_train.tar cannot be read (" in capsys.readouterr().err
        damaged = bytearray(whole)
        damaged[whole.index(b"n01440761_1.JPEG")] ^= 1
        train.write_bytes(damaged)
        assert convert(tmp_path / "out", "tar", folder) == 2
        assert "img_train.tar/n01440761.tar cannot be read (damaged at byte 1536)" in capsys.readouterr().err
        assert convert(tmp_path / "out", "tar", folder / "none.tar") == 2
        assert "there are no tar files" in capsys.readouterr().err


class TestTFRecord:
    """The fixture was written by TensorFlow (`fixtures/make_tfrecord.py`)."""

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return shutil.copytree(FIXTURES / "tfrecord", tmp_path / "tensorflow_datasets")

    @pytest.fixture
    def shard(self, root) -> Path:
        return root / "little_imagenet/5.1.0/little_imagenet-train.tfrecord-00000-of-00002"

    def test_conversion_without_tensorflow(self, root, tmp_path):
        assert convert(tmp_path / "out", "tfds:little_imagenet", root) == 0
        assert heights(tmp_path / "out") == [12 + i for i in range(7)]
        assert convert(tmp_path / "out", "tfds:little_imagenet:5.1.0", root, "--split", "validation") == 0
        assert heights(tmp_path / "out", "validation") == [19, 20]
        assert convert(tmp_path / "slice", "tfds:little_imagenet", root, "--split", "train[3:5]") == 0
        assert heights(tmp_path / "slice", "train[3:5]") == [15, 16]
        assert "tensorflow" not in sys.modules

    def test_a_record_that_does_not_fit_its_checksum(self, root, shard, tmp_path, capsys):
        data = bytearray(shard.read_bytes())
        data[data.index(b"n00000001_1.JPEG")] ^= 1
        shard.write_bytes(data)
        assert convert(tmp_path / "out", "tfds:little_imagenet", root) == 0
        said = capsys.readouterr().err
        assert "1 images cannot be read and were left out, the first of them train/0000001" in said
        assert "record 1 of" in said and "does not fit its checksum" in said
        assert heights(tmp_path / "out") == [12, 14, 15, 16, 17, 18]

    @pytest.mark.parametrize("byte", range(12))
    def test_a_damaged_length(self, shard, byte):
        data = bytearray(shard.read_bytes())
        data[len(TFRecords([Shard(shard, 0, 4, 4)])[0]) + 16 + byte] ^= 1
        shard.write_bytes(data)
        records = TFRecords([Shard(shard, 0, 4, 4)])
        assert records[0]
        with pytest.raises(DamagedRecord, match=r"is damaged at byte \d+, after 1 of its 4 records"):
            records[1]

    @pytest.mark.parametrize(("cut", "left"), [(1, 3), (4, 3), (100, 3), (2000, 1)])
    def test_a_file_that_was_cut_off(self, root, shard, tmp_path, cut, left, capsys):
        shard.write_bytes(shard.read_bytes()[:-cut])
        assert convert(tmp_path / "out", "tfds:little_imagenet", root) == 0
        assert "is cut off, after" in capsys.readouterr().err
        assert heights(tmp_path / "out") == [*range(12, 12 + left), 16, 17, 18]

    def test_missing_files_and_splits(self, root, shard, tmp_path, capsys):
        assert convert(tmp_path / "out", "tfds:little_imagenet", root, "--split", "test") == 2
        assert "no split 'test'; it has train, validation" in capsys.readouterr().err
        shard.unlink()
        assert convert(tmp_path / "out", "tfds:little_imagenet", root) == 2
        assert "1 of the 2 files of the split 'train' are missing, the first is" in capsys.readouterr().err


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    """Seven images with labels, and captions except one, as data sets of the hub have them."""
    columns = {
        "image": [{"bytes": jpeg(i), "path": f"n0144_{i}.JPEG"} for i in range(7)],
        "label": [i % 5 for i in range(7)],
        "caption": [None if i == 3 else f"number {i}" for i in range(7)],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)}
    features["caption"] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


class TestParquet:
    @pytest.fixture
    def folder(self, rows, tmp_path) -> Path:
        """The folder of a data set, as a clone of its repository has it."""
        folder = tmp_path / "imagenet-1k"
        (folder / "data").mkdir(parents=True)
        for i, part in enumerate((rows.select(range(4)), rows.select(range(4, 6)))):
            part.to_parquet(folder / f"data/train-0000{i}-of-00002.parquet", batch_size=3)
        rows.select([6]).to_parquet(folder / "data/validation-00000-of-00001.parquet")
        return folder

    def test_conversion(self, folder, tmp_path):
        assert pq.ParquetFile(folder / "data/train-00000-of-00002.parquet").num_row_groups == 2
        assert convert(tmp_path / "out", "parquet", folder) == 0
        written = ArrayRecordSource(tmp_path / "out")
        assert [written.read(i) for i in range(6)] == [jpeg(i) for i in range(6)]
        assert [written.text(i) for i in (2, 3)] == ["number 2", None]
        assert written.key(5) == "train-00001-of-00002.parquet/1"
        assert convert(tmp_path / "all", "parquet", folder, "--split", "all") == 0
        assert heights(tmp_path / "all", "all") == [12 + i for i in range(7)]
        assert convert(tmp_path / "one", "parquet", folder / "data/train-00001-of-00002.parquet", "--limit=1") == 0
        assert heights(tmp_path / "one") == [16]

    def test_a_folder_for_each_split(self, folder, tmp_path):
        """As the hub itself converts data sets."""
        (tmp_path / "default/train").mkdir(parents=True)
        shutil.copy(folder / "data/train-00000-of-00002.parquet", tmp_path / "default/train/0000.parquet")
        assert convert(tmp_path / "out", "parquet", tmp_path / "default") == 0
        assert heights(tmp_path / "out") == [12, 13, 14, 15]

    def test_bad_files(self, folder, tmp_path, capsys):
        out = tmp_path / "out"
        assert convert(out, "parquet", folder, "--split", "test") == 2
        assert "there are no Parquet files of the split 'test' in" in capsys.readouterr().err
        assert convert(out, "parquet", tmp_path / "none") == 2
        assert "there are no Parquet files" in capsys.readouterr().err
        assert convert(out, "parquet") == 2
        assert "data.source=parquet needs a folder" in capsys.readouterr().err
        pq.write_table(pa.table({"text": ["a"], "label": [1]}), folder / "data/test-0.parquet")
        assert convert(out, "parquet", folder, "--split", "test") == 2
        assert "test-0.parquet has no column of images, but the columns text, label" in capsys.readouterr().err
        pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), folder / "data/test-0.parquet")
        assert convert(out, "parquet", folder, "--split", "test") == 2
        assert "has several columns of images (a, b), none named image" in capsys.readouterr().err
        file = folder / "data/train-00001-of-00002.parquet"
        file.write_bytes(file.read_bytes()[:-20])
        assert convert(out, "parquet", folder) == 2
        assert "train-00001-of-00002.parquet cannot be read (" in capsys.readouterr().err

    def test_rows_without_an_image_are_counted(self, tmp_path, capsys):
        values = [{"bytes": jpeg(0), "path": None}, {"bytes": None, "path": "a.jpg"}, None]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"image": pa.array(values, kind)}), tmp_path / "train-0.parquet")
        assert convert(tmp_path / "out", "parquet", tmp_path) == 0
        said = capsys.readouterr().err
        assert "2 images cannot be read and were left out, the first of them train-0.parquet/1 (its column" in said
        assert heights(tmp_path / "out") == [12]

    def test_a_damaged_row_group_is_counted(self, folder, tmp_path, capsys):
        file = folder / "data/train-00000-of-00002.parquet"
        data = bytearray(file.read_bytes())
        data[4:60] = bytes(56)
        file.write_bytes(data)
        assert convert(tmp_path / "out", "parquet", folder) == 0
        assert "3 images cannot be read and were left out" in capsys.readouterr().err
        assert heights(tmp_path / "out") == [15, 16, 17]

    def test_training_names_the_conversion(self, folder):
        for source in ("parquet", "hf:some/name"):
            with pytest.raises(InputError, match=f"make shards of it first with .* --source {source}"):
                open_source(SimpleNamespace(source=source, root=str(folder), split="train"))


class TestHFDatasets:
    @pytest.fixture
    def saved(self, rows, tmp_path) -> Path:
        parts = {"train": rows.select(range(5)), "validation": rows.select(range(5, 7))}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    def test_a_folder_that_was_saved(self, saved, tmp_path):
        assert convert(tmp_path / "out", f"hf:{saved}") == 0
        written = ArrayRecordSource(tmp_path / "out")
        assert [written.read(i) for i in range(5)] == [jpeg(i) for i in range(5)]
        assert [written.text(i) for i in (2, 3)] == ["number 2", None] and written.key(4) == "train/0000004"
        assert convert(tmp_path / "all", f"hf:{saved}", "", "--split=all") == 0
        assert heights(tmp_path / "all", "all") == [12 + i for i in range(7)]

    def test_a_folder_of_parquet_files(self, rows, tmp_path):
        rows.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
        assert convert(tmp_path / "out", f"hf:{tmp_path}", tmp_path / "cache", "--limit=2") == 0
        assert heights(tmp_path / "out") == [12, 13] and (tmp_path / "cache").is_dir()

    def test_bad_ones(self, saved, rows, tmp_path, capsys, monkeypatch):
        assert convert(tmp_path / "out", f"hf:{saved}", "", "--split=test") == 2
        assert "has no split 'test'; it has train, validation" in capsys.readouterr().err
        rows.remove_columns("image").save_to_disk(tmp_path / "bare")
        assert convert(tmp_path / "out", f"hf:{tmp_path / 'bare'}") == 2
        assert "has 0 columns of images, none named image, among the columns label, caption" in capsys.readouterr().err
        (tmp_path / "empty").mkdir()
        assert convert(tmp_path / "out", f"hf:{tmp_path / 'empty'}") == 2
        assert "the library datasets cannot load" in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.delitem(sys.modules, "zeroseg_jax.data.sources.hf_datasets")
        assert convert(tmp_path / "out", f"hf:{saved}") == 2
        said = capsys.readouterr().err
        assert said == f"--source hf:{saved} needs the package datasets; pip install 'zeroseg_jax[convert]'\n"
