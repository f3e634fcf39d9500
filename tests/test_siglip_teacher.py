"""A SigLIP in the places of a CLIP: it teaches, stores its embeddings, names segments again, and segments by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import ModelCard

import zeroseg_jax
from zeroseg_jax.data.resize import resize
from zeroseg_jax.data.sources.open import open_source
from zeroseg_jax.distill import teacher_cache
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.distill.views import crop_views
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student_config import make_student_config
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.segment.methods import DenseClipMethod, StudentMethod
from zeroseg_jax.train import train

LABELS = ["cat", "grass", "the sky"]


@pytest.fixture
def config(tiny_config, tiny_siglip):
    tiny_config.teacher.path = str(tiny_siglip)
    tiny_config.steps = 2
    return tiny_config


@pytest.mark.end_to_end
def test_an_online_run_and_its_model(config, tmp_path):
    train(config, tmp_path / "run")
    model = zeroseg_jax.load(tmp_path / "run")
    assert isinstance(model.method, StudentMethod) and model.method.config.embed_dim == 12
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = model.segment(image, LABELS, rename="teacher")
    assert before.scores.shape == (4, 3) and np.isfinite(before.scores).all()
    model.save(tmp_path / "saved")  # with the SigLIP beside it
    after = zeroseg_jax.load(tmp_path / "saved").segment(image, LABELS, rename="teacher")
    np.testing.assert_array_equal(before.scores, after.scores)


@pytest.mark.end_to_end
def test_a_cached_run_with_an_evaluation(config, tmp_path):
    config.teacher.source, config.data.augment = "cache", "none"
    config.eval.dataset, config.eval.root, config.eval.limit = "scenes/tiny", str(tmp_path), 2
    config.eval.baselines, config.eval.rename = ("maskclip",), "teacher"
    results = train(config, tmp_path / "run")
    assert results["images"] == 2 and 0 <= results["miou"] <= 1
    assert any(name.startswith("pooling head's readout") for name in results["baselines"])

    source, teacher = open_source(config.data), load_teacher(config)
    images = np.stack([resize(source[i]["image"], 16) for i in (3, 8)])
    cache = teacher_cache.open_cache(teacher, source, config, tmp_path / "run")
    actual = cache(np.array([3, 8], np.int32), np.zeros(2, np.int32), np.array([False, False]))
    clip = load_clip(config.teacher.path)
    views = crop_views(jnp.asarray(images, jnp.float32) / 255, teacher.boxes, 8)
    expected = unit(clip.vision(clip.normalise(views).reshape(-1, 8, 8, 3))).reshape(actual.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_the_text_tower_is_left_out_of_a_teacher(config):
    names = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(load_teacher(config).params)}
    assert names == {"vision_tower", "logit_scale", "logit_bias"}


def test_its_tower_cannot_be_a_students_encoder(config):
    config.student.encoder = "clip"
    with pytest.raises(InputError, match=r"is a SigLIP.*student\.encoder='mae'"):
        make_student_config(config, 12)


@pytest.mark.end_to_end
def test_a_siglip_segments_by_itself(tiny_siglip, tmp_path):
    model = zeroseg_jax.load(tiny_siglip)
    assert isinstance(model.method, DenseClipMethod)
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    out = model.segment(image, LABELS, guide=0.0)
    assert out.label_map.shape == (24, 40) and out.scores.std(axis=0).min() > 1e-3  # the patches are not all alike
    small = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    encoded = model.encode(small)
    clip = model.clip
    dense = clip.dense(np.asarray(clip.normalise(small[None] / np.float32(255)), np.float32)).reshape(4, 12)
    np.testing.assert_allclose(encoded.embeddings, unit(dense), atol=1e-5)
    model.save(tmp_path)
    again = zeroseg_jax.load(tmp_path)
    np.testing.assert_array_equal(again.segment(image, LABELS, guide=0.0).scores, out.scores)
    assert ModelCard.load(tmp_path / "README.md").data.tags[-1] == "siglip"


def test_a_flexible_siglip_2_is_refused_by_load_too(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(InputError, match="NaFlex"):
        zeroseg_jax.load(tmp_path)
