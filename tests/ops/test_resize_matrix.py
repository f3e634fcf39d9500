import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from zeroseg_jax.ops.resize import resize_matrix

SIZES = [(6, 75), (12, 96), (5, 5), (1, 9), (3, 4), (14, 7), (37, 16), (2, 1)]


@pytest.mark.parametrize("inputs,outputs", SIZES)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_without_antialiasing_it_is_torchs_interpolate(inputs, outputs, kernel):
    line = np.random.default_rng(0).normal(size=(1, 1, inputs, 1)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(line), (outputs, 1), mode=kernel, align_corners=False)
    actual = resize_matrix(inputs, outputs, kernel=kernel) @ line[0, 0]
    np.testing.assert_allclose(actual, expected[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("inputs,outputs", SIZES)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("start,end", [(0.0, 1.0), (0.25, 0.75), (0.6, 1.0)])
def test_with_antialiasing_it_is_pillows_resize(inputs, outputs, kernel, start, end):
    line = np.random.default_rng(0).normal(size=(1, inputs)).astype(np.float32)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    box = (start * inputs, 0, end * inputs, 1)
    expected = np.asarray(Image.fromarray(line).resize((outputs, 1), filters[kernel], box=box))
    actual = resize_matrix(inputs, outputs, start, end, kernel=kernel, antialias=True) @ line[0]
    np.testing.assert_allclose(actual, expected[0], atol=1e-5)


def test_boxes_known_at_run_time_give_the_same_matrices():
    starts, ends = np.array([[0.0, 0.1], [0.5, 0.3]]), np.array([[1.0, 0.9], [0.75, 0.35]])
    actual = jax.jit(lambda a, b: resize_matrix(30, 16, a, b, kernel="bicubic", antialias=True))(
        jnp.asarray(starts, jnp.float32), jnp.asarray(ends, jnp.float32)
    )
    for index in np.ndindex(2, 2):
        expected = resize_matrix(30, 16, starts[index], ends[index], kernel="bicubic", antialias=True)
        np.testing.assert_allclose(actual[index], expected, atol=1e-5)
