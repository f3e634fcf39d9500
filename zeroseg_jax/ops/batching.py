"""Cuts items into batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence

import numpy as np

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
