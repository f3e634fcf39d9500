"""The stored embeddings of the teacher: equal to an online step's, restartable, refused where they do not fit."""

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from zeroseg_jax.config import set_key, to_json
from zeroseg_jax.data.pipeline import train_iterator
from zeroseg_jax.data.resize import resize
from zeroseg_jax.data.sources.open import Subset, open_source
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.distill.views import view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.train import embed, train
from zeroseg_jax.workdir import hold


@pytest.mark.end_to_end
def test_cached_embeddings_are_those_of_the_online_teacher(cached_config, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    config = cached_config
    embed(config, tmp_path)
    folder = tmp_path / "teacher_cache"
    shards = sorted(folder.glob("*.array_record"))
    assert len(shards) == 3 and len(list(folder.glob("[!.]*"))) == 7
    for shard in shards:
        assert (
            f"{hashlib.sha256(shard.read_bytes()).hexdigest()}  {shard.name}\n" == Path(f"{shard}.sha256").read_text()
        )

    source, teacher = open_source(config.data), load_teacher(config)
    images = np.stack([resize(source[i]["image"], 16) for i in (3, 19, 8)])
    images[1] = images[1, :, ::-1]
    expected = np.asarray(teacher.embed(teacher.params, jnp.asarray(images)))
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-3)
    for limit in (teacher_cache.IN_MEMORY, 0):  # from memory, and record by record
        monkeypatch.setattr(teacher_cache, "IN_MEMORY", limit)
        cache = teacher_cache.open_cache(teacher, source, config, tmp_path)
        actual = cache(np.array([3, 19, 8], np.int32), np.zeros(3, np.int32), np.array([False, True, False]))
        assert actual.dtype == np.float16
        np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"views.grids": (1,)}, r"in views \(5 views there, 1 here\);"),
        (
            {"views.grids": (2, 1)},
            r"in views \(view 0 is \[0\.0, 0\.0, 1\.0, 1\.0\] there, \[0\.0, 0\.0, 0\.5, 0\.5\] here\);",
        ),
        ({"image_size": 32}, r"in image_size \(16 there, 32 here\);"),
        ({"data.flip": False}, r"in data\.flip \(True there, False here\);"),
        ({"teacher.cached_crops": 2}, r"in teacher\.cached_crops \(3 there, 2 here\);"),
        ({"data.scale": (0.5, 1.0)}, r"in data\.scale \(\[0\.2, 1\.0\] there, \[0\.5, 1\.0\] here\);"),
        ({"data.limit": 7}, r"in data\.images \(20 there, 7 here\), data\.fingerprint"),
        ({"data.augment": "center"}, r"in data\.augment \(crop there, center here\);"),
        (
            {"teacher.path": "weights"},
            r"in teacher\.path \(.*clip\d there, other here\), teacher\.weights \(.{16} there, .{16} here\);",
        ),
        ({"teacher.path": "activation"}, r"in .*, teacher\.configuration\.activation \(quick_gelu there, gelu here\);"),
    ],
)
def test_embeddings_of_something_else_are_refused(cached_config, tmp_path, changes, told):
    """The one who asks need not embed anything to be told."""
    config = cached_config
    config.data.augment, config.teacher.cached_crops = "crop", 3
    teacher = load_teacher(config)
    (tmp_path / "teacher_cache").mkdir()
    result = teacher_cache.manifest(teacher, open_source(config.data), config)
    (tmp_path / "teacher_cache/manifest.json").write_text(json.dumps(result))
    kind = changes.get("teacher.path")
    for key, value in changes.items():
        set_key(config, key, "other" if kind else str(value))
    if kind == "weights":
        teacher = teacher._replace(params=jax.tree.map(lambda x: x + 1, teacher.params))
    elif kind == "activation":
        teacher = teacher._replace(configuration=teacher.configuration | {"activation": "gelu"})
    else:
        teacher = load_teacher(config)
    with pytest.raises(InputError, match=f"differ from what the config asks for {told}"):
        teacher_cache.open_cache(teacher, open_source(config.data), config, tmp_path)


def test_the_same_teacher_may_lie_in_another_folder(cached_config, tmp_path):
    config = cached_config
    embed(config, tmp_path)
    teacher, source = load_teacher(config), open_source(config.data)
    config.teacher.path = "elsewhere"
    teacher_cache.open_cache(teacher, source, config, tmp_path)


