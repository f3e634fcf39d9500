"""Resizes a table of learned positions to another grid of patches."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroseg_jax.ops.resize import resize_matrix


def resize_positions(
    table: Float[Array, "n d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "m d"]:
    """Resizes a row-major table of patch positions, without the class token. Equal grids return the table itself.

    The filter equals torch's `interpolate(mode="bicubic", align_corners=False)`, which published code uses: its
    parameter is -0.75 and it repeats the border. `jax.image.resize` differs: -0.5, and no border.
    """
    if grid == new_grid:
        return table
    rows, columns = (resize_matrix(n, m, kernel="bicubic") for n, m in zip(grid, new_grid, strict=True))
    resized = jnp.einsum("ha,wb,abd->hwd", rows, columns, table.reshape(*grid, -1), precision="highest")
    return resized.reshape(new_grid[0] * new_grid[1], -1)
