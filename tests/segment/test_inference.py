"""The pure functions of inference, by hand and against jax.image, Pillow and the views of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.distill.views import crop_views
from zeroseg_jax.segment.inference import (
    Encoding,
    Texts,
    crop_boxes,
    enlarging,
    label_pixels,
    output_bucket,
    segment_boxes,
)


@pytest.mark.parametrize("inputs,outputs", [(6, 75), (12, 96), (5, 5), (1, 9), (3, 4)])
def test_enlarging_is_a_bilinear_resize(inputs, outputs):
    x = np.random.default_rng(0).normal(size=(inputs, 3)).astype(np.float32)
    expected = jax.image.resize(x, (outputs, 3), "linear")
    np.testing.assert_allclose(enlarging(inputs, outputs) @ x, expected, atol=1e-6)
    padded = enlarging(inputs, outputs, outputs + 7)
    assert padded.shape == (outputs + 7, inputs) and not padded[outputs:].any()


def test_output_buckets_are_few_and_close():
    buckets = {output_bucket(n) for n in range(1, 4097)}
    assert len(buckets) < 80
    for n in (16, 75, 213, 500, 4000):
        assert n <= output_bucket(n) <= max(1.125 * n, n + 15)


def test_boxes_around_segments_by_hand():
    owner = np.array(
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 1, 1, 1], [1, 1, 1, 1]]
    )  # 40 x 80 pixels; nothing is in segment 3
    assignment = jnp.asarray(np.eye(4, dtype=np.float32)[owner.ravel()])[None]
    boxes, present = segment_boxes(assignment, (4, 4), (40, 80), 0.0)
    np.testing.assert_array_equal(present[0], [True, True, True, False])
    # without 7 % on each side 20 x 40 pixels are 17.2 x 34.4, and become 34.4 x 34.4; 10 x 20 become 17.2 x 17.2
    np.testing.assert_allclose(boxes[0, 0], [0, 0.035, 0.86, 0.465], atol=1e-6)
    np.testing.assert_allclose(boxes[0, 2], [0.41, 0.0175, 0.84, 0.2325], atol=1e-6)
    np.testing.assert_allclose(boxes[0, 3], [0, 0, 1, 1])
    wider, _ = segment_boxes(assignment, (4, 4), (40, 80), 0.25)
    np.testing.assert_allclose(wider[0, 2], [0.3025, 0, 0.9475, 0.3225], atol=1e-6)


def test_a_stray_patch_does_not_enlarge_the_box():
    compact = np.zeros((10, 10), np.float32)
    compact[2:6, 3:8] = 1
    stray = compact.copy()
    stray[9, 0] = 1  # a twenty-first of the segment
    found = [
        segment_boxes(jnp.asarray([[m.ravel(), 1 - m.ravel()]]).swapaxes(1, 2), (10, 10), (10, 10), 0.1)[0][0, 0]
        for m in (compact, stray)
    ]
    assert found[1][2] - found[1][0] < 1.15 * (found[0][2] - found[0][0])


def test_crops_of_an_images_own_boxes_are_the_views_of_training():
    images = jnp.asarray(np.random.default_rng(0).random((2, 24, 32, 3), dtype=np.float32))
    boxes = np.array([[0, 0, 1, 1], [0.25, 0, 0.75, 0.5], [1 / 3, 1 / 3, 0.9, 1]])
    expected = crop_views(images, boxes, 8)
    found = crop_boxes(images, jnp.broadcast_to(jnp.asarray(boxes, jnp.float32), (2, 3, 4)), 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def question():
    """Two segments, left and right on a 2x2 grid, and three labels of which the last is padding."""
    embeddings = jnp.asarray([[[1.0, 0.0], [0.6, 0.8]]])
    assignment = jnp.asarray([[[1.0, 0.0], [0.2, 0.8], [1.0, 0.0], [0.2, 0.8]]])
    embedded = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    texts = Texts(embedded, jnp.int32(2), jnp.int32(2), jnp.float32(0), jnp.float32(0), jnp.float32(10))
    rows = columns = enlarging(2, 16)[None]
    return Encoding(embeddings, assignment), texts, rows, columns


def ask(question, threshold=None, labels=2, scale=0.0, mix="scores"):
    encoding, texts, rows, columns = question
    numbers = {"scale": jnp.float32(scale), "threshold": jnp.float32(threshold or 0)}
    texts = texts._replace(labels=jnp.int32(labels), **numbers)
    return label_pixels(encoding, texts, None, rows, columns, mix, threshold is not None, 0.0)


def test_scores_and_segments_by_hand(question):
    found = ask(question)
    np.testing.assert_allclose(found.scores[0, :, :2], [[1, 0], [0.6, 0.8]], atol=1e-6)
    # scores of the right patches are 0.2 (1, 0) + 0.8 (0.6, 0.8) = (0.68, 0.64): the first label wins everywhere
    assert not np.asarray(found.label_map).any()
    np.testing.assert_array_equal(found.segments[0, 0, [0, 15]], [0, 1])
    # a steep softmax gives the right patches 0.2 to the first and 0.8 to the second label
    np.testing.assert_array_equal(ask(question, scale=100.0).label_map[0, 5, [0, 15]], [0, 1])
    # embeddings: 0.2 (1, 0) + 0.8 (0.6, 0.8) again points nearer to the first
    assert not np.asarray(ask(question, mix="embeddings").label_map).any()


def test_background_by_prompt_and_by_threshold(question):
    # the second text becomes the background
    np.testing.assert_array_equal(ask(question, labels=1, scale=100.0).label_map[0, 5, [0, 15]], [0, -1])
    # the right segment is sure by softmax(6, 8) = 0.88 only, and its patches by a mixture
    np.testing.assert_array_equal(ask(question, threshold=0.95).label_map[0, 5, [0, 15]], [0, -1])
    assert not np.asarray(ask(question, threshold=0.2).label_map).any()
