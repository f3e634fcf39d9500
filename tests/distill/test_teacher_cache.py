"""The stored embeddings of the teacher: equal to an online step's, restartable, refused where they do not fit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.data.augment import resize
from zeroseg_jax.data.images import open_source
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.errors import InputError
from zeroseg_jax.train import embed, train


@pytest.fixture
def cached_config(tiny_config):
    tiny_config.teacher.source = "cache"
    tiny_config.data.augment = "none"
    return tiny_config


def test_cached_embeddings_are_those_of_the_online_teacher(cached_config, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    config = cached_config
    embed(config, tmp_path)
    folder = tmp_path / "teacher_cache"
    assert len(list(folder.glob("embeddings-*"))) == 3 and len(list(folder.iterdir())) == 4

    source, teacher = open_source(config.data), load_teacher(config)
    images = np.stack([resize(source[i]["image"], 16) for i in (3, 19, 8)])
    images[1] = images[1, :, ::-1]
    expected = np.asarray(teacher.embed(teacher.params, jnp.asarray(images)))
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-3)
    for limit in (teacher_cache.IN_MEMORY, 0):  # from memory, and record by record
        monkeypatch.setattr(teacher_cache, "IN_MEMORY", limit)
        cache = teacher_cache.open_cache(teacher, source, config, tmp_path)
        found = cache(np.array([3, 19, 8], np.int32), np.array([False, True, False]))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_stopped_computation_goes_on_where_it_was(cached_config, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD", 8)
    embed(cached_config, tmp_path)
    shards = sorted((tmp_path / "teacher_cache").glob("embeddings-*"))
    before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    shards[1].unlink()
    embed(cached_config, tmp_path)
    after = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    assert [a[0] for a in after] == [b[0] for b in before]
    assert after[0] == before[0] and after[2] == before[2] and after[1] != before[1]


def test_embeddings_of_something_else_are_refused(cached_config, tmp_path):
    embed(cached_config, tmp_path)
    cached_config.views.grids = (1,)
    with pytest.raises(InputError, match="differ from what the config asks for in views; set"):
        embed(cached_config, tmp_path)


def test_training_computes_the_missing_cache_first(cached_config, tmp_path):
    cached_config.teacher.cache = str(tmp_path / "elsewhere")
    train(cached_config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == cached_config.steps and lines[-1]["loss"] < lines[0]["loss"]
    assert (tmp_path / "elsewhere/manifest.json").exists()
