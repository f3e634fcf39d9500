"""The guided filter: score maps get the edges of the image, without training.

The filter is "Guided Image Filtering" (He, Sun and Tang, PAMI 2013) with a colour image as the guide. It is fitted at a
low resolution, as in "Fast Guided Filter" (He and Sun 2015). In each window, a linear function of the colour, slope .
colour + offset, approximates a map. Slopes and offsets are enlarged to the image size and applied to the colours.
The result has edges that are finer than the patches.

Shapes: b images, h x w cells at which the filter is fitted, c maps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

CELLS = 2
"""Cells along the side of a patch. On validation scenes 2, 4 and 8 gave equal results."""
SMOOTH = 1e-4
"""Variance of colours in [0, 1] above which an edge counts. On validation scenes this was slightly better than 1e-3 and
clearly better than 1e-2."""


def fit(
    maps: Float[Array, "b h w c"],
    guide: UInt8[Array | np.ndarray, "b h w 3"] | Float[Array | np.ndarray, "b h w 3"],
    radius: float,
    boxes: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
) -> Float[Array, "b h w 4*c"]:
    """Fits the linear functions of the colour that approximate `maps` best around each cell.

    Args:
        maps: the maps at the resolution of the cells.
        guide: the image at the same resolution.
        radius: of the window around the centre of a cell, in cells.
        boxes: `mean_over_box` of rows and columns, if some of them are padding; None computes it.

    Returns:
        For each cell the slopes of red, green and blue, and the offsets, c numbers each. `apply` takes them.
    """
    guide = jnp.asarray(guide, jnp.float32) / 255
    rows, columns = (jnp.asarray(m) for m in boxes or [mean_over_box(n, radius) for n in maps.shape[1:3]])

    def mean(x: Float[Array, "h w *d"]) -> Float[Array, "h w *d"]:
        flat = x.reshape(*x.shape[:2], -1)
        return jnp.einsum("yh,xw,hwd->yxd", rows, columns, flat, precision="highest").reshape(x.shape)

    def fit_image(maps_and_guide: tuple[Array, Array]) -> Array:
        p, i = maps_and_guide  # the names of the paper
        mean_i, mean_p = mean(i), mean(p)
        variance = mean(i[..., :, None] * i[..., None, :]) - mean_i[..., :, None] * mean_i[..., None, :]
        covariance = mean(i[..., :, None] * p[..., None, :]) - mean_i[..., :, None] * mean_p[..., None, :]
        slopes = jnp.einsum(
            "yxij,yxjc->yxic", _inverse(variance + SMOOTH * jnp.eye(3)), covariance, precision="highest"
        )
        offset = mean_p - jnp.einsum("yxi,yxic->yxc", mean_i, slopes, precision="highest")
        return mean(jnp.concatenate([slopes.reshape(*slopes.shape[:2], -1), offset], axis=-1))

    # image by image, because the covariances of a whole batch with many labels need too much memory
    return jax.lax.map(fit_image, (maps, guide))


def apply(functions: Float[Array, "b y x f"], colours: UInt8[Array, "b y x 3"]) -> Float[Array, "b y x _"]:
    """Applies `functions`, the result of `fit` enlarged to the image, to the colours of the image. Returns c maps."""
    red, green, blue, offset = jnp.split(functions, 4, axis=-1)
    r, g, b = (colours[..., i, None].astype(jnp.float32) / 255 for i in range(3))
    return red * r + green * g + blue * b + offset


def mean_over_box(cells: int, radius: float) -> Float[np.ndarray, "n n"]:
    """A matrix that averages all cells within `radius` of each cell. Cells partly within it count in part."""
    distance = np.abs(np.arange(cells)[:, None] - np.arange(cells))
    weights = np.clip(radius + 0.5 - distance, 0, 1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _inverse(m: Float[Array, "*b 3 3"]) -> Float[Array, "*b 3 3"]:
    """The inverse by cofactors. A general solver is slow for millions of small matrices."""
    rows = [m[..., i, :] for i in range(3)]
    cofactors = jnp.stack([jnp.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)], axis=-1)
    determinant = (rows[0] * cofactors[..., 0]).sum(axis=-1)
    return cofactors / determinant[..., None, None]
