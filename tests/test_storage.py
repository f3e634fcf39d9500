"""Runs whose workdir is in a bucket of Google Cloud Storage; an emulator on loopback stands in for it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import pytest
from array_records import write_records
from flax import nnx
from ml_collections import ConfigDict

from zeroseg_jax import lease, storage
from zeroseg_jax.checkpoint import Checkpoints, find_damage
from zeroseg_jax.checksums import read_sums
from zeroseg_jax.config import to_json
from zeroseg_jax.data.convert import main as convert
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.zero_shot import load_compared
from zeroseg_jax.lease import hold_object
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student
from zeroseg_jax.models.student_config import make_student_config
from zeroseg_jax.segment.io import load, load_earlier_student
from zeroseg_jax.segment.methods import StudentMethod
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import LineWriter, check_paths, disk_path, local_copy, to_path, upload, walk, write_text

ROOT = Path(__file__).parents[1]

EMULATOR = """
import sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import HANDLERS, create_server

original = objects.download

def download(request, response, storage):
    # the store knows Range: bytes=-1000, the last 1000 bytes, as ArrayRecord asks for them; the emulator does not
    last = request.get_header("range", "").removeprefix("bytes=-")
    if last.isdecimal():
        whole = storage.get_file(request.params["bucket_name"], request.params["object_id"])
        request._request_handler.headers.replace_header("range", f"bytes={max(len(whole) - int(last), 0)}-")
    original(request, response, storage)

objects.download = download
for _, by_method in HANDLERS:
    if by_method.get("GET") is original:
        by_method["GET"] = download

create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
sys.stdin.read()  # until the test ends
import os
os._exit(0)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket in an emulator; the environment leads the three clients there, also those of subprocesses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", EMULATOR, str(port)], stdin=subprocess.PIPE, **silent)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        patch.setenv("ZEROSEG_LEASE_SECONDS", "0.5")
        patch.setattr(lease, "RENEW_SECONDS", 0.5)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.1)
        fsspec.filesystem("gs").clear_instance_cache()
        yield "gs://bucket"
    server.kill()
    server.wait()


def run(config: Path, workdir: str, *more: str) -> subprocess.Popen:
    """A run of two processes."""
    command = [sys.executable, "launch/local.py", "2", "--", "main.py", f"--config={config}", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def metrics(workdir: str) -> list[dict]:
    path = to_path(workdir) / "metrics.jsonl"
    names = ("step", "loss")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: line[name] for name in names} for line in lines]