@pytest.mark.end_to_end
def test_centre_crops_are_embedded_once(cached_config, tmp_path):
    config = cached_config
    config.data.augment, config.data.flip = "center", False
    embed(config, tmp_path)
    teacher, source = load_teacher(config), open_source(config.data)
    cache = teacher_cache.open_cache(teacher, source, config, tmp_path)
    squares = [np.asarray(source[i]["image"])[:, 2:22] for i in (3, 19)]  # of 20 x 24 pixels
    expected = teacher.embed(teacher.params, jnp.asarray(np.stack([resize(square, 16) for square in squares])))
    for epoch in (0, 5):
        index, flip = np.array([3, 19], np.int32), np.zeros(2, bool)
        np.testing.assert_allclose(cache(index, np.full(2, epoch, np.int32), flip), expected, atol=1e-2)
    with train_iterator(source, batch_size=8, augmentation=teacher_cache.augmentation_of(config)) as batches:
        for _ in range(6):  # more than two epochs
            batch = next(batches)
            assert not batch["flip"].any()
            embedded = teacher.embed(teacher.params, jnp.asarray(batch["image"]))
            actual = cache(batch["index"], batch["epoch"], batch["flip"])
            np.testing.assert_allclose(actual, embedded, atol=1e-3)


def test_what_is_damaged_is_computed_again(cached_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    embed(cached_config, tmp_path)
    folder = tmp_path / "teacher_cache"
    shards, whole = sorted(folder.glob("*.array_record")), {path: path.read_bytes() for path in folder.iterdir()}
    damaged = bytearray(whole[shards[1]])
    damaged[-100] ^= 1
    shards[1].write_bytes(damaged)
    Path(f"{shards[0]}.sha256").write_bytes(b"\xff\xfe no checksum")
    Path(f"{shards[2]}.sha256").unlink()
    embed(cached_config, tmp_path)
    assert (
        caplog.text.count("is damaged, its checksum differs; it is computed again") == 2 * 3
    )  # before and in the lock
    assert {path: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_manifest_is_told(cached_config, tmp_path, content):
    (tmp_path / "teacher_cache").mkdir()
    (tmp_path / "teacher_cache/manifest.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"manifest.json is damaged .*; remove .*/teacher_cache, and they are computed"
    ):
        embed(cached_config, tmp_path)


def test_one_run_at_a_time_fills_a_folder(cached_config, tmp_path):
    cached_config.teacher.cache = str(tmp_path / "cache")
    with hold(tmp_path / "cache", "stores"), pytest.raises(InputError, match=r"cache is in use by process"):
        embed(cached_config, tmp_path)
    embed(cached_config, tmp_path)
    with hold(tmp_path / "cache", "stores"):  # reading it needs nobody's leave
        embed(cached_config, tmp_path)


def test_too_many_broken_images_are_told_before_the_embedding(cached_config, tmp_path, monkeypatch):
    images = tmp_path / "images"
    shutil.copytree(cached_config.data.root, images)
    for path in sorted(images.glob("*.png"))[:3]:
        path.write_bytes(path.read_bytes()[:60])
    cached_config.data.root = str(images)
    monkeypatch.setattr(teacher_cache, "embed_images", None)
    with pytest.raises(
        InputError, match=r"3 of 20 images that were tried cannot be read, such as .*02.png .*=0.1; repair"
    ):
        embed(cached_config, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(teacher_cache, "check_sample", lambda *_: None)  # as if the sample had missed them
    with pytest.raises(
        InputError, match=r"3 of the first 3 images cannot be read, more than data.max_broken_share=0.1"
    ):
        embed(cached_config, tmp_path)


def test_the_student_sees_the_very_crops_that_were_embedded(cached_config, tmp_path):
    """Over four epochs of three stored crops: pixels and embeddings of each example belong together."""
    config = cached_config
    config.data.augment, config.teacher.cached_crops = "crop", 3
    source, teacher = open_source(config.data), load_teacher(config)
    cache = teacher_cache.open_cache(teacher, source, config, tmp_path)
    seen: dict[tuple[int, int], set[bytes]] = {}
    with train_iterator(source, batch_size=8, augmentation=teacher_cache.augmentation_of(config)) as batches:
        for _ in range(10):
            batch = next(batches)
            expected = teacher.embed(teacher.params, jnp.asarray(batch["image"]))
            actual = cache(batch["index"], batch["epoch"], batch["flip"])
            np.testing.assert_allclose(actual, expected, atol=1e-3)
            upright = np.where(batch["flip"][:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
            for image, index, epoch in zip(upright, batch["index"], batch["epoch"], strict=True):
                seen.setdefault((int(index), int(epoch) % 3), set()).add(image.tobytes())
    assert all(len(pixels) == 1 for pixels in seen.values())  # epoch 3 repeats epoch 0
    assert len(seen) == 60 and len(set.union(*seen.values())) == 60


@pytest.mark.end_to_end
def test_training_computes_the_missing_cache_first(cached_config, tmp_path):
    cached_config.teacher.cache = str(tmp_path / "elsewhere")
    train(cached_config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == cached_config.steps and lines[-1]["loss"] < lines[0]["loss"]
    assert (tmp_path / "elsewhere/manifest.json").exists()
    assert all(0 <= line["data_wait"] <= 1 for line in lines[1:])


def test_a_full_disk_is_told(cached_config, tmp_path, monkeypatch):
    """The second shard fails; the next call computes that alone."""
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    make = teacher_cache.ArrayRecordWriter

    class Full:
        def __init__(self, path, options):
            self.full, self.writer = "00001-of" in path, make(path, options)

        def write(self, record):
            self.writer.write(record)

        def ok(self):
            return not self.full

        def close(self):
            self.writer.close()
            if self.full:
                raise RuntimeError("No space left on device; writing")

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "ArrayRecordWriter", Full)
        with pytest.raises(InputError, match=r"00001-of-00003\.array_record cannot be written \(No space"):
            embed(cached_config, tmp_path)
    assert [path.name[11:16] for path in (tmp_path / "teacher_cache").glob("*.array_record")] == ["00000"]
    embed(cached_config, tmp_path)
    assert len(list((tmp_path / "teacher_cache").glob("*.array_record"))) == 3


def test_the_size_is_told_before_it_starts(cached_config, tmp_path, monkeypatch):
    """59 GB for the centre crops of ImageNet-1k, as the paper's recipe stores them."""
    config = cached_config
    config.data.augment, config.data.flip = "center", False
    teacher = load_teacher(config)._replace(boxes=view_boxes((1, 2, 3, 4)), embed_dim=768)
    told = []
    monkeypatch.setattr(logging, "info", lambda text, *args: told.append(text % args))
    monkeypatch.setattr(logging, "warning", lambda text, *args: told.append(text % args))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50_000_000_000))
    source = Subset(open_source(config.data), range(1_281_167))  # only counted
    teacher_cache.tell_size(teacher, source, config, tmp_path)
    assert f"take 59.0 GB in {tmp_path}: 1281167 images x 30 views x 768 numbers in float16" in told[0]
    assert "those of 1281167 images are missing, 59.0 GB and" in told[0]
    assert told[1] == f"only 50.0 GB are free in {tmp_path}; set teacher.cache to a larger disk"
    for shard in teacher_cache._shards(tmp_path, 1_281_167)[1:]:
        shard.touch()
    teacher_cache.tell_size(teacher, source, config, tmp_path)
    assert "those of 1024 images are missing, 47.2 MB and" in told[2] and len(told) == 3


KILLED = """
import os, sys
from zeroseg_jax.config import from_json
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.train import embed
import json, pathlib

workdir = pathlib.Path(sys.argv[1])
teacher_cache.SHARD = 8
finish = teacher_cache._finish

def finish_one(unfinished, shard):
    if "00001" in shard.name:
        os.kill(os.getpid(), 9)
    finish(unfinished, shard)

teacher_cache._finish = finish_one
embed(from_json(json.loads((workdir / "config.json").read_text())), workdir)
"""


@pytest.mark.end_to_end
def test_a_killed_computation_redoes_no_finished_shard(cached_config, tmp_path, monkeypatch):
    """SIGKILL before the second of three shards has its name."""
    (tmp_path / "config.json").write_text(json.dumps(to_json(cached_config)))
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    folder = tmp_path / "teacher_cache"
    (first,) = folder.glob("*.array_record")
    assert len(list(folder.glob("*.tmp"))) == 1
    before = first.read_bytes(), first.stat().st_mtime_ns
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    embed(cached_config, tmp_path)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert len(list(folder.glob("*.array_record"))) == 3 and not list(folder.glob("*.tmp"))


PROCESS = """
import json, pathlib, sys
import jax

jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from zeroseg_jax.config import from_json
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.train import embed

workdir, made = pathlib.Path(sys.argv[1]), []
finish = teacher_cache._finish
teacher_cache.SHARD = 8
teacher_cache._finish = lambda unfinished, shard: (finish(unfinished, shard), made.append(shard.name[11:16]))
embed(from_json(json.loads((workdir / "config.json").read_text())), workdir)
print(",".join(made))
"""


@pytest.mark.end_to_end
def test_two_processes_share_the_shards(cached_config, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(to_json(cached_config)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", PROCESS, str(tmp_path), address, str(i)] for i in range(2)]
    both = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [out.splitlines()[-1] for out, _ in outputs] == ["00000,00002", "00001"]
    # together they are what one process makes
    source, teacher = open_source(cached_config.data), load_teacher(cached_config)
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    cache = teacher_cache.open_cache(teacher, source, cached_config, tmp_path)
    everything = np.arange(20)
    result = cache(everything, np.zeros(20, np.int32), np.zeros(20, bool))
    images = np.stack([resize(source[i]["image"], 16) for i in range(20)])
    np.testing.assert_allclose(result, teacher.embed(teacher.params, jnp.asarray(images)), atol=1e-3)
