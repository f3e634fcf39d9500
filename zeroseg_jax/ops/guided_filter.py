"""Sharper maps without training: score maps that follow the edges of the image, by a guided filter.

He, Sun and Tang, "Guided Image Filtering" (PAMI 2013), with a colour guide, fitted at a low resolution as in "Fast
Guided Filter" (He and Sun 2015). In each window a map is taken for a linear function of the colour, slope . colour +
offset; slopes and offsets are enlarged to the image, where they meet its full colours. So edges that the patches
cannot show come from the image itself.

b images, h x w cells at which the filter is fitted, c maps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

CELLS = 2
"""Cells along the side of a patch. On validation scenes 2, 4 and 8 were as good."""
SMOOTH = 1e-4
"""Variance of the colour, in [0, 1], at which an edge begins to count. On validation scenes a little better than 1e-3
and clearly better than 1e-2."""


def fit(
    maps: Float[Array, "b h w c"],
    guide: UInt8[Array | np.ndarray, "b h w 3"],
    radius: float,
    boxes: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
) -> Float[Array, "b h w 4*c"]:
    """The linear functions of the colour that resemble `maps` most within `radius` cells of each cell's centre.

    For each cell the slopes by red, those by green, those by blue, and the offsets: what `apply` takes. `boxes` are the
    `mean_over_box` of rows and columns where some of them are padding.
    """
    guide = jnp.asarray(guide, jnp.float32) / 255
    rows, columns = (jnp.asarray(m) for m in boxes or [mean_over_box(n, radius) for n in maps.shape[1:3]])

    def mean(x: Float[Array, "h w *d"]) -> Float[Array, "h w *d"]:
        flat = x.reshape(*x.shape[:2], -1)
        return jnp.einsum("yh,xw,hwd->yxd", rows, columns, flat, precision="highest").reshape(x.shape)

    def one(arguments: tuple[Array, Array]) -> Array:
        p, i = arguments
        mean_i, mean_p = mean(i), mean(p)
        variance = mean(i[..., :, None] * i[..., None, :]) - mean_i[..., :, None] * mean_i[..., None, :]
        covariance = mean(i[..., :, None] * p[..., None, :]) - mean_i[..., :, None] * mean_p[..., None, :]
        slopes = jnp.einsum(
            "yxij,yxjc->yxic", _inverse(variance + SMOOTH * jnp.eye(3)), covariance, precision="highest"
        )
        offset = mean_p - jnp.einsum("yxi,yxic->yxc", mean_i, slopes, precision="highest")
        return mean(jnp.concatenate([slopes.reshape(*slopes.shape[:2], -1), offset], axis=-1))

    # image by image: the covariances of a whole batch with many labels would not fit into memory
    return jax.lax.map(one, (maps, guide))


def apply(functions: Float[Array, "b y x f"], colours: UInt8[Array, "b y x 3"]) -> Float[Array, "b y x _"]:
    """The c maps that the 4 c `functions` (of `fit`, enlarged) give for the colours of an image."""
    red, green, blue, offset = jnp.split(functions, 4, axis=-1)
    r, g, b = (colours[..., i, None].astype(jnp.float32) / 255 for i in range(3))
    return red * r + green * g + blue * b + offset


def mean_over_box(cells: int, radius: float) -> Float[np.ndarray, "n n"]:
    """The linear map that takes the mean within `radius` of each centre: of cells on the edge counts what is inside."""
    distance = np.abs(np.arange(cells)[:, None] - np.arange(cells))
    weights = np.clip(radius + 0.5 - distance, 0, 1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _inverse(m: Float[Array, "*b 3 3"]) -> Float[Array, "*b 3 3"]:
    """By cofactors: millions of small matrices are slow to invert one by one."""
    rows = [m[..., i, :] for i in range(3)]
    cofactors = jnp.stack([jnp.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)], axis=-1)
    determinant = (rows[0] * cofactors[..., 0]).sum(axis=-1)
    return cofactors / determinant[..., None, None]
