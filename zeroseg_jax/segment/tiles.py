"""Label maps of images of any size and shape by a few compiled functions.

A compiled function has fixed numbers of patches and of output pixels. So the patches are padded to one of a few grids,
with the longer side across, and the output is made in tiles of one size.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from zeroseg_jax.ops.guided_filter import CELLS, mean_over_box
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.decode import Cells, Picture, Place, Texts, WindowsView
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.result import EncodedImage, EncodedView
from zeroseg_jax.segment.windows import room, shrink_to_cells, upsampling_matrices

TILE = 128
"""Side of a tile in pixels."""
STEP = 64
"""An image that is labelled as a whole is padded to multiples of this."""
TILES = 16
"""Largest number of tiles in one call."""


class LabelMaps(NamedTuple):
    """The maps of a `SegmentResult`."""

    label_map: Int32[np.ndarray, "h w"]
    segments: Int32[np.ndarray, "h w"]
    scores: Float32[np.ndarray, "s c"]
    probability: Float32[np.ndarray, "h w"] | None


class PaddedView(NamedTuple):
    """A view on the padded grid of its windows. An upright image is turned on its side."""

    view: WindowsView
    rows: Float[np.ndarray, "y ..."]
    columns: Float[np.ndarray, "x ..."]
    """The matrices that enlarge from the patches of the windows: to cells for the guided filter, else to pixels."""
    order: Int32[np.ndarray, " s"]
    """Index of each segment (or patch) of the view among those of the padded view."""
    padded: int
    """Number of segments (or patches) of the padded view."""


def label_image(
    prepare: Callable[..., Any],
    label_tiles: Callable[..., Any],
    label_whole: Callable[..., Any],
    image: EncodedImage,
    texts: Texts,
    threshold: bool,
    options: Options,
) -> LabelMaps:
    """The maps of one image. `prepare` (`decode.prepare_windows`), `label_tiles` and `label_whole` are jitted."""
    layout, (height, width) = image.views[0].layout, image.pixels.shape[:2]
    turned = layout.shape[0] > layout.shape[1]
    least = 2 if len(layout) == 1 else 4
    pixels = image.pixels.swapaxes(0, 1) if turned else image.pixels
    if options.guide:
        cells = layout.cells[::-1] if turned else layout.cells
        size = cells[0], room(*cells, least)
        small = np.asarray(shrink_to_cells(image.pixels, layout.cells), np.float32)
        small = _pad(small.swapaxes(0, 1) if turned else small, (*size, 3))[None]
        boxes = [_pad(mean_over_box(n, CELLS * options.guide), (m, m)) for n, m in zip(cells, size, strict=True)]
        padded_views = [_padded_view(view, layout.cells, size, turned, options) for view in image.views]
        guide = Cells(small, (boxes[0], boxes[1]))
        enlarge = [_pad(resize_matrix(n, m), (m, k)) for n, m, k in zip(cells, pixels.shape[:2], size, strict=True)]
        rows, columns = ([each] for each in enlarge)
    else:
        padded_views = [_padded_view(view, (height, width), None, turned, options) for view in image.views]
        guide, rows, columns = None, [v.rows for v in padded_views], [v.columns for v in padded_views]
    views = tuple(v.view for v in padded_views)
    prepared, cosines = prepare(views, np.bool_(turned), texts, guide, options.labelling, threshold)

    dense = image.views[0].windows[0].assignment is None
    starts = np.cumsum([0, *(v.padded for v in padded_views)])
    order = np.concatenate([v.order + start for v, start in zip(padded_views, starts, strict=False)])
    own = np.zeros(starts[-1], np.int32)
    own[order] = np.arange(len(order))
    found: list[np.ndarray] = []
    parts: Iterable[tuple[tuple[int, int], list[np.ndarray]]]
    if options.pamr:  # a pixel depends on pixels of other tiles
        parts = [((0, 0), _whole(label_whole, prepared, texts, rows, columns, pixels, options))]
    else:
        parts = _run(label_tiles, prepared, texts, rows, columns, pixels, options)
    for (top, left), maps in parts:
        for i, x in enumerate(maps):
            if len(found) == i:
                found.append(np.zeros((height, width), x.dtype))
            x = own[x] if i == 1 and not dense else x
            whole = found[i].swapaxes(0, 1) if turned else found[i]
            place = whole[top:, left:][: x.shape[0], : x.shape[1]]
            place[:] = x[: place.shape[0], : place.shape[1]]
    label_map, *others = found
    segments = _nearest_patches(image, options) if dense else others.pop(0)
    probability = others[0] if others and threshold else None
    return LabelMaps(label_map, segments, np.asarray(cosines)[0, order], probability)


def _run(
    label_tiles: Callable[..., Any],
    prepared: Any,
    texts: Texts,
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    pixels: UInt8[np.ndarray, "y x 3"],
    options: Options,
) -> Iterator[tuple[tuple[int, int], list[np.ndarray]]]:
    """The upper left corner and the maps of each tile. The next call computes while the maps of one are copied."""
    down, across = (-(-n // TILE) for n in pixels.shape[:2])
    rows, columns = ([_in_tiles(x) for x in each] for each in (rows, columns))
    waiting: deque[tuple[range, Any]] = deque()

    def take() -> Iterator[tuple[tuple[int, int], list[np.ndarray]]]:
        indices, maps = waiting.popleft()
        maps = jax.device_get(maps)
        for k, index in enumerate(indices):
            yield (index // across * TILE, index % across * TILE), [x[k] for x in maps]

    for start in range(0, down * across, TILES):
        indices = range(start, min(start + TILES, down * across))
        places = [divmod(min(start + k, indices[-1]), across) for k in range(TILES)]
        y, x = np.array(places).T
        colours = None
        if options.guide:
            colours = np.zeros((TILES, TILE, TILE, 3), np.uint8)
            for k in range(len(indices)):
                part = pixels[y[k] * TILE : (y[k] + 1) * TILE, x[k] * TILE : (x[k] + 1) * TILE]
                colours[k, : part.shape[0], : part.shape[1]] = part
        tiles = Place(tuple(each[y] for each in rows), tuple(each[x] for each in columns), colours)
        waiting.append((indices, label_tiles(prepared, texts, tiles, np.int32(len(indices)), options.labelling)))
        if len(waiting) > 1:
            yield from take()
    while waiting:
        yield from take()


def _whole(
    label_whole: Callable[..., Any],
    prepared: Any,
    texts: Texts,
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    pixels: UInt8[np.ndarray, "y x 3"],
    options: Options,
) -> list[np.ndarray]:
    """The maps of the whole image, in one call. The image is padded to one of a few sizes."""
    y, x = (-(-n // STEP) * STEP for n in pixels.shape[:2])
    padded = _pad(pixels, (y, x, 3))[None]
    place = Place(
        tuple(_pad(m, (y, *m.shape[1:]))[None] for m in rows),
        tuple(_pad(m, (x, *m.shape[1:]))[None] for m in columns),
        padded if options.guide else None,
    )
    picture = Picture(padded, np.array(pixels.shape[0]), np.array(pixels.shape[1]))
    return [np.asarray(m[0]) for m in label_whole(prepared, texts, place, picture, options.labelling)]


def _padded_view(
    view: EncodedView, outputs: tuple[int, int], padded: tuple[int, int] | None, turned: bool, options: Options
) -> PaddedView:
    """The view on its padded grid.

    Args:
        outputs: rows and columns that the view is enlarged to, before it is turned.
        padded: the same with padding, after it is turned.
    """
    layout, canvas = view.layout, view.canvas
    dense = view.windows[0].assignment is None
    maps = list(upsampling_matrices(layout, outputs, options, dense, view.mirrored))
    (i, j), (h, w) = layout.counts, layout.grid
    pixels = maps[0].shape[2] // h  # along the side of a patch, where the maps are those of pixels
    windows = np.arange(i * j).reshape(i, j)
    if turned:
        maps, windows, i, j, h, w = maps[::-1], windows.T, j, i, w, h
    shape = _power(i), _power(j), *canvas.padded
    if len(layout) > 1 and not options.window:
        # square windows, half over one another, are at most twice as many as squares
        short, long = (n // layout.patch for n in sorted(layout.shape))
        shape = 1, 2 * room(short, long, 4) // short, *canvas.padded
    rows, columns = (
        _pad(m, (len(m) if padded is None else padded[axis], shape[axis], shape[2 + axis] * pixels))
        for axis, m in enumerate(maps)
    )
    windows = np.pad(windows, [(0, m - n) for n, m in zip(windows.shape, shape, strict=False)], "edge")
    parts = 1 if dense else view.windows[0].embeddings.shape[0]  # segments of a window
    grid = shape if dense else (*shape[:2], parts)
    order = np.arange(np.prod(grid), dtype=np.int32).reshape(grid)[:i, :j]
    order = order[:, :, :h, :w] if dense else order
    if turned:
        order = order.transpose(1, 0, 3, 2) if dense else order.transpose(1, 0, 2)
    # without the filter `prepare` needs the shapes only
    given = (rows, columns) if options.guide else (rows[:1], columns[:1])
    encodings = tuple(view.windows[k] for k in windows.ravel())
    return PaddedView(
        WindowsView(encodings, *(m[None] for m in given)), rows, columns, order.ravel(), int(np.prod(grid))
    )


def _nearest_patches(image: EncodedImage, options: Options) -> Int32[np.ndarray, "h w"]:
    """For each pixel, the patch of the first view with the largest weight, of all windows."""
    view, found = image.views[0], []
    sizes = image.pixels.shape[0], image.pixels.shape[1]
    outputs = view.layout.cells if options.guide else sizes
    for weights, n, m in zip(
        upsampling_matrices(view.layout, outputs, options, True, view.mirrored), outputs, sizes, strict=True
    ):
        nearest = weights.reshape(n, -1).argmax(axis=-1)
        found.append(nearest[resize_matrix(n, m).argmax(axis=-1)] if options.guide else nearest)
    (row, column), (_, j), (h, w) = found, view.layout.counts, view.layout.grid
    down = row // h * (j * h * w) + row % h * w
    across = column // w * (h * w) + column % w
    return (down[:, None] + across[None]).astype(np.int32)


def _in_tiles(x: np.ndarray) -> np.ndarray:
    """(n, ...) -> (tiles, TILE, ...). The last tile is filled up with zeros."""
    count = -(-len(x) // TILE)
    return _pad(x, (count * TILE, *x.shape[1:])).reshape(count, TILE, *x.shape[1:])


def _pad(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pads every axis at its end with zeros."""
    return np.pad(x, [(0, m - n) for n, m in zip(x.shape, shape, strict=True)])


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
