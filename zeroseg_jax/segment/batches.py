"""Batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from zeroseg_jax.models.batching import parts
from zeroseg_jax.segment.inference import Encoding
from zeroseg_jax.segment.labelling import Texts

BATCHES = (1, 4, 16)
"""Batches are padded to one of these sizes, so that each input shape compiles three times at most."""
SMALL_BATCHES = (1, 4)
PATCHES = 2048
"""Images of more patches than this go into smaller batches: attention takes memory with their square."""


def sizes_for(patches: int) -> tuple[int, ...]:
    """Those of BATCHES that images of so many patches may go into."""
    return tuple(size for size in BATCHES if size == 1 or size * patches**2 <= BATCHES[-1] * PATCHES**2)


def chunks(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int] = BATCHES) -> Iterator[tuple[list[int], int]]:
    """Indices of images with one shape of encoding, as many as go into a batch, and the one of `sizes` to pad it to."""
    for shape in sorted(set(shapes)):
        indices = [i for i, s in enumerate(shapes) if s == shape]
        for batch, size in parts(len(indices), sizes):
            yield indices[batch], size


def split(batch: Encoding) -> list[Encoding]:
    """The encoding of each image."""
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(batch.embeddings))]


def pad_texts(texts: Texts) -> Texts:
    """With room for an eighth more at most (or 8), so that lists of about the same length share a compiled function."""
    count, width = texts.embeddings.shape
    step = max(8, 2 ** max(0, (count - 1).bit_length() - 3))
    room = -(-count // step) * step
    return texts._replace(embeddings=jnp.concatenate([texts.embeddings, jnp.zeros((room - count, width))]))
