"""The boxes of renaming, by hand and against the views of training."""

import jax.numpy as jnp
import numpy as np

from zeroseg_jax.distill.views import crop_views
from zeroseg_jax.segment.methods import crop_boxes, segment_boxes


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
    result = [
        segment_boxes(jnp.asarray([[m.ravel(), 1 - m.ravel()]]).swapaxes(1, 2), (10, 10), (10, 10), 0.1)[0][0, 0]
        for m in (compact, stray)
    ]
    assert result[1][2] - result[1][0] < 1.15 * (result[0][2] - result[0][0])


def test_crops_of_an_images_own_boxes_are_the_views_of_training():
    images = jnp.asarray(np.random.default_rng(0).random((2, 24, 32, 3), dtype=np.float32))
    boxes = np.array([[0, 0, 1, 1], [0.25, 0, 0.75, 0.5], [1 / 3, 1 / 3, 0.9, 1]])
    expected = crop_views(images, boxes, 8)
    actual = crop_boxes(images, jnp.broadcast_to(jnp.asarray(boxes, jnp.float32), (2, 3, 4)), 8)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
