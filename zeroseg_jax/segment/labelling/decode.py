"""From encoded images and texts to label maps, under `jax.jit`. Only this part runs again for other labels.

b images; i x j windows of each (v = i j), below and beside each other; n = h x w patches and s segments of a window;
c texts, d the width of CLIP's space.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from zeroseg_jax.ops.batching import map_first
from zeroseg_jax.ops.guided_filter import CELLS, apply, fit
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.ops.pamr import pamr
from zeroseg_jax.segment.labelling.enlarge import enlarge_columns, enlarge_rows
from zeroseg_jax.segment.labelling.groupvit_background import critical_threshold, last_threshold
from zeroseg_jax.segment.labelling.scoring import (
    PADDING,
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

ROWS = 16
"""Number of pixel rows that are labelled at once. The scores of all rows of a large image would not fit into memory."""


class Guide(NamedTuple):
    """Images whose edges the maps follow. The matrices of a `View` enlarge to cells, and those here to pixels."""

    pixels: UInt8[Array | np.ndarray, "b y x 3"]
    small: Float[Array | np.ndarray, "b h w 3"]
    """The images at the size of the cells, in [0, 255]. A patch is `guided_filter.CELLS` cells wide."""
    rows: Float[Array | np.ndarray, "b y h"]
    columns: Float[Array | np.ndarray, "b x w"]


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


class Place(NamedTuple):
    """The pixels to label: a whole image, or a part of one."""

    rows: tuple[Float[Array | np.ndarray, "b y ..."], ...]
    """`View.rows` of each view. With the guided filter: `Guide.rows`."""
    columns: tuple[Float[Array | np.ndarray, "b x ..."], ...]
    pixels: UInt8[Array | np.ndarray, "b y x 3"] | None
    """The colours of the pixels, for the guided filter."""


class Picture(NamedTuple):
    """Whole images, for PAMR."""

    pixels: UInt8[Array | np.ndarray, "b y x 3"]
    height: Int[Array | np.ndarray, ""]
    """Height and width are without padding."""
    width: Int[Array | np.ndarray, ""]


def label_pixels(
    views: tuple[View, ...],
    texts: Texts,
    guide: Guide | None,
    options: Labelling,
    threshold: bool,
    picture: Picture | None = None,
) -> tuple[Array, ...]:
    """Labels whole images of one size inside one jitted function, which `segment_fn` and `export` need.

    `tiles.Labeller` labels images of any size with functions that are compiled once. Both are made of `prepare`,
    `widen` and `finish` (with PAMR `label_whole`), and their label maps are equal.

    The scores of several views, and of windows that overlap, are averaged. With a `guide` the enlarged maps follow its
    edges (`guided_filter.fit`). `options.pamr` needs a `picture`. `threshold` says whether `texts.threshold` counts.

    Returns the arrays (b, y, x) of `finish`.
    """
    prepared = prepare(views, texts, Cells(guide.small) if guide else None, options, threshold)
    if guide:
        place = Place((guide.rows,), (guide.columns,), guide.pixels)
    else:
        place = Place(tuple(view.rows for view in views), tuple(view.columns for view in views), None)
    wide = widen(prepared, place.columns)

    def block(part: tuple[tuple[Array, ...], Array | None]) -> tuple[Array, ...]:
        return finish(prepared, wide, *part, texts, options)

    b, y = place.rows[0].shape[:2]

    def in_blocks(x: Array | np.ndarray) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -y % ROWS)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, -1, ROWS, *x.shape[2:]), 1, 0)

    if options.pamr and picture is not None:
        return label_whole(prepared, texts, place, picture, options)
    blocks = jax.lax.map(block, jax.tree.map(in_blocks, (place.rows, place.pixels)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(b, -1, x.shape[-1])[:, :y] for x in blocks)


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


def widen(prepared: Prepared, columns: tuple[Array | np.ndarray, ...]) -> tuple[Maps, ...]:
    """Enlarges the maps along the columns by `Place.columns`."""
    if columns[0].ndim == 3:
        return ({n: jnp.einsum("bxw,bhwc->bhxc", columns[0], value) for n, value in prepared.maps[0].items()},)
    return tuple(enlarge_columns(maps, matrix) for maps, matrix in zip(prepared.maps, columns, strict=True))


def finish(
    prepared: Prepared,
    wide: tuple[Maps, ...],
    rows: Sequence[Array | np.ndarray],
    colours: Array | np.ndarray | None,
    texts: Texts,
    options: Labelling,
) -> tuple[Array, ...]:
    """Enlarges the maps along the rows and takes the best label of each pixel.

    Returns arrays (b, y, x): int32 labels; int32 segments, unless the segments are the patches; and the probability of
    the best label, if there is one. A pixel is background if the threshold is higher than its probability. With
    GroupViT's rule the probability is the highest threshold at which the pixel keeps its label (`last_threshold`).
    """
    return decide(enlarge(prepared, wide, rows, colours), prepared, texts, options)


def enlarge(
    prepared: Prepared,
    wide: tuple[Maps, ...],
    rows: Sequence[Array | np.ndarray],
    colours: Array | np.ndarray | None,
) -> Maps:
    """The maps in pixels: (b, y, x, c)."""
    if colours is not None:
        functions = {name: jnp.einsum("brh,bhxc->brxc", rows[0], value) for name, value in wide[0].items()}
        large = {name: apply(value, jnp.asarray(colours)) for name, value in functions.items()}
    else:
        large = enlarge_rows(rows, wide)
    share = large.get("segment")
    tables = prepared.tables
    return large | {n: jnp.einsum("brxs,bsc->brxc", share, t, precision="highest") for n, t in tables.items()}


def decide(large: Maps, prepared: Prepared, texts: Texts, options: Labelling) -> tuple[Array, ...]:
    """The result of `finish`, from maps in pixels."""
    share = large.get("segment")
    if options.rule == "sclip":
        scale = jnp.where(texts.scale > 0, texts.scale, texts.logit_scale)
        known = jnp.arange(texts.embeddings.shape[0]) < texts.total
        probability = jax.nn.softmax(jnp.where(known, scale * large["score"], -jnp.inf), axis=-1)
        large = large | {"probability": probability}
    if texts.eligible is not None:
        eligible = jnp.asarray(texts.eligible)[:, None, None]
        if "probability" in large:
            large = large | {"probability": jnp.where(eligible, large["probability"], 0.0)}
        if options.rule == "groupvit":  # its first score is the background's
            eligible = jnp.pad(eligible, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True)
        large = large | {"score": jnp.where(eligible, large["score"], PADDING)}
    segments: tuple[Array, ...] = () if share is None else (jnp.argmax(share, axis=-1),)
    if prepared.critical is not None and share is not None:
        foreground = large["score"][..., 1:]
        best = jnp.argmax(foreground, axis=-1)
        large["probability"] = last_threshold(share, prepared.critical, foreground.max(axis=-1))[..., None]
    else:
        best = jnp.argmax(large["score"], axis=-1) - int(options.rule == "groupvit")
    labels = jnp.where(best < texts.labels, best, -1)
    if "probability" in large:
        # the filter's linear functions may give values outside [0, 1]
        probability = jnp.clip(large["probability"].max(axis=-1), 0, 1)
        labels = jnp.where(probability < texts.threshold, -1, labels)
        return labels.astype(jnp.int32), *segments, probability
    return labels.astype(jnp.int32), *segments


def label_whole(
    prepared: Prepared, texts: Texts, place: Place, picture: Picture, options: Labelling
) -> tuple[Array, ...]:
    """`finish` for whole images. PAMR refines the enlarged maps before the best label is taken."""
    large = enlarge(prepared, widen(prepared, place.columns), place.rows, place.pixels)
    size = picture.height, picture.width
    refined = {n: pamr(x, picture.pixels, options.pamr, size=size) for n, x in large.items() if n != "segment"}
    return decide(large | refined, prepared, texts, options)


def label_tiles(
    prepared: Prepared, texts: Texts, tiles: Place, count: Int[Array, ""], options: Labelling
) -> tuple[Array, ...]:
    """`finish` for the first `count` tiles of one image. The first axis of `tiles` has one entry for each tile.

    `count` is known only at run time, so images of all sizes share one compiled function.
    """

    def tile(place: Place) -> tuple[Array, ...]:
        return finish(prepared, widen(prepared, place.columns), place.rows, place.pixels, texts, options)

    return map_first(tile, tiles, count)


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
