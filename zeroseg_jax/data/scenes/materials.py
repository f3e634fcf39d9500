"""The materials of the procedural scenes: six textures.

Each one is a function of the size n in pixels and a random generator. It returns float RGB (n, n, 3), about 0 to 255.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise (size, size) with a standard deviation of about 1. It has `rows` by `columns` cells."""
    cells = rng.standard_normal((max(rows, 2), max(columns, 2))).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def _tint(rng: np.random.Generator, colour: tuple[int, int, int], deviation: float = 16) -> np.ndarray:
    """The colour of the material in the light of one scene."""
    return (np.array(colour) + rng.normal(0, deviation, 3)) * rng.uniform(0.82, 1.15)


def _shaded(tint: np.ndarray, shade: np.ndarray) -> np.ndarray:
    return tint * (1 + shade[..., None])


def grass(size: int, rng: np.random.Generator) -> np.ndarray:
    """Vertical blades."""
    shade = 0.26 * _noise(rng, size, size // 7, size) + 0.1 * _noise(rng, size, size // 3, size)
    return _shaded(_tint(rng, (88, 150, 58)), shade)


def water(size: int, rng: np.random.Generator) -> np.ndarray:
    """Horizontal waves."""
    y = np.arange(size)[:, None] / size
    waves = np.sin(2 * np.pi * (y * rng.uniform(8, 11) + 0.35 * _noise(rng, size, 5, 5) + rng.uniform()))
    return _shaded(_tint(rng, (55, 120, 185)), 0.22 * waves + 0.05 * _noise(rng, size, size // 2, size // 8))


def sand(size: int, rng: np.random.Generator) -> np.ndarray:
    """Fine grains."""
    grains = 0.1 * rng.standard_normal((size, size))
    return _shaded(_tint(rng, (212, 180, 122)), grains + 0.05 * _noise(rng, size, 6, 6))


def bricks(size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks with light joints."""
    course, length = size / rng.uniform(9, 12), size / rng.uniform(4.5, 6)
    y, x = np.mgrid[:size, :size] + rng.uniform(0, size, (2, 1, 1))
    row = np.floor(y / course).astype(int)
    x = x + (row % 2) * length / 2
    joint = (y % course < 1.6) | (x % length < 1.6)
    tone = rng.normal(0, 0.09, (97, 89))[row % 97, np.floor(x / length).astype(int) % 89]
    picture = _shaded(_tint(rng, (165, 82, 66)), tone + 0.05 * rng.standard_normal((size, size)))
    return np.where(joint[..., None], _tint(rng, (205, 198, 188), 6.0), picture)


def snow(size: int, rng: np.random.Generator) -> np.ndarray:
    """Soft, light shapes."""
    return _shaded(
        _tint(rng, (222, 228, 238), 7.0), 0.05 * _noise(rng, size, 7, 7) + 0.015 * rng.standard_normal((size, size))
    )


def wood(size: int, rng: np.random.Generator) -> np.ndarray:
    """Vertical planks with grain."""
    plank = size / rng.uniform(6, 8)
    x = np.arange(size) + rng.uniform(0, size)
    tone = rng.normal(0, 0.1, 97)[np.floor(x / plank).astype(int) % 97]
    grain = 0.12 * np.sin(2 * np.pi * (x / plank * 3 + 0.5 * _noise(rng, size, 4, 12)))
    picture = _shaded(_tint(rng, (150, 108, 70)), grain + tone)
    return np.where((x % plank < 1.4)[None, :, None], 0.45 * picture, picture)


TEXTURES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    texture.__name__: texture for texture in (grass, water, sand, bricks, snow, wood)
}
