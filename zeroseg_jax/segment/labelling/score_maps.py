"""The scores of every pixel, and label maps from means of them, over frames of a video or windows of a large image."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.labelling.decode import Place, Prepared, Texts, enlarge, map_tiles, widen
from zeroseg_jax.segment.labelling.scoring import pad_texts
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


def score_image(model: "Segmenter", image: "EncodedImage", words: Words) -> Float32[np.ndarray, "h w k"]:
    """The scores of every pixel for every text, and with a threshold the probabilities of the texts behind them.

    `label_scores` makes labels of them, or of a mean of several.
    """
    with jax.default_device(model.device):
        maps = model.labeller.score(image, words.texts, words.threshold > 0, words.options)
    return np.concatenate([of_texts[..., : words.total] for of_texts in maps], axis=-1)


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
    """The score maps of the first `count` tiles of one image, (t, y, x, c); then their probabilities, if there are any.

    It is `decode.label_tiles` without the decision.
    """

    def tile(part: Place) -> tuple[Array, ...]:
        large = enlarge(prepared, widen(prepared, part.columns), part.rows, part.pixels)
        return tuple(large[name] for name in ("score", "probability") if name in large)

    return map_tiles(tile, tiles, count)
