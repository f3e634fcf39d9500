"""Decodes image files to uint8 RGB with Pillow. Ordinary JPEGs of training go to libjpeg-turbo directly, for speed.

Every file is opened by `open_picture`, which allows only the formats that are safe to open.
"""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from zeroseg_jax.errors import InputError

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that may be opened.

Some other formats are not safe: EPS starts Ghostscript, and IPTC opens its content as any format. Pillow looks at the
content of a file, not at its name.
"""

DAMAGE = (Exception,)
"""What reading a damaged image may raise. Pillow's decoders and plugins raise exceptions of many types."""
ROUNDING = 0.5 / 255
"""How far floats may lie outside [0, 1]: by half a step of uint8, which rounding removes."""


class BrokenImage(InputError):
    """An image that cannot be read. `key` names the image, `reason` says what is wrong, and `remedy` what to do."""

    def __init__(self, key: str, reason: str, remedy: str = "repair or remove it"):
        super().__init__(f"the image {key} cannot be read ({reason}); {remedy}")
        self.key, self.reason, self.remedy = key, reason, remedy

    def __reduce__(self):  # worker processes pickle exceptions, by default with the message as the only argument
        return type(self), (self.key, self.reason, self.remedy)


class Picture(NamedTuple):
    """A decoded image. A JPEG may have been decoded at a fraction of its size."""

    pixels: UInt8[np.ndarray, "h w 3"]
    extent: tuple[int, int]
    """Height and width of the stored image."""
    reduction: int
    """1, 2, 4 or 8: the factor by which each side of the stored image is longer than the side of `pixels`."""


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(file: str | Path | bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens a file or its bytes with Pillow, without decoding it. `formats` are some of `FORMATS`, or None for all.

    Raises:
        UnidentifiedImageError: the file has another format. It is an OSError.
        OSError: the file cannot be read. For damaged files Pillow may raise anything in `DAMAGE`.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    return Image.open(source, formats=_known_formats() if formats is None else formats)


def decode_image(data: bytes, key: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the bytes of a file in one of `FORMATS` (JPEG, PNG, WebP, BMP, PPM, ...) to RGB.

    Grey, palette, 16-bit and CMYK images are converted. Transparent parts become white, as in `CLIPImageProcessor`. The
    image is turned as its EXIF orientation says. An animation gives its first frame.

    Raises:
        BrokenImage: `data` is empty, truncated, damaged, not an image, or has more pixels than Pillow considers safe.
            The message names `key`.
    """
    with _named_damage(data, key), open_picture(data) as image:
        return _upright_pixels(image)


class EncodedImage:
    """An image of the training: its size is known from the header before its pixels are decoded.

    So the part to show can be chosen first, and a JPEG be decoded at a fraction of its size, which takes a fraction of
    the time. JPEGs that EXIF turns, and other formats, are decoded whole at once.

    Raises:
        BrokenImage: as `decode_image`.
    """

    def __init__(self, data: bytes, key: str):
        self._data, self._key = data, key
        with _named_damage(data, key):
            self._image = open_picture(data)
            self._pixels = None if self._is_plain_jpeg() else _upright_pixels(self._image)
        shape = (self._image.height, self._image.width) if self._pixels is None else self._pixels.shape[:2]
        self.extent: tuple[int, int] = shape
        """Height and width of the upright image."""

    def _is_plain_jpeg(self) -> bool:
        return self._image.format == "JPEG" and self._image.getexif().get(ORIENTATION, 1) == 1

    def decode(self, reduction: int = 1) -> Picture:
        """The image, each side of a JPEG smaller by `reduction`: 1, 2, 4 or 8. Call it once."""
        if self._pixels is not None:
            return Picture(self._pixels, self.extent, 1)
        with _named_damage(self._data, self._key):
            pixels = _decode_jpeg(self._data, self.extent, reduction) if self._image.mode == "RGB" else None
            if pixels is None:
                if reduction > 1:
                    self._image.draft(None, (self._image.width // reduction, self._image.height // reduction))
                self._image.load()
                pixels = np.asarray(to_rgb(self._image))
            return Picture(pixels, self.extent, reduction)


def _upright_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes Pillow's image and turns it as EXIF says."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(to_rgb(image))


def read_orientation(data: bytes, key: str) -> int:
    """The EXIF orientation of an image, 1 (upright) to 8. Raises BrokenImage if the image cannot be read."""
    with _named_damage(data, key), open_picture(data) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1


def turn_upright(pixels: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "y x *c"]:
    """Turns an array of stored pixels upright. `orientation` is the EXIF orientation, 1 to 8."""
    return _TURNS.get(orientation, np.asarray)(pixels)


def _decode_jpeg(data: bytes, extent: tuple[int, int], reduction: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The same pixels as Pillow decodes, with fewer copies; None for a damaged file."""
    if max(extent) < 8:  # libjpeg-turbo might choose a smaller fraction that has the same number of pixels
        return None
    height, width = (-(-side // reduction) for side in extent)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # Pillow then decides whether the file is readable, and says what is wrong
        return None


ORIENTATION = 0x0112
"""The EXIF tag."""
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: np.rot90,
}
"""How to turn an image for each value of the tag, as in `ImageOps.exif_transpose`."""


@contextlib.contextmanager
def _named_damage(data: bytes, key: str) -> Iterator[None]:
    """Turns whatever decoding `data` raises into BrokenImage."""
    if not data:
        raise BrokenImage(key, "the file is empty")
    try:
        yield
    except UnidentifiedImageError as error:  # Pillow's message contains only the address of the buffer
        known = ", ".join(_known_formats())
        raise BrokenImage(key, f"it is not in an image format that is read here: {known}") from error
    except DAMAGE as error:
        raise BrokenImage(key, " ".join(str(error).split()).rstrip(".") or type(error).__name__) from error


def read_image(path: str | os.PathLike, key: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads and decodes a file by `decode_image`. `key` is its name in messages; None means the path."""
    key = str(path) if key is None else key
    return decode_image(read_file(path, key), key)


def read_file(path: str | os.PathLike, key: str) -> bytes:
    """The bytes of a file. Raises BrokenImage, which names `key`, if it cannot be read.

    A path may begin with "~". A path of `etils.epath` may also point to gs://.
    """
    try:
        file: Any = path if hasattr(path, "read_bytes") else Path(path)
        return file.expanduser().read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        there = "download it first" if key.startswith(("http://", "https://")) else "give the path of an image file"
        raise BrokenImage(key, error.strerror or type(error).__name__, there) from error
    except OSError as error:
        raise BrokenImage(key, error.strerror or type(error).__name__) from error
    except ValueError as error:  # the path has a null byte, or characters that no file name can have
        raise BrokenImage(key, str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB, on white where it is transparent. Raises ValueError if that fails."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's conversion would clip instead of scale
        # mode I has 32 bits: a PPM file uses 16 of them, and `Image.convert` uses 8
        eight_bits = to_eight_bits(np.asarray(image), sixteen=image.mode != "I" or image.format == "PPM")
        return Image.fromarray(eight_bits).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_eight_bits(values: np.ndarray, name: str = "it", sixteen: bool = True) -> UInt8[np.ndarray, "*shape"]:
    """The values of an image as uint8, rounded. 16-bit values and floats in [0, 1] are scaled.

    Floats may lie outside [0, 1] by `ROUNDING`. The range of 32-bit integers is not known: they count as 8 bits if no
    value is above 255 and `sixteen` is False, otherwise as 16 bits.

    Raises:
        ValueError: a value is NaN or out of range, or the dtype is another one. The message begins with `name`.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "f" or (kind == "V" and "float" in values.dtype.name):  # the kind of bfloat16 is "V"
        values = values.astype(np.float32)
        if np.isnan(values).any():
            raise ValueError(f"{name} has NaN in it; every value must be a number in [0, 1]")
        if values.min() < -ROUNDING or values.max() > 1 + ROUNDING:
            extremes = f"from {values.min():g} to {values.max():g}"
            raise ValueError(f"{name} has float values {extremes}, expected [0, 1]; use uint8 for 0 to 255")
        return (255 * values.clip(0, 1)).round().astype(np.uint8)
    if (kind, values.dtype.itemsize) not in (("u", 2), ("i", 4)):  # in either byte order
        raise ValueError(f"{name} is of {values.dtype}, expected uint8, or float in [0, 1]")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} has values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535")
    if not sixteen and values.max() <= 255:
        return values.astype(np.uint8)
    return (values / 257).round().astype(np.uint8)
