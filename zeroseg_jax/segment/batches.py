"""Batches of a few sizes, so that few shapes are compiled."""

import jax
import numpy as np

from zeroseg_jax.segment.inference import Encoding
from zeroseg_jax.segment.labelling import Texts

BATCHES = (1, 4, 16)
"""Batches are padded to one of these sizes, so that each input shape compiles three times at most."""
PATCHES = 2048
"""Images of more patches than this go into smaller batches: attention takes memory with their square."""


def sizes_for(patches: int, sizes: tuple[int, ...] = BATCHES) -> tuple[int, ...]:
    """Those of `sizes` that images of so many patches may go into."""
    return tuple(size for size in sizes if size == 1 or size * patches**2 <= BATCHES[-1] * PATCHES**2)


def split(batch: Encoding) -> list[Encoding]:
    """The encoding of each image."""
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(batch.embeddings))]


def pad_texts(texts: Texts) -> Texts:
    """With room for an eighth more at most (or 8), so that lists of about the same length share a compiled function."""
    count, width = texts.embeddings.shape
    step = max(8, 2 ** max(0, (count - 1).bit_length() - 3))
    room = -(-count // step) * step
    padding = np.zeros((room - count, width), np.float32)
    return texts._replace(embeddings=np.concatenate([texts.embeddings, padding]))
