"""Conversion of images in a bucket, and to a bucket."""

import tarfile
from types import SimpleNamespace

import pytest

from zeroseg_jax import storage
from zeroseg_jax.data.convert import main as convert
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import local_copy, to_path, upload, walk, write_text


@pytest.fixture
def archive(bucket, pictures, tmp_path) -> str:
    """A tar file in the bucket, with a file that is no image."""
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(pictures.rglob("*.png"))[:5]:
            archive.add(file, file.name)
        archive.addfile(tarfile.TarInfo("zz.png"))
    upload(path, to_path(f"{bucket}/tar/{path.name}"))
    return f"{bucket}/tar"


@pytest.mark.parametrize("root", ["", "/train-0.tar"])
def test_from_a_bucket_to_a_bucket(archive, root, capsys):
    out = f"{archive}{root}.shards"
    command = ["--source", "tar", "--root", archive + root, "--out", out, "--images-per-shard", "2"]
    assert convert([*command]) == 0
    said = capsys.readouterr()
    assert f"5 images are in {out}; train on them" in said.out and f"{out}/train-broken.txt names" in said.err
    names = [f"train-0000{i}-of-00003.array_record" for i in range(3)]
    assert sorted(walk(to_path(out))) == [*names, "train-broken.txt", "train-source.json"]
    assert len(ArrayRecordSource(out)) == 5
    second = to_path(out) / names[1]
    before = second.read_bytes()
    second.unlink()
    assert convert([*command]) == 0 and second.read_bytes() == before
    assert convert([*command, "--center_crop=8"]) == 2
    assert f"{out} holds a conversion of something else" in capsys.readouterr().err


def test_one_data_set_of_a_tfds_folder(bucket, tmp_path, capsys):
    command = ["--source", "tfds:none:1.0.0", "--root", f"{bucket}/tfds", "--out", str(tmp_path)]
    assert convert(command) == 2
    assert f"there is nothing at {bucket}/tfds/none; check" in capsys.readouterr().err


def test_refusals(bucket, tmp_path, monkeypatch, capsys):
    for words in (["--root", "s3://a/b", "--out", str(tmp_path)], ["--root", str(tmp_path), "--out", "s3://a"]):
        assert convert(["--source", "folder", *words]) == 2
        assert "cannot be reached; give a path on the disk, or gs://" in capsys.readouterr().err
    assert convert(["--source", "hf:gs://a", "--out", str(tmp_path)]) == 2
    assert "must be on the disk" in capsys.readouterr().err
    write_text(to_path(f"{bucket}/big/a"), "1234")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(InputError, match=r"gs://bucket/big holds 0\.0 GB, and .* let TMPDIR name"):
        local_copy(to_path(f"{bucket}/big"))
