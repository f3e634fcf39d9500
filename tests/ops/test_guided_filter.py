"""The guided filter against the paper's formula, window by window, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np

from zeroseg_jax.ops.guided_filter import CELLS, SMOOTH, apply, fit
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.labelling.decode import Guide, label_pixels
from zeroseg_jax.segment.labelling.enlarge import nearest_patches
from zeroseg_jax.segment.labelling.scoring import Texts, View
from zeroseg_jax.segment.methods import Encoding
from zeroseg_jax.segment.options import Labelling


def windows(n, radius):
    return [slice(max(0, i - radius), i + radius + 1) for i in range(n)]


def by_the_paper(p, guide, radius):
    """Eqs. 14 to 16 of the PAMI paper, with loops, at full resolution."""
    h, w, _ = guide.shape
    slopes, offsets = np.zeros((h, w, 3)), np.zeros((h, w))
    for y, rows in enumerate(windows(h, radius)):
        for x, columns in enumerate(windows(w, radius)):
            colours, values = guide[rows, columns].reshape(-1, 3), p[rows, columns].ravel()
            centred = colours - colours.mean(axis=0)
            sigma = centred.T @ centred / len(colours)
            slopes[y, x] = np.linalg.solve(
                sigma + SMOOTH * np.eye(3), (colours * values[:, None]).mean(0) - colours.mean(0) * values.mean()
            )
            offsets[y, x] = values.mean() - slopes[y, x] @ colours.mean(axis=0)
    result = np.zeros((h, w))
    for y, rows in enumerate(windows(h, radius)):
        for x, columns in enumerate(windows(w, radius)):
            result[y, x] = slopes[rows, columns].mean(axis=(0, 1)) @ guide[y, x] + offsets[rows, columns].mean()
    return result


def test_the_filter_is_the_papers():
    rng = np.random.default_rng(0)
    guide = rng.integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)
    maps = rng.random((2, 9, 11, 2)).astype(np.float32)
    result = jax.jit(lambda m, g: apply(fit(m, g, 2.5), g))(maps, guide)
    for i in range(2):
        for c in range(2):
            np.testing.assert_allclose(result[i, ..., c], by_the_paper(maps[i, ..., c], guide[i] / 255, 2), atol=1e-4)


def test_an_image_of_one_colour_leaves_the_maps_smooth_and_finite():
    maps = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
    guide = jnp.full((1, 8, 8, 3), 90, jnp.uint8)
    result = apply(fit(jnp.asarray(maps), guide, 1.0), guide)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_label_maps_follow_the_edge_that_the_patches_miss():
    """A red and a blue half that meet in the middle of a patch: four patches of 8 pixels a side, edge at pixel 12."""
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[:, :, :12, 0] = pixels[:, :, 12:, 2] = 200
    share = np.array([1.0, 0.5, 0.0, 0.0], np.float32)  # of the red half in each column of patches
    assignment = np.tile(np.stack([share, 1 - share], axis=-1), (4, 1))[None]
    texts = Texts(jnp.eye(2), jnp.int32(2), jnp.int32(2), jnp.float32(0), jnp.float32(0), jnp.float32(10))
    encoding = Encoding(jnp.eye(2)[None, None], jnp.asarray(assignment)[None])
    truth = (np.arange(32) >= 12).astype(np.int32)

    small = pixels[:, ::4, ::4]  # the cells of half a patch; the edge lies on their border
    enlarge = resize_matrix(4 * CELLS, 32)[None]
    view = View(encoding, *[resize_matrix(4, 4 * CELLS)[None, :, None]] * 2)
    sharp = label_pixels((view,), texts, Guide(pixels, small, enlarge, enlarge), Labelling(guide=1.5), False)
    label_map, segments = sharp
    np.testing.assert_array_equal(label_map[0], np.tile(truth, (32, 1)))
    np.testing.assert_array_equal(segments, label_map)


def test_the_guided_filter_keeps_the_patch_of_each_pixel():
    plain, cells, within = (resize_matrix(*sizes) for sizes in ((2, 16), (2 * CELLS, 16), (2, 2 * CELLS)))
    patches = nearest_patches(plain[:, None], plain[:, None])
    np.testing.assert_array_equal(patches, np.kron([[0, 1], [2, 3]], np.ones((8, 8))))
    np.testing.assert_array_equal(nearest_patches(within[:, None], within[:, None], (cells, cells)), patches)