@pytest.mark.end_to_end
def test_a_run_in_a_bucket_stops_and_goes_on_as_one_on_the_disk(bucket, tiny_config, tmp_path):
    """Two processes with stored embeddings; SIGTERM comes when the metrics of the first steps can be read."""
    tiny_config.steps, tiny_config.checkpoint_every, tiny_config.profile_steps = 60, 7, "58:59"
    tiny_config.teacher.source, tiny_config.data.augment = "cache", "center"
    values = tmp_path / "values.json"
    values.write_text(json.dumps(to_json(tiny_config)))
    config = tmp_path / "tiny.py"
    config.write_text(
        "import json\nfrom pathlib import Path\nfrom zeroseg_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(json.loads(Path({str(values)!r}).read_text()))\n"
    )
    workdir = f"{bucket}/runs/one"
    stopped = run(config, workdir)
    end = time.monotonic() + 300
    while not metrics(workdir) and stopped.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode == 0, said
    assert "stopped by SIGTERM after step" in said
    before = metrics(workdir)
    assert 0 < len(before) < 60

    resumed = run(config, workdir)
    _, said = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert "resumed at step" in said
    local = run(config, str(tmp_path / "local"))
    _, said = local.communicate(timeout=300)
    assert local.returncode == 0, said
    assert metrics(workdir) == metrics(str(tmp_path / "local")) and len(metrics(workdir)) == 60

    names = set(walk(to_path(workdir)))
    assert {"config.json", "metrics.jsonl", "student.json", "teacher_cache/manifest.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert any(fnmatch(name, "profile/plugins/profile/*/*.xplane.pb") for name in names)
    assert ".lock" not in names  # given back
    assert sorted(read_sums(to_path(workdir) / "checkpoints/60/SHA256SUMS").values())[-1].startswith("crc32c:")
    checkpoint = to_path(workdir) / "checkpoints/60"
    assert find_damage(checkpoint) == ""
    damaged = next(name for name in sorted(walk(checkpoint)) if name.startswith("state/"))
    (checkpoint / damaged).write_bytes(b"?")
    assert find_damage(checkpoint) == f"the checksum of {damaged} differs"


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


class TestConvert:
    @pytest.fixture
    def archive(self, bucket, pictures, tmp_path) -> str:
        """A tar file in the bucket, with a file that is no image."""
        path = tmp_path / "train-0.tar"
        with tarfile.open(path, "w") as archive:
            for file in sorted(pictures.rglob("*.png"))[:5]:
                archive.add(file, file.name)
            archive.addfile(tarfile.TarInfo("zz.png"))
        upload(path, to_path(f"{bucket}/tar/{path.name}"))
        return f"{bucket}/tar"

    @pytest.mark.parametrize("root", ["", "/train-0.tar"])
    def test_from_a_bucket_to_a_bucket(self, archive, root, capsys):
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

    def test_of_the_one_data_set_of_a_tfds_folder(self, bucket, tmp_path, capsys):
        command = ["--source", "tfds:none:1.0.0", "--root", f"{bucket}/tfds", "--out", str(tmp_path)]
        assert convert(command) == 2
        assert f"there is nothing at {bucket}/tfds/none; check" in capsys.readouterr().err

    def test_refusals(self, bucket, tmp_path, monkeypatch, capsys):
        for words in (["--root", "s3://a/b", "--out", str(tmp_path)], ["--root", str(tmp_path), "--out", "s3://a"]):
            assert convert(["--source", "folder", *words]) == 2
            assert "cannot be reached; give a path on the disk, or gs://" in capsys.readouterr().err
        assert convert(["--source", "hf:gs://a", "--out", str(tmp_path)]) == 2
        assert "must be on the disk" in capsys.readouterr().err
        write_text(to_path(f"{bucket}/big/a"), "1234")
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
        with pytest.raises(InputError, match=r"gs://bucket/big holds 0\.0 GB, and .* let TMPDIR name"):
            local_copy(to_path(f"{bucket}/big"))


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


class TestLease:
    def test_one_at_a_time(self, bucket):
        path = to_path(f"{bucket}/held/.lock")
        with (
            hold_object(path, "process 7", "in use by {holder}"),
            pytest.raises(InputError, match="in use by process 7"),
            hold_object(path, "me", "in use by {holder}"),
        ):
            pass
        assert not path.exists()
        with hold_object(path, "process 8", "in use by {holder}"):
            assert path.read_text().startswith("process 8\n")

    def test_of_a_writer_that_was_killed(self, bucket):
        path = to_path(f"{bucket}/killed/.lock")
        write_text(path, "process 7\nold\n3\n")
        with hold_object(path, "process 8", "in use by {holder}"):
            assert path.read_text().startswith("process 8\n")

    def test_of_another_that_was_faster(self, bucket, monkeypatch):
        """The store refuses to create what is there; the emulator does not, so the refusal is made here."""

        class Store:
            def pipe_file(self, name: str, data: bytes, mode: str) -> None:
                assert mode == "create"
                write_text(path, "process 9\n")
                raise FileExistsError(name)

        path = to_path(f"{bucket}/raced/.lock")
        monkeypatch.setattr(lease, "store", Store)
        with pytest.raises(InputError, match="in use by process 9"), hold_object(path, "me", "in use by {holder}"):
            pass
