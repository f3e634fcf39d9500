"""Label maps of images of any size, by a few compiled functions.

The image is padded (`padding`), prepared once (`prepare.prepare_windows`), and then labelled in tiles of TILE x TILE
pixels. Up to TILES tiles go into one call. All images share the function that labels tiles, because its shapes do not
depend on the size of the image. `decode.label_pixels` labels whole images inside a function that is jitted already.

Example: a portrait of 300 x 400 pixels is turned on its side, so it has 300 rows of 400 pixels. These are 3 rows of 4
tiles, of which the last ones hang over the edge. One call labels the 12 tiles. Their maps are put together, cut to the
size of the image, and turned back.

PAMR refines whole images, so with `Options.pamr` the image is labelled in one call, padded to multiples of STEP pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from zeroseg_jax.ops.guided_filter import CELLS, mean_over_box
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.labelling.decode import Picture, Place, label_tiles, label_whole
from zeroseg_jax.segment.labelling.enlarge import nearest_patches
from zeroseg_jax.segment.labelling.on_device import (
    MapsOnDevice,
    count_labels,
    join_tiles,
    pad_on_device,
    padded_length,
)
from zeroseg_jax.segment.labelling.padding import PaddedView, pad, pad_view
from zeroseg_jax.segment.labelling.prepare import Cells, Prepared, prepare_windows
from zeroseg_jax.segment.labelling.score_maps import score_tiles
from zeroseg_jax.segment.labelling.scoring import Texts
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.result import EncodedImage
from zeroseg_jax.segment.windows import padded_side, shrink_to_cells, upsampling_matrices

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


class ScoreMaps(NamedTuple):
    """The scores of the pixels of an image. The texts include phrases for background, and padding."""

    pixels: Float32[np.ndarray, "h w c"]
    probability: Float32[np.ndarray, "h w c"] | None
    """Of each text. None without a threshold."""
    segments: Int32[np.ndarray, "h w"]
    """As in `LabelMaps`."""
    scores: Float32[np.ndarray, "s c"]
    """As in `LabelMaps`."""


class Part(NamedTuple):
    """The maps of one part of an image, such as a tile. The part may hang over the lower and the right edge."""

    top: int
    left: int
    maps: list[np.ndarray]


@dataclass(frozen=True)
class PaddedImage:
    """An image with padded views. If it is higher than wide, all of it is turned on its side."""

    pixels: UInt8[np.ndarray, "y x 3"]
    """The pixels have no padding."""
    views: list[PaddedView]
    rows: list[Float[np.ndarray, "y ..."]]
    """The matrices that enlarge to pixels: one for each view, or the one of the guided filter."""
    columns: list[Float[np.ndarray, "x ..."]]
    cells: Cells | None
    """The input of the guided filter, if there is one."""
    turned: bool


@dataclass(frozen=True)
class PreparedImage:
    """Everything that the labelling of pixels needs."""

    image: PaddedImage
    prepared: Prepared
    texts: Texts
    options: Options


class Labeller:
    """Labels encoded images. It owns the jitted functions, so that all images share them."""

    def __init__(self) -> None:
        self._prepare = jax.jit(prepare_windows, static_argnums=(4, 5))
        self._label_tiles = jax.jit(label_tiles, static_argnums=4)
        self._label_whole = jax.jit(label_whole, static_argnums=4)
        self._score_tiles = jax.jit(score_tiles, static_argnums=4)
        self._join_tiles, self._count_labels = jax.jit(join_tiles), jax.jit(count_labels, static_argnums=2)

    def label(self, encoded: EncodedImage, texts: Texts, threshold: bool, options: Options) -> LabelMaps:
        """The maps of one image. `threshold` says whether `texts.threshold` counts."""
        ready, cosines = self._ready(encoded, texts, threshold, options)
        parts: Iterable[Part] = self._parts(self._label_tiles, ready)
        if options.pamr:
            parts = [Part(0, 0, [np.asarray(x[0]) for x in self._whole(ready)])]
        label_map, *others = _assemble(parts, ready.image.pixels.shape[:2], ready.image.turned)
        segments, scores = _without_padding(encoded, ready, cosines, others.pop(0) if _has_segments(encoded) else None)
        probability = others[0] if others and threshold else None
        return LabelMaps(label_map, segments, scores, probability)

    def label_on_device(self, encoded: EncodedImage, texts: Texts, threshold: bool, options: Options) -> MapsOnDevice:
        """The label map and the probability of one image, without a copy to the host and without waiting for them."""
        ready, _ = self._ready(encoded, texts, threshold, options)
        size = ready.image.pixels.shape[:2]
        shape = tuple(padded_length(n, TILE) for n in size)
        if options.pamr:
            maps = [pad_on_device(x[0], shape) for x in self._whole(ready)]
        else:
            calls = [maps for _, maps in self._calls(self._label_tiles, ready)]
            # As many calls as the padded image may take, so that its shape decides what is compiled.
            calls += calls[-1:] * (-(-shape[0] * shape[1] // (TILES * TILE**2)) - len(calls))
            down, across = (n // TILE for n in shape)
            index = np.arange(down)[:, None] * -(-size[1] // TILE) + np.arange(across)
            index = np.minimum(index, len(calls) * TILES - 1).astype(np.int32)
            maps = [self._join_tiles(x, index) for x in zip(*calls, strict=True)]
        others = maps[2:] if _has_segments(encoded) else maps[1:]
        return MapsOnDevice(
            maps[0], others[0] if others and threshold else None, (size[0], size[1]), ready.image.turned
        )

    def count_labels(self, maps: MapsOnDevice, labels: int) -> Int32[np.ndarray, " l"]:
        """The number of pixels of each of the first `labels` labels."""
        return np.asarray(self._count_labels(maps.label_map, np.array(maps.size, np.int32), labels))

    def score(self, encoded: EncodedImage, texts: Texts, threshold: bool, options: Options) -> ScoreMaps:
        """The scores of every pixel for every text, without the decision."""
        ready, cosines = self._ready(encoded, texts, threshold, options)
        maps = _assemble(self._parts(self._score_tiles, ready), ready.image.pixels.shape[:2], ready.image.turned)
        segments, scores = _without_padding(encoded, ready, cosines, maps.pop() if _has_segments(encoded) else None)
        return ScoreMaps(maps[0], maps[1] if threshold else None, segments, scores)

    def _ready(
        self, encoded: EncodedImage, texts: Texts, threshold: bool, options: Options
    ) -> tuple[PreparedImage, Float32[jax.Array, "1 s c"]]:
        """The image before single pixels, and the cosines of its segments on the padded grids."""
        layout = encoded.views[0].layout
        turned = layout.shape[0] > layout.shape[1]
        image = _pad_for_guide(encoded, turned, options) if options.guide else _pad_plainly(encoded, turned, options)
        views = tuple(view.view for view in image.views)
        prepared, cosines = self._prepare(views, np.bool_(turned), texts, image.cells, options.labelling, threshold)
        return PreparedImage(image, prepared, texts, options), cosines

    def _parts(self, function: Callable[..., Any], ready: PreparedImage) -> Iterator[Part]:
        """The maps of each tile by `function`. They are copied to the host while the next call computes."""
        across = -(-ready.image.pixels.shape[1] // TILE)
        running: deque[tuple[range, Any]] = deque()

        def finished() -> Iterator[Part]:
            indices, maps = running.popleft()
            maps = jax.device_get(maps)
            for k, index in enumerate(indices):
                yield Part(index // across * TILE, index % across * TILE, [x[k] for x in maps])

        for call in self._calls(function, ready):
            running.append(call)
            if len(running) > 1:
                yield from finished()
        while running:
            yield from finished()

    def _calls(self, function: Callable[..., Any], ready: PreparedImage) -> Iterator[tuple[range, tuple[Array, ...]]]:
        """Calls `function` for up to TILES tiles at a time. Yields the indices of the tiles, row by row, and their
        maps on the device."""
        pixels, options = ready.image.pixels, ready.options
        down, across = (-(-n // TILE) for n in pixels.shape[:2])
        rows = [_cut_into_tiles(matrix) for matrix in ready.image.rows]
        columns = [_cut_into_tiles(matrix) for matrix in ready.image.columns]
        for start in range(0, down * across, TILES):
            indices = range(start, min(start + TILES, down * across))
            y, x = np.array([divmod(min(start + k, indices[-1]), across) for k in range(TILES)]).T
            colours = _colours_of_tiles(pixels, y, x, len(indices)) if options.guide else None
            tiles = Place(tuple(matrix[y] for matrix in rows), tuple(matrix[x] for matrix in columns), colours)
            count = np.int32(len(indices))
            yield indices, function(ready.prepared, ready.texts, tiles, count, options.labelling)

    def _whole(self, ready: PreparedImage) -> tuple[Array, ...]:
        """Labels the image in one call. The maps (1, y, x) are padded to multiples of STEP."""
        pixels, options = ready.image.pixels, ready.options
        height, width = (-(-n // STEP) * STEP for n in pixels.shape[:2])
        padded = pad(pixels, (height, width, 3))[None]
        place = Place(
            tuple(pad(m, (height, *m.shape[1:]))[None] for m in ready.image.rows),
            tuple(pad(m, (width, *m.shape[1:]))[None] for m in ready.image.columns),
            padded if options.guide else None,
        )
        picture = Picture(padded, np.array(pixels.shape[0]), np.array(pixels.shape[1]))
        maps: tuple[Array, ...] = self._label_whole(ready.prepared, ready.texts, place, picture, options.labelling)
        return maps


def _pad_plainly(encoded: EncodedImage, turned: bool, options: Options) -> PaddedImage:
    """The views are enlarged from patches to pixels."""
    height, width = encoded.pixels.shape[:2]
    views = [pad_view(view, (height, width), None, turned, options) for view in encoded.views]
    pixels = encoded.pixels.swapaxes(0, 1) if turned else encoded.pixels
    return PaddedImage(pixels, views, [view.rows for view in views], [view.columns for view in views], None, turned)


def _pad_for_guide(encoded: EncodedImage, turned: bool, options: Options) -> PaddedImage:
    """The views are enlarged from patches to the cells of the guided filter, and the filter's result to pixels."""
    layout = encoded.views[0].layout
    pixels = encoded.pixels.swapaxes(0, 1) if turned else encoded.pixels
    cells = layout.cells[::-1] if turned else layout.cells
    padded = cells[0], padded_side(*cells, least=2 if len(layout) == 1 else 4)

    small = np.asarray(shrink_to_cells(encoded.pixels, layout.cells), np.float32)
    small = pad(small.swapaxes(0, 1) if turned else small, (*padded, 3))
    sizes = list(zip(cells, padded, strict=True))
    box_rows, box_columns = (pad(mean_over_box(n, CELLS * options.guide), (m, m)) for n, m in sizes)
    rows, columns = (
        pad(resize_matrix(n, outputs), (outputs, m)) for (n, m), outputs in zip(sizes, pixels.shape[:2], strict=True)
    )
    views = [pad_view(view, layout.cells, padded, turned, options) for view in encoded.views]
    return PaddedImage(pixels, views, [rows], [columns], Cells(small[None], (box_rows, box_columns)), turned)


