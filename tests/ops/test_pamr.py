"""PAMR against a plain numpy implementation of its formulas."""

import jax
import numpy as np
import pytest

from zeroseg_jax.ops.pamr import affinities, pamr


def reference(maps, image, iterations, dilations):
    """Pixel by pixel, as the paper has it."""
    h, w, _ = image.shape
    colours = image.astype(np.float64) / 255
    offsets = [(y * d, x * d) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def place(y, x, offset):
        return min(max(y + offset[0], 0), h - 1), min(max(x + offset[1], 0), w - 1)

    weights = {}
    for y in range(h):
        for x in range(w):
            window = np.stack([colours[place(y, x, offset)] for offset in offsets])
            deviation = window.std(axis=0, ddof=1)
            around = [offset for offset in offsets if offset != (0, 0)]
            differences = np.stack([np.abs(colours[place(y, x, offset)] - colours[y, x]) for offset in around])
            logits = -(differences / (1e-8 + 0.1 * deviation)).mean(axis=1)
            e = np.exp(logits - logits.max())
            weights[y, x] = [(place(y, x, offset), share) for offset, share in zip(around, e / e.sum(), strict=True)]
    maps = maps.astype(np.float64)
    for _ in range(iterations):
        new = np.zeros_like(maps)
        for at, shares in weights.items():
            for there, share in shares:
                new[at] += share * maps[there]
        maps = new
    return maps


@pytest.fixture(scope="module")
def example():
    """Two images with flat parts, where the deviation is 0, and three maps of each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 13, 18, 3), dtype=np.uint8)
    images[0, :, :9] = 77
    images[1, 4:9, 4:12] = 200
    return rng.normal(0, 1, (2, 13, 18, 3)).astype(np.float32), images


@pytest.mark.parametrize(("iterations", "dilations"), [(10, (8, 16)), (3, (1, 2))])
def test_pamr_agrees_with_plain_numpy(example, iterations, dilations):
    maps, images = example
    refined = jax.jit(pamr, static_argnums=(2, 3))(maps, images, iterations, dilations)
    for i in range(2):
        np.testing.assert_allclose(refined[i], reference(maps[i], images[i], iterations, dilations), atol=1e-5)


def test_padding_changes_nothing(example):
    maps, images = example
    padded_maps, padded_images = (np.pad(x, ((0, 0), (0, 19), (0, 6), (0, 0)), "linear_ramp") for x in example)
    expected = pamr(maps, images)
    refined = jax.jit(lambda m, i, size: pamr(m, i, size=size))(padded_maps, padded_images, (13, 18))
    np.testing.assert_allclose(refined[:, :13, :18], expected, atol=1e-5)


def test_scores_stay_on_their_side_of_an_edge():
    """Two flat colours: after ten rounds nothing has crossed the edge between them."""
    image = np.zeros((1, 40, 40, 3), np.uint8)
    image[:, :, 20:] = 255
    maps = (np.arange(40) >= 20).astype(np.float32)[None, None, :, None].repeat(40, axis=1)
    np.testing.assert_allclose(pamr(maps, image), maps, atol=0.02)
    assert affinities(image).shape == (1, 40, 40, 16)
    np.testing.assert_allclose(affinities(image).sum(axis=-1), 1, atol=1e-5)
