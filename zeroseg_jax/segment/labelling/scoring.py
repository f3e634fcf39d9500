"""The scores of segments (or patches) for texts, and which texts may win pixels.

b images; i x j windows of each (v = i j), below and beside each other; n = h x w patches and s segments of a window;
c texts, d the width of CLIP's space.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.labelling.groupvit_background import background_score
from zeroseg_jax.segment.methods import Encoding
from zeroseg_jax.segment.options import Labelling

PADDING = -9.0
"""Score of padded classes, below any cosine."""


class Texts(NamedTuple):
    """Text embeddings, padded so that lists of about the same length share one compiled function."""

    embeddings: Float[Array | np.ndarray, "c d"]
    """Of unit length. First the labels, then the prompts for background, then padding."""
    labels: Int[Array, ""]
    """Number of labels."""
    total: Int[Array, ""]
    """Number of labels and prompts for background."""
    scale: Float[Array, ""]
    """`Options.scale`."""
    threshold: Float[Array, ""]
    """A pixel is background if the probability of its best label is below this. 0: no threshold."""
    logit_scale: Float[Array, ""]
    """Factor of the cosines in the softmax of that probability."""
    eligible: Bool[Array | np.ndarray, "#b c"] | None = None
    """The texts that may win pixels. The others still count in probabilities. None: all may."""


class View(NamedTuple):
    """One pass of the model over images: at one size, in windows of one size."""

    encoding: Encoding
    """Its arrays have an axis for the windows: (b, v, s, d), (b, v, n, s), (b, v, d)."""
    rows: Float[Array | np.ndarray, "b y i h"]
    """The matrix that enlarges from the patches of each window to pixels and averages overlapping windows
    (`windows.upsampling_matrix`). It is data, so that each image may have another size."""
    columns: Float[Array | np.ndarray, "b x j w"]


Maps = dict[str, Array]
"""Maps by name. "score" and "probability" are (..., c), one for each text. "segment" is (..., s): the shares."""


def score(
    cosines: Float[Array, "b v s c"], encoding: Encoding, texts: Texts, options: Labelling, threshold: bool
) -> Maps:
    """The score of each text, by `Options.scale`, `Options.top_classes` and `Options.rule`.

    With GroupViT's rule (`groupvit_background`) a score is the product of two probabilities: one over all labels, one
    over the most likely labels of the window. The first score is that of background.
    """
    indices = jnp.arange(texts.embeddings.shape[0])
    known = indices < texts.total
    allowed: Array = known  # the converter to ONNX mistakes the shape of an explicit broadcast
    if options.top_classes:
        allowed = likeliest(encoding, texts, options.top_classes)[:, :, None] & known
    if options.rule == "groupvit":
        logits = texts.logit_scale * cosines
        product = _softmax(logits, known) * _softmax(logits, allowed)
        no_threshold = jnp.full_like(product[..., :1], PADDING)
        background = background_score(product, texts.threshold) if threshold else no_threshold
        return {"score": jnp.concatenate([background, jnp.where(known, product, PADDING)], axis=-1)}
    plain = jnp.where(allowed, cosines, -1.0)
    if options.rule == "sclip":  # its softmax comes after the cosines are enlarged
        return {"score": jnp.where(known, plain, PADDING)}
    scores = jnp.where(texts.scale > 0, _softmax(texts.scale * cosines, allowed), plain)
    maps = {"score": jnp.where(known, scores, PADDING)}
    return maps | ({"probability": _softmax(texts.logit_scale * cosines, allowed)} if threshold else {})


def tells_probability(options: Labelling, dense: bool) -> bool:
    """Whether a threshold gives a probability (`decode.finish`). If not, it is only applied to the label maps.

    GroupViT's rule has no probability in two cases. If every patch is a segment (`dense`), there are too many. If maps
    are refined, shares may be below 0, and then a higher threshold may hide less.
    """
    return options.rule != "groupvit" or not (dense or options.guide or options.pamr)


def likeliest(encoding: Encoding, texts: Texts, count: int) -> Bool[Array, "b v c"]:
    """True for the `count` labels that fit the whole window best, and for all prompts for background.

    Each window counts as an image, as in GroupViT's evaluation. Of equal labels the first ones are taken. If a method
    has no embedding of the whole image, the mean of the patches is used.
    """
    indices = jnp.arange(texts.embeddings.shape[0])
    is_label = indices < texts.labels
    fit = jnp.einsum("bvd,cd->bvc", whole_image(encoding), texts.embeddings, precision="highest")
    fit = jnp.where(is_label, fit, PADDING)
    ahead = fit[..., None, :] > fit[..., :, None]
    ahead |= (fit[..., None, :] == fit[..., :, None]) & (indices < indices[:, None])
    return (ahead.sum(axis=-1) < count) | ~is_label


def whole_image(encoding: Encoding) -> Float[Array | np.ndarray, "*b d"]:
    """The embedding of the image, of unit length: the method's, or the mean of the patches."""
    if encoding.image is not None:
        return encoding.image
    assignment = encoding.assignment
    weights = jnp.ones(encoding.embeddings.shape[:-1]) if assignment is None else assignment.sum(axis=-2)
    return unit(jnp.einsum("...s,...sd->...d", weights, encoding.embeddings, precision="highest"))


