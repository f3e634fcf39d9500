"""Batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence

import numpy as np


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
