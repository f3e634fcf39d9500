"""Encoded image bytes to uint8 RGB, with Pillow; for training, ordinary JPEGs with libjpeg-turbo itself.

All files are opened by `open_picture`, which knows which formats are safe to open.
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
"""Pillow's names of the formats that are opened, where it has them. Of the others some start programs, as EPS does
Ghostscript, or open what they contain as any format, as IPTC does: a file may be one whatever its name ends in."""

DAMAGE = (Exception,)
"""What reading a damaged image may raise. Pillow's decoders do not limit it: OSError, SyntaxError, IndexError,
struct.error and RuntimeError have been seen, and plugins for more formats bring their own."""
ROUNDING = 0.5 / 255
"""What floats may be above 1 or below 0: no more than rounding to uint8 takes away."""


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


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(file: str | Path | bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Pillow's image of a file or of its bytes, not yet decoded; `formats` are some of `FORMATS`, all if None.

    Raises:
        OSError: it cannot be read; `UnidentifiedImageError`, which is one, for any other format. What else Pillow
            raises for damaged files is in `DAMAGE`.
    """
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    return Image.open(opened, formats=_known_formats() if formats is None else formats)


def decode_image(data: bytes, key: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes any of `FORMATS` (JPEG, PNG, WebP, BMP, PPM, ...) to RGB.

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
    with _named_damage(data, key), open_picture(data) as image:
        if reduction and image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) == 1:
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


def read_orientation(data: bytes, key: str) -> int:
    """EXIF's number for how an image must be turned to be upright, 1 (not at all) to 8; raises BrokenImage."""
    with _named_damage(data, key), open_picture(data) as image:
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in _TURNS else 1


def turn_upright(pixels: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "y x *c"]:
    """An array of the pixels as they are stored, turned as EXIF's `orientation` asks for."""
    return _TURNS.get(orientation, np.asarray)(pixels)


def _decode_jpeg(data: bytes, extent: tuple[int, int], reduction: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels that Pillow decodes, but without its copies of them; None for a file with any damage."""
    if max(extent) < 8:  # a smaller fraction could have as many pixels, and would be taken
        return None
    height, width = (-(-side // reduction) for side in extent)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # Pillow decides what may still be shown, and says what is wrong
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
"""By the tag's value, as `ImageOps.exif_transpose` does it."""


@contextlib.contextmanager
def _named_damage(data: bytes, key: str) -> Iterator[None]:
    """Raises BrokenImage for whatever decoding `data` raises."""
    if not data:
        raise BrokenImage(key, "the file is empty")
    try:
        yield
    except UnidentifiedImageError as error:  # Pillow's own message is the address of the buffer
        known = ", ".join(_known_formats())
        raise BrokenImage(key, f"it is not in an image format that is read here: {known}") from error
    except DAMAGE as error:
        raise BrokenImage(key, " ".join(str(error).split()).rstrip(".") or type(error).__name__) from error


def read_image(path: str | os.PathLike, key: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """`decode_image` of a file; `key` is its name in messages, the path if None."""
    key = str(path) if key is None else key
    return decode_image(read_file(path, key), key)


def read_file(path: str | os.PathLike, key: str) -> bytes:
    """The bytes of a file; raises BrokenImage, which names `key`, where it cannot be read.

    A path may begin with "~", and be one of `etils.epath`, which reads from gs:// too.
    """
    try:
        file: Any = path if hasattr(path, "read_bytes") else Path(path)
        return file.expanduser().read_bytes()
    except OSError as error:
        raise BrokenImage(key, error.strerror or type(error).__name__) from error
    except ValueError as error:  # a path with a null byte, or with characters that no file has
        raise BrokenImage(key, str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB; transparency is laid on white. Raises ValueError for a mode that has no RGB."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips instead of scaling
        # mode I has 32 bits, of which a PPM fills 16; what `Image.convert` makes of grey has 8
        eight_bits = to_eight_bits(np.asarray(image), sixteen=image.mode != "I" or image.format == "PPM")
        return Image.fromarray(eight_bits).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_eight_bits(values: np.ndarray, name: str = "it", sixteen: bool = True) -> UInt8[np.ndarray, "*shape"]:
    """The values of an image as uint8: uint8 as it is, 16 bits scaled, floats from [0, 1]; rounded.

    Floats may leave [0, 1] by what rounds to a value in it. 32-bit integers do not say their range: those up to 255
    are taken for 8 bits unless `sixteen`, others for 16.

    Raises:
        ValueError: NaN, a value outside the range, or another dtype. Its message begins with `name`.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "f" or (kind == "V" and "float" in values.dtype.name):  # bfloat16 and its relatives are no "f"
        values = values.astype(np.float32)
        if np.isnan(values).any():
            raise ValueError(f"{name} has NaN in it; every value must be a number in [0, 1]")
        if values.min() < -ROUNDING or values.max() > 1 + ROUNDING:
            said = f"from {values.min():g} to {values.max():g}"
            raise ValueError(f"{name} has float values {said}, expected [0, 1]; use uint8 for 0 to 255")
        return (255 * values.clip(0, 1)).round().astype(np.uint8)
    if (kind, values.dtype.itemsize) not in (("u", 2), ("i", 4)):  # of either byte order
        raise ValueError(f"{name} is of {values.dtype}, expected uint8, or float in [0, 1]")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} has values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535")
    if not sixteen and values.max() <= 255:
        return values.astype(np.uint8)
    return (values / 257).round().astype(np.uint8)
