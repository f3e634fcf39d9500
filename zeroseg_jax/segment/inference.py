"""The pure functions of inference: images to segment embeddings, and these to label maps. All run under `jax.jit`.

b images, h x w their patches (n = h w), s segments, c labels, d the width of CLIP's space. An image is encoded once;
the labels come in only at `label_pixels`, so that asking again with other words costs next to nothing.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from zeroseg_jax.distill.losses import unit
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.student import Student
from zeroseg_jax.segment.guided import CELLS, apply, fit
from zeroseg_jax.segment.readout import Mix, Renaming

ROWS = 16
"""Rows of pixels that are labelled at once: the scores of a whole large image would not fit into memory."""

STRAY = 0.07
"""Share of a segment's mass that its box may leave out on each side: a few stray patches would make it far too large.
Chosen on validation scenes, with the defaults of renaming: mIoU 66.4, against 63.5 for boxes around all patches."""


class Encoding(NamedTuple):
    """Images before any label is known."""

    embeddings: Float[Array, "b s d"]
    """Each segment in CLIP's space, unit length."""
    assignment: Float[Array, "b n s"] | None
    """Share of each patch in each segment; None where every patch is a segment of its own (s = n)."""


@runtime_checkable
class Method(Protocol):
    """A way to segment: what `Segmenter` needs of a model. `params` are its weights, handed to `encode` under jit."""

    params: Any
    image_size: int
    """The shorter side of the images that it is made for."""
    patch_size: int

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], renaming: Renaming | None) -> Encoding: ...


class StudentMethod:
    """A distilled student; nothing is masked. The teacher's image tower comes in only for renaming."""

    def __init__(self, student: Student, clip: ClipEncoder):
        self.student, self.config = student, student.config
        self._student, student_state = nnx.split(student)
        self._teacher, teacher_state = nnx.split(clip.model)
        self._normalise, self._teacher_size = clip.normalise, clip.model.config.vision.image_size
        self.params = {"student": student_state, "teacher": teacher_state}
        self.image_size, self.patch_size = student.config.image_size, student.config.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], renaming: Renaming | None) -> Encoding:
        pixels = images.astype(jnp.float32) / 255
        output = nnx.merge(self._student, params["student"])(pixels, reconstruct=False)
        embeddings = unit(output.segments)
        if renaming is None:
            return Encoding(embeddings, output.assignment)
        grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        size = images.shape[1], images.shape[2]
        boxes, present = segment_boxes(output.assignment, grid, size, renaming.margin)
        crops = self._normalise(crop_boxes(pixels, boxes, self._teacher_size))
        teacher = nnx.merge(self._teacher, params["teacher"])
        seen = unit(teacher.vision(crops.reshape(-1, *crops.shape[2:])).reshape(embeddings.shape))
        weight = jnp.where(present, renaming.weight, 0.0)[..., None]
        return Encoding(unit((1 - weight) * embeddings + weight * seen), output.assignment)


class DenseClipMethod:
    """MaskCLIP's training-free readout of a CLIP (`CLIP.dense`): each patch is a segment of its own."""

    def __init__(self, clip: ClipEncoder, image_size: int | None = None):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise = clip.normalise
        self.image_size = clip.model.config.vision.image_size if image_size is None else image_size
        self.patch_size = clip.model.config.vision.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], renaming: Renaming | None) -> Encoding:
        del renaming  # the teacher is the model itself
        dense = nnx.merge(self._clip, params).dense(self._normalise(images.astype(jnp.float32) / 255))
        return Encoding(unit(dense.reshape(dense.shape[0], -1, dense.shape[-1])), None)


class Labelled(NamedTuple):
    """Label maps at the size of the output."""

    label_map: Int32[Array, "b y x"]
    segments: Int32[Array, "b y x"]
    scores: Float[Array, "b s c"]
    """Cosine of each segment with each text."""
    probability: Float[Array, "b y x"] | None
    """Of the best label of each pixel; None without a threshold."""


class Texts(NamedTuple):
    """Text embeddings, padded so that lists of about the same length share one compiled function."""

    embeddings: Float[Array, "c d"]
    """Unit length: first the labels, then the prompts for background, then padding."""
    labels: Int[Array, ""]
    """How many are labels."""
    total: Int[Array, ""]
    """How many are labels or background."""
    scale: Float[Array, ""]
    """`Readout.scale`."""
    threshold: Float[Array, ""]
    """A pixel whose best label is less probable than this is background; 0 for none."""
    logit_scale: Float[Array, ""]
    """What cosines are multiplied with before the softmax of that probability."""


