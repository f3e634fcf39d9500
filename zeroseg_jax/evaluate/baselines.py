"""The baselines of an evaluation: readouts of the same teacher without a student, the untrained student, and colours.

The teacher's readouts are methods like any other (`segment.methods.Method`). They share resizing, text embeddings and
enlargement with the student. Each is reported by its best variant on the evaluated images, which favours it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.distill.views import crop_views, grid_boxes, patch_weights
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark, Scenes
from zeroseg_jax.evaluate.colour_rules import fit_colours, predict_by_pixels
from zeroseg_jax.evaluate.protocol import EvaluationProtocol, Predict
from zeroseg_jax.models.clip import CLIP
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.models.readouts import READOUTS
from zeroseg_jax.models.siglip import Siglip
from zeroseg_jax.models.student import Student
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.segment.methods import DenseClipMethod, Encoding, Method, StudentMethod
from zeroseg_jax.segment.options import ModelOptions, Options
from zeroseg_jax.segment.segmenter import Segmenter

BASELINES = (*READOUTS, "cells", "windows", "untrained", "colours")
"""What `eval.baselines` may hold: readouts of the teacher, its 3x3 cells, its sliding windows, the student before
training, and (scenes only) the privileged colour rules."""

TITLES = {
    "maskclip": "MaskCLIP readout",
    "sclip": "SCLIP readout",
    "clearclip": "ClearCLIP readout",
    "naclip": "NACLIP readout",
    "pearl": "PEARL readout",
    "sc_clip": "SC-CLIP readout",
}
"""Titles of the readouts in tables and in results.json."""
SIGLIP_TITLE = "pooling head's readout"
"""Title of a SigLIP's only readout, `maskclip`."""
CELLS_TITLE, WINDOWS_TITLE = "painted 3x3 cells", "sliding windows"

DESCRIPTIONS = {
    **{title: "The teacher by itself: a training-free readout of its patches." for title in TITLES.values()},
    SIGLIP_TITLE: "The teacher by itself: each of its patches goes through the pooling head alone.",
    CELLS_TITLE: "The teacher by itself: the label of each cell of a 3x3 grid, painted on the cell.",
    WINDOWS_TITLE: "The teacher by itself: the mean over square windows of three sizes that slide over the image.",
    "student, not renamed": "The student alone. In the row of this model the teacher looked at each segment once more.",
    "untrained student": "The student before training.",
    "nearest class colour (privileged)": "No model: the class with the nearest mean colour, fitted on masks.",
    "likeliest class of the colour (privileged)": "No model: the likeliest class of each colour, fitted on masks.",
}
"""What each baseline is, by its title, for the report."""

CELLS = 24
"""Cells across the shorter side on which views are painted: thirds, quarters and twelfths are whole numbers of them."""


Boxes = Callable[[int, int], Float[np.ndarray, "v 4"]]
"""(height, width) -> views of an image of that size, [y0, x0, y1, x1] as fractions of it."""


def cells(grid: int) -> Boxes:
    """The cells of a grid."""
    return lambda height, width: grid_boxes((grid,))


# Chosen on 100 validation scenes as the strongest for the teacher: mIoU 51.9 with 147 windows. The same shares, all a
# twelfth apart (230 windows), gave 51.6, without the quarters 50.1, and alone 1/2 41.6, 5/12 48.5, 1/3 46.2, 1/4 36.3.
WINDOWS = ((1 / 2, 1 / 12), (1 / 3, 1 / 9), (1 / 4, 1 / 8))


def windows(sizes: Sequence[tuple[float, float]] = WINDOWS) -> Boxes:
    """Overlapping squares. Each (share, stride) gives their side and their largest distance as shares of the shorter
    side."""

    def boxes(height: int, width: int) -> Float[np.ndarray, "v 4"]:
        short, squares = min(height, width), []
        for share, stride in sizes:
            side = share * short
            rows, columns = (
                np.linspace(0, pixels - side, int(np.ceil((pixels - side) / (stride * short) - 1e-6)) + 1)
                for pixels in (height, width)
            )
            squares += [(y, x, y + side, x + side) for y in rows for x in columns]
        return np.minimum(np.array(squares) / (height, width, height, width), 1.0)

    return boxes