def _assemble(parts: Iterable[Part], shape: Sequence[int], turned: bool) -> list[np.ndarray]:
    """The maps of the upright image. `shape` is that of the image on its side."""
    whole: list[np.ndarray] = []
    for part in parts:
        if not whole:
            whole = [np.zeros((*shape, *x.shape[2:]), x.dtype) for x in part.maps]
        for target, x in zip(whole, part.maps, strict=True):
            area = target[part.top : part.top + x.shape[0], part.left : part.left + x.shape[1]]
            area[:] = x[: area.shape[0], : area.shape[1]]
    return [np.ascontiguousarray(x.swapaxes(0, 1)) if turned else x for x in whole]


def _has_segments(encoded: EncodedImage) -> bool:
    """False if every patch is a segment."""
    return encoded.views[0].windows[0].assignment is not None


def _without_padding(
    encoded: EncodedImage,
    ready: PreparedImage,
    cosines: Float32[jax.Array, "1 s c"],
    segments: Int32[np.ndarray, "h w"] | None,
) -> tuple[Int32[np.ndarray, "h w"], Float32[np.ndarray, "_ c"]]:
    """The segment of each pixel, and the cosines of each segment, without those that only fill up the padded grids.

    `segments` is None if every patch is a segment.
    """
    views = ready.image.views
    starts = np.cumsum([0, *(view.length for view in views)])
    order = np.concatenate([view.order + start for view, start in zip(views, starts, strict=False)])
    scores = np.asarray(cosines)[0, order]
    if segments is None:
        return _nearest_patches(encoded, ready.options), scores
    numbers = np.zeros(starts[-1], np.int32)
    numbers[order] = np.arange(len(order))
    return numbers[segments], scores


