"""The segmenter, its result, its command, and what bad input says."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from pycocotools import mask as coco_mask

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment import Segmenter, SegmentResult
from zeroseg_jax.segment.__main__ import main
from zeroseg_jax.segment.inference import StudentMethod

LABELS = ["cat", "grass", "sky"]


@pytest.fixture(scope="module")
def model(tiny_student, tiny_clip):
    clip = load_clip(tiny_clip)
    sizes = StudentConfig(image_size=16, embed_dim=clip.embed_dim, **tiny_student)
    return Segmenter(StudentMethod(Student(sizes, rngs=nnx.Rngs(0)), clip), clip, templates="name")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def test_result_shapes_and_dtypes(model, image):
    out = model.segment(image, LABELS)
    assert out.label_map.shape == out.segments.shape == (21, 34)
    assert out.label_map.dtype == out.segments.dtype == np.int32
    assert out.scores.shape == (8, 3)  # two windows of four segments
    assert out.scores.dtype == np.float32
    assert list(out.labels) == LABELS
    assert 0 <= out.label_map.min() <= out.label_map.max() < 3


def test_batch_and_encoded_image_agree_with_single(model, image):
    once = model.segment(image, LABELS).label_map
    for out in model.segment_batch([image, image[:, ::-1], image], LABELS)[::2]:
        np.testing.assert_array_equal(out.label_map, once)
    np.testing.assert_array_equal(model.encode(image).segment(LABELS).label_map, once)


def test_any_kind_of_image(model, image, tmp_path):
    once = model.segment(image, LABELS).label_map
    Image.fromarray(image).save(tmp_path / "a.png")
    kinds = [str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), Image.fromarray(image), image / 255]
    for kind in kinds:
        np.testing.assert_array_equal(model.segment(kind, LABELS).label_map, once)
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert model.segment(Image.fromarray(image).convert(mode), LABELS).label_map.shape == (21, 34)


def test_the_jitted_function(model):
    maps = np.asarray(model.segment_fn((24, 32), LABELS)(np.zeros((2, 24, 32, 3), np.uint8)))
    assert maps.shape == (2, 24, 32)
    assert maps.dtype == np.int32


def test_a_background(model, image):
    assert model.segment(image, LABELS, background=0.999).label_map.min() == -1
    assert model.segment(image, LABELS, background=["hat"]).label_map.max() < 3


@pytest.mark.parametrize("labels", [[], ["cat", ""], ["cat", "cat"], "cat", ["cat " * 40]])
def test_bad_labels(model, image, labels):
    with pytest.raises(InputError):
        model.segment(image, labels)


@pytest.mark.parametrize("bad", [np.full((4, 4, 3), np.nan), np.full((4, 4, 3), 2.0), np.zeros((4,)), b"", b"no image"])
def test_bad_images(model, bad):
    with pytest.raises(InputError):
        model.segment(bad, LABELS)


def test_renaming_changes_scores_only(model, image):
    alone, renamed = model.segment(image, LABELS), model.segment(image, LABELS, rename="teacher")
    np.testing.assert_array_equal(alone.segments, renamed.segments)
    assert not np.allclose(alone.scores, renamed.scores)


def test_saved_models_predict_the_same(model, image, tmp_path):
    model.save(tmp_path / "model")
    again = zeroseg_jax.load(tmp_path / "model")
    before, after = model.segment(image, LABELS), again.segment(image, LABELS)
    np.testing.assert_array_equal(before.label_map, after.label_map)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_a_clip_segments_without_training(tiny_clip, image):
    out = zeroseg_jax.load(tiny_clip).segment(image, LABELS, templates="name")
    assert out.label_map.shape == (21, 34)


def test_neither_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="bert"):
        zeroseg_jax.load(tmp_path)


def test_coco_areas_and_pictures(tmp_path):
    labels = np.array([[0, 0, 1], [-1, 1, 1]], np.int32)
    out = SegmentResult(
        np.zeros((2, 3, 3), np.uint8),
        labels,
        np.zeros((2, 3), np.int32),
        np.zeros((1, 2), np.float32),
        ["cat", "grass"],
    )
    annotations = json.loads(json.dumps(out.to_coco()))
    for annotation in annotations:
        mask = coco_mask.decode(annotation["segmentation"])
        np.testing.assert_array_equal(mask, labels == annotation["category_id"] - 1)  # COCO counts from 1
    assert out.areas()["grass"] == pytest.approx(0.5)
    out.save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == out.overlay().size
    assert Image.open(io.BytesIO(out._repr_png_())).width > 3


def test_the_command(tiny_clip, image, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.jpg").write_bytes(b"")
    arguments = [
        str(tmp_path / "in"),
        "--model",
        str(tiny_clip),
        "--labels",
        "cat,grass",
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--templates", "name"]
    assert main([*arguments, "--json"]) == 1  # b.jpg cannot be read
    assert "b.jpg" in capsys.readouterr().err
    found = json.loads((tmp_path / "out/segments.json").read_text())
    assert [entry["width"] for entry in found["images"]] == [34]
    assert set(np.unique(Image.open(tmp_path / "out/a_mask.png"))) <= {0, 1}
    assert main([*arguments[:3], "--labels", "cat,", "--out", str(tmp_path / "out")]) == 2


def test_bad_usage_is_one_sentence():
    run = subprocess.run([sys.executable, "-m", "zeroseg_jax.segment", "x.png"], capture_output=True, text=True)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
