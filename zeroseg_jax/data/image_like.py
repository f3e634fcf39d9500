"""Converts images in every form that users give to uint8 RGB arrays."""

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
"""One image: a path, the bytes of a file, a PIL image, or an array of numpy or JAX.

An array is (H, W) or (H, W, 1|3|4). Its dtype is uint8, uint16, or float (bfloat16 too) with values in [0, 1].
"""
ImageList = Any
"""Several images: a list of `ImageLike`, or an array (B, H, W, 1|3|4). `check_image_list` checks it at run time."""


def to_pixels(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Converts any `ImageLike` to uint8 RGB. The result is upright, and transparent parts become white.

    Raises:
        InputError: the file is missing, empty, truncated or of an unknown format; the array has another shape or dtype,
            NaN, or floats outside [0, 1]; or `image` is something else.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, bytes | bytearray):
        return decode_image(bytes(image), f"of {len(image)} bytes")
    if isinstance(image, Image.Image):
        try:
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format  # `to_rgb` needs it, and `exif_transpose` does not copy it
            return np.asarray(to_rgb(upright))
        except DAMAGE as error:  # PIL may read the file only now
            raise InputError(f"the PIL image cannot be read ({error}); repair its file") from error
    if not hasattr(image, "__array__"):
        raise InputError(f"an image is a {type(image).__name__}; give a path, bytes, a PIL image or an array (H, W, 3)")
    return _array_to_pixels(np.asarray(image))


def check_image_list(images: ImageList) -> None:
    """Raises InputError if `images` is a single image, or neither a list nor an array. It does not open the images."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image) or (hasattr(images, "ndim") and images.ndim < 4):
        raise InputError("expected several images, got a single one; put it in a list")
    if not isinstance(images, Sequence) and not hasattr(images, "ndim"):
        raise InputError(f"expected a list of images or an array (B, H, W, 3), got a {type(images).__name__}")


def to_pixels_list(images: ImageList) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Converts each of several images by `to_pixels`. Raises InputError as `check_image_list` and `to_pixels` do."""
    check_image_list(images)
    return [to_pixels(image) for image in images]


def _array_to_pixels(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise InputError(f"an image array has the shape {array.shape}, expected (height, width, 3)")
    if array.dtype.kind == "i":  # the range of signed integers would have to be guessed
        raise InputError(f"an image array is of {array.dtype}, expected uint8, or float in [0, 1]")
    try:
        pixels = to_eight_bits(array, "an image array")
    except ValueError as error:
        raise InputError(str(error)) from error
    if pixels.shape[-1] == 4:
        return np.asarray(to_rgb(Image.fromarray(pixels)))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
