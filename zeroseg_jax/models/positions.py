"""Resizing a table of learned positions to another grid of patches."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_positions(
    table: Float[Array, "n d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "m d"]:
    """Resizes a row-major table of patch positions (no class token); the identity where the grids agree.

    Bicubic as torch's `interpolate(mode="bicubic", align_corners=False)`, which every published checkpoint was resized
    with: the kernel's parameter is -0.75 and the border is repeated (`jax.image.resize` has -0.5 and drops the border).
    """
    if grid == new_grid:
        return table
    rows, columns = (_bicubic_matrix(n, m) for n, m in zip(grid, new_grid, strict=True))
    resized = jnp.einsum("ha,wb,abd->hwd", rows, columns, table.reshape(*grid, -1), precision="highest")
    return resized.reshape(new_grid[0] * new_grid[1], -1)


def _bicubic_matrix(inputs: int, outputs: int, a: float = -0.75) -> Float[np.ndarray, "m n"]:
    """The linear map of a one-dimensional bicubic resize, without antialiasing (Keys 1981, parameter `a`)."""
    position = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    left = np.floor(position).astype(int)
    matrix = np.zeros((outputs, inputs))
    for tap in range(-1, 3):
        t = np.abs(position - left - tap)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        np.add.at(matrix, (np.arange(outputs), np.clip(left + tap, 0, inputs - 1)), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)
