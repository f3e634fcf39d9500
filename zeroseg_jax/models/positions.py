"""Resizing a table of learned positions to another grid of patches."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroseg_jax.ops.resize import resize_matrix


def resize_positions(
    table: Float[Array, "n d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "m d"]:
    """Resizes a row-major table of patch positions (no class token); the identity where the grids agree.

    Bicubic as torch's `interpolate(mode="bicubic", align_corners=False)`, which every published checkpoint was resized
    with: the kernel's parameter is -0.75 and the border is repeated (`jax.image.resize` has -0.5 and drops the border).
    """
    if grid == new_grid:
        return table
    rows, columns = (resize_matrix(n, m, kernel="bicubic") for n, m in zip(grid, new_grid, strict=True))
    resized = jnp.einsum("ha,wb,abd->hwd", rows, columns, table.reshape(*grid, -1), precision="highest")
    return resized.reshape(new_grid[0] * new_grid[1], -1)
