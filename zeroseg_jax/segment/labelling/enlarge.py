"""Enlarges maps from the patches of windows to pixels.

Enlarging is separable: one matrix for the rows, one for the columns (`windows.upsampling_matrix`). The matrices also
average windows that overlap.

b images; i x j windows of each; h x w patches of a window; y x x pixels; c values (or s segments).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from zeroseg_jax.segment.labelling.scoring import Maps


def enlarge_columns(maps: Maps, columns: Float[Array | np.ndarray, "b x j w"]) -> Maps:
    """(b, i, j, h, w, c) -> (b, i, h, x, c). Each window keeps its own segments: (b, i, h, x, j, s)."""
    return {
        name: jnp.einsum("bxjw,bijhws->bihxjs" if name == "segment" else "bxjw,bijhwc->bihxc", columns, x)
        for name, x in maps.items()
    }


def enlarge_rows(rows: Sequence[Float[Array | np.ndarray, "b y _ _"]], wide: Sequence[Maps]) -> Maps:
    """Maps with enlarged columns, one for each view -> (b, y, x, c), the mean of the views.

    The segments of all windows of all views are joined: (b, y, x, s).
    """
    maps: Maps = {}
    for name in wide[0]:
        views = [(matrix, view[name]) for matrix, view in zip(rows, wide, strict=True)]
        if name == "segment":
            shares = [jnp.einsum("brih,bihxjs->brxijs", matrix, x) for matrix, x in views]
            maps[name] = jnp.concatenate([x.reshape(*x.shape[:3], -1) for x in shares], axis=-1)
        else:
            parts = [jnp.einsum("brih,bihxc->brxc", matrix, x) for matrix, x in views]
            maps[name] = sum(parts[1:], parts[0])
    return {name: x / len(wide) if len(wide) > 1 else x for name, x in maps.items()}


def nearest_patches(
    rows: Float[np.ndarray, "y i h"],
    columns: Float[np.ndarray, "x j w"],
    guide: tuple[np.ndarray, np.ndarray] | None = None,
) -> Int32[np.ndarray, "_ _"]:
    """(y, x): for each pixel, the patch with the largest weight, of all windows.

    `guide` has the matrices from cells to pixels, if `rows` and `columns` enlarge to cells.
    """
    (_, h), (j, w) = rows.shape[1:], columns.shape[1:]
    row, column = (matrix.reshape(len(matrix), -1).argmax(axis=-1) for matrix in (rows, columns))
    if guide:
        row, column = row[guide[0].argmax(axis=-1)], column[guide[1].argmax(axis=-1)]
    down = row // h * (j * h * w) + row % h * w
    across = column // w * (h * w) + column % w
    return (down[:, None] + across[None]).astype(np.int32)
