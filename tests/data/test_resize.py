"""The resize of training against Pillow's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.data import resize as module
from zeroseg_jax.data.resize import Box, resize


def noise(height: int, width: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)


def pillows(pixels: np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))


def down_then_across(pixels: np.ndarray, size: int, box: Box) -> np.ndarray:
    """Pillow's two passes, one by one."""
    left, top, right, bottom = box
    width = pixels.shape[1]
    down = Image.fromarray(pixels).resize((width, size), Image.Resampling.BICUBIC, box=(0, top, width, bottom))
    return np.asarray(down.resize((size, size), Image.Resampling.BICUBIC, box=(left, 0, right, size)))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return np.abs(a.astype(int) - b).max()


CASES = [
    (24, None),  # all of it
    (24, (5, 10, 65, 40)),  # smaller
    (24, (0, 0, 70, 50)),
    (24, (40, 20, 70, 50)),  # at two borders
    (48, (5, 10, 25, 30)),  # larger
    (24, (10.5, 3.25, 60.75, 44.5)),  # of an image that was decoded at a quarter of its size
    (24, (69, 49, 70, 50)),  # a single pixel
    (24, (10, 10, 34, 34)),  # only cut out
]


@pytest.mark.parametrize(("size", "box"), CASES)
def test_within_a_level_of_pillows(size, box):
    image = noise(50, 70, 64, 192)
    result = resize(image, size, box)
    assert result.shape == (size, size, 3) and result.dtype == np.uint8
    assert difference(result, pillows(image, size, box)) <= 1
    assert abs(result.mean() - pillows(image, size, box).mean()) < 0.05


def test_a_box_of_the_size_is_only_cut_out():
    image = noise(50, 70)
    assert np.array_equal(resize(image, 24, (10, 9.0, 34, 33)), image[9:33, 10:34])


@pytest.mark.skipif(module.Resizer is None, reason="here Pillow resizes")
@pytest.mark.parametrize(("size", "box"), CASES)
def test_the_order_of_the_passes_is_the_only_difference_where_overshoot_is_clipped(size, box):
    image = noise(50, 70)
    assert difference(resize(image, size, box), down_then_across(image, size, box or (0, 0, 70, 50))) <= 1


def test_the_right_size_is_left_alone():
    image = noise(24, 24)
    assert resize(image, 24) is image
    assert resize(image, 24, (0, 0, 24, 24)) is image


def test_any_layout_in_memory():
    image = noise(50, 70)
    view = np.repeat(image, 2, axis=1)[::-1, ::2]
    view.flags.writeable = False
    assert np.array_equal(resize(view, 24), resize(np.ascontiguousarray(image[::-1]), 24))


def test_many_threads_give_the_same():
    images = [noise(50, 40 + i) for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        result = list(threads.map(lambda image: resize(image, 24), images))
    assert all(np.array_equal(a, resize(image, 24)) for a, image in zip(result, images, strict=True))


def test_processors_without_vector_instructions_give_the_same(monkeypatch):
    cykooz_resizer = pytest.importorskip("cykooz_resizer", reason="here Pillow resizes")
    image = noise(50, 70)
    fast = resize(image, 24)

    def plain() -> object:
        resizer = cykooz_resizer.Resizer()
        resizer.cpu_extensions = cykooz_resizer.CpuExtensions.none
        return resizer

    monkeypatch.setattr(module, "Resizer", plain)
    assert np.array_equal(resize(image, 24), fast)


def test_without_a_wheel_it_is_pillows(monkeypatch):
    monkeypatch.setattr(module, "Resizer", None)
    image = noise(50, 70)
    for size, box in CASES:
        assert np.array_equal(resize(image, size, box), pillows(image, size, box))
