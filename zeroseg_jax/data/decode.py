"""Encoded image bytes to uint8 RGB, with Pillow; for training, ordinary JPEGs with libjpeg-turbo itself."""

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from zeroseg_jax.errors import InputError

DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow's decoders raise on damaged files; a missing or unreadable file is an OSError too."""


class BrokenImage(InputError):
    """An image that cannot be read; `key` says which one, `reason` why."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"the image {key} cannot be read ({reason}); repair or remove it")
        self.key, self.reason = key, reason

    def __reduce__(self):  # the constructor takes other arguments than the message, and workers pickle exceptions
        return type(self), (self.key, self.reason)


class Picture(NamedTuple):
    """A decoded image, which a JPEG decoder may have made smaller than the stored one."""

    pixels: UInt8[np.ndarray, "h w 3"]
    extent: tuple[int, int]
    """Height and width of the stored image."""
    reduction: int
    """1, 2, 4 or 8: pixels of the stored image, along each side, in one of `pixels`."""


def decode_image(data: bytes, key: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes any format that Pillow reads (JPEG, PNG, WebP, BMP, PPM, ...) to RGB.

    Grey, palette, 16-bit and CMYK images are converted, transparency is laid on white (as `CLIPImageProcessor` does),
    and the orientation that a camera wrote into EXIF is applied. Of an animation it is the first frame.

    Raises:
        BrokenImage: `data` is empty, truncated, damaged, no image, or claims more pixels than Pillow takes for safe;
            the message names `key`.
    """
    return decode_reduced(data, key).pixels


def decode_reduced(data: bytes, key: str, reduction: Callable[[int, int], int] | None = None) -> Picture:
    """As `decode_image`, but a JPEG is decoded at a fraction of its size, which takes a fraction of the time.

    `reduction` is told height and width and answers 1, 2, 4 or 8. A JPEG that EXIF turns, and other formats, are
    decoded whole.
    """
    with _named_damage(data, key), Image.open(io.BytesIO(data)) as image:
        if reduction and image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) == 1:
            extent = image.height, image.width
            factor = reduction(*extent)
            pixels = _decode_jpeg(data, extent, factor) if image.mode == "RGB" else None
            if pixels is None:
                if factor > 1:
                    image.draft(None, (image.width // factor, image.height // factor))
                image.load()
                pixels = np.asarray(to_rgb(image))
            return Picture(pixels, extent, factor)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(np.asarray(to_rgb(image)), (image.height, image.width), 1)


def _decode_jpeg(data: bytes, extent: tuple[int, int], reduction: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels that Pillow decodes, but without its copies of them; None for a file with any damage."""
    if max(extent) < 8:  # a smaller fraction could have as many pixels, and would be taken
        return None
    height, width = (-(-side // reduction) for side in extent)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # Pillow decides what may still be shown, and says what is wrong
        return None


_ORIENTATION = 0x0112
"""The EXIF tag."""


@contextlib.contextmanager
def _named_damage(data: bytes, key: str) -> Iterator[None]:
    """Raises BrokenImage for whatever decoding `data` raises."""
    if not data:
        raise BrokenImage(key, "the file is empty")
    try:
        yield
    except UnidentifiedImageError as error:  # Pillow's own message is the address of the buffer
        raise BrokenImage(key, "it is not in an image format that Pillow knows") from error
    except DAMAGE as error:
        raise BrokenImage(key, " ".join(str(error).split()).rstrip(".") or type(error).__name__) from error


def read_image(path: str | Path, key: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """`decode_image` of a file; `key` is its name in messages, the path if None."""
    key = str(path) if key is None else key
    return decode_image(read_file(path, key), key)


def read_file(path: str | Path, key: str) -> bytes:
    """The bytes of a file; raises BrokenImage, which names `key`, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BrokenImage(key, error.strerror or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB; transparency is laid on white. Raises ValueError for a mode that has no RGB."""
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips instead of scaling
        scaled = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"it holds floats from {values.min():g} to {values.max():g}, expected [0, 1]")
        return Image.fromarray((255 * values).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
