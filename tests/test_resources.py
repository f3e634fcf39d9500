"""A full disk and a full memory: one sentence, whole files stay, and the same command goes on."""

import contextlib
import errno
import resource
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.checkpoint import Checkpoints, sound_steps
from zeroseg_jax.config import default_config, set_key
from zeroseg_jax.data.scenes import builder
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.errors import InputError
from zeroseg_jax.resources import explain, explained_exhaustion
from zeroseg_jax.train import embed
from zeroseg_jax.workdir import write_text

TOLD = "the disk.* finished files are intact: free some space, and run the same command to continue"


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more, as it does on a full disk, to Python and to the libraries in C++ alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_finds_no_room(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)
    state = {"params": {"a": jnp.asarray(pixels)}, "step": jnp.int32(0)}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state)
    with pytest.raises(InputError, match=TOLD), explained_exhaustion(), Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, {"next_index": 1})
        checkpoints.wait()
        with files_of_at_most(100_000):
            checkpoints.save(2, state, {"next_index": 2})
            checkpoints.wait()
    assert list(sound_steps(tmp_path / "checkpoints")) == [1]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(2, state, {"next_index": 2})
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(2, shapes)[0]["params"]["a"], pixels)


def test_embeddings_that_find_no_room(tiny_config, tmp_path, monkeypatch):
    tiny_config.teacher.source, tiny_config.data.augment = "cache", "none"
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    finish, limit = teacher_cache._finish, contextlib.ExitStack()

    def fill_after_the_first(unfinished, shard):
        finish(unfinished, shard)
        limit.enter_context(files_of_at_most(500))

    with monkeypatch.context() as patch, limit:
        patch.setattr(teacher_cache, "_finish", fill_after_the_first)
        told = r"cannot be written .*; make room, and start again, which goes on after the complete shards"
        with pytest.raises(InputError, match=told), explained_exhaustion(tiny_config, "embed"):
            embed(tiny_config, tmp_path)
    (first,) = (tmp_path / "teacher_cache").glob("*.array_record")
    before = first.stat().st_mtime_ns
    embed(tiny_config, tmp_path)
    assert first.stat().st_mtime_ns == before and len(list(first.parent.glob("*.array_record"))) == 3


def test_scenes_that_find_no_room(tmp_path):
    with pytest.raises(InputError, match=TOLD), explained_exhaustion(), files_of_at_most(2000):
        builder.prepare(tmp_path, "tiny")
    assert not list(tmp_path.iterdir())
    assert builder.prepare(tmp_path, "tiny").is_dir()


def test_a_text_that_finds_no_room(tmp_path):
    write_text(tmp_path / "results.json", "old")
    with pytest.raises(InputError, match=TOLD), explained_exhaustion(), files_of_at_most(10):
        write_text(tmp_path / "results.json", "new" * 100)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_other_errors_stay_what_they_are():
    assert explain(ValueError("shapes differ")) is None and explain(OSError(errno.ENOENT, "no such file")) is None
    with pytest.raises(KeyError), explained_exhaustion():
        raise KeyError("a")
    assert "is full" in (explain(OSError(errno.ENOSPC, "No space left on device", "/data/x")) or "")


OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes.")


@pytest.mark.parametrize(
    ("changes", "mode", "told"),
    [
        (
            {},
            "train",
            r"set --config.optimizer.accumulate=2, .* or set --config.teacher.chunk=2048, .* or set a smaller",
        ),
        (
            {"optimizer.accumulate": 4, "teacher.chunk": 1},
            "train",
            r"accumulate=8, which changes no result or set a sm",
        ),
        ({"batch_size": 9, "teacher.chunk": 1}, "train", r"accumulate=3, which"),
        ({"teacher.chunk": 16}, "embed", r"failed\); set --config.teacher.chunk=8, which changes no result$"),
        ({}, "embed", r"failed\); set --config.teacher.chunk=16, which changes no result$"),
        ({"batch_size": 1, "teacher.chunk": 1}, "train", r"use devices with more memory$"),
        ({}, "eval", r"set a smaller --config.eval.short_side"),
    ],
)
def test_a_full_memory_names_the_setting_that_fits(changes, mode, told):
    config = default_config()
    for key, value in changes.items():
        set_key(config, key, str(value))
    told = r"^the memory is used up \(one allocation of 12884901888 bytes .*" + told
    with pytest.raises(InputError, match=told), explained_exhaustion(config, mode):
        raise RuntimeError("while compiling") from OUT
