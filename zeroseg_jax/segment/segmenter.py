"""`Segmenter`: a model that segments images by words, whatever its method."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8
from PIL import Image

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.batching import padded, parts
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.segment.batches import BATCHES, chunks, pad_texts, split
from zeroseg_jax.segment.function import make_function
from zeroseg_jax.segment.guided import CELLS
from zeroseg_jax.segment.images import ImageLike, to_pixels, to_pixels_list
from zeroseg_jax.segment.inference import (
    Encoding,
    Guide,
    Labelled,
    Method,
    Texts,
    enlarging,
    label_pixels,
    output_bucket,
)
from zeroseg_jax.segment.prompts import (
    Background,
    Templates,
    check_background,
    check_labels,
    embed_labels,
    resolve_templates,
)
from zeroseg_jax.segment.readout import ENCODING, Readout, change
from zeroseg_jax.segment.result import SegmentResult
from zeroseg_jax.segment.windows import Layout, encode_view, lay_out, merge


@dataclass(frozen=True)
class EncodedImage:
    """An image that went through the model once; `segment` costs only the labels' part."""

    pixels: UInt8[np.ndarray, "h w 3"]
    embeddings: Float32[np.ndarray, "s d"]
    """Each segment in CLIP's space, unit length."""
    assignment: Float32[np.ndarray, "n s"] | None
    """Share of each patch in each segment, row-major; None where every patch is a segment of its own."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    _segmenter: "Segmenter"

    def segment(
        self,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> SegmentResult:
        """As `Segmenter.segment`; `options` are those that do not count for encoding: `mix`, `scale` and `guide`."""
        for name in options:
            if name in ENCODING:
                raise InputError(f"{name} counts when an image is encoded; give it to encode instead of to segment")
        return self._segmenter.label([self], labels, templates=templates, background=background, **options)[0]


class Segmenter:
    """Segments images by labels that are given as words. `zeroseg_jax.load` makes one.

    `templates` and `readout` are the defaults of its methods; `clip` embeds the labels; `about` is what its model card
    says of its teacher, its training and its results.

    Images of any size are resized to the model's (`windows.lay_out`: the shorter side is the model's own, the longer
    one of a few steps; long images become overlapping windows), in batches of 1, 4 or 16, and everything is compiled
    once for each such shape, for each of a few steps of the number of labels, and likewise of the output's size. Label
    maps have the size of the image.
    """

    def __init__(
        self,
        method: Method,
        clip: DualEncoder,
        *,
        templates: Templates = "photo",
        readout: Readout | None = None,
        about: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.method, self.clip = method, clip
        self.templates, self.readout = resolve_templates(templates), readout or Readout()
        self.about = about
        self._texts: dict[tuple[tuple[str, ...], tuple[str, ...]], np.ndarray] = {}
        self._meanings: dict[str, tuple[str, ...]] = {}
        self._encode = jax.jit(functools.partial(encode_view, method), static_argnums=(2, 3))
        self._merge = jax.jit(_merge_windows, static_argnums=1)
        self._label = jax.jit(label_pixels, static_argnums=(5, 6, 7))
        self.logit_scale = min(float(np.exp(clip.model.logit_scale[...])), 100.0)

    def segment(
        self,
        image: ImageLike,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> SegmentResult:
        """Segments one image.

        Args:
            image: a path, the bytes of a file, a PIL image, or an array (uint8, or float in [0, 1]) of any size.
            labels: different, non-empty texts.
            templates: prompts that each label is put into; see `prompts.TEMPLATES`. None: the model's default.
            background: what becomes -1 in `label_map`; see `Background`.
            options: fields of `readout.Readout` that differ from the model's defaults, such as rename="teacher".

        Raises:
            InputError: labels, templates or an image that cannot be used.
        """
        self.check(labels, templates=templates, background=background, **options)
        encoded = [self.encode(image, **_of_encoding(options))]
        return self.label(encoded, labels, templates=templates, background=background, **options)[0]

    def segment_batch(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> list[SegmentResult]:
        """Segments several images, of any sizes, as `segment` does."""
        self.check(labels, templates=templates, background=background, **options)
        encoded = self.encode_batch(images, **_of_encoding(options))
        return self.label(encoded, labels, templates=templates, background=background, **options)

    def segment_fn(
        self,
        image_size: int | tuple[int, int],
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> Callable[[UInt8[Array | np.ndarray, "b y x 3"]], Int32[Array, "b y x"]]:
        """The whole of `segment` as one jitted function: uint8 (B, H, W, 3) -> int32 (B, H, W), for one (H, W).

        Where `image_size` is not the model's own size it resizes on the device, without rounding to uint8 between, so
        that single pixels may differ from `segment`'s.
        """
        readout = change(self.readout, options)
        texts, threshold = self._texts_of(labels, templates, background, readout.scale)
        run = make_function(self.method, image_size, readout, threshold)
        return functools.partial(jax.jit(run), self.method.params, texts)

    def encode(self, image: ImageLike, **options: Any) -> EncodedImage:
        """Runs the model on one image, so that it can be asked for many labels.

        `options` are fields of `Readout` that count here: those in `readout.ENCODING`.
        """
        return self._encode_pixels([to_pixels(image)], change(self.readout, options))[0]

    def encode_batch(self, images: Sequence[ImageLike] | np.ndarray, **options: Any) -> list[EncodedImage]:
        """`encode` for several images, of any sizes."""
        pixels, readout = to_pixels_list(images), change(self.readout, options)
        layouts = [self._lay_out(p.shape, readout) for p in pixels]
        found: dict[int, EncodedImage] = {}
        for layout in sorted(set(layouts)):
            indices = [i for i, own in enumerate(layouts) if own == layout]
            found.update(zip(indices, self._encode_pixels([pixels[i] for i in indices], readout), strict=True))
        return [found[i] for i in range(len(pixels))]

    def embed_labels(self, labels: Sequence[str], templates: Templates | None = None) -> Float[np.ndarray, "c d"]:
        """Unit-length embeddings of the labels, float32; remembered for each (labels, templates)."""
        names = check_labels(labels)
        found = self.templates if templates is None else resolve_templates(templates)
        if (names, found) not in self._texts:
            meanings = [self._meanings.get(name, (name,)) for name in names]
            embeddings = embed_labels(self.clip, [phrase for phrases in meanings for phrase in phrases], found)
            if len(embeddings) > len(names):
                starts = np.cumsum([0, *(len(phrases) for phrases in meanings[:-1])])
                embeddings = np.add.reduceat(embeddings, starts)
                embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
            self._texts[names, found] = embeddings
        return self._texts[names, found]

    def define(self, label: str, phrases: Sequence[str]) -> None:
        """Lets `label` stand for several phrases from now on: its embedding is the unit mean of theirs."""
        phrases = check_labels(phrases, "phrase")
        if self._meanings.get(label) != phrases:
            self._meanings[label] = phrases
            self._texts.clear()

    def check(
        self,
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> None:
        """Raises the InputError of bad words or options before any image is encoded; the words are embedded."""
        self._texts_of(labels, templates, background, change(self.readout, options).scale)

    def label(
        self,
        images: Sequence[EncodedImage],
        labels: Sequence[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> list[SegmentResult]:
        """The second half of `segment_batch`: labels for encoded images."""
        readout = change(self.readout, options)
        texts, threshold = self._texts_of(labels, templates, background, readout.scale)
        texts = pad_texts(texts)
        names, found = list(labels), {}
        for indices, size in chunks([(*image.grid, len(image.embeddings)) for image in images]):
            chunk = [images[i] for i in indices]
            output: Sequence[Any] = self._label_chunk(chunk, size, texts, threshold, readout)
            output = [maps for maps in output if maps is not None]  # probabilities come with a threshold only
            for i, image, label_map, segments, scores, *probability in zip(indices, chunk, *output, strict=False):
                height, width = image.pixels.shape[:2]
                maps = (np.ascontiguousarray(m[:height, :width]) for m in (label_map, segments, *probability))
                label_map, segments, *probability = maps
                scores = np.ascontiguousarray(scores[:, : len(names)])
                found[i] = SegmentResult(image.pixels, label_map, segments, scores, names, *probability)
        return [found[i] for i in range(len(images))]

    def with_params(self, params: Any) -> "Segmenter":
        """The same model with other weights (`method.params`); what is compiled is shared."""
        other = copy.copy(self)
        other.method = copy.copy(self.method)
        other.method.params = params
        return other

    def save(self, folder: str | Path) -> None:
        """Writes the model with its defaults, its text encoder and a model card, as `zeroseg_jax.load` reads them."""
        from zeroseg_jax.segment.loading import save  # which imports this module

        save(self, folder)

    def export(
        self,
        path: str | Path,
        labels: Sequence[str] | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> None:
        """Writes the segment function as StableHLO, which runs without this package; see `segment.export.export`."""
        from zeroseg_jax.segment.export import export

        export(self, path, labels, image_size=image_size, templates=templates, background=background, **options)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Saves the model to the Hugging Face hub, and returns its address there; see `hub.push_to_hub`."""
        from zeroseg_jax.segment.hub import push_to_hub

        return push_to_hub(self, repo_id, private=private, token=token)

    def _lay_out(self, shape: tuple[int, ...], readout: Readout) -> Layout:
        return lay_out(shape[0], shape[1], self.method.image_size, self.method.patch_size, readout.slide)

    def _encode_pixels(self, pixels: Sequence[np.ndarray], readout: Readout) -> list[EncodedImage]:
        """Images of one layout."""
        layout = self._lay_out(pixels[0].shape, readout)
        views = [np.asarray(view) for p in pixels for view in layout.cut(resize(p, layout.shape))]
        encoded: list[Encoding] = []
        for part, size in parts(len(views), BATCHES):
            batch = self._encode(self.method.params, padded(views[part], size), readout.renaming, readout.flip)
            encoded += split(jax.device_get(batch))[: len(views[part])]
        if (count := len(layout.starts)) > 1:
            images = [encoded[i : i + count] for i in range(0, len(encoded), count)]
            encoded = [jax.device_get(self._merge(windows, layout)) for windows in images]
        # on the host they are arrays of numpy
        maps: list[Any] = encoded
        found = zip(pixels, maps, strict=True)
        return [EncodedImage(p, e.embeddings, e.assignment, layout.grid, self) for p, e in found]

    def _label_chunk(
        self, chunk: Sequence[EncodedImage], batch: int, texts: Texts, threshold: bool, readout: Readout
    ) -> Labelled:
        """The labels of images whose encodings have one shape, padded to a batch of the size `batch`."""
        sizes = [image.pixels.shape[:2] for image in chunk]
        height, width = (output_bucket(max(size[axis] for size in sizes)) for axis in (0, 1))
        side = CELLS if readout.guide else 1
        rows, columns = (side * n for n in chunk[0].grid)
        assignments = [image.assignment for image in chunk if image.assignment is not None]
        encoding = Encoding(
            jnp.asarray(padded([image.embeddings for image in chunk], batch)),
            jnp.asarray(padded(assignments, batch)) if assignments else None,
        )
        guide = None
        if readout.guide:
            pixels = [
                np.pad(i.pixels, ((0, height - h), (0, width - w), (0, 0)))
                for i, (h, w) in zip(chunk, sizes, strict=True)
            ]
            small = [resize(image.pixels, (rows, columns), Image.Resampling.BILINEAR) for image in chunk]
            guide = Guide(padded(pixels, batch), padded(small, batch))
        enlarge_rows = padded([enlarging(rows, size[0], height) for size in sizes], batch)
        enlarge_columns = padded([enlarging(columns, size[1], width) for size in sizes], batch)
        options = readout.mix, threshold, readout.guide
        return jax.device_get(self._label(encoding, texts, guide, enlarge_rows, enlarge_columns, *options))

    def _texts_of(
        self, labels: Sequence[str], templates: Templates | None, background: Background, scale: float
    ) -> tuple[Texts, bool]:
        """The text embeddings, and whether there is a threshold for the background."""
        phrases, threshold = check_background(background)
        embeddings = self.embed_labels(labels, templates)
        beside = self.embed_labels(phrases, templates) if phrases else embeddings[:0]
        return self.make_texts(embeddings, beside, scale, threshold), threshold > 0

    def make_texts(
        self,
        labels: Float[Array | np.ndarray, "c d"],
        background: Float[Array | np.ndarray, "k d"],
        scale: float,
        threshold: float,
    ) -> Texts:
        """What `inference.label_pixels` asks for; the number of labels may be symbolic."""
        count = jnp.asarray(labels.shape[0], jnp.int32)
        embeddings = jnp.concatenate([labels, background])
        scales = jnp.float32(scale), jnp.float32(threshold), jnp.float32(self.logit_scale)
        return Texts(embeddings, count, count + background.shape[0], *scales)


def _merge_windows(windows: list[Encoding], layout: Layout) -> Encoding:
    """The encoding of one image from those of its windows, without the batch's axis."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x)[:, None], *windows)
    return jax.tree.map(lambda x: x[0], merge(stacked, layout.places(), layout.grid[0] * layout.grid[1]))


def resize(
    pixels: UInt8[np.ndarray, "h w 3"],
    shape: tuple[int, int],
    filter: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "y x 3"]:
    """To `shape` (rows, columns), with antialiasing, by Pillow."""
    if pixels.shape[:2] == shape:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], filter))


def _of_encoding(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in ENCODING}
