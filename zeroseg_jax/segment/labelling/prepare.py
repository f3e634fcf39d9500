"""Maps of scores over the patches, from encoded images and texts. `decode` makes label maps of them.

The axes have the names that `decode` gives.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zeroseg_jax.ops.guided_filter import CELLS, fit
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.segment.labelling.enlarge import enlarge_columns, enlarge_rows
from zeroseg_jax.segment.labelling.groupvit_background import critical_threshold
from zeroseg_jax.segment.labelling.scoring import (
    Maps,
    Texts,
    View,
    assign_pixels,
    join,
    score,
    tells_probability,
)
from zeroseg_jax.segment.methods import Encoding
from zeroseg_jax.segment.options import Labelling


class Cells(NamedTuple):
    """The input of the guided filter's fit."""

    image: Float[Array | np.ndarray, "b h w 3"]
    """`Guide.small`."""
    boxes: tuple[Float[Array | np.ndarray, "h h"], Float[Array | np.ndarray, "w w"]] | None = None
    """`guided_filter.mean_over_box` of both axes. Needed if some cells are padding; otherwise None."""


class WindowsView(NamedTuple):
    """A view of one image as a list of windows."""

    windows: tuple[Encoding, ...]
    """One encoding for each window, with arrays (s, d), (n, s) and (d)."""
    rows: Float[Array | np.ndarray, "1 y i h"]
    columns: Float[Array | np.ndarray, "1 x j w"]


class Prepared(NamedTuple):
    """What is computed from images and texts before single pixels."""

    maps: tuple[Maps, ...]
    """For each view, maps over the patches of its windows: (b, i, j, h, w, c). With the guided filter there is one map
    over the cells: (b, h, w, 4 c), the coefficients of linear functions of the colour."""
    tables: Maps
    """Scores of the segments, (b, s, c). Used if the shares of the segments are enlarged instead of the scores."""
    critical: Float[Array, "b t"] | None
    """`groupvit_background.critical_threshold` of each segment. None if the probability does not come from them."""
    cosines: Float[Array, "b s c"] | None
    """Cosine of each segment of each window with each text."""


def prepare(
    views: tuple[View, ...], texts: Texts, guide: Cells | None, options: Labelling, threshold: bool
) -> Prepared:
    """The part of `label_pixels` that does not depend on the size of the output."""
    cosines = [_cosines(view.encoding.embeddings, texts) for view in views]
    dense = views[0].encoding.assignment is None
    if options.rule == "groupvit" and not dense:
        views = tuple(view._replace(encoding=assign_pixels(view)) for view in views)
    scores = [score(c, view.encoding, texts, options, threshold) for c, view in zip(cosines, views, strict=True)]
    ruled, joined = options.rule == "groupvit", join(cosines)

    # Scores are linear in the shares of the segments. With few segments it is less work to enlarge the shares than to
    # enlarge a map for each text.
    count, height = joined.shape[1], sum(view.rows.shape[2] * view.rows.shape[3] for view in views)
    late = not dense and (ruled or (options.mix == "scores" and count <= height))
    tables = {name: join([of_view[name] for of_view in scores]) for name in scores[0]} if late else {}
    critical = None
    if ruled and threshold and tells_probability(options, dense):
        critical = join([critical_threshold(of_view["score"][..., 1:])[..., None] for of_view in scores])[..., 0]
    maps = tuple(
        _by_window(view, {} if late else _over_patches(view.encoding, of_view, texts, options, threshold))
        for view, of_view in zip(views, scores, strict=True)
    )
    if guide:
        wide = [enlarge_columns(of_view, view.columns) for view, of_view in zip(views, maps, strict=True)]
        cells, radius = enlarge_rows([view.rows for view in views], wide), CELLS * options.guide
        maps = ({name: fit(value, guide.image, radius, guide.boxes) for name, value in cells.items()},)
    return Prepared(maps, tables, critical, joined)


def prepare_windows(
    views: tuple[WindowsView, ...],
    turned: Bool[Array, ""],
    texts: Texts,
    guide: Cells | None,
    options: Labelling,
    threshold: bool,
) -> tuple[Prepared, Float[Array, "1 s c"]]:
    """`prepare` for one image. The cosines are returned separately, so that `label_tiles` is compiled once for any
    number of segments.

    `turned`: the image is turned on its side. Square windows have not been turned yet, so this function turns them.
    """

    def stacked(view: WindowsView) -> View:
        encoding: Encoding = jax.tree.map(lambda *x: jnp.stack(x)[None], *view.windows)
        square = view.rows.shape[3] == view.columns.shape[3]

        def turn(x: Any) -> Float[Array, "1 v n c"]:
            side = round(x.shape[2] ** 0.5)
            upright = x.reshape(*x.shape[:2], side, side, -1)
            return jnp.where(turned, upright.swapaxes(2, 3), upright).reshape(x.shape)

        if square and encoding.assignment is None:
            encoding = encoding._replace(embeddings=turn(encoding.embeddings))
        elif square:
            encoding = encoding._replace(assignment=turn(encoding.assignment))
        return View(encoding, view.rows, view.columns)

    prepared = prepare(tuple(stacked(view) for view in views), texts, guide, options, threshold)
    assert prepared.cosines is not None
    return prepared._replace(cosines=None), prepared.cosines


def _cosines(embeddings: Float[Array | np.ndarray, "b v s d"], texts: Texts) -> Float[Array, "b v s c"]:
    return jnp.einsum("bvsd,cd->bvsc", embeddings, texts.embeddings, precision="highest")


def _over_patches(encoding: Encoding, scores: Maps, texts: Texts, options: Labelling, threshold: bool) -> Maps:
    """The scores of the patches: the assignment map mixes the scores of the segments, or their embeddings."""
    assignment = encoding.assignment
    if assignment is None:
        return scores
    if options.mix == "embeddings":
        patches = unit(jnp.einsum("bvns,bvsd->bvnd", assignment, encoding.embeddings, precision="highest"))
        return score(_cosines(patches, texts), encoding, texts, options, threshold)
    return {n: jnp.einsum("bvns,bvsc->bvnc", assignment, x, precision="highest") for n, x in scores.items()}


def _by_window(view: View, maps: Maps) -> Maps:
    """The maps and the shares of the segments, over the patches of each window: (b, i, j, h, w, c)."""
    (i, h), (j, w) = view.rows.shape[2:], view.columns.shape[2:]
    shares = {} if view.encoding.assignment is None else {"segment": view.encoding.assignment}
    return {name: jnp.asarray(x).reshape(x.shape[0], i, j, h, w, -1) for name, x in (maps | shares).items()}
