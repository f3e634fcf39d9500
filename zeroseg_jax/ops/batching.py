"""Cuts items into batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

BATCHES = (1, 4, 16)
"""Batches are padded to one of these sizes, so each input shape compiles at most three times."""
PATCHES = 2048
"""Images with more patches go into smaller batches, because the memory of attention grows with the square of them."""


def parts(count: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cuts `count` items into batches. Yields the slice of the items, and the size to which the batch must be padded.

    `sizes` are ascending and begin with 1. Each batch has the largest size of which the remaining items fill at least
    three quarters. For example, sizes (1, 4, 16, 64) cut 20 items into 16 and 4.
    """
    start = 0
    while start < count:
        remaining = count - start
        size = max(s for s in sizes if s == 1 or remaining >= 0.75 * s)
        yield slice(start, min(start + size, count)), size
        start += size


def padded(batch: Sequence[np.ndarray] | np.ndarray, size: int) -> np.ndarray:
    """The items as one array. Copies of the first item fill it up to `size`."""
    return np.stack([*batch, *[batch[0]] * (size - len(batch))])


def sizes_for(patches: int, sizes: tuple[int, ...] = BATCHES) -> tuple[int, ...]:
    """The batch sizes of `sizes` that are small enough for images with `patches` patches."""
    return tuple(size for size in sizes if size == 1 or size * patches**2 <= BATCHES[-1] * PATCHES**2)


def map_first(function: Callable[[Any], Any], items: Any, count: Int[Array, ""]) -> Any:
    """Applies `function` to the first `count` items, one after the other. The other results are zero.

    `count` is known only at run time, so that one compiled function serves any number.

    Args:
        function: takes one item, and returns one result. Both are trees of arrays whose first axis has length 1.
        items: a tree of arrays. Their first axis has one entry for each item.

    Returns:
        A tree of arrays. Their first axis has one entry for each item.
    """

    def result(k: Array | int) -> Any:
        return function(jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), k, 1), items))

    def put(k: Array, results: Any) -> Any:
        return jax.tree.map(lambda x, y: x.at[k].set(y[0]), results, result(k))

    length = jax.tree.leaves(items)[0].shape[0]
    empty = jax.tree.map(lambda x: jnp.zeros((length, *x.shape[1:]), x.dtype), jax.eval_shape(result, 0))
    return jax.lax.fori_loop(0, count, put, empty)
