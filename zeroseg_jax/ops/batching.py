"""Batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

Tree = TypeVar("Tree")

BATCHES = (1, 4, 16)
"""Batches are padded to one of these sizes, so that each input shape compiles three times at most."""
PATCHES = 2048
"""Images of more patches than this go into smaller batches: attention takes memory with their square."""


def parts(count: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cuts `count` items into batches: (which items, the one of `sizes` that they are to be padded to).

    `sizes` are ascending and begin with 1. A batch is the largest size that the rest fills, or the next one where the
    rest fills three quarters of it: 20 items by (1, 4, 16, 64) are 16 and 4, not 64.
    """
    start = 0
    while start < count:
        rest = count - start
        size = max(s for s in sizes if s == 1 or rest >= 0.75 * s)
        yield slice(start, min(start + size, count)), size
        start += size


def padded(batch: Sequence[np.ndarray] | np.ndarray, size: int) -> np.ndarray:
    """The items stacked, with the first one repeated up to `size`."""
    return np.stack([*batch, *[batch[0]] * (size - len(batch))])


def sizes_for(patches: int, sizes: tuple[int, ...] = BATCHES) -> tuple[int, ...]:
    """Those of `sizes` that images of so many patches may go into."""
    return tuple(size for size in sizes if size == 1 or size * patches**2 <= BATCHES[-1] * PATCHES**2)


def split(batch: Tree, count: int) -> list[Tree]:
    """The first `count` items of a batch; `batch` is a tree of arrays with the items along the first axis."""
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(count)]


def stack(items: Sequence[Tree]) -> Tree:
    """A batch of items, in arrays of numpy: what `split` undoes."""
    return jax.tree.map(lambda *x: np.stack(x), *items)