class PaintedViews:
    """Each pixel has the mean over the teacher's embeddings of the views that it lies in."""

    readouts: tuple[str, ...] = ()

    def __init__(self, clip: DualEncoder, image_size: int, boxes: Boxes):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise, self._size, self._boxes = clip.normalise, clip.model.config.vision.image_size, boxes
        self.patch_size = max(1, round(image_size / CELLS))
        self.image_size = image_size // self.patch_size * self.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        height, width = images.shape[1:3]
        boxes = self._boxes(height, width)

        # Few views at a time, to bound the memory.
        part = max((n for n in range(8, 33) if len(boxes) % n == 0), default=len(boxes))

        def embed(image: UInt8[Array, "y x 3"]) -> Float[Array, "v d"]:
            views = crop_views(image[None].astype(jnp.float32) / 255, boxes, self._size)[0]
            parts = self._normalise(views).reshape(-1, part, *views.shape[1:])
            embeddings = jax.lax.map(lambda x: nnx.merge(self._clip, params).vision(x), parts)
            return unit(embeddings.reshape(len(boxes), -1))

        embeddings = jax.lax.map(embed, images)
        inside = patch_weights(boxes, (height // self.patch_size, width // self.patch_size)).T
        shares = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1e-9)
        return Encoding(embeddings, jnp.broadcast_to(shares, (len(images), *shares.shape)))


class TiledDenseClip:
    """MaskCLIP's readout of each cell of a grid, enlarged to the teacher's input size and put together again."""

    readouts: tuple[str, ...] = ()

    def __init__(self, clip: ClipEncoder, tiles: int = 3):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise, self._size = clip.normalise, clip.model.config.vision.image_size
        self.tiles, self.patch_size = tiles, clip.model.config.vision.patch_size
        self.image_size = tiles * self._size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        height, width = images.shape[1:3]
        # At least `tiles` a side, and more for an image that holds more of the teacher's input size.
        down, across = (max(self.tiles, n // self._size) for n in (height, width))
        boxes = np.array(
            [(i / down, j / across, (i + 1) / down, (j + 1) / across) for i in range(down) for j in range(across)]
        )
        rows, columns = height // self.patch_size, width // self.patch_size
        pixels = images.astype(jnp.float32) / 255

        def dense(image: Float[Array, "y x 3"]) -> Float[Array, "n d"]:
            views = self._normalise(crop_views(image[None], boxes, self._size)[0])
            tokens = nnx.merge(self._clip, params).dense(views)
            g, d = tokens.shape[1], tokens.shape[-1]
            whole = tokens.reshape(down, across, g, g, d).swapaxes(1, 2).reshape(down * g, across * g, d)
            return jax.image.resize(unit(whole), (rows, columns, d), "linear").reshape(-1, d)

        return Encoding(unit(jax.lax.map(dense, pixels)), None)


def untrained(model: Segmenter, seed: int = 1) -> Segmenter:
    """The student of `model` before training, from another seed.

    An encoder that is a CLIP tower has the teacher's weights, and so has the projection of mask class tokens.
    """
    method = model.method
    assert isinstance(method, StudentMethod)
    student = nnx.jit(lambda: Student(method.config, rngs=nnx.Rngs(seed)))()
    if method.config.tower is not None:
        assert isinstance(model.clip.model, CLIP)
        student.copy_from_teacher(model.clip.model)
    place = jax.tree.map(lambda leaf: leaf.sharding, method.params["student"])
    return model.with_params(method.params | {"student": jax.device_put(nnx.state(student), place)})


def check_baselines(options: ConfigDict) -> None:
    """Raises InputError if `options.baselines` names a baseline that does not exist."""
    for name in options.baselines:
        if name not in BASELINES:
            raise InputError(f"eval.baselines holds {name!r}; it may hold {', '.join(BASELINES)}")


def make_baselines(
    model: Segmenter, benchmark: Benchmark, protocol: EvaluationProtocol, options: ConfigDict
) -> dict[str, Predict]:
    """The baselines that `options.baselines` names, by their titles, without those that the teacher does not have."""
    check_baselines(options)
    names, clip = options.baselines, model.clip
    input_size = clip.model.config.vision.image_size
    baselines: dict[str, Predict] = {}
    for name in READOUTS:
        if name in names and isinstance(clip, ClipEncoder) and name in clip.model.readouts:
            title = SIGLIP_TITLE if isinstance(clip.model, Siglip) else TITLES[name]
            baselines[title] = readout_baseline(name, model, clip, protocol)
    # Large enough that no view is enlarged.
    size = max(model.method.image_size, 3 * input_size)
    if "cells" in names:
        method = PaintedViews(clip, size, cells(3))
        baselines[CELLS_TITLE] = averaged(method, "3x3", model, protocol)
    if "windows" in names:
        method = PaintedViews(clip, size, windows())
        baselines[WINDOWS_TITLE] = averaged(method, "1/2, 1/3 and 1/4", model, protocol)
    if model.options.rename:
        alone = Segmenter(model.method, clip, options=dataclasses.replace(model.options, rename=""))
        baselines["student, not renamed"] = protocol.predictor(alone)
    if "untrained" in names and isinstance(model.method, StudentMethod):
        baselines["untrained student"] = protocol.predictor(untrained(model))
    if "colours" in names and isinstance(benchmark, Scenes):
        rules = fit_colours(options)
        baselines["nearest class colour (privileged)"] = predict_by_pixels(rules.nearest)
        baselines["likeliest class of the colour (privileged)"] = predict_by_pixels(rules.likeliest)
    return baselines


def best_of_teacher(baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The titles of the teacher's best baselines: `best` of all, and `best_readout` of its training-free readouts.

    `baselines` are the figures of an evaluation by title, as in results.json. A student beats its teacher only if it
    beats the best. Baselines that were not evaluated are left out, so the result may be empty.
    """
    readouts = [title for title in (*TITLES.values(), SIGLIP_TITLE) if title in baselines]
    all_titles = [*readouts, *(title for title in (CELLS_TITLE, WINDOWS_TITLE) if title in baselines)]
    candidates = {"best": all_titles, "best_readout": readouts}
    return {
        key: max(titles, key=lambda title: baselines[title]["miou"]) for key, titles in candidates.items() if titles
    }


def readout_baseline(name: str, model: Segmenter, clip: ClipEncoder, protocol: EvaluationProtocol) -> Predict:
    """A readout of the teacher in several variants.

    MaskCLIP's sees the whole image at the teacher's input size and at three times that, and tiles of it. The others see
    it at twice the input size, in windows of the input size that overlap by half, as in SCLIP's protocol. Those have
    each variant with and without the guided filter, if the model uses the filter.
    """
    side, patch = clip.model.config.vision.image_size, clip.model.config.vision.patch_size
    if name != "maskclip":
        stride = max(1, side // 2 // patch) * patch
        return averaged(
            DenseClipMethod(clip, 2 * side), "2x windows", model, protocol, name, side, stride, unfiltered=True
        )
    methods: dict[str, Method] = {
        "1x": DenseClipMethod(clip),
        "3x": DenseClipMethod(clip, 3 * side),
        "3x3 tiles": TiledDenseClip(clip, 3),
    }
    return merged([averaged(method, title, model, protocol, name) for title, method in methods.items()])


def averaged(
    method: Method,
    title: str,
    model: Segmenter,
    protocol: EvaluationProtocol,
    readout: str = "",
    window: int = 0,
    stride: int = 0,
    unfiltered: bool = False,
) -> Predict:
    """A method of the teacher in two variants: overlapping views are averaged as cosines or as probabilities.

    With `unfiltered` both are there without the guided filter too. An image is encoded once for all variants.
    """
    # The radius of the filter stays the same share of the image.
    student = model.method
    share = student.patch_size / student.image_size * method.image_size / method.patch_size
    guide = model.options.guide * share
    filters = {"": guide, ", no filter": 0.0} if unfiltered and guide else {"": guide}
    scales = {"mean cosine": 0.0, "mean probability": model.clip.logit_scale}
    variants = {
        f"{title}, {name}{suffix}": {"scale": scale, "guide": radius}
        for suffix, radius in filters.items()
        for name, scale in scales.items()
    }
    options = Options(
        flip=model.options.flip,
        slide=0.0,
        normalise_prompts=model.options.normalise_prompts,
        readout=readout if method.readouts else "",
        window=window,
        stride=stride,
    )
    return protocol.predictor(Segmenter(method, model.clip, templates=protocol.templates, options=options), variants)


def merged(parts: Sequence[Predict]) -> Predict:
    """One `Predict` with the variants of several."""
    return lambda images, device: {name: maps for part in parts for name, maps in part(images, device).items()}
