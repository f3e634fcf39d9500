"""The size at which an image goes into the model; windows along long images, and the mean of what several views say."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from zeroseg_jax.distill.losses import unit
from zeroseg_jax.segment.inference import Encoding, Method, Renaming

OVERLAP = 0.5
"""Share of a window that its neighbour covers too, at least."""
LONGEST = 16.0
"""Aspect ratio that longer images are squeezed to."""


@dataclass(frozen=True, order=True)
class Layout:
    """An image at the model's resolution, and the windows that it is encoded in, in pixels; all are whole patches."""

    shape: tuple[int, int]
    window: tuple[int, int]
    starts: tuple[tuple[int, int], ...]
    """Upper left corner (y, x) of each window."""
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the whole image."""
        return self.shape[0] // self.patch, self.shape[1] // self.patch

    def cut(self, images: UInt8[Array | np.ndarray, "*b y x 3"]) -> list[UInt8[Array | np.ndarray, "*b h w 3"]]:
        """The windows of images of the size `shape`."""
        height, width = self.window
        return [images[..., y : y + height, x : x + width, :] for y, x in self.starts]

    def places(self) -> Int[np.ndarray, "v m"]:
        """For each window, where its patches are among those of the whole image, row by row."""
        indices = np.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        height, width = (n // self.patch for n in self.window)
        corners = [(y // self.patch, x // self.patch) for y, x in self.starts]
        return np.stack([indices[y : y + height, x : x + width].ravel() for y, x in corners])


def lay_out(height: int, width: int, size: int, patch: int, slide: float) -> Layout:
    """How an image of `height` x `width` pixels is encoded: its shorter side `size`, its aspect ratio kept about.

    The longer side is rounded to steps of about an eighth of `size` (a multiple of the patch), so that photographs of
    all shapes share a few compiled functions. An image longer than `slide` to 1 becomes square windows, which share
    one; with `slide` 0 no image does. One longer than `LONGEST` to 1 is squeezed to that.
    """
    step = patch * max(1, round(size / patch / 8))
    short, long = sorted((height, width))
    aspect = min(long / short, LONGEST)
    whole = window = size + step * round((aspect - 1) * size / step)
    starts = [0]
    if 0 < slide < aspect and whole > size:
        window = size
        count = 1 + int(np.ceil((whole - window) / (window * (1 - OVERLAP))))
        starts = (patch * np.linspace(0, (whole - window) // patch, count).round().astype(int)).tolist()
    if height > width:
        return Layout((whole, size), (window, size), tuple((y, 0) for y in starts), patch)
    return Layout((size, whole), (size, window), tuple((0, x) for x in starts), patch)


def merge(views: Encoding, places: Int[np.ndarray, "v m"], patches: int) -> Encoding:
    """One encoding of the whole images from those of parts of them, (v, b, ...) -> (b, ...).

    A patch that several views cover belongs to the segments of all of them in equal shares, so that its scores are the
    mean of theirs. Where every patch is a segment of its own, its embedding is the (unit) mean of theirs.
    """
    v, b, s, d = views.embeddings.shape
    if views.assignment is None:
        embeddings = jnp.swapaxes(views.embeddings, 0, 1).reshape(b, v * s, d)
        return Encoding(unit(jnp.zeros((b, patches, d)).at[:, places.ravel()].add(embeddings)), None)
    covering = np.bincount(places.ravel(), minlength=patches)[:, None, None]
    assignment = jnp.zeros((b, patches, v, s)).at[:, places, np.arange(v)[:, None]].set(views.assignment.swapaxes(0, 1))
    embeddings = jnp.swapaxes(views.embeddings, 0, 1).reshape(b, v * s, d)
    return Encoding(embeddings, (assignment / covering).reshape(b, patches, v * s))


def encode_view(
    method: Method, params: Any, images: UInt8[Array, "b y x 3"], renaming: Renaming | None, flip: bool
) -> Encoding:
    """`method.encode`; with `flip` the mean of the images and their mirror images."""
    encoding = method.encode(params, images, renaming)
    if not flip:
        return encoding
    mirrored = method.encode(params, images[:, :, ::-1], renaming)
    rows, columns = (n // method.patch_size for n in images.shape[1:3])
    places = np.arange(rows * columns).reshape(rows, columns)
    both = np.stack([places.ravel(), places[:, ::-1].ravel()])
    return merge(jax.tree.map(lambda *x: jnp.stack(x), encoding, mirrored), both, rows * columns)


def encode_layout(
    method: Method,
    params: Any,
    images: UInt8[Array, "b y x 3"],
    layout: Layout,
    renaming: Renaming | None,
    flip: bool,
) -> Encoding:
    """Images of the size `layout.shape`, window by window."""
    views = layout.cut(images)
    if len(views) == 1:
        return encode_view(method, params, images, renaming, flip)
    encoded = jax.lax.map(lambda view: encode_view(method, params, view, renaming, flip), jnp.stack(views))
    return merge(encoded, layout.places(), layout.grid[0] * layout.grid[1])