def _nearest_patches(encoded: EncodedImage, options: Options) -> Int32[np.ndarray, "h w"]:
    """For each pixel, the patch of the first view with the largest weight, of all windows."""
    view, (height, width) = encoded.views[0], encoded.pixels.shape[:2]
    if not options.guide:
        return nearest_patches(*upsampling_matrices(view.layout, (height, width), options, True, view.mirrored))
    cells = view.layout.cells
    matrices = upsampling_matrices(view.layout, cells, options, True, view.mirrored)
    return nearest_patches(*matrices, (resize_matrix(cells[0], height), resize_matrix(cells[1], width)))


def _cut_into_tiles(matrix: np.ndarray) -> np.ndarray:
    """(n, ...) -> (tiles, TILE, ...). Zeros fill the last tile."""
    count = -(-len(matrix) // TILE)
    return pad(matrix, (count * TILE, *matrix.shape[1:])).reshape(count, TILE, *matrix.shape[1:])


def _colours_of_tiles(
    pixels: UInt8[np.ndarray, "y x 3"], rows: np.ndarray, columns: np.ndarray, count: int
) -> UInt8[np.ndarray, "k t t 3"]:
    """The pixels of the first `count` tiles, at these rows and columns of tiles. The other tiles are black."""
    colours = np.zeros((TILES, TILE, TILE, 3), np.uint8)
    for tile, row, column in zip(colours[:count], rows, columns, strict=False):
        part = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        tile[: part.shape[0], : part.shape[1]] = part
    return colours
