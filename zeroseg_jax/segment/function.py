"""The whole of segmentation, from pixels to label maps, as one pure function for images of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.inference import ROWS, Method, Texts, enlarging, label_pixels
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
    rows = enlarging(layout.grid[0], height, -(-height // ROWS) * ROWS)[None]
    columns = enlarging(layout.grid[1], width)[None]

    def run(params: Any, texts: Texts, images: UInt8[Array, "b y x 3"]) -> Int32[Array, "b y x"]:
        if images.shape[1:] != (height, width, 3):
            raise InputError(f"this function takes images of {height}x{width} pixels, got {images.shape}")
        b = images.shape[0]
        if layout.shape != (height, width):
            resized = jax.image.resize(images.astype(jnp.float32), (b, *layout.shape, 3), "bicubic")
            images = jnp.clip(resized.round(), 0, 255).astype(jnp.uint8)
        encoding = encode_layout(method, params, images, layout, readout.renaming, readout.flip)
        down, across = (jnp.broadcast_to(m, (b, *m.shape[1:])) for m in (rows, columns))
        return label_pixels(encoding, texts, down, across, readout.mix, threshold).label_map[:, :height]

    return run
