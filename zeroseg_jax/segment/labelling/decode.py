"""From encoded images and texts to label maps, under `jax.jit`. Only this part runs again for other labels.

b images; i x j windows of each (v = i j), below and beside each other; n = h x w patches and s segments of a window;
c texts, d the width of CLIP's space.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from zeroseg_jax.ops.batching import map_first
from zeroseg_jax.ops.guided_filter import apply
from zeroseg_jax.ops.pamr import pamr
from zeroseg_jax.segment.labelling.enlarge import enlarge_columns, enlarge_rows
from zeroseg_jax.segment.labelling.groupvit_background import last_threshold
from zeroseg_jax.segment.labelling.prepare import Cells, Prepared, prepare
from zeroseg_jax.segment.labelling.scoring import PADDING, Maps, Texts, View
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
