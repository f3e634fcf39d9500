"""Files, models and checkpoints in a bucket of Google Cloud Storage."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from array_records import write_records
from flax import nnx
from ml_collections import ConfigDict

from zeroseg_jax import storage
from zeroseg_jax.checkpoint import Checkpoints
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.zero_shot import load_compared
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student
from zeroseg_jax.models.student_config import make_student_config
from zeroseg_jax.segment.io import load, load_earlier_student
from zeroseg_jax.segment.methods import StudentMethod
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import LineWriter, check_paths, disk_path, local_copy, to_path, upload, walk, write_text


class TestPaths:
    def test_what_may_be_given(self, bucket, tmp_path):
        assert to_path("~/runs") == Path.home() / "runs" and to_path(tmp_path) == tmp_path
        path = to_path(f"{bucket}/a/b")
        assert str(path / "c") == "gs://bucket/a/b/c" and to_path(path) == path
        for bad in ("s3://bucket/a", "http://host/a", "gs://"):
            with pytest.raises(InputError, match=r"cannot be reached; give a path on the disk, or gs://BUCKET/FOLDER"):
                to_path(bad)

    @pytest.mark.parametrize("address", ["gs://bucket/a", Path("s3://bucket/a"), "http://host/a"])
    def test_what_must_be_on_the_disk(self, address):
        assert disk_path("~/out") == Path.home() / "out" and disk_path("a:b/c") == Path("a:b/c")
        with pytest.raises(InputError, match=r".*:/.* is not on the disk; write to a folder there, and copy it"):
            disk_path(address)

    def test_a_missing_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(
            InputError, match=r"gs://bucket/a needs the package gcsfs; pip install 'zeroseg_jax\[gcs\]'"
        ):
            to_path("gs://bucket/a")

    def test_keys_of_a_config(self):
        check_paths(ConfigDict({"data": {"root": "gs://bucket/data", "source": "arrayrecord"}, "model": "owner/name"}))
        with pytest.raises(InputError, match=r"data\.root=gs://a must be on the disk; copy it there, or mount"):
            check_paths(ConfigDict({"data": {"root": "gs://a", "source": "folder"}}))
        for key, value in {
            "teacher.cache": "s3://a/b",
            "eval.root": "gs://a/b",
            "init.mae": "s3://a",
            "init.student": "s3://a/b",
            "model": "x://a",
        }.items():
            config = ConfigDict({key: value} if "." not in key else {key.split(".")[0]: {key.split(".")[1]: value}})
            with pytest.raises(InputError, match=key):
                check_paths(config)

    def test_files(self, bucket):
        folder = to_path(f"{bucket}/files")
        write_text(folder / "a.txt", "one")
        write_text(folder / "sub/b.txt", "two é")
        assert sorted(walk(folder)) == ["a.txt", "sub/b.txt"]
        copy = local_copy(folder)
        assert (copy / "sub/b.txt").read_text(encoding="utf-8") == "two é"

    def test_lines_can_be_read_while_they_are_written(self, bucket, monkeypatch):
        path = to_path(f"{bucket}/lines/metrics.jsonl")
        write_text(path, "0\n")
        lines = LineWriter(path)
        lines.write("1\n")
        assert path.read_text() == "0\n1\n"
        lines.write("2\n")
        assert path.read_text() == "0\n1\n"  # not long enough after the last time
        monkeypatch.setattr(storage, "UPLOAD_SECONDS", 0)
        lines.write("3\n")
        assert path.read_text() == "0\n1\n2\n3\n"
        lines.close()


def test_models_and_shards_in_a_bucket(bucket, tiny_clip, tmp_path):
    for path in tiny_clip.iterdir():
        (to_path(f"{bucket}/clip") / path.name).write_bytes(path.read_bytes())
    texts = ["a cat", "the grass"]
    assert np.array_equal(load_clip(f"{bucket}/clip").encode_text(texts), load_clip(tiny_clip).encode_text(texts))
    with pytest.raises(InputError, match="there is no folder gs://bucket/none"):
        load_clip(f"{bucket}/none")
    (shard,) = write_records(tmp_path / "train", [{"image": b"\x89PNG", "key": f"k{i}"} for i in range(3)])
    (to_path(f"{bucket}/shards") / shard.name).write_bytes(shard.read_bytes())
    source = ArrayRecordSource(f"{bucket}/shards")
    assert [source.key(i) for i in range(3)] == ["k0", "k1", "k2"]


def test_large_files(bucket, tmp_path):
    """gcsfs sends them in parts of 5 MiB, `Content-Range: bytes 0-5242879/*`, and the store waits for the rest."""
    images = [np.random.default_rng(i).bytes((1 << 20) + 7) for i in range(13)]
    (shard,) = write_records(tmp_path / "train", [{"image": image, "key": str(i)} for i, image in enumerate(images)])
    assert shard.stat().st_size > 12 << 20
    upload(shard, to_path(f"{bucket}/large/{shard.name}"))
    source = ArrayRecordSource(f"{bucket}/large")
    assert [source.read(i) for i in range(len(source))] == images
    whole = shard.read_bytes()
    for size in (5 << 20, (5 << 20) + 1, len(whole)):
        path = to_path(f"{bucket}/large/{size}")
        path.write_bytes(whole[:size])
        assert path.read_bytes() == whole[:size]


def test_a_large_checkpoint(bucket):
    workdir = to_path(f"{bucket}/large_run")
    state = {"kernel": jax.random.normal(jax.random.key(0), (1024, 3500))}  # 14 MB, which hardly become less
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, state, {"next_index": 3})
        checkpoints.wait()
    assert sum(storage.store().du(f"{workdir}/checkpoints/1", total=False).values()) > 12 << 20
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    with Checkpoints(workdir) as checkpoints:
        restored, position = checkpoints.restore(1, abstract)
    assert position == {"next_index": 3} and np.array_equal(restored["kernel"], state["kernel"])


def test_models_are_saved_to_a_bucket(bucket, tiny_clip, tiny_config, pictures):
    """A student and a CLIP; `eval.compare` and `init.student` take them from there."""
    clip = load_clip(tiny_clip)
    sizes = make_student_config(tiny_config, clip.embed_dim)
    student = Segmenter(StudentMethod(Student(sizes, rngs=nnx.Rngs(0)), clip), clip)
    student.save(f"{bucket}/models/student")
    clip.save(f"{bucket}/models/clip")
    names = set(walk(to_path(f"{bucket}/models")))
    assert {"student/config.json", "student/README.md", "student/clip/tokenizer.json", "clip/config.json"} <= names
    assert f"# {bucket}/models/student" in (to_path(f"{bucket}/models/student") / "README.md").read_text()
    image, labels = next(pictures.rglob("*.png")), ["cat", "grass"]
    loaded = load(f"{bucket}/models/student").segment(image, labels)
    assert np.array_equal(loaded.scores, student.segment(image, labels).scores)
    earlier = load_earlier_student(f"{bucket}/models/student", sizes)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(earlier), nnx.state(student.method.student))
    tiny_config.eval.compare = f"{bucket}/models/clip,{bucket}/models/student"
    assert set(load_compared(tiny_config)) == {f"{bucket}/models/clip", f"{bucket}/models/student"}
    tiny_config.eval.compare = "s3://a/b"
    with pytest.raises(InputError, match=r"eval\.compare=s3://a/b: s3://a/b cannot be reached"):
        load_compared(tiny_config)
    for save in (student.save, clip.save):
        with pytest.raises(InputError, match="s3://a/b cannot be reached"):
            save("s3://a/b")
