"""Images as users have them, to uint8 RGB."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from zeroseg_jax.data.decode import DAMAGE, decode_image, read_image, to_eight_bits, to_rgb
from zeroseg_jax.errors import InputError

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray | jax.Array
"""A path, the bytes of a file, a PIL image, or an array of numpy or JAX: uint8, uint16, or float (bfloat16 too) in
[0, 1]; (H, W), or (H, W, 1|3|4)."""


def to_pixels(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Any `ImageLike` as uint8 RGB, upright, transparency laid on white.

    Raises:
        InputError: a missing, empty, truncated or unknown file, an array of another shape or dtype, a float array with
            NaN or values outside [0, 1], or something else.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, bytes | bytearray):
        return decode_image(bytes(image), f"of {len(image)} bytes")
    if isinstance(image, Image.Image):
        try:
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format  # which a copy loses, and `to_rgb` asks for
            return np.asarray(to_rgb(upright))
        except DAMAGE as error:  # a lazy PIL image reads its file only now
            raise InputError(f"the PIL image cannot be read ({error}); repair its file") from error
    pixels = np.asarray(image) if hasattr(image, "__array__") else None
    if pixels is None:
        raise InputError(f"an image is a {type(image).__name__}; give a path, bytes, a PIL image or an array (H, W, 3)")
    return _array_to_pixels(pixels)


def to_pixels_list(images: Any) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """A list of images, or an array (B, H, W, 3), as `to_pixels` makes each."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image) or (hasattr(images, "ndim") and images.ndim < 4):
        raise InputError("expected several images, got a single one; put it in a list")
    if not isinstance(images, Sequence) and not hasattr(images, "ndim"):
        raise InputError(f"expected a list of images or an array (B, H, W, 3), got a {type(images).__name__}")
    return [to_pixels(image) for image in images]


def _array_to_pixels(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise InputError(f"an image array has the shape {array.shape}, expected (height, width, 3)")
    if array.dtype.kind == "i":  # for Pillow's mode I the range has to be guessed; here it can be said
        raise InputError(f"an image array is of {array.dtype}, expected uint8, or float in [0, 1]")
    try:
        pixels = to_eight_bits(array, "an image array")
    except ValueError as error:
        raise InputError(str(error)) from error
    if pixels.shape[-1] == 4:
        return np.asarray(to_rgb(Image.fromarray(pixels)))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
