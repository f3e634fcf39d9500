"""Folders, tar sets and TFDS datasets become ArrayRecord shards with the same images; stopped, it goes on."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data.augment import Augmentation
from zeroseg_jax.data.convert import main
from zeroseg_jax.data.pipeline import ordered_batches
from zeroseg_jax.data.scenes import builder
from zeroseg_jax.data.sources.open import open_source
from zeroseg_jax.data.sources.tar import TarSource
from zeroseg_jax.errors import InputError


def jpeg(i: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (12, 10 + i, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    first = {"a/0.jpg": jpeg(0), "a/0.txt": b"a cat\n", "a/0.json": b'{"caption": "no"}', "a/1.jpg": jpeg(1)}
    second = {"2.json": b'{"text": "a dog"}', "2.jpg": jpeg(2), "2.cls": b"7", "3.jpg": jpeg(3)[:80], "4.png": b""}
    write_tar(folder / "train-000.tar", first)
    write_tar(folder / "train-001.tar", second)
    write_tar(folder / "val-000.tar", {"5.jpg": jpeg(5)})
    return folder


def records(out: Path, split: str = "train"):
    return open_source(SimpleNamespace(source="arrayrecord", root=str(out), split=split))


def test_tar_set(tars, tmp_path, capsys):
    source = TarSource(tars)
    assert [source.key(i) for i in range(5)] == [
        *("train-000.tar/a/0.jpg", "train-000.tar/a/1.jpg"),
        *("train-001.tar/2.jpg", "train-001.tar/3.jpg", "train-001.tar/4.png"),
    ]
    out = tmp_path / "out"
    arguments = ["--source", "tar", "--root", str(tars), "--out", str(out), "--images-per-shard", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert f"3 images are in {out}; train on them with --config.data.source=arrayrecord" in printed.out
    assert "2 images cannot be read and were left out, the first of them train-001.tar/3.jpg" in printed.err
    assert len((out / "train-broken.txt").read_text().splitlines()) == 2
    written = records(out)
    assert [written.read(i) for i in range(3)] == [jpeg(0), jpeg(1), jpeg(2)]
    assert [written.text(i) for i in range(3)] == ["a cat", None, "a dog"]
    assert [written.key(i) for i in range(3)] == [source.key(i) for i in range(3)]
    assert np.array_equal(written[2]["image"], source[2]["image"])
    assert len(TarSource(tars, "val")) == 1 and len(TarSource(tars, "all")) == 6


def test_bad_tars(tars, tmp_path):
    with pytest.raises(InputError, match=r"no tar file in .* is named test-\*\.tar or \*_test\.tar; it holds train-0"):
        TarSource(tars, "test")
    with pytest.raises(InputError, match="there are no tar files"):
        TarSource(tmp_path)
    (tars / "val-000.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(InputError, match=r"val-000\.tar cannot be read .*; unpack it if it is compressed"):
        TarSource(tars, "val")
    write_tar(tars / "val-000.tar", {"a.txt": b"?"})
    with pytest.raises(InputError, match="hold no images"):
        TarSource(tars, "val")


@pytest.mark.end_to_end
def test_tfds_dataset(tmp_path):
    root = builder.prepare(tmp_path, "tiny")
    out = tmp_path / "out"
    options = ["--source", "tfds:zeroseg_scenes", "--root", str(root), "--split", "validation", "--out", str(out)]
    assert main(options) == 0
    source = open_source(SimpleNamespace(source="scenes/tiny", root=str(tmp_path), split="validation"))
    written = records(out, "validation")
    assert len(written) == len(source) and all(written.read(i) == source.read(i) for i in range(len(source)))


KILLED = """
import os, sys
from zeroseg_jax.data import convert

fsync = os.fsync
synced = []

def die_at_the_third(descriptor):
    synced.append(descriptor)
    if len(synced) == 3:  # the note of the source, the first shard, the second
        os.kill(os.getpid(), 9)
    fsync(descriptor)

