"""What the same teacher shows without a student, and what colour alone would give: the rows beside every result.

The teacher's readouts are methods like any other (`segment.methods.Method`), so that they share the resizing, the
text embeddings and the enlargement to pixels with the student. Each is given the better of its variants on the very
images that are reported, which favours the baselines.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.distill.views import crop_views, grid_boxes, patch_weights
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark, Scenes
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.protocol import DEFAULT, EvaluationProtocol, Predict, Prediction
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.models.siglip import Siglip
from zeroseg_jax.models.student import Student
from zeroseg_jax.ops.normalise import unit
from zeroseg_jax.segment.methods import DenseClipMethod, Encoding, Method, StudentMethod
from zeroseg_jax.segment.options import ModelOptions, Options
from zeroseg_jax.segment.segmenter import Segmenter

BASELINES = ("maskclip", "cells", "windows", "untrained", "colours")
"""What `eval.baselines` may hold: the teacher's dense readout, its 3x3 cells, its sliding windows, the student before
training, and (scenes only) the privileged colour rules."""

COLOUR_SCENES = 1000
"""Training scenes that the colour rules are fitted to."""

CELLS = 24
"""Views are painted on so many cells across the shorter side: edges of thirds, quarters and twelfths fall on theirs."""


Boxes = Callable[[int, int], Float[np.ndarray, "v 4"]]
"""(height, width) -> views of an image of that size: [y0, x0, y1, x1] in fractions of it."""


def cells(grid: int) -> Boxes:
    """The cells of a grid."""
    return lambda height, width: grid_boxes((grid,))


# Chosen on 100 validation scenes as the strongest for the teacher: mIoU 51.9 with 147 windows. The same shares, all a
# twelfth apart (230 windows), gave 51.6, without the quarters 50.1, and alone 1/2 41.6, 5/12 48.5, 1/3 46.2, 1/4 36.3.
WINDOWS = ((1 / 2, 1 / 12), (1 / 3, 1 / 9), (1 / 4, 1 / 8))


def windows(sizes: Sequence[tuple[float, float]] = WINDOWS) -> Boxes:
    """Overlapping squares: for each (share, stride), of that share of the shorter side and at most that far apart."""

    def boxes(height: int, width: int) -> Float[np.ndarray, "v 4"]:
        short, found = min(height, width), []
        for share, stride in sizes:
            side = share * short
            rows, columns = (
                np.linspace(0, pixels - side, int(np.ceil((pixels - side) / (stride * short) - 1e-6)) + 1)
                for pixels in (height, width)
            )
            found += [(y, x, y + side, x + side) for y in rows for x in columns]
        return np.minimum(np.array(found) / (height, width, height, width), 1.0)

    return boxes


class PaintedViews:
    """The teacher's embedding of each view counts for all of the image inside it; where views overlap, the mean."""

    readouts: tuple[str, ...] = ()

    def __init__(self, clip: DualEncoder, image_size: int, boxes: Boxes):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise, self._size, self._boxes = clip.normalise, clip.model.config.vision.image_size, boxes
        self.patch_size = max(1, round(image_size / CELLS))
        self.image_size = image_size // self.patch_size * self.patch_size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        height, width = images.shape[1:3]
        boxes = self._boxes(height, width)

        # few views at a time: they fit a CPU's cache, and no image has more than the memory holds
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
    """MaskCLIP's readout of each cell of a grid, enlarged to the teacher's input size, set together again."""

    readouts: tuple[str, ...] = ()

    def __init__(self, clip: ClipEncoder, tiles: int = 3):
        self._clip, self.params = nnx.split(clip.model)
        self._normalise, self._size = clip.normalise, clip.model.config.vision.image_size
        self.tiles, self.patch_size = tiles, clip.model.config.vision.patch_size
        self.image_size = tiles * self._size

    def encode(self, params: Any, images: UInt8[Array, "b y x 3"], options: ModelOptions) -> Encoding:
        height, width = images.shape[1:3]
        # as many tiles of the teacher's size as the image holds, at least `tiles` a side
        down, across = (max(self.tiles, n // self._size) for n in (height, width))
        boxes = np.array(
            [(i / down, j / across, (i + 1) / down, (j + 1) / across) for i in range(down) for j in range(across)]
        )
        rows, columns = height // self.patch_size, width // self.patch_size
        pixels = images.astype(jnp.float32) / 255

        def dense(image: Float[Array, "y x 3"]) -> Float[Array, "n d"]:
            views = self._normalise(crop_views(image[None], boxes, self._size)[0])
            found = nnx.merge(self._clip, params).dense(views)
            g, d = found.shape[1], found.shape[-1]
            whole = found.reshape(down, across, g, g, d).swapaxes(1, 2).reshape(down * g, across * g, d)
            return jax.image.resize(unit(whole), (rows, columns, d), "linear").reshape(-1, d)

        return Encoding(unit(jax.lax.map(dense, pixels)), None)


def untrained(model: Segmenter, seed: int = 1) -> Segmenter:
    """The student of `model` before training, from another seed; an encoder that is a CLIP tower is the teacher's."""
    method = model.method
    assert isinstance(method, StudentMethod)
    state = jax.jit(lambda: nnx.state(Student(method.config, rngs=nnx.Rngs(seed))))()
    if method.config.tower is not None:
        state["encoder"]["tower"] = nnx.state(model.clip.model.vision_tower)
    place = jax.tree.map(lambda leaf: leaf.sharding, method.params["student"])
    return model.with_params(method.params | {"student": jax.device_put(state, place)})


class ColourRules:
    """Privileged rules that know the masks of training images and see nothing but the colour of each pixel.

    They say how far colour alone goes: a benchmark that they solve shows nothing about recognition.
    """

    def __init__(self, classes: int, levels: int = 16):
        self.classes, self.levels = classes, levels
        self._sums, self._pixels = np.zeros((classes, 3)), np.zeros(classes)
        self._table = np.zeros((levels**3, classes), np.int64)

    def fit(self, examples: Iterable[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]) -> "ColourRules":
        """Adds images with their masks."""
        for image, mask in examples:
            counted = mask != IGNORE
            colours, labels = image[counted], mask[counted].astype(np.int64)
            self._pixels += np.bincount(labels, minlength=self.classes)
            for channel in range(3):
                self._sums[:, channel] += np.bincount(labels, colours[:, channel], minlength=self.classes)
            cells = self._bins(colours) * self.classes + labels
            self._table += np.bincount(cells, minlength=self._table.size).reshape(self._table.shape)
        return self

    def nearest(self, image: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        """The class whose mean colour is nearest to the pixel's."""
        # a class that was never seen is infinitely far
        means = np.where(self._pixels[:, None] > 0, self._sums / np.maximum(self._pixels, 1)[:, None], np.inf)
        return self._nearest(image.reshape(-1, 3), means).reshape(image.shape[:2])

    def likeliest(self, image: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        """The class most frequent among training pixels of (about) this colour; where there are none, the nearest."""
        bins = self._bins(image.reshape(-1, 3))
        best = self._table.argmax(axis=1).astype(np.int32)[bins].reshape(image.shape[:2])
        unseen = (self._table.sum(axis=1) == 0)[bins].reshape(image.shape[:2])
        return np.where(unseen, self.nearest(image), best) if unseen.any() else best

    def _bins(self, colours: UInt8[np.ndarray, "n 3"]) -> np.ndarray:
        steps = colours.astype(np.int64) * self.levels // 256
        return (steps[:, 0] * self.levels + steps[:, 1]) * self.levels + steps[:, 2]

    def _nearest(self, colours: np.ndarray, means: Float[np.ndarray, "c 3"]) -> Int32[np.ndarray, " n"]:
        seen: Sequence[int] = np.flatnonzero(np.isfinite(means[:, 0])).tolist()
        known = means[seen].astype(np.float32)
        # |x - m|^2 without |x|^2, which is the same for all classes
        distance = (known**2).sum(axis=1) - 2 * colours.astype(np.float32) @ known.T
        return np.array(seen, np.int32)[distance.argmin(axis=1)]


def check_baselines(options: ConfigDict) -> None:
    """Raises InputError where `options.baselines` names one that does not exist."""
    for name in options.baselines:
        if name not in BASELINES:
            raise InputError(f"eval.baselines holds {name!r}; it may hold {', '.join(BASELINES)}")


def make_baselines(
    model: Segmenter, benchmark: Benchmark, protocol: EvaluationProtocol, options: ConfigDict
) -> dict[str, Predict]:
    """The baselines that `options.baselines` names, each with what it predicts."""
    check_baselines(options)
    clip, own, asked = model.clip, model.clip.model.config.vision.image_size, model.method
    size = max(asked.image_size, 3 * own)  # so that cells and windows are no enlarged ones
    scale = clip.logit_scale
    found: dict[str, Predict] = {}

    def readouts(kind: str, method: Method) -> Predict:
        """Both ways to average the overlapping or interpolated answers of the teacher."""
        kinds = {f"{kind}, mean cosine": {"scale": 0.0}, f"{kind}, mean probability": {"scale": scale}}
        # their cells and windows are shares of the whole image, and so is the radius of the filter
        share = asked.patch_size / asked.image_size * method.image_size / method.patch_size
        prompts = model.options.normalise_prompts
        readout = "maskclip" if method.readouts else ""
        whole = Options(slide=0.0, guide=model.options.guide * share, normalise_prompts=prompts, readout=readout)
        return protocol.predictor(Segmenter(method, clip, templates=protocol.templates, options=whole), kinds)

    if "maskclip" in options.baselines and isinstance(clip, ClipEncoder):  # a GroupViT has no such readout
        dense: dict[str, Method] = {
            "1x": DenseClipMethod(clip),
            "3x": DenseClipMethod(clip, 3 * own),
            "3x3 tiles": TiledDenseClip(clip, 3),
        }
        name = "pooling head's readout" if isinstance(clip.model, Siglip) else "MaskCLIP readout"
        found[name] = merge([readouts(kind, method) for kind, method in dense.items()])
    if "cells" in options.baselines:
        found["painted 3x3 cells"] = readouts("3x3", PaintedViews(clip, size, cells(3)))
    if "windows" in options.baselines:
        found["sliding windows"] = readouts("1/2, 1/3 and 1/4", PaintedViews(clip, size, windows()))
    if model.options.rename:
        alone = Segmenter(model.method, clip, options=dataclasses.replace(model.options, rename=""))
        found["student, not renamed"] = protocol.predictor(alone)
    if "untrained" in options.baselines and isinstance(model.method, StudentMethod):
        found["untrained student"] = protocol.predictor(untrained(model))
    if "colours" in options.baselines and isinstance(benchmark, Scenes):
        rules = fit_colours(options)
        found["nearest class colour (privileged)"] = by_pixels(rules.nearest)
        found["likeliest class of the colour (privileged)"] = by_pixels(rules.likeliest)
    return found


def fit_colours(options: ConfigDict) -> ColourRules:
    """The colour rules, fitted to training scenes and their masks."""
    training = Scenes(options.root, options.dataset.partition("/")[2] or "default", "train", COLOUR_SCENES)
    return ColourRules(len(training.classes)).fit(training[i][:2] for i in range(len(training)))


def merge(parts: Sequence[Predict]) -> Predict:
    """One way to segment with the variants of several."""
    return lambda images, device: {name: maps for part in parts for name, maps in part(images, device).items()}


def by_pixels(rule: Callable[[UInt8[np.ndarray, "h w 3"]], Int32[np.ndarray, "h w"]]) -> Predict:
    """A rule of numpy, which needs no device."""
    return lambda images, device: {DEFAULT: [Prediction(rule(image)) for image in images]}
