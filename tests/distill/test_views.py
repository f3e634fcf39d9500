"""Boxes, crops and patch weights of the views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.distill import views


def random_images(height=30, width=42, count=2):
    rng = np.random.default_rng(0)
    # middle tones: Pillow cuts the kernel's overshoot off after each axis, we only at the end
    coarse = rng.integers(64, 192, size=(count, height // 3, width // 3, 3), dtype=np.uint8)
    return coarse.repeat(3, axis=1).repeat(3, axis=2)


def test_grid_boxes_are_cells_row_major():
    boxes = views.grid_boxes((1, 2, 3))
    assert boxes.shape == (14, 4)
    np.testing.assert_array_equal(boxes[0], [0, 0, 1, 1])
    np.testing.assert_array_equal(boxes[2], [0, 0.5, 0.5, 1])  # second cell of 2 x 2: top right
    np.testing.assert_allclose(boxes[5 + 3], [1 / 3, 0, 2 / 3, 1 / 3])  # fourth of 3 x 3: middle left


def test_windows_end_at_the_border():
    boxes = views.window_boxes(0.5, 0.2)  # starts 0, .2, .4 and the last moved from .6 to .5
    np.testing.assert_allclose(boxes[:4, 1], [0, 0.2, 0.4, 0.5])
    assert boxes.shape == (16, 4)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 0.5)
    assert len(views.window_boxes(1 / 3, 1 / 3)) == 9
    assert len(views.window_boxes(1.0, 0.5)) == 1
    assert len(views.view_boxes((1, 2), [(0.5, 0.25), (0.75, 0.25)])) == 5 + 9 + 4


@pytest.mark.parametrize("size", [8, 32])
def test_views_equal_pillows(size):
    images = random_images()
    boxes = views.view_boxes((1, 2), [(0.4, 0.3)])
    ours = views.crop_views(jnp.asarray(images, jnp.float32) / 255, boxes, size)
    for b, image in enumerate(images):
        for v, (y0, x0, y1, x1) in enumerate(boxes):
            box = (x0 * 42, y0 * 30, x1 * 42, y1 * 30)
            expected = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
            # Pillow rounds to whole values after each of the two axes
            np.testing.assert_allclose(ours[b, v] * 255, np.asarray(expected, np.float32), atol=1.1)


def test_bilinear_views_equal_jax():
    images = jnp.asarray(random_images(), jnp.float32) / 255
    boxes = np.array([[0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6]])
    ours = views.crop_views(images, boxes, 16, "bilinear")
    for v, (y0, x0, y1, x1) in enumerate(boxes):
        scale = jnp.array([16 / (30 * (y1 - y0)), 16 / (42 * (x1 - x0))])
        translation = -jnp.array([y0 * 30, x0 * 42]) * scale
        expected = jax.image.scale_and_translate(images, (2, 16, 16, 3), (1, 2), scale, translation, "linear")
        np.testing.assert_allclose(ours[:, v], expected, atol=1e-5)


def test_view_of_a_cell_at_its_own_size_is_the_cell():
    images = jnp.asarray(random_images(24, 24), jnp.float32) / 255
    cells = views.crop_views(images, views.grid_boxes((2,)), 12)
    np.testing.assert_allclose(cells[:, 1], images[:, :12, 12:], atol=1e-6)


def test_patch_weights_are_shares_of_area():
    weights = views.patch_weights(views.grid_boxes((1, 2, 3)), (4, 2))
    assert weights.shape == (14, 8) and weights.dtype == np.float32
    np.testing.assert_array_equal(weights[0], np.ones(8))
    np.testing.assert_array_equal(weights[2].reshape(4, 2), [[0, 1], [0, 1], [0, 0], [0, 0]])
    # middle cell of 3 x 3 on 4 rows and 2 columns: rows 4/3 to 8/3, columns 2/3 to 4/3
    middle = np.outer([0, 2 / 3, 2 / 3, 0], [1 / 3, 1 / 3])
    np.testing.assert_allclose(weights[9].reshape(4, 2), middle, rtol=1e-6)
    # the cells of a grid share out every patch
    np.testing.assert_allclose(weights[5:].sum(axis=0), np.ones(8), rtol=1e-6)


def test_local_views_are_all_but_the_whole_image():
    boxes = views.view_boxes((1, 2), ((1.0, 0.5), (0.5, 0.5)))
    assert views.local_views(boxes).tolist() == [False] + [True] * 4 + [False] + [True] * 4