os.fsync = die_at_the_third
convert.main(sys.argv[1:])
"""


def test_a_killed_conversion_redoes_no_finished_shard(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--source", "folder", "--root", str(pictures), "--out", str(out), "--images-per-shard", "8"]
    died = subprocess.run([sys.executable, "-c", KILLED, *options], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    (first,) = out.glob("*.array_record")
    written = first.stat().st_mtime_ns
    assert main(options) == 0 and first.stat().st_mtime_ns == written
    assert sorted(os.listdir(out)) == [*(f"train-0000{i}-of-00003.array_record" for i in range(3)), "train-source.json"]
    source = open_source(SimpleNamespace(source="folder", root=str(pictures), split="train"))
    result = records(out)
    assert [result.read(i) for i in range(20)] == [source.read(i) for i in range(20)]
    assert [result.text(i) for i in range(20)] == [source.text(i) for i in range(20)]
    # the same folder for something else
    assert main([*options, "--limit", "7"]) == 2
    assert "holds a conversion of something else (first_and_last was" in capsys.readouterr().err
    assert json.loads((out / "train-source.json").read_text())["images"] == 20


def scene(height: int, width: int, mode: str = "RGB", form: str = "JPEG") -> bytes:
    """A smooth picture, so that JPEG keeps it well."""
    rng, buffer = np.random.default_rng(height), io.BytesIO()
    coarse = Image.fromarray(rng.integers(40, 216, (4, 5, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, form)
    return buffer.getvalue()


def test_centre_crops_are_stored_at_the_training_size(tmp_path, capsys):
    """What a run shows of the shards is what it shows of the files, up to JPEG; a square of the size stays as it is."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    files = {
        **{"0.jpg": scene(75, 100), "1.jpg": scene(101, 64), "2.jpg": scene(300, 401), "3.jpg": scene(32, 32)},
        **{"4.png": scene(32, 32, form="PNG"), "5.jpg": scene(20, 11), "6.jpg": scene(50, 60, "L")},
        **{"7.png": scene(80, 40, "RGBA", "PNG"), "8.jpg": scene(75, 100)[:200]},
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    options = ["--source", "folder", "--root", str(folder), "--split", "all", "--out", str(out)]
    assert main([*options, "--center_crop=32"]) == 0
    told = capsys.readouterr()
    assert "--config.data.augment=center --config.image_size=32" in told.out and "8.jpg" in told.err
    source = open_source(SimpleNamespace(source="folder", root=str(folder), split="all"))
    written = records(out, "all")
    assert [written.key(i) for i in range(8)] == [source.key(i) for i in range(8)] and len(written) == 8
    assert written.read(3) == files["3.jpg"]

    shown = {}
    for name, images in {"files": source, "shards": written}.items():
        augmentation = Augmentation(32, augment="center", flip=False)
        batches = ordered_batches(images, batch_size=8, augmentation=augmentation, images=range(8))
        shown[name] = next(batches)["image"].astype(int)
        batches.close()
    for i in range(8):
        with Image.open(io.BytesIO(written.read(i))) as stored:
            assert stored.format == "JPEG" and stored.size == (32, 32)
        # no resize: the pixels of the stored JPEG themselves
        assert np.array_equal(written[i]["image"], shown["shards"][i])
    error = np.abs(shown["files"] - shown["shards"]).mean(axis=(1, 2, 3))
    pillows = []
    for pixels in shown["files"].astype(np.uint8):
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "JPEG", quality=95, subsampling=0)
        pillows.append(np.abs(np.asarray(Image.open(stored), int) - pixels).mean())
    assert error[3] == 0 and error.max() < 2 and error.mean() < 1.1 * np.mean(pillows)

    coarse = tmp_path / "coarse"
    assert main([*options[:-1], str(coarse), "--center_crop=32", "--quality", "50"]) == 0
    assert sum(map(len, map(records(coarse, "all").read, range(3)))) < sum(map(len, map(written.read, range(3))))
    assert not np.array_equal(records(coarse, "all")[0]["image"], written[0]["image"])
    # a folder that holds them is no place for others
    for other in ([], ["--center_crop=16"], ["--center_crop=32", "--quality=90"]):
        assert main([*options, *other]) == 2
        assert re.search(
            r"something else .*(center_crop|quality) was (32|95) and is (None|16|90)", capsys.readouterr().err
        )
    for bad in (["--center_crop=-1"], ["--center_crop=32", "--quality=101"]):
        assert main([*options, *bad]) == 2
        assert "--quality 1 to 100" in capsys.readouterr().err


FULL = """
import resource, signal, sys
from zeroseg_jax.data import convert

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a file past the limit is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
sys.exit(convert.main(sys.argv[1:]))
"""


def test_a_full_disk_keeps_the_shards_that_are_complete(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for i in range(6):  # the second half is too large for one shard
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64 if i < 3 else 512, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    options = ["--source", "folder", "--root", str(folder), "--out", str(out), "--images-per-shard", "3"]
    full = subprocess.run([sys.executable, "-c", FULL, *options], capture_output=True, text=True)
    assert full.returncode == 2
    last = full.stderr.strip().splitlines()[-1]
    assert (
        "train-00001-of-00002.array_record cannot be written (" in last
        and "File too large); free some space or" in last
    )
    assert "Traceback" not in full.stderr
    assert sorted(os.listdir(out)) == ["train-00000-of-00002.array_record", "train-source.json"]
    assert main(options) == 0
    assert [records(out).read(i) for i in range(6)] == [(folder / f"{i}.png").read_bytes() for i in range(6)]


def test_an_unwritable_place(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--source", "folder", "--root", str(pictures), "--out", str(tmp_path / "file")]) == 2
    assert "file cannot be written (File exists); free some space or choose another --out" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    for text in ("", "3", "{"):
        (tmp_path / "out/train-source.json").write_text(text)
        assert main(["--source", "folder", "--root", str(pictures), "--out", str(tmp_path / "out")]) == 2
        assert "train-source.json is not a note of what was converted" in capsys.readouterr().err


def test_names_that_are_no_utf8(tmp_path, capsys):
    folder, out = tmp_path / "pictures\udce9", tmp_path / "out"
    folder.mkdir()
    (folder / "caf\udce9.jpg").write_bytes(jpeg(0))
    (folder / "tab\tline\n\udcff.jpg").write_bytes(b"?")
    assert main(["--source", "folder", "--root", str(folder), "--out", str(out)]) == 0
    assert records(out).key(0) == r"caf\xe9.jpg" and records(out).read(0) == jpeg(0)
    said = capsys.readouterr().err
    assert "1 images cannot be read and were left out" in said and r"tab\tline\n\xff.jpg (" in said
    assert len((out / "train-broken.txt").read_text().split("\n")) == 2
    assert main(["--source", "folder", "--root", str(folder), "--out", f"{out}\udce9"]) == 2
    assert r"out\xe9 is not UTF-8, as ArrayRecord needs it; choose another name" in capsys.readouterr().err
    for source in ("arrayrecord", "tfds:scenes"):
        with pytest.raises(InputError, match=r"pictures\\xe9 is not UTF-8, .*; give the folder another name"):
            open_source(SimpleNamespace(source=source, root=str(folder), split="train"))


def test_bad_usage(tmp_path, capsys):
    assert main(["--source", "folders", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "data.source is 'folders'; it must be scenes, folder, tar, tfds:NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--source", "folder"])
