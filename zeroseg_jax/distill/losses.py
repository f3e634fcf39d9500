"""The losses of the distillation: pure functions of the student's output and the teacher's view embeddings.

b images, v views, s segments, n patches of which k are visible, d the width of the teacher's space. All in float32.
`global`, `match` and `mae` are the three losses of ZeroSeg (ICCV 2023). `ground` is ours: it says which segments belong
to which view.

The paper leaves three things open, and these are our choices: features have unit length before they are compared, an L1
distance is divided by sqrt(d), and every loss has the weight 1.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zeroseg_jax.distill import views
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.mae import reconstruction_loss
from zeroseg_jax.models.student import StudentOutput
from zeroseg_jax.ops.normalise import unit

ViewWeights = Float[Array, " v"] | Float[np.ndarray, " v"] | None


def distance(a: Float[Array, "... d"], b: Float[Array, "... d"], kind: str) -> Float[Array, "..."]:
    """Distance of the directions of `a` and `b`, from 0 to 2.

    "cosine": 1 - cosine. "l1": sum of the absolute differences of the unit vectors over sqrt(d), which makes it
    independent of the width. The paper has L1; unit length and the division are our choice. Leading axes are broadcast.
    """
    a, b = unit(a), unit(b)
    if kind == "cosine":
        return 1 - (a * b).sum(axis=-1)
    if kind == "l1":
        return jnp.abs(a - b).sum(axis=-1) / a.shape[-1] ** 0.5
    raise InputError(f"the distance of the losses is {kind!r}; set loss.distance to 'l1' or 'cosine'")


def global_loss(
    image: Float[Array, "b d"], teacher: Float[Array, "b v d"], kind: str, view_weights: ViewWeights = None
) -> Float[Array, ""]:
    """Mean distance of the image feature z to every view: the paper's multi-scale feature distillation.

    The paper compares z with all views, the whole image too. That views are averaged and not summed is our choice.
    """
    distances = distance(image[:, None], teacher, kind)
    return _weighted_mean(distances, jnp.broadcast_to(_view_weights(view_weights, teacher), distances.shape))


def match_loss(
    segments: Float[Array, "b s d"],
    teacher: Float[Array, "b v d"],
    local: Bool[Array, " v"] | Bool[np.ndarray, " v"],
    kind: str,
) -> Float[Array, ""]:
    """Distance of every segment to its nearest view, summed over the segments: the paper's segment matching.

    The paper leaves the whole image out, and so does `local`, which is True for the views that count. It is 0 where no
    view counts. The mean is taken over images.
    """
    local = jnp.asarray(local)
    distances = distance(segments[:, :, None], teacher[:, None], kind)
    nearest = jnp.where(local, distances, jnp.inf).min(axis=-1)
    return jnp.where(local.any(), nearest, 0).sum(axis=-1).mean()


def ground_loss(
    segments: Float[Array, "b s d"],
    assignment: Float[Array, "b k s"],
    visible: Int[Array, "b k"],
    teacher: Float[Array, "b v d"],
    patch_weights: Float[Array, "v n"] | Float[np.ndarray, "v n"],
    kind: str,
    *,
    pool: str = "unit",
    view_weights: ViewWeights = None,
) -> Float[Array, ""]:
    """Pulls the mean segment of each view, weighted by how much of each segment lies there, to the view's embedding.

    `pool="unit"` gives every segment unit length before the mean, "raw" lets longer ones count for more. A view without
    a visible patch does not count; the others of its image count for more, so that all images count alike.
    """
    inside = jnp.asarray(patch_weights).T[visible]  # (b, k, v)
    shares = jnp.einsum("bkv,bks->bvs", inside, assignment.astype(jnp.float32), precision="highest")
    total = shares.sum(axis=-1)
    has_patches = total > 1e-6
    shares = shares / jnp.where(has_patches, total, 1.0)[..., None]
    if pool not in ("raw", "unit"):
        raise InputError(f"the pooling of the ground loss is {pool!r}; set loss.ground_pool to 'raw' or 'unit'")
    segments = unit(segments) if pool == "unit" else segments.astype(jnp.float32)
    pooled = jnp.einsum("bvs,bsd->bvd", shares, segments, precision="highest")
    return _weighted_mean(distance(pooled, teacher, kind), has_patches * _view_weights(view_weights, teacher))


def mae_loss(
    reconstruction: Float[Array, "b n c"], images: Float[Array, "b y x 3"], mask: Float[Array, "b n"]
) -> Float[Array, ""]:
    """Mean squared error of the hidden patches' pixels; `images` in [0, 1].

    Each patch's pixels are normalised first, as MAE's default is; the paper does not say whether it does so.
    """
    return reconstruction_loss(reconstruction, images, mask)


def total_loss(
    output: StudentOutput,
    teacher: Float[Array, "b v d"],
    images: Float[Array, "b y x 3"],
    config: Mapping[str, Any],
    boxes: Float[np.ndarray, "v 4"],
    *,
    global_weights: ViewWeights = None,
    ground_weights: ViewWeights = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the losses whose weight is not 0, and the single ones, unweighted, with "loss" for the sum.

    Args:
        output: the student's, of `images`, which are in [0, 1].
        teacher: unit-length embeddings of the views `boxes`.
        config: weights "global", "match", "mae" and "ground", the "distance", and "ground_pool" ("unit" if left out).
        boxes: as `views.view_boxes` makes them.
        global_weights, ground_weights: relative weight of each view in these losses; None counts all alike.
    """
    kind = config["distance"]
    terms = {}
    if config["global"]:
        terms["global"] = global_loss(output.image, teacher, kind, global_weights)
    if config["match"]:
        terms["match"] = match_loss(output.segments, teacher, views.local_views(boxes), kind)
    if config["mae"] and output.reconstruction is not None:
        terms["mae"] = mae_loss(output.reconstruction, images, output.mask)
    if config["ground"]:
        height, width = images.shape[1:3]
        patch = isqrt(height * width // output.mask.shape[1])
        inside = views.patch_weights(boxes, (height // patch, width // patch))
        terms["ground"] = ground_loss(
            output.segments,
            output.assignment,
            output.visible,
            teacher,
            inside,
            kind,
            pool=config.get("ground_pool", "unit"),
            view_weights=ground_weights,
        )
    loss = sum((config[name] * term for name, term in terms.items()), jnp.float32(0))
    return loss, terms | {"loss": loss}


def _view_weights(weights: ViewWeights, teacher: Float[Array, "b v d"]) -> Float[Array, " v"]:
    return jnp.ones(teacher.shape[1]) if weights is None else jnp.asarray(weights, jnp.float32)


def _weighted_mean(x: Float[Array, "b v"], weights: Float[Array, "b v"]) -> Float[Array, ""]:
    """The mean over images of each one's weighted mean, which is 0 where all its weights are.

    So every image counts alike, and the mean of parts of a batch is that of the whole.
    """
    total = weights.sum(axis=1)
    return ((x * weights).sum(axis=1) / jnp.where(total > 0, total, 1.0)).mean()
