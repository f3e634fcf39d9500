"""Batches of a few sizes, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from zeroseg_jax.models.batching import parts
from zeroseg_jax.segment.inference import Encoding, Texts

BATCHES = (1, 4, 16)
"""Batches are padded to one of these sizes, so that each input shape compiles three times at most."""


def chunks(shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[list[int], int]]:
    """Indices of images with one shape of encoding, as many as go into a batch, and the size to pad it to."""
    for shape in sorted(set(shapes)):
        indices = [i for i, s in enumerate(shapes) if s == shape]
        for batch, size in parts(len(indices), BATCHES):
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
