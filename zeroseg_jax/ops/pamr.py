"""Pixel-adaptive mask refinement (PAMR): score maps that follow the edges of the image, without training.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020). Each pixel takes the weighted
mean of its neighbours' scores, several times. The weights say how similar the colours are, so scores spread inside of
regions and stop at edges. NACLIP (Hajimiri et al. 2025) refines scores at the image's size in this way.

b images, h x w pixels, c maps, p neighbours of a pixel.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

DILATIONS = (8, 16)
"""Distances in pixels of the neighbours: eight at each. NACLIP's choice."""
ITERATIONS = 10
"""NACLIP's choice."""
SHARPNESS, SMALLEST = 0.1, 1e-8
"""Colour differences are divided by SHARPNESS x the local standard deviation + SMALLEST."""

Side = int | Int[Array | np.ndarray, ""]
Size = tuple[Side, Side]


def pamr(
    maps: Float[Array | np.ndarray, "b h w c"],
    image: UInt8[Array | np.ndarray, "b h w 3"],
    iterations: int = ITERATIONS,
    dilations: tuple[int, ...] = DILATIONS,
    size: Size | None = None,
) -> Float[Array, "b h w c"]:
    """The refined maps, float32.

    Args:
        size: rows and columns of the image, if the arrays have padding at the end. They may be traced, so that images
            of several sizes share a compiled function. Padded pixels of the result have no meaning.
    """
    weights = affinities(image, dilations, size)

    def smooth(_: Any, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        neighbours = _neighbours(x, dilations, size)
        return sum((weights[..., i, None] * y for i, y in enumerate(neighbours)), jnp.zeros_like(x))

    return jax.lax.fori_loop(0, iterations, smooth, jnp.asarray(maps, jnp.float32))


def affinities(
    image: UInt8[Array | np.ndarray, "b h w 3"], dilations: tuple[int, ...] = DILATIONS, size: Size | None = None
) -> Float[Array, "b h w p"]:
    """The weights of the neighbours of each pixel, which sum to 1.

    They are the softmax over the neighbours of -|difference| / (SHARPNESS x deviation + SMALLEST), averaged over the
    colour channels. The deviation is the sample standard deviation of the pixel, once for each dilation, and of all its
    neighbours.
    """
    colours = jnp.asarray(image, jnp.float32) / 255
    around = jnp.stack(list(_neighbours(colours, dilations, size)))
    with_centre = jnp.concatenate([around, *[colours[None]] * len(dilations)])
    deviation = with_centre.std(axis=0, ddof=1)
    logits = -jnp.abs(around - colours) / (SHARPNESS * deviation + SMALLEST)
    return jax.nn.softmax(jnp.moveaxis(logits.mean(axis=-1), 0, -1))


def _neighbours(
    x: Float[Array, "b h w c"], dilations: tuple[int, ...], size: Size | None
) -> Iterator[Float[Array, "b h w c"]]:
    """For each neighbour, its values at all pixels. Beyond the border the border's values are repeated."""
    height, width = x.shape[1:3] if size is None else size
    rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
    for distance in dilations:
        for down in (-distance, 0, distance):
            shifted = jnp.take(x, jnp.clip(rows + down, 0, height - 1), axis=1) if down else x
            for across in (-distance, 0, distance):
                if down or across:
                    chosen = jnp.clip(columns + across, 0, width - 1)
                    yield jnp.take(shifted, chosen, axis=2) if across else shifted
