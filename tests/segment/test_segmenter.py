"""What a segmenter returns, whatever the image and however it is asked."""

import numpy as np
import pytest
from PIL import Image

import zeroseg_jax
from zeroseg_jax import InputError

LABELS = ["cat", "grass", "sky"]


def test_result_shapes_and_dtypes(model, image):
    out = model.segment(image, LABELS)
    assert out.label_map.shape == out.segments.shape == (21, 34)
    assert out.label_map.dtype == out.segments.dtype == np.int32
    assert out.scores.shape == (4, 3)
    assert out.scores.dtype == np.float32
    assert list(out.labels) == LABELS
    assert 0 <= out.label_map.min() <= out.label_map.max() < 3
    assert 0 <= out.segments.min() <= out.segments.max() < 4


def test_batch_and_encoded_image_agree_with_single(model, image):
    once = model.segment(image, LABELS).label_map
    for out in model.segment_batch([image, image[:, ::-1], image], LABELS)[::2]:
        np.testing.assert_array_equal(out.label_map, once)
    np.testing.assert_array_equal(model.encode(image).segment(LABELS).label_map, once)
    with pytest.raises(InputError, match="flip counts when an image is encoded"):
        model.encode(image).segment(LABELS, flip=True)


def test_every_way_to_hand_over_an_image(model, image, tmp_path):
    once = model.segment(image, LABELS).label_map
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    kinds = [str(path), path, path.read_bytes(), Image.open(path), Image.fromarray(image), image / 255]
    kinds += [(image / 255).astype(np.float32), image.astype(np.uint16) * 257]
    for out in [model.segment(kinds[0], LABELS), *model.segment_batch(kinds, LABELS)]:
        np.testing.assert_array_equal(out.label_map, once)
        np.testing.assert_array_equal(out.image, image)


@pytest.mark.end_to_end
def test_the_jitted_function(model):
    maps = np.asarray(model.segment_fn((24, 32), LABELS)(np.zeros((2, 24, 32, 3), np.uint8)))
    assert maps.shape == (2, 24, 32)
    assert maps.dtype == np.int32


def test_labels_are_embedded_once_for_each_set_of_templates(model, monkeypatch):
    first = model.embed_labels(LABELS)
    monkeypatch.setattr(model.clip, "encode_text", None)
    assert model.embed_labels(LABELS) is first


def test_a_background(model, image):
    assert model.segment(image, LABELS, background=0.999).label_map.min() == -1
    assert model.segment(image, LABELS, background=["hat"]).label_map.max() < 3
    assert set(np.unique(model.segment(image, ["cat"], background="hat").label_map)) <= {-1, 0}


def test_renaming_changes_scores_only(model, image):
    alone, renamed = model.segment(image, LABELS), model.segment(image, LABELS, rename="teacher")
    np.testing.assert_array_equal(alone.segments, renamed.segments)
    assert not np.allclose(alone.scores, renamed.scores)


def test_a_clip_segments_without_training(tiny_clip, image):
    out = zeroseg_jax.load(tiny_clip).segment(image, LABELS, templates="name")
    assert out.label_map.shape == (21, 34)
