"""Layouts of images of any aspect, and the mean of windows and of mirror images."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.distill.losses import unit
from zeroseg_jax.segment.inference import Encoding
from zeroseg_jax.segment.windows import encode_view, lay_out, merge


@pytest.mark.parametrize("height,width", [(96, 96), (213, 320), (375, 500), (3, 1000), (1, 1), (4000, 3000)])
@pytest.mark.parametrize("slide", [0.0, 1.25])
def test_layouts_are_whole_patches_of_about_the_same_aspect(height, width, slide):
    for size, patch in ((96, 8), (224, 16), (224, 32), (32, 4)):
        layout = lay_out(height, width, size, patch, slide)
        assert min(layout.shape) == size and not any(n % patch for n in layout.shape)
        assert layout.shape[0] / layout.shape[1] == pytest.approx(np.clip(height / width, 1 / 16, 16), rel=0.1)
        assert lay_out(width, height, size, patch, slide).shape == layout.shape[::-1]
        slides = slide and max(height, width) > 1.25 * min(height, width)
        assert layout.window == ((size, size) if slides else layout.shape)
        covered = np.bincount(layout.places().ravel(), minlength=layout.grid[0] * layout.grid[1])
        assert covered.min() >= 1 and covered.max() <= 3
        for view, (y, x) in zip(layout.cut(np.zeros((1, *layout.shape, 3), np.uint8)), layout.starts, strict=True):
            assert view.shape == (1, *layout.window, 3) and y % patch == x % patch == 0


def test_windows_are_averaged_by_hand():
    places = np.array([[0, 1], [1, 2]])  # three patches, the middle one in both windows
    shares = jnp.asarray([[[[1.0, 0.0], [0.4, 0.6]]], [[[0.2, 0.8], [0.0, 1.0]]]])
    both = merge(Encoding(jnp.asarray(np.arange(8.0).reshape(2, 1, 2, 2)), shares), places, 3)
    np.testing.assert_array_equal(both.embeddings[0], [[0, 1], [2, 3], [4, 5], [6, 7]])
    np.testing.assert_allclose(both.assignment[0], [[1, 0, 0, 0], [0.2, 0.3, 0.1, 0.4], [0, 0, 0, 1]], atol=1e-6)
    patches = jnp.asarray([[[[1.0, 0.0], [1.0, 0.0]]], [[[0.0, 1.0], [0.0, 1.0]]]])
    dense = merge(Encoding(patches, None), places, 3)
    np.testing.assert_allclose(dense.embeddings[0], [[1, 0], [0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("segments", [True, False])
def test_the_mirror_image_is_turned_back(segments):
    """Patches that see only their own pixels give the same whether the image is flipped or not."""

    def encode(params, images, renaming):
        patches = images[:, ::2, ::2].reshape(images.shape[0], -1, 3) / 255
        return Encoding(jnp.eye(3)[None], patches) if segments else Encoding(unit(patches), None)

    method = SimpleNamespace(encode=encode, params=None, image_size=8, patch_size=2)
    pixels = np.random.default_rng(0).random((4, 6, 3)).repeat(2, 0).repeat(2, 1)[None] * 255
    pixels /= np.linalg.norm(pixels, axis=-1, keepdims=True) / 200
    alone, both = (
        encode_view(method, None, jnp.asarray(pixels.astype(np.uint8)), None, flip) for flip in (False, True)
    )
    if segments:
        assert both.assignment.shape == (1, 24, 6)
        np.testing.assert_allclose(2 * both.assignment[..., :3], alone.assignment, atol=1e-6)
        np.testing.assert_allclose(2 * both.assignment[..., 3:], alone.assignment, atol=1e-6)
    else:
        np.testing.assert_allclose(both.embeddings, alone.embeddings, atol=1e-6)


def test_a_long_panorama_is_labelled_as_its_parts_are(model):
    scene = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    labels = ["cat", "grass", "sky", "photo", "on"]
    panorama = np.concatenate([scene] * 6, axis=1)
    alone, long = model.segment(scene, labels), model.segment(panorama, labels)
    assert long.label_map.shape == (16, 96)
    assert long.scores.shape == (11 * 4, 5)
    # both ends lie in one window each, which sees the scene as it is
    np.testing.assert_array_equal(long.label_map[:, :6], alone.label_map[:, :6])
    np.testing.assert_array_equal(long.label_map[:, -6:], alone.label_map[:, -6:])
    np.testing.assert_allclose(long.scores[:4], alone.scores, atol=1e-5)
    np.testing.assert_allclose(long.scores[-4:], alone.scores, atol=1e-5)
    # in between it repeats with the scene
    np.testing.assert_array_equal(long.label_map[:, 32:48], long.label_map[:, 48:64])
    assert model.segment(panorama, labels, slide=0).scores.shape == (4, 5)


def test_long_images_in_a_batch_and_in_the_jitted_function(model):
    images = [np.random.default_rng(i).integers(0, 256, (16, 40, 3), dtype=np.uint8) for i in range(3)]
    labels = ["cat", "grass"]
    results = model.segment_batch([*images, images[0][:, :20]], labels, flip=True)
    for image, result in zip(images, results, strict=False):
        np.testing.assert_array_equal(result.label_map, model.segment(image, labels, flip=True).label_map)
    maps = jax.device_get(model.segment_fn((16, 40), labels, flip=True)(np.stack(images)))
    assert np.mean(maps == np.stack([r.label_map for r in results[:3]])) > 0.99
