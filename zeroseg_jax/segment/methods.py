"""From images to the embeddings of segments. Each kind of model has a method, a pure function for `jax.jit`.

b images, n patches, s segments, d the width of CLIP's space. An image is encoded once, without labels. The labels
are used in `labelling`, so other labels for the same image cost little.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.groupvit_encoder import GroupViTEncoder
from zeroseg_jax.models.readouts import default_readout
from zeroseg_jax.models.student import Student
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment.options import ModelOptions

STRAY = 0.07
"""Share of a segment's mass outside its box, on each side. A few stray patches would make the box far too large.
Chosen on validation scenes: mIoU 66.4 after renaming, against 63.5 for boxes around all patches."""


class Encoding(NamedTuple):
    """The output of a method for a batch of images. It does not depend on labels."""

    embeddings: Float[Array | np.ndarray, "*b s d"]
    """The embedding of each segment in CLIP's space, of unit length."""
    assignment: Float[Array | np.ndarray, "*b n s"] | None
    """The share of each patch in each segment. None if every patch is a segment (s = n)."""
    image: Float[Array | np.ndarray, "*b d"] | None = None
    """The embedding of the whole image, of unit length. None if the method has none."""


@runtime_checkable
class Method(Protocol):
    """What `Segmenter` needs from a model. `params` are the weights. They are an argument of `encode`."""

    params: Any
    image_size: int
    """The shorter side of the images that the model is made for."""
    patch_size: int
    readouts: tuple[str, ...]
    """The values that `Options.readout` may have. () for a model that is not a CLIP."""

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding: ...


class StudentMethod:
    """A distilled student, which sees all patches. The teacher's image tower is only used for renaming."""

    readouts: tuple[str, ...] = ()

    def __init__(self, student: Student, clip: ClipEncoder):
        self.student, self.config = student, student.config
        self._student, student_state = nnx.split(student)
        self._teacher, teacher_state = nnx.split(clip.model)
        self._normalise, self._teacher_size = clip.normalise, clip.model.config.vision.image_size
        self.params = {"student": student_state, "teacher": teacher_state}
        self.image_size, self.patch_size = student.config.image_size, student.config.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        pixels = images.astype(jnp.float32) / 255
        output = nnx.merge(self._student, params["student"])(pixels, reconstruct=False)
        embeddings, whole = unit(output.segments), unit(output.image)
        if not options.rename:
            return Encoding(embeddings, output.assignment, whole)
        grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        size = images.shape[1], images.shape[2]
        boxes, present = segment_boxes(output.assignment, grid, size, options.rename_margin)
        crops = self._normalise(crop_boxes(pixels, boxes, self._teacher_size))
        teacher = nnx.merge(self._teacher, params["teacher"])
        renamed = unit(teacher.vision(crops.reshape(-1, *crops.shape[2:])).reshape(embeddings.shape))
        weight = jnp.where(present, options.rename_weight, 0.0)[..., None]
        return Encoding(unit((1 - weight) * embeddings + weight * renamed), output.assignment, whole)


class DenseClipMethod:
    """A CLIP or SigLIP with one of its training-free readouts (`models.readouts`). Each patch is a segment."""

    def __init__(self, clip: ClipEncoder, image_size: int | None = None):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise = clip.normalise
        self.image_size = clip.model.config.vision.image_size if image_size is None else image_size
        self.patch_size = clip.model.config.vision.patch_size
        self.readouts = clip.model.readouts

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        readout = options.readout or default_readout(self.readouts)
        dense = nnx.merge(self._clip, params).dense(self._normalise(images.astype(jnp.float32) / 255), readout)
        return Encoding(unit(dense.reshape(dense.shape[0], -1, dense.shape[-1])), None)


class GroupViTMethod:
    """The segment tokens of a GroupViT's last stage, and the product of the soft maps of its stages.

    This is the `output_segmentation` of transformers. The authors' evaluation differs: `Options(rule="groupvit")`.
    """

    readouts: tuple[str, ...] = ()

    def __init__(self, encoder: GroupViTEncoder):
        self._model, self.params = nnx.split(encoder.model)
        self._normalise = encoder.normalise
        self.image_size = encoder.model.config.vision.image_size
        self.patch_size = encoder.model.config.vision.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        pixels = self._normalise(images.astype(jnp.float32) / 255)
        output = nnx.merge(self._model, params).segments(pixels)
        return Encoding(unit(output.segments), output.assignment, unit(output.image))


def segment_boxes(
    assignment: Float[Array, "b n s"], grid: tuple[int, int], size: tuple[int, int], margin: float
) -> tuple[Float[Array, "b s 4"], Bool[Array, "b s"]]:
    """A square (in pixels) around each segment, and whether the segment has the largest share of some patch.

    Boxes are [y0, x0, y1, x1] in fractions of an image of `size` (height, width). On each side, STRAY of the segment's
    mass is outside. Boxes are moved inside the image. A box that is longer than a side of the image is cut. A segment
    that has the largest share of no patch gets the whole image.
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

    But here each image has other boxes, which are known only when the function runs.
    """
    rows = resize_matrix(images.shape[1], size, boxes[..., 0], boxes[..., 2], kernel="bicubic", antialias=True)
    columns = resize_matrix(images.shape[2], size, boxes[..., 1], boxes[..., 3], kernel="bicubic", antialias=True)
    crops = jnp.einsum("bsyh,bhwc->bsywc", rows, images, precision="highest")
    return jnp.clip(jnp.einsum("bsxw,bsywc->bsyxc", columns, crops, precision="highest"), 0, 1)
