"""The scores of every pixel, and label maps from means of them, over frames of a video or windows of a large image."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from zeroseg_jax.errors import InputError
from zeroseg_jax.ops.batching import map_first
from zeroseg_jax.segment.labelling.decode import Place, enlarge, widen
from zeroseg_jax.segment.labelling.prepare import Prepared
from zeroseg_jax.segment.labelling.scoring import Texts, pad_texts
from zeroseg_jax.segment.options import Labelling, Options

if TYPE_CHECKING:
    from zeroseg_jax.segment.result import EncodedImage
    from zeroseg_jax.segment.segmenter import Segmenter


class Words(NamedTuple):
    """Labels and background, embedded."""

    texts: Texts
    labels: int
    """Number of labels. The other texts are phrases for background, and padding."""
    total: int
    """Number of labels and phrases."""
    threshold: float
    """Probability below which a pixel is background; 0 for none."""
    options: Options


def embed_words(model: "Segmenter", labels: Any, templates: Any, background: Any, options: dict[str, Any]) -> Words:
    """Raises InputError for bad words, and for options whose results are not means of scores."""
    chosen = model.changed(options)
    for name in ("rule", "area", "pamr"):
        if getattr(chosen, name):
            raise InputError(f"{name} cannot be used where scores are averaged over frames or windows; leave it out")
    texts, _ = model.texts_of(labels, templates, background, chosen)
    count, total = int(texts.labels), int(texts.total)
    return Words(pad_texts(texts), count, total, float(texts.threshold), chosen)


class ScoredImage(NamedTuple):
    """What a `SegmentResult` needs except for the label map, which `label_scores` makes."""

    pixels: Float32[np.ndarray, "h w k"]
    """The scores of each pixel for the labels and phrases. With a threshold their probabilities follow."""
    segments: Int32[np.ndarray, "h w"]
    """`SegmentResult.segments`."""
    scores: Float32[np.ndarray, "s l"]
    """`SegmentResult.scores`."""


def score_image(model: "Segmenter", image: "EncodedImage", words: Words) -> ScoredImage:
    """Scores every pixel. `label_scores` makes labels of the scores, or of a mean of several images' scores."""
    with jax.default_device(model.device):
        maps = model.labeller.score(image, words.texts, words.threshold > 0, words.options)
    pixels = [x[..., : words.total] for x in (maps.pixels, maps.probability) if x is not None]
    return ScoredImage(
        np.concatenate(pixels, axis=-1), maps.segments, np.ascontiguousarray(maps.scores[:, : words.labels])
    )


def label_scores(scores: Float32[np.ndarray, "h w k"], words: Words) -> Int32[np.ndarray, "h w"]:
    """The label of each pixel as `Segmenter.segment` has it; -1 is background."""
    best = scores[..., : words.total].argmax(axis=-1)
    labels = np.where(best < words.labels, best, -1)
    if words.threshold:
        labels[scores[..., words.total :].max(axis=-1).clip(0, 1) < np.float32(words.threshold)] = -1
    return labels.astype(np.int32)


def score_tiles(
    prepared: Prepared, texts: Texts, tiles: Place, count: Int[Array, ""], options: Labelling
) -> tuple[Array, ...]:
    """`decode.label_tiles` without the decision.

    Returns the scores (t, y, x, c) of the first `count` tiles of one image; their probabilities, if there are any; and
    the segment of each pixel (t, y, x), unless the segments are the patches.
    """

    def tile(part: Place) -> tuple[Array, ...]:
        large = enlarge(prepared, widen(prepared, part.columns), part.rows, part.pixels)
        maps = tuple(large[name] for name in ("score", "probability") if name in large)
        return (*maps, jnp.argmax(large["segment"], axis=-1)) if "segment" in large else maps

    return map_first(tile, tiles, count)
