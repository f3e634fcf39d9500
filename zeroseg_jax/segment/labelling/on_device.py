"""Label maps that stay on the device, padded to a few shapes so that all images share what is compiled for them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Shaped

from zeroseg_jax.ops.histogram import histogram_of_pairs


class MapsOnDevice(NamedTuple):
    """The maps of one image where they were computed, padded to a few shapes (`padded_length`).

    An image that is higher than wide may be turned on its side.
    """

    label_map: Int32[Array | np.ndarray, "y x"]
    probability: Float[Array | np.ndarray, "y x"] | None
    size: tuple[int, int]
    """Rows and columns without padding."""
    turned: bool

    def fetch(self, x: Shaped[Array | np.ndarray, "y x"]) -> Shaped[np.ndarray, "h w"]:
        """A map of the upright image without padding, as a numpy array."""
        part = np.asarray(x)[: self.size[0], : self.size[1]]
        return np.ascontiguousarray(part.swapaxes(0, 1) if self.turned else part)


def padded_length(pixels: int, tile: int) -> int:
    """A multiple of `tile`, at most an eighth more than the tiles that `pixels` need (or just these, up to 8 tiles)."""
    tiles = -(-pixels // tile)
    step = 2 ** max(0, (tiles - 1).bit_length() - 3)
    return -(-tiles // step) * step * tile


def join_tiles(calls: tuple[Shaped[Array, "t y x"], ...], index: Int32[Array, "d a"]) -> Shaped[Array, "_ _"]:
    """The tiles of several calls as one map. `index` has the index of the tile at each place."""
    tiles = jnp.concatenate(calls)[index]
    return tiles.swapaxes(1, 2).reshape(index.shape[0] * calls[0].shape[1], index.shape[1] * calls[0].shape[2])


def pad_on_device(x: Shaped[Array, "y x"], shape: Sequence[int]) -> Shaped[Array, "_ _"]:
    """Zeros below and beside a map."""
    return jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape, strict=True)])


def count_labels(label_map: Int32[Array, "y x"], size: Int32[Array, " 2"], labels: int) -> Int32[Array, " l"]:
    """The number of pixels of each label in the first `size` rows and columns."""
    inside = inside_of(label_map.shape, size)
    return histogram_of_pairs(jnp.where(inside, 0, -1).ravel(), label_map.ravel(), (1, labels))[0]


def inside_of(shape: Sequence[int], size: Int32[Array, " 2"]) -> Bool[Array, "y x"]:
    """True in the first `size` rows and columns of a map of `shape`."""
    return (jnp.arange(shape[0]) < size[0])[:, None] & (jnp.arange(shape[1]) < size[1])
