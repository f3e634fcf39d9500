"""GroupViT's rule for background, as in the evaluation of its authors.

Source: github.com/NVlabs/GroupViT, segmentation/evaluation. A segment as a whole is background if its best label scores
below a threshold. The scores are those of `scoring.score`. At least one segment of each window is not background.

b images, v windows, s segments of a window, c texts, r x x pixels, t segments of all windows.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def background_score(scores: Float[Array, "b v s c"], threshold: Float[Array, ""]) -> Float[Array, "b v s 1"]:
    """1 for segments that are background, 0 for the others."""
    limit = jnp.minimum(threshold, scores.max(axis=(-2, -1), keepdims=True))
    return jnp.where(scores.max(axis=-1, keepdims=True) < limit, 1.0, 0.0)


def critical_threshold(scores: Float[Array, "b v s c"]) -> Float[Array, "b v s"]:
    """The threshold above which each segment is background: the best score of the segment.

    It is infinite for the best segments of a window.
    """
    best = scores.max(axis=-1)
    return jnp.where(best < best.max(axis=-1, keepdims=True), best, jnp.inf)


def last_threshold(
    share: Float[Array, "b r x t"], critical: Float[Array, "b t"], best: Float[Array, "b r x"]
) -> Float[Array, "b r x"]:
    """The highest threshold at which each pixel keeps its label. `best` is the score of that label.

    The score for background is the share of the pixel in segments that are background. It grows with the threshold,
    segment by segment, until it reaches `best`.
    """
    order = jnp.argsort(critical, axis=-1)
    shares = jnp.take_along_axis(share, order[:, None, None], axis=-1)
    reached = jnp.cumsum(shares, axis=-1) >= best[..., None]
    thresholds = jnp.take_along_axis(critical, order, axis=-1)[:, None, None]
    return jnp.where(reached, thresholds, jnp.inf).min(axis=-1)
