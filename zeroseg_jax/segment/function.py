"""The whole of segmentation, from pixels to label maps, as one pure function for images of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.inference import Method
from zeroseg_jax.segment.labelling import ROWS, Guide, Texts, View, label_pixels
from zeroseg_jax.segment.readout import Readout
from zeroseg_jax.segment.windows import Layout, enlarging, how_inside, lay_out_all, spread

SegmentFunction = Callable[[Any, Texts, UInt8[Array, "b y x 3"]], Int32[Array, "b y x"]]
"""(params, texts, images) -> label maps."""


def make_function(
    method: Method, image_size: int | tuple[int, int], readout: Readout, threshold: bool
) -> SegmentFunction:
    """The function for images of `image_size` (height, width), or squares; the batch's size may be symbolic.

    `threshold` says whether `Texts.threshold` counts. Raises InputError for a size that no image has.
    """
    height, width = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if min(height, width) < 1:
        raise InputError(f"image_size is {image_size}; it must be at least 1 pixel in height and width")
    layouts = lay_out_all(height, width, method, readout)
    cells, padded = layouts[0].cells, -(-height // ROWS) * ROWS

    def resized(
        images: UInt8[Array, "b y x 3"], size: tuple[int, int], how: str, antialias: bool = True
    ) -> UInt8[Array, "b h w 3"]:
        if images.shape[1:3] == size:
            return images
        found = jax.image.resize(images.astype(jnp.float32), (images.shape[0], *size, 3), how, antialias)
        return jnp.clip(found.round(), 0, 255).astype(jnp.uint8)

    def view(params: Any, images: UInt8[Array, "b y x 3"], layout: Layout, mirrored: bool) -> View:
        how = ("linear", False) if readout.window else ("bicubic", True)
        windows = jnp.stack(layout.cut(resized(images, layout.shape, *how)))
        windows = windows[:, :, :, ::-1] if mirrored else windows
        encode = lambda window: method.encode(params, window, readout.renaming)  # noqa: E731
        found = jax.lax.map(encode, windows) if len(layout) > 1 else jax.tree.map(lambda x: x[None], encode(windows[0]))
        encoding = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)
        inside = how_inside(readout, encoding.assignment is None)
        rows = spread(layout, 0, *((cells[0], None) if readout.guide else (height, padded)), inside)
        columns = spread(layout, 1, cells[1] if readout.guide else width, None, inside)
        columns = columns[..., ::-1] if mirrored else columns
        return View(encoding, *(jnp.broadcast_to(m, (images.shape[0], *m.shape)) for m in (rows, columns)))

    def run(params: Any, texts: Texts, images: UInt8[Array, "b y x 3"]) -> Int32[Array, "b y x"]:
        if images.shape[1:] != (height, width, 3):
            raise InputError(f"this function takes images of {height}x{width} pixels, got {images.shape}")
        views = [
            view(params, images, layout, mirrored)
            for layout in layouts
            for mirrored in ((False, True) if readout.flip else (False,))
        ]
        guide = None
        if readout.guide:
            maps = enlarging(cells[0], height, padded), enlarging(cells[1], width)
            rows, columns = (jnp.broadcast_to(m, (images.shape[0], *m.shape)) for m in maps)
            pixels = jnp.pad(images, ((0, 0), (0, padded - height), (0, 0), (0, 0)))
            guide = Guide(pixels, resized(images, cells, "linear"), rows, columns)
        return label_pixels(tuple(views), texts, guide, readout.labelling, threshold).label_map[:, :height]

    return run
