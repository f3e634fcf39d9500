"""How an image goes into the model: the size that it is resized to, and the windows that it is cut into.

`lay_out` chooses both, and `upsampling_matrix` leads back from the patches of the windows to the pixels of the image.

Example: a model for images of 224 pixels, with patches of 16.
- A photograph of 400 x 300 pixels is resized to 304 x 224. It is one window of 14 rows of 19 patches.
- A panorama of 1000 x 250 pixels is longer than 2 to 1, the default of `Options.slide`. It is resized to 896 x 224 and
  cut into seven square windows. They start at columns 0, 112, 224, ... 672, so each covers half of the next one.
  The values of overlapping windows are averaged.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from zeroseg_jax.errors import InputError
from zeroseg_jax.ops.guided_filter import CELLS
from zeroseg_jax.ops.resize import Kernel, resize_matrix
from zeroseg_jax.segment.methods import Method
from zeroseg_jax.segment.options import Options

OVERLAP = 0.5
"""Smallest share of a window that the next one covers too, if `Options.stride` is 0."""
LONGEST = 16.0
"""Largest aspect ratio. Longer images are squeezed to it."""
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 7 / 3, 3.0, 4.0, 5.0, 6.4, 8.0, 10.0, 12.8, LONGEST)
"""Aspect ratios at which whole images are encoded. Each is compiled once."""

Inside = Literal["linear", "nearest", "pixels"]
"""How the maps of a window are enlarged from its patches to its pixels. "pixels": the maps already have them."""


@dataclass(frozen=True, order=True)
class Layout:
    """The size that an image is resized to, and the windows that it is encoded in, in pixels."""

    shape: tuple[int, int]
    window: tuple[int, int]
    """Height and width of a window, which are whole patches."""
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    """The upper edges and the left edges of the windows. There is a window for each pair of them, row by row."""
    patch: int
    """Side of a patch."""
    unit: int
    """Where windows overlap, they are averaged pixel by pixel (1), or patch by patch (`patch`)."""

    @property
    def counts(self) -> tuple[int, int]:
        """The number of windows below each other, and beside each other."""
        return len(self.starts[0]), len(self.starts[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of a window."""
        return self.window[0] // self.patch, self.window[1] // self.patch

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the cells at which the guided filter is fitted to the whole image."""
        return CELLS * -(-self.shape[0] // self.patch), CELLS * -(-self.shape[1] // self.patch)

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.starts[0]) * len(self.starts[1])

    def cut(self, images: UInt8[Array | np.ndarray, "*b y x 3"]) -> list[UInt8[Array | np.ndarray, "*b h w 3"]]:
        """The windows of images of the size `shape`."""
        height, width = self.window
        return [images[..., y : y + height, x : x + width, :] for y in self.starts[0] for x in self.starts[1]]


@dataclass(frozen=True)
class Canvas:
    """The grid that the patches of a window are padded to, so that windows of several shapes share compiled functions.

    A window that is higher than wide is turned on its side: its rows become columns.
    """

    grid: tuple[int, int]
    """Rows and columns of the window's patches."""
    padded: tuple[int, int]
    """Rows and columns of the canvas."""

    @property
    def turned(self) -> bool:
        return self.grid[0] > self.grid[1]

    def add_padding(self, x: Float[Array | np.ndarray, "n c"]) -> Float[Array, "m c"]:
        """Puts the values of the patches (row by row) on the canvas. The padding repeats the last row and column."""
        y = jnp.asarray(x).reshape(*self.grid, -1)
        y = y.swapaxes(0, 1) if self.turned else y
        padding = [(0, m - n) for n, m in zip(y.shape, (*self.padded, y.shape[2]), strict=True)]
        return jnp.pad(y, padding, "edge").reshape(-1, y.shape[2])

    def remove_padding(self, x: Any) -> Float[np.ndarray, "n c"]:
        """The inverse of `add_padding`, for an array (m, c) of numpy."""
        rows, columns = sorted(self.grid)
        y = np.asarray(x).reshape(*self.padded, -1)[:rows, :columns]
        return (y.swapaxes(0, 1) if self.turned else y).reshape(rows * columns, -1)


def canvas_of(layout: Layout, options: Options) -> Canvas:
    """The canvas of the windows of a layout. Squares and the windows of `Options.window` are not padded.

    Other windows get a canvas whose longer side is 2, 4, 8, ... times its shorter side.
    """
    short, long = sorted(layout.grid)
    return Canvas(layout.grid, (short, long if options.window or short == long else padded_side(short, long)))


