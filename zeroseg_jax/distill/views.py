"""Views: the boxes of an image that the teacher looks at, cut out and resized, and how patches lie in them.

A box is [y0, x0, y1, x1] in fractions of the image. Boxes are fixed before compilation, so that cropping and resizing
all of them is two products with constant matrices.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zeroseg_jax.ops.resize import Kernel, resize_matrix


def grid_boxes(views: Sequence[int] = (1, 2, 3)) -> Float[np.ndarray, "v 4"]:
    """The cells of a g x g grid for each g of `views`, row-major: (1, 2, 3) gives 1 + 4 + 9 boxes. In [0, 1]."""
    return np.array(
        [(i / g, j / g, (i + 1) / g, (j + 1) / g) for g in views for i in range(g) for j in range(g)]
    ).reshape(-1, 4)


def window_boxes(share: float, stride: float) -> Float[np.ndarray, "v 4"]:
    """Square windows whose side is `share` of the image's, `stride` apart; the last ones are moved inside the image."""
    count = int(np.ceil((1 - share) / stride - 1e-9)) + 1
    starts = np.minimum(np.arange(count) * stride, 1 - share)
    return np.array([(y, x, y + share, x + share) for y in starts for x in starts])


def view_boxes(
    grids: Sequence[int] = (1, 2, 3), windows: Sequence[tuple[float, float]] = ()
) -> Float[np.ndarray, "v 4"]:
    """The grid cells of `grids`, then the windows of each (share, stride) of `windows`."""
    return np.concatenate([grid_boxes(grids), *(window_boxes(*window) for window in windows)])


def view_sizes(boxes: Float[np.ndarray, "v 4"], size: int, local_size: int = 0) -> Int[np.ndarray, " v"]:
    """Pixels of each view: `local_size`, if it is not 0, for those of a part of the image, otherwise `size`."""
    return np.where(local_views(boxes), local_size or size, size)


def local_views(boxes: Float[np.ndarray, "v 4"]) -> Bool[np.ndarray, " v"]:
    """True for views of a part of the image, False for the whole image."""
    return (boxes != (0, 0, 1, 1)).any(axis=1)


def crop_views(
    images: Float[Array, "b y x 3"],
    boxes: Float[np.ndarray, "v 4"],
    size: int,
    kernel: Kernel = "bicubic",
    precision: str = "highest",
) -> Float[Array, "b v size size 3"]:
    """Cuts every box out of every image and resizes it to `size`, antialiased, as Pillow's `resize(box=)` does.

    `images` are in [0, 1], and so are the views. `precision` is that of the products, as JAX names it: of a float32's
    24 bits "highest" keeps all, "high" 16 on a TPU and fewer on a GPU.
    """
    _, height, width, _ = images.shape
    rows = np.stack([resize_matrix(height, size, y0, y1, kernel=kernel, antialias=True) for y0, _, y1, _ in boxes])
    columns = np.stack([resize_matrix(width, size, x0, x1, kernel=kernel, antialias=True) for _, x0, _, x1 in boxes])
    views = jnp.einsum("vyh,bhwc->bvywc", rows.astype(images.dtype), images, precision=precision)
    views = jnp.einsum("vxw,bvywc->bvyxc", columns.astype(images.dtype), views, precision=precision)
    return jnp.clip(views, 0, 1)  # the bicubic kernel overshoots


def patch_weights(boxes: Float[np.ndarray, "v 4"], grid: tuple[int, int]) -> Float[np.ndarray, "v n"]:
    """Share of each patch's area that lies in each box, in [0, 1], float32; patches row-major, n = rows * columns."""

    def overlap(start: np.ndarray, end: np.ndarray, n: int) -> np.ndarray:
        left, right = np.maximum(start[:, None] * n, np.arange(n)), np.minimum(end[:, None] * n, np.arange(n) + 1)
        return np.maximum(right - left, 0)

    y0, x0, y1, x1 = np.asarray(boxes).T
    rows, columns = overlap(y0, y1, grid[0]), overlap(x0, x1, grid[1])
    return (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), -1).astype(np.float32)