def assign_pixels(view: View) -> Encoding:
    """The assignment of single pixels. Each pixel belongs to the segment with the highest enlarged share.

    `view.rows` and `view.columns` begin at pixels (`windows.Inside`)."""
    encoding = view.encoding
    assert encoding.assignment is not None
    b, v, n, s = encoding.assignment.shape
    height, width = view.rows.shape[3], view.columns.shape[3]
    patch = round((height * width / n) ** 0.5)
    h, w = height // patch, width // patch
    maps = encoding.assignment.reshape(b, v, h, w, s)
    large = jnp.einsum(
        "yh,xw,bvhws->bvyxs", resize_matrix(h, height), resize_matrix(w, width), maps, precision="highest"
    )
    return encoding._replace(assignment=jax.nn.one_hot(jnp.argmax(large, axis=-1), s).reshape(b, v, height * width, s))


def join(x: list[Float[Array, "b _ _ c"]]) -> Float[Array, "b t c"]:
    """Joins the segments of all windows of all views, in this order."""
    return jnp.concatenate([of_view.reshape(of_view.shape[0], -1, of_view.shape[-1]) for of_view in x], axis=1)


def _softmax(x: Float[Array, "*b c"], allowed: Bool[Array, "*c c"]) -> Float[Array, "*b c"]:
    return jax.nn.softmax(jnp.where(allowed, x, -jnp.inf), axis=-1)


def eligible_texts(labels: Sequence[str], background: Sequence[str]) -> Bool[np.ndarray, "1 c"]:
    """`Texts.eligible` by SCLIP's rule: a label that is also a phrase for background wins no pixel.

    Of equal scores SCLIP takes the first class, which is the background.
    """
    phrases = {phrase.strip() for phrase in background}
    return np.array([[*(label.strip() not in phrases for label in labels), *(True for _ in background)]])


def large_texts(
    pixels: Int[Array | np.ndarray, "b c"], texts: Texts, area: float, won: Int[Array | np.ndarray, "b 1"]
) -> Bool[Array | np.ndarray, "b c"]:
    """`Texts.eligible` by `Options.area`. Takes arrays of numpy or of JAX.

    Args:
        pixels: for each text, the pixels that its class wins without the option and without a threshold.
        won: the pixels that all labels win together.
    """
    is_label = np.arange(pixels.shape[1]) < texts.labels
    large = pixels > area * won
    # If no label is large and there is no phrase for background, all labels stay.
    some_left = large.any(axis=1, keepdims=True) | (texts.total > texts.labels)
    large = large | ~some_left | ~is_label
    return large if texts.eligible is None else large & texts.eligible


def large_classes(
    label_pixels: Int[np.ndarray, " l"], texts: Texts, classes: Int[np.ndarray, " l"], area: float
) -> Bool[np.ndarray, "1 c"]:
    """`large_texts` for one image. `label_pixels` has the pixels that each label wins, `classes` the class of each."""
    wins = np.zeros(classes.max() + 1, np.int64)
    np.add.at(wins, classes, label_pixels)
    pixels = np.pad(wins[classes], (0, len(texts.embeddings) - len(classes)))
    return np.asarray(large_texts(pixels[None], texts, area, wins.sum(keepdims=True)[None]))


def make_texts(
    labels: Float[Array | np.ndarray, "c d"],
    background: Float[Array | np.ndarray, "k d"],
    scale: float,
    threshold: float,
    logit_scale: float,
) -> Texts:
    """The text embeddings without padding. The number of labels may be symbolic."""
    xp: Any = np if isinstance(labels, np.ndarray) else jnp  # numpy's arrays need no compilation
    count = xp.asarray(labels.shape[0], xp.int32)
    total = xp.asarray(count + background.shape[0], xp.int32)
    return Texts(
        xp.concatenate([labels, background]),
        count,
        total,
        xp.float32(scale),
        xp.float32(threshold),
        xp.float32(logit_scale),
    )


def pad_texts(texts: Texts) -> Texts:
    """Pads by at most an eighth (or to 8), so that lists of about the same length share one compiled function."""
    count, width = texts.embeddings.shape
    step = max(8, 2 ** max(0, (count - 1).bit_length() - 3))
    room = -(-count // step) * step
    padding = np.zeros((room - count, width), np.float32)
    eligible = texts.eligible
    if eligible is not None:
        eligible = np.pad(np.asarray(eligible), ((0, 0), (0, room - count)), constant_values=True)
    return texts._replace(embeddings=np.concatenate([texts.embeddings, padding]), eligible=eligible)
