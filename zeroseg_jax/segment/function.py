"""The whole of segmentation, from pixels to label maps, as one pure function for images of one size."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.labelling.decode import Guide, Picture, label_pixels
from zeroseg_jax.segment.labelling.scoring import Texts, View, large_texts
from zeroseg_jax.segment.methods import Method
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.windows import Layout, lay_out_all, resize_traced, shrink_to_cells, upsampling_matrices

Run = Callable[[Any, Texts, UInt8[Array, "b y x 3"]], Int32[Array, "b y x"]]
"""(params, texts, images) -> label maps."""


ImageSize = SupportsIndex | Sequence[SupportsIndex]
"""The side of squares, or (height, width)."""


def read_size(image_size: ImageSize) -> tuple[int, int]:
    """Height and width; raises InputError for what no image has."""
    try:
        sides = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise InputError(f"image_size is {image_size!r}; give a number of pixels, or (height, width)") from error
    if min(height, width) < 1:
        raise InputError(f"image_size is {image_size}; it must be at least 1 pixel in height and width")
    return height, width


class SegmentFunction:
    """What `Segmenter.segment_fn` returns: uint8 (B, H, W, 3) -> int32 (B, H, W), jitted, for one (H, W)."""

    def __init__(self, run: Run, params: Any, texts: Texts, size: tuple[int, int], labels: Sequence[str]):
        self._run, self._params, self._texts = jax.jit(run), params, texts
        self.size, self.labels = size, tuple(labels)

    def __call__(self, images: UInt8[Array | np.ndarray, "b y x 3"]) -> Int32[Array, "b y x"]:
        """Raises InputError for images of another size or dtype, and for none."""
        expected = f"uint8 (B, {self.size[0]}, {self.size[1]}, 3)"
        if not hasattr(images, "dtype"):
            raise InputError(f"the images are a {type(images).__name__}, expected an array, {expected}")
        if images.dtype != np.uint8 or tuple(images.shape[1:]) != (*self.size, 3) or 0 in images.shape:
            raise InputError(f"the images are {images.dtype} {tuple(images.shape)}, expected {expected}")
        return self._run(self._params, self._texts, images)

    def __repr__(self) -> str:
        height, width = self.size
        count = "1 label" if len(self.labels) == 1 else f"{len(self.labels)} labels"
        return f"SegmentFunction({count}: uint8 (B, {height}, {width}, 3) -> int32 (B, {height}, {width}))"


def make_function(method: Method, image_size: ImageSize, options: Options, threshold: bool) -> Run:
    """The function for images of `image_size` (height, width), or squares; the batch's size may be symbolic.

    `threshold` says whether `Texts.threshold` counts. Raises InputError for a size that no image has.
    """
    height, width = read_size(image_size)
    layouts = lay_out_all(height, width, method, options)
    cells = layouts[0].cells

    def encode(params: Any, images: UInt8[Array, "b y x 3"], layout: Layout, mirrored: bool) -> View:
        windows = jnp.stack(layout.cut(resize_traced(images, layout.shape, plainly=bool(options.window))))
        windows = windows[:, :, :, ::-1] if mirrored else windows
        one = lambda window: method.encode(params, window, options.of_model)  # noqa: E731
        stacked = jax.lax.map(one, windows) if len(layout) > 1 else jax.tree.map(lambda x: x[None], one(windows[0]))
        encoding = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), stacked)
        outputs, dense = cells if options.guide else (height, width), encoding.assignment is None
        rows, columns = upsampling_matrices(layout, outputs, options, dense, mirrored)
        return View(encoding, *(jnp.broadcast_to(m, (images.shape[0], *m.shape)) for m in (rows, columns)))

    def run(params: Any, texts: Texts, images: UInt8[Array, "b y x 3"]) -> Int32[Array, "b y x"]:
        mirrors = (False, True) if options.flip else (False,)
        views = tuple(encode(params, images, layout, mirrored) for layout in layouts for mirrored in mirrors)
        guide = None
        if options.guide:
            maps = (resize_matrix(cells[0], height), resize_matrix(cells[1], width))
            rows, columns = (jnp.broadcast_to(m, (images.shape[0], *m.shape)) for m in maps)
            guide = Guide(images, shrink_to_cells(jnp.asarray(images), cells), rows, columns)
        picture = Picture(images, jnp.int32(height), jnp.int32(width))

        def label(texts: Texts) -> Int32[Array, "b y x"]:
            return label_pixels(views, texts, guide, options.labelling, threshold, picture)[0]

        if options.area:
            before = label(texts._replace(threshold=jnp.zeros_like(texts.threshold)))
            pixels = (before[..., None] == jnp.arange(texts.embeddings.shape[0])).sum(axis=(1, 2))
            large = large_texts(pixels, texts, options.area, pixels.sum(axis=1, keepdims=True))
            texts = texts._replace(eligible=large)
        return label(texts)

    return run
