"""Padding that brings encoded images of many shapes to a few, so that they share compiled functions.

`jax.jit` compiles a function again for every new shape of its arguments. Three steps keep the shapes few:

1. A window that is higher than wide is turned on its side: its rows become columns.
2. The patches of a window are padded to a grid that is 1, 2, 4, ... times as long as it is high (`Canvas`).
3. The windows of an image are padded to a few numbers (`pad_view`).

Padding has the weight 0 in the matrices that enlarge from patches to pixels, so it does not change a label.

Example: a model for images of 224 pixels, with patches of 16, encodes a portrait of 300 x 400 pixels at 224 x 304. That
is 19 rows of 14 patches. On its side it has 14 rows of 19 patches, and its canvas has 14 rows of 28.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from zeroseg_jax.segment.labelling.prepare import WindowsView
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.result import EncodedView
from zeroseg_jax.segment.windows import Layout, padded_side, upsampling_matrices


class PaddedView(NamedTuple):
    """A view with padding. If the image is higher than wide, the view is turned on its side."""

    view: WindowsView
    """What `prepare.prepare_windows` takes."""
    rows: Float[np.ndarray, "y i h"]
    """The matrix that enlarges from the patches of i windows, of h rows each, to y outputs: to the cells of the guided
    filter, or to pixels."""
    columns: Float[np.ndarray, "x j w"]
    order: Int32[np.ndarray, " s"]
    """The index that each segment (or patch) of the view has among those of the padded view."""
    length: int
    """The number of segments (or patches) of the padded view."""


def pad_view(
    view: EncodedView,
    outputs: tuple[int, int],
    padded_outputs: tuple[int, int] | None,
    turned: bool,
    options: Options,
) -> PaddedView:
    """Pads one view of an image.

    Args:
        outputs: rows and columns that the view is enlarged to, before it is turned.
        padded_outputs: rows and columns of the outputs with padding, after the view is turned. None: no padding.
        turned: whether the image is turned on its side.
    """
    layout = view.layout
    dense = view.windows[0].assignment is None
    matrices = list(upsampling_matrices(layout, outputs, options, dense, view.mirrored))
    counts, grid = layout.counts, layout.grid
    points = matrices[0].shape[2] // grid[0]  # along a patch: 1, or its pixels if the maps have pixels already
    windows = np.arange(len(layout)).reshape(counts)
    if turned:
        matrices, windows, counts, grid = matrices[::-1], windows.T, counts[::-1], grid[::-1]

    padded_counts, padded_grid = _padded_counts(layout, counts, options), view.canvas.padded
    rows, columns = (
        pad(m, (len(m) if padded_outputs is None else padded_outputs[axis], padded_counts[axis], n * points))
        for axis, (m, n) in enumerate(zip(matrices, padded_grid, strict=True))
    )
    windows = np.pad(windows, [(0, m - n) for n, m in zip(counts, padded_counts, strict=True)], "edge")

    in_window = padded_grid if dense else (view.windows[0].embeddings.shape[0],)
    length = int(np.prod((*padded_counts, *in_window)))
    order = np.arange(length, dtype=np.int32).reshape(*padded_counts, *in_window)[: counts[0], : counts[1]]
    if dense:
        order = order[:, :, : grid[0], : grid[1]]
    if turned:
        order = order.swapaxes(0, 1)
        order = order.swapaxes(2, 3) if dense else order

    encodings = tuple(view.windows[k] for k in windows.ravel())
    # Without the guided filter `prepare_windows` needs only the shapes of a patch, so it gets one row.
    used = (rows, columns) if options.guide else (rows[:1], columns[:1])
    return PaddedView(WindowsView(encodings, *(m[None] for m in used)), rows, columns, order.ravel(), length)


def pad(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pads the end of every axis with zeros."""
    return np.pad(x, [(0, m - n) for n, m in zip(x.shape, shape, strict=True)])


def _padded_counts(layout: Layout, counts: tuple[int, int], options: Options) -> tuple[int, int]:
    """The number of windows below and beside each other, with padding. `counts` is without it."""
    if len(layout) > 1 and not options.window:
        # Each window is a square and covers half of the next one, so there are at most twice as many as squares.
        short, long = (n // layout.patch for n in sorted(layout.shape))
        return 1, 2 * padded_side(short, long, 4) // short
    return _next_power_of_two(counts[0]), _next_power_of_two(counts[1])


def _next_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
