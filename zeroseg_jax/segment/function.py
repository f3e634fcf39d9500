"""The whole of segmentation, from pixels to label maps, as one pure function for images of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.guided import CELLS
from zeroseg_jax.segment.inference import ROWS, Guide, Method, Texts, enlarging, label_pixels
from zeroseg_jax.segment.readout import Readout
from zeroseg_jax.segment.windows import encode_layout, lay_out

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
    layout = lay_out(height, width, method.image_size, method.patch_size, readout.slide)
    side = CELLS if readout.guide else 1
    cells = layout.grid[0] * side, layout.grid[1] * side
    padded = -(-height // ROWS) * ROWS
    rows, columns = enlarging(cells[0], height, padded)[None], enlarging(cells[1], width)[None]

    def resized(images: UInt8[Array, "b y x 3"], size: tuple[int, int], how: str) -> UInt8[Array, "b h w 3"]:
        if images.shape[1:3] == size:
            return images
        found = jax.image.resize(images.astype(jnp.float32), (images.shape[0], *size, 3), how)
        return jnp.clip(found.round(), 0, 255).astype(jnp.uint8)

    def run(params: Any, texts: Texts, images: UInt8[Array, "b y x 3"]) -> Int32[Array, "b y x"]:
        if images.shape[1:] != (height, width, 3):
            raise InputError(f"this function takes images of {height}x{width} pixels, got {images.shape}")
        b = images.shape[0]
        inputs = resized(images, layout.shape, "bicubic")
        encoding = encode_layout(method, params, inputs, layout, readout.renaming, readout.flip)
        down, across = (jnp.broadcast_to(m, (b, *m.shape[1:])) for m in (rows, columns))
        guide = None
        if readout.guide:
            pixels = jnp.pad(images, ((0, 0), (0, padded - height), (0, 0), (0, 0)))
            guide = Guide(pixels, resized(images, cells, "linear"))
        options = readout.mix, threshold, readout.guide
        return label_pixels(encoding, texts, guide, down, across, *options).label_map[:, :height]

    return run
