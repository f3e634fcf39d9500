"""The antialiased bicubic resize of training images. Evaluation and `segment` resize as their models expect."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
except ModuleNotFoundError:  # it has no wheels for Linux on ARM: there Pillow does the same in four times the time
    Resizer = None

Box = tuple[int | float, int | float, int | float, int | float]
"""Left, top, right, bottom in pixels."""


def resize(pixels: UInt8[np.ndarray, "h w 3"], size: int, box: Box | None = None) -> UInt8[np.ndarray, "s s 3"]:
    """Resizes `box`, which lies in the image, or all to a square of `size` pixels; a box of that size is only cut out.

    It is Pillow's `resize(BICUBIC, box=)`, whose filter sees the pixels beside the box too, with vector instructions.
    Up to a quarter of the values differ from Pillow's by one level of 255; more only where overshoot is clipped, as
    the pass down comes first here and Pillow's pass across there. Which vector instructions there are changes nothing.
    """
    height, width = pixels.shape[:2]
    box = box or (0, 0, width, height)
    if (height, width) == (size, size) and box == (0, 0, width, height):
        return pixels
    if (box[2] - box[0], box[3] - box[1]) == (size, size) and all(float(side).is_integer() for side in box):
        x, y = int(box[0]), int(box[1])
        return np.ascontiguousarray(pixels[y : y + size, x : x + size])
    if Resizer is None:
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))
    left, top, right, bottom = map(float, box)
    # the resizer wants a copy, so only of what its filter reaches
    columns, rows = _reach(left, right, size), _reach(top, bottom, size)
    pixels = pixels[rows, columns]
    source = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    target = ImageData(size, size, PixelType.U8x3)
    options = ResizeOptions(
        resize_alg=ResizeAlg.convolution(FilterType.catmull_rom),  # Pillow's BICUBIC by another name
        crop_box=CropBox(left - columns.start, top - rows.start, right - left, bottom - top),
    )
    Resizer().resize(source, target, options)  # one for each call: threads would wait for each other at a shared one
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


def _reach(start: float, end: float, size: int) -> slice:
    """All pixels that the filter weighs where `start` to `end` become `size` pixels; it may go on past the image."""
    margin = math.ceil(2 * max((end - start) / size, 1)) + 1  # a bicubic kernel is two pixels wide on each side
    return slice(max(math.floor(start) - margin, 0), math.ceil(end) + margin)