class Guide(NamedTuple):
    """Images whose edges the maps are to follow."""

    pixels: UInt8[Array | np.ndarray, "b y x 3"]
    small: UInt8[Array | np.ndarray, "b h w 3"]
    """The same at the size of the cells, `guided.CELLS` along the side of a patch."""


def label_pixels(
    encoding: Encoding,
    texts: Texts,
    guide: Guide | None,
    rows: Float[Array | np.ndarray, "b y h"],
    columns: Float[Array | np.ndarray, "b x w"],
    mix: Mix,
    threshold: bool,
    radius: float,
) -> Labelled:
    """Scores the segments, mixes the scores over the patches, enlarges them, and takes the best label of each pixel.

    `rows` and `columns` enlarge from patches to pixels (`enlarging`); being data, they allow an image size of its own
    to each image. With a `guide`, the enlarged maps follow its edges (`guided.fit` with a `radius` in patches), and
    `rows` and `columns` enlarge from its cells. `threshold` says whether `texts.threshold` counts. y must be a multiple
    of ROWS.
    """
    b, cells, y = encoding.embeddings.shape[0], (rows.shape[2], columns.shape[2]), rows.shape[1]
    side = CELLS if guide else 1
    grid = cells[0] // side, cells[1] // side
    cosines = jnp.einsum("bsd,cd->bsc", encoding.embeddings, texts.embeddings, precision="highest")
    known = jnp.arange(texts.embeddings.shape[0]) < texts.total
    # what is no text loses against all that is: a cosine is at least -1
    maps = {"score": jnp.where(known, _mix(encoding, cosines, texts, known, mix, texts.scale), -9.0)}
    if threshold:
        maps["probability"] = _mix(encoding, cosines, texts, known, mix, texts.logit_scale)
    if encoding.assignment is not None:
        maps["segment"] = encoding.assignment
    maps = {name: value.reshape(b, *grid, -1) for name, value in maps.items()}
    if guide:
        maps = {name: fit(_to_cells(value, cells), guide.small, side * radius) for name, value in maps.items()}
    wide = {name: jnp.einsum("bxw,bhwc->bhxc", columns, value) for name, value in maps.items()}
    column = jnp.argmax(columns, axis=-1)[:, None] // side

    def block(part: tuple[Array, ...]) -> tuple[Array, ...]:
        down, *colours = part
        large = {name: jnp.einsum("brh,bhxc->brxc", down, value) for name, value in wide.items()}
        if guide:
            large = {name: apply(value, *colours) for name, value in large.items()}
        best = _argmax(large["score"])
        labels = jnp.where(best < texts.labels, best, -1)
        probability: tuple[Array, ...] = ()
        if threshold:
            # a linear function of the colour may leave the range of what it was fitted to
            probability = (jnp.clip(large["probability"].max(axis=-1), 0, 1),)
            labels = jnp.where(probability[0] < texts.threshold, -1, labels)
        if encoding.assignment is not None:
            segments = _argmax(large["segment"])
        else:
            segments = jnp.argmax(down, axis=-1)[:, :, None] // side * grid[1] + column
        return labels.astype(jnp.int32), segments.astype(jnp.int32), *probability

    def by_rows(x: Array | np.ndarray) -> Array:
        return jnp.moveaxis(jnp.asarray(x).reshape(b, y // ROWS, ROWS, *x.shape[2:]), 1, 0)

    blocks = by_rows(rows), *([by_rows(guide.pixels)] if guide else [])
    labels, segments, *probability = (jnp.moveaxis(x, 0, 1).reshape(b, y, -1) for x in jax.lax.map(block, blocks))
    return Labelled(labels, segments, cosines, probability[0] if threshold else None)


def _argmax(x: Float[Array, "*b c"]) -> Int32[Array, "*b"]:
    """Index of the (first) largest along the last axis; on a CPU twice as fast as `jnp.argmax`."""
    indices = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.where(x == x.max(axis=-1, keepdims=True), indices, x.shape[-1]).min(axis=-1)


def _to_cells(maps: Float[Array, "b h w c"], cells: tuple[int, int]) -> Float[Array, "b y x c"]:
    down, across = (enlarging(n, m) for n, m in zip(maps.shape[1:3], cells, strict=True))
    return jnp.einsum("yh,xw,bhwc->byxc", down, across, maps)


def _mix(
    encoding: Encoding,
    cosines: Float[Array, "b s c"],
    texts: Texts,
    known: Bool[Array, " c"],
    mix: Mix,
    scale: Float[Array, ""],
) -> Float[Array, "b n c"]:
    """Scores of the patches: through the assignment map, or of the embeddings mixed through it."""
    assignment = encoding.assignment
    if mix == "embeddings" and assignment is not None:
        patches = unit(jnp.einsum("bns,bsd->bnd", assignment, encoding.embeddings, precision="highest"))
        cosines, assignment = jnp.einsum("bnd,cd->bnc", patches, texts.embeddings, precision="highest"), None
    probabilities = jax.nn.softmax(jnp.where(known, scale * cosines, -jnp.inf), axis=-1)
    scores = jnp.where(scale > 0, probabilities, cosines)
    if assignment is None:
        return scores
    return jnp.einsum("bns,bsc->bnc", assignment, scores, precision="highest")


def segment_boxes(
    assignment: Float[Array, "b n s"], grid: tuple[int, int], size: tuple[int, int], margin: float
) -> tuple[Float[Array, "b s 4"], Bool[Array, "b s"]]:
    """A square (in pixels) around each segment, and whether any patch is mostly its own.

    Boxes are [y0, x0, y1, x1] in fractions of an image of `size` (height, width), and leave out STRAY of the segment's
    mass on each side. They are moved inside the image, and cut off at a side that is shorter than they are. A segment
    without a patch of its own gets the whole image.
    """
    owner = jnp.argmax(assignment, axis=-1)
    present = (owner[..., None] == jnp.arange(assignment.shape[-1])).any(axis=1)
    mass = assignment.reshape(assignment.shape[0], *grid, -1)

    def extent(mass: Float[Array, "b m s"]) -> tuple[Array, Array]:
        share = mass / jnp.maximum(mass.sum(axis=1, keepdims=True), 1e-9)
        before = jnp.cumsum(share, axis=1) - share

        def quantile(q: float) -> Float[Array, "b s"]:
            # the part of each row (or column) that comes before the quantile
            return jnp.clip((q - before) / jnp.maximum(share, 1e-9), 0, 1).mean(axis=1)

        return quantile(STRAY), quantile(1 - STRAY)

    (top, bottom), (left, right) = extent(mass.sum(axis=2)), extent(mass.sum(axis=1))
    height, width = size
    side = jnp.maximum((bottom - top) * height, (right - left) * width) * (1 + 2 * margin)

    def place(start: Array, end: Array, pixels: int) -> tuple[Array, Array]:
        length = jnp.minimum(side / pixels, 1.0)
        start = jnp.clip((start + end - length) / 2, 0, 1 - length)
        return start, start + length

    (top, bottom), (left, right) = place(top, bottom, height), place(left, right, width)
    boxes = jnp.stack([top, left, bottom, right], axis=-1)
    return jnp.where(present[..., None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0])), present


def crop_boxes(
    images: Float[Array, "b y x 3"], boxes: Float[Array, "b s 4"], size: int
) -> Float[Array, "b s size size 3"]:
    """Cuts boxes out of each image and resizes them to `size`, antialiased bicubic, as `views.crop_views` does.

    Other than there each image has its own boxes, known only when the function runs.
    """
    rows = _resize_weights(boxes[..., 0], boxes[..., 2], images.shape[1], size)
    columns = _resize_weights(boxes[..., 1], boxes[..., 3], images.shape[2], size)
    crops = jnp.einsum("bsyh,bhwc->bsywc", rows, images, precision="highest")
    return jnp.clip(jnp.einsum("bsxw,bsywc->bsyxc", columns, crops, precision="highest"), 0, 1)


def _resize_weights(
    start: Float[Array, "b s"], end: Float[Array, "b s"], pixels: int, size: int
) -> Float[Array, "b s size pixels"]:
    scale = (end - start) * pixels / size
    centres = start[..., None] * pixels + (jnp.arange(size) + 0.5) * scale[..., None]
    t = jnp.abs(jnp.arange(pixels) + 0.5 - centres[..., None]) / jnp.maximum(scale, 1.0)[..., None, None]
    # Keys' kernel with a = -0.5
    weights = jnp.where(t < 1, (1.5 * t - 2.5) * t**2 + 1, jnp.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    return weights / weights.sum(axis=-1, keepdims=True)


def output_bucket(pixels: int) -> int:
    """A number of rows or columns, rounded up by at most an eighth to one of few, which are multiples of ROWS."""
    step = max(ROWS, 2 ** max(0, (pixels - 1).bit_length() - 4))
    return -(-pixels // step) * step


def enlarging(inputs: int, outputs: int, padded: int | None = None) -> Float[np.ndarray, "y h"]:
    """The linear map of a bilinear resize from `inputs` to `outputs` samples (centres aligned, border repeated).

    Rows beyond `outputs`, up to `padded`, are zero.
    """
    matrix = np.zeros((padded or outputs, inputs), np.float32)
    position = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    low = np.minimum(position.astype(int), max(inputs - 2, 0))
    share = position - low
    matrix[np.arange(outputs), low] = 1 - share
    if inputs > 1:
        matrix[np.arange(outputs), low + 1] = share
    return matrix