def padded_side(short: int, long: int, least: int = 2) -> int:
    """The longer side of a padded grid: `least`, 2 `least`, 4 `least`, ... times the shorter side."""
    side = least * short
    while side < long:
        side *= 2
    return side


def lay_out(
    height: int,
    width: int,
    size: int,
    patch: int,
    options: Options = Options(),  # noqa: B008 (it is immutable)
    factor: float = 1.0,
) -> Layout:
    """How a model for images of `size` pixels encodes an image of `height` x `width` pixels.

    With `options.window` it works as in mmsegmentation's "slide" mode. The aspect ratio stays the same to the pixel.
    Windows of one size follow each other at the stride, and the last windows are moved inside the image.

    Without `options.window` the image gets the nearest of `ASPECTS`, so that photographs of all shapes share a few
    compiled functions. Images of 4:3, 3:2 and 16:9 are not distorted, except that the sides become whole patches. Other
    images are distorted by at most a sixth. An image longer than `options.slide` to 1 is cut into square windows, which
    share one compiled function, and its longer side is rounded to about an eighth of the shorter one. If
    `options.slide` is 0, no image is cut. An image longer than `LONGEST` to 1 is squeezed to that.

    Args:
        factor: the image is encoded this many times larger. It is one of `options.scales`.

    Raises:
        InputError: the window is not of whole patches, or the stride leaves gaps between windows.
    """
    short, long = sorted((height, width))
    aspect = min(long / short, LONGEST)
    short_side = factor * (options.short_side or size)
    if options.long_side:
        short_side = min(short_side, factor * options.long_side / aspect)
    if options.window:
        small, large = max(1, int(short_side + 0.5)), max(1, int(short_side * aspect + 0.5))
        return _slide((large, small) if height > width else (small, large), patch, options)
    size = patch * max(1, round(short_side / patch))
    nearest = min(ASPECTS, key=lambda ratio: abs(np.log(ratio / aspect)))
    length = window = patch * round(nearest * size / patch)
    starts: tuple[int, ...] = (0,)
    if 0 < options.slide < aspect:
        step = patch * max(1, round(size / patch / 8))
        length, window = size + step * max(1, round((aspect - 1) * size / step)), size
        count = 1 + int(np.ceil((length - window) / (window * (1 - OVERLAP))))
        starts = tuple((patch * np.linspace(0, (length - window) // patch, count).round().astype(int)).tolist())
    unit = 1 if options.short_side else patch
    if height > width:
        return Layout((length, size), (window, size), (starts, (0,)), patch, unit)
    return Layout((size, length), (size, window), ((0,), starts), patch, unit)


def lay_out_all(height: int, width: int, method: Method, options: Options) -> list[Layout]:
    """The layout at each of `options.scales`."""
    size, patch = method.image_size, method.patch_size
    return [lay_out(height, width, size, patch, options, factor) for factor in options.scales or (1.0,)]


def upsampling_matrices(
    layout: Layout, outputs: tuple[int, int], options: Options, dense: bool, mirrored: bool
) -> tuple[Float[np.ndarray, "y i h"], Float[np.ndarray, "x j w"]]:
    """The matrices that enlarge rows and columns from the patches of the windows to `outputs` pixels of the image.

    Args:
        dense: whether every patch is a segment.
        mirrored: whether the model saw the mirror image of each window.
    """
    inside: Inside = "linear"
    if options.rule == "groupvit":
        inside = "nearest" if dense else "pixels"
    rows, columns = (upsampling_matrix(layout, axis, n, inside) for axis, n in enumerate(outputs))
    return rows, columns[..., ::-1] if mirrored else columns


def _slide(shape: tuple[int, int], patch: int, options: Options) -> Layout:
    """Windows at a stride. The sides of an image that is smaller than a window become whole patches."""
    window, stride = options.window, options.stride or int(options.window * (1 - OVERLAP))
    if window % patch:
        near = patch * max(1, round(window / patch))
        raise InputError(f"window is {window}, but the model's patches are {patch} pixels wide; {near} would do")
    if stride > window:
        raise InputError(f"stride is {stride}, which leaves gaps between windows of {window}; set at most {window}")
    sizes = [n if n >= window else patch * max(1, round(n / patch)) for n in shape]
    sides = [min(n, window) for n in sizes]
    counts = [1 + max(0, -(-(n - side) // stride)) for n, side in zip(sizes, sides, strict=True)]
    starts = [
        tuple(min(k * stride, n - side) for k in range(count))
        for n, side, count in zip(sizes, sides, counts, strict=True)
    ]
    return Layout((sizes[0], sizes[1]), (sides[0], sides[1]), (starts[0], starts[1]), patch, 1)


@functools.lru_cache(maxsize=64)
def upsampling_matrix(layout: Layout, axis: int, outputs: int, inside: Inside = "linear") -> Float[np.ndarray, "y i h"]:
    """The matrix that enlarges along one axis, from the patches of i windows to `outputs` pixels of the image.

    Each window is enlarged by itself. Then overlapping windows are averaged, and the result is resized bilinearly. If
    `layout.unit` is a patch, the windows are averaged before they are enlarged, so there is a single resize.
    """
    unit = layout.unit if inside == "linear" else 1
    size, side = layout.shape[axis] // unit, layout.window[axis] // unit
    patches = layout.window[axis] // layout.patch
    if inside == "linear":
        enlarge = resize_matrix(patches, side)
    elif inside == "nearest":
        enlarge = np.repeat(np.eye(patches, dtype=np.float32), layout.patch, axis=0)
    else:
        enlarge = np.eye(side, dtype=np.float32)
    weights = np.zeros((size, len(layout.starts[axis]), enlarge.shape[1]), np.float32)
    windows_at = np.zeros((size, 1, 1), np.float32)
    for i, start in enumerate(layout.starts[axis]):
        place = slice(start // unit, start // unit + side)
        weights[place, i] += enlarge
        windows_at[place] += 1
    weights /= windows_at
    return (resize_matrix(size, outputs) @ weights.reshape(size, -1)).reshape(-1, *weights.shape[1:])


def resize(pixels: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "y x 3"]:
    """Resizes to `shape` (rows, columns) by Pillow: bicubic, with antialiasing."""
    if pixels.shape[:2] == shape:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BICUBIC))


def resize_plainly(pixels: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "y x 3"]:
    """Resizes to `shape`, bilinearly and without antialiasing, as mmcv does before it slides windows."""
    if pixels.shape[:2] == shape:
        return pixels
    rows, columns = (resize_matrix(n, m) for n, m in zip(pixels.shape, shape, strict=False))
    resized = np.tensordot(columns, np.tensordot(rows, pixels.astype(np.float32), 1), (1, 1)).swapaxes(0, 1)
    return np.rint(resized).astype(np.uint8)


def resize_traced(images: UInt8[Array, "b y x 3"], shape: tuple[int, int], plainly: bool) -> UInt8[Array, "b h w 3"]:
    """`resize`, or `resize_plainly`, under `jax.jit`. As in Pillow, the columns are resized and rounded first."""
    if images.shape[1:3] == shape:
        return images
    kernel: Kernel = "bilinear" if plainly else "bicubic"
    rows, columns = (
        resize_matrix(n, m, kernel=kernel, antialias=not plainly) for n, m in zip(images.shape[1:3], shape, strict=True)
    )
    wide = jnp.einsum("xw,bywc->byxc", columns, images.astype(jnp.float32), precision="highest")
    wide = wide if plainly else _rounded(wide)
    return _rounded(jnp.einsum("yh,bhxc->byxc", rows, wide, precision="highest")).astype(jnp.uint8)


def shrink_to_cells(
    pixels: UInt8[Array | np.ndarray, "*b y x 3"], cells: tuple[int, int]
) -> Float[Array | np.ndarray, "*b h w 3"]:
    """The image that the guided filter is fitted to, with values from 0 to 255, by bilinear resizing with antialiasing.

    The values are not rounded, so that numpy and JAX agree.
    """
    rows, columns = (resize_matrix(n, m, antialias=True) for n, m in zip(pixels.shape[-3:-1], cells, strict=True))
    if isinstance(pixels, np.ndarray):
        high = (rows @ pixels.reshape(pixels.shape[0], -1)).reshape(cells[0], -1, 3)
        return np.einsum("xw,hwc->hxc", columns, high, optimize=True)
    high = jnp.einsum("hy,...ywc->...hwc", rows, pixels.astype(jnp.float32), precision="highest")
    return jnp.einsum("xw,...hwc->...hxc", columns, high, precision="highest")


def _rounded(x: Float[Array, "b y x 3"]) -> Float[Array, "b y x 3"]:
    return jnp.clip(jnp.round(x), 0, 255)
