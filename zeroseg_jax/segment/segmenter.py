"""`Segmenter`: a model that segments images by words."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zeroseg_jax.data.image_like import ImageLike, to_pixels_list
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.models.readouts import check_readout
from zeroseg_jax.segment.encode import Encoder
from zeroseg_jax.segment.function import ImageSize, SegmentFunction, make_function, read_size
from zeroseg_jax.segment.labelling.scoring import Texts, eligible_texts, large_classes, make_texts, pad_texts
from zeroseg_jax.segment.labelling.tiles import Labeller, MapsOnDevice
from zeroseg_jax.segment.methods import Method
from zeroseg_jax.segment.options import Options, change, encodes
from zeroseg_jax.segment.prompts import (
    Background,
    Templates,
    check_background,
    check_labels,
    embed_prompts,
    resolve_templates,
    reusable,
)
from zeroseg_jax.segment.result import EncodedImage, SegmentResult

REMEMBERED = 16
"""Number of lists of labels whose embeddings stay in memory. The oldest list goes first."""


class Segmenter:
    """Segments images by words. `zeroseg_jax.load` makes one.

    `templates` and `options` are the defaults of its methods. `clip` embeds the labels, and `definitions` are those of
    `define`. `about` is for the model card: the teacher, the training and the results.

    Images of any size are resized to one of a few shapes (`windows.lay_out`), and long images become overlapping
    windows. The model is compiled once for each shape. Labelling (`tiles`) is compiled for a few numbers of labels, and
    serves images of all sizes. A label map has the size of its image.
    """

    def __init__(
        self,
        method: Method,
        clip: DualEncoder,
        *,
        templates: Templates = "photo",
        options: Options | None = None,
        definitions: Mapping[str, Iterable[str]] = MappingProxyType({}),
        about: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.method, self.clip = method, clip
        self.templates, self.options = resolve_templates(templates), options or Options()
        _check_readout(self.options.readout, method)
        self.about = about
        self._texts: OrderedDict[tuple[tuple[str, ...], tuple[str, ...], bool], np.ndarray] = OrderedDict()
        self.definitions: dict[str, tuple[str, ...]] = {}
        for label, phrases in definitions.items():
            self.define(label, phrases)
        self._encoder, self.labeller = Encoder(method), Labeller()
        self.device: jax.Device | None = None  # None: where the weights are
        self.logit_scale = clip.logit_scale

    def __copy__(self) -> "Segmenter":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "Segmenter":
        other = copy.copy(self)  # the weights are arrays of JAX, which nothing changes
        other._texts, other.clip = self._texts.copy(), copy.deepcopy(self.clip)
        other.definitions = dict(self.definitions)
        return other

    def __reduce__(self) -> Any:
        raise InputError("a model cannot be pickled; save it with model.save(FOLDER), and load it where it is needed")

    def __repr__(self) -> str:
        method = self.method
        sizes = f"images of {method.image_size} pixels, patches of {method.patch_size}"
        return f"Segmenter({type(method).__name__}: {sizes}, embeddings of {self.clip.embed_dim})"

    def segment(
        self,
        image: ImageLike,
        labels: Iterable[str],
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
            options: fields of `options.Options` that differ from the model's defaults, such as rename="teacher".

        Raises:
            InputError: labels, templates or an image that cannot be used.
        """
        labels, templates, background = reusable(labels), reusable(templates), reusable(background)
        self.check(labels, templates=templates, background=background, **options)
        encoded = [self.encode(image, **_of_encoding(options))]
        return self.label(encoded, labels, templates=templates, background=background, **options)[0]

    def segment_batch(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> list[SegmentResult]:
        """Segments several images of any sizes. Arguments and errors are those of `segment`."""
        labels, templates, background = reusable(labels), reusable(templates), reusable(background)
        self.check(labels, templates=templates, background=background, **options)
        encoded = self.encode_batch(images, **_of_encoding(options))
        return self.label(encoded, labels, templates=templates, background=background, **options)

    def segment_fn(
        self,
        image_size: ImageSize,
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> SegmentFunction:
        """The whole of `segment` as one jitted function: uint8 (B, H, W, 3) -> int32 (B, H, W), for one (H, W).

        It agrees with `segment` in every pixel if `image_size` is the model's own. Other sizes are resized on the
        device, within one grey level of Pillow, so that single pixels may differ.
        """
        chosen, labels = self.changed(options), reusable(labels)
        texts, threshold = self.texts_of(labels, reusable(templates), reusable(background), chosen)
        run = make_function(self.method, image_size, chosen, threshold)
        return SegmentFunction(run, self.method.params, texts, read_size(image_size), check_labels(labels))

    def encode(self, image: ImageLike, **options: Any) -> EncodedImage:
        """Runs the model on one image. `EncodedImage.segment` then takes any labels without another run.

        `options` are fields of `Options` that count when an image is encoded.
        """
        return self.encode_batch([image], **options)[0]

    def encode_batch(self, images: Sequence[ImageLike] | np.ndarray, **options: Any) -> list[EncodedImage]:
        """`encode` for several images of any sizes. Windows of one shape go through the model together."""
        pixels, chosen = to_pixels_list(images), self.changed(options)
        with jax.default_device(self.device):
            views = self._encoder.encode(pixels, self.method, chosen)
        return [EncodedImage(image, of_image, self) for image, of_image in zip(pixels, views, strict=True)]

    def embed_labels(
        self, labels: Iterable[str], templates: Templates | None = None, normalise: bool | None = None
    ) -> Float[np.ndarray, "c d"]:
        """Embeddings of the labels, float32 and of unit length. Those of the last lists stay in memory.

        `normalise` is `Options.normalise_prompts`; None takes the model's.
        """
        names = check_labels(labels)
        prompts = self.templates if templates is None else resolve_templates(templates)
        normalise = self.options.normalise_prompts if normalise is None else normalise
        key = names, prompts, normalise
        if key in self._texts:
            self._texts.move_to_end(key)
        else:
            meanings = [self.definitions.get(name, (name,)) for name in names]
            phrases = [phrase for meaning in meanings for phrase in meaning]
            embeddings = embed_prompts(self.clip, phrases, prompts, normalise)
            if len(embeddings) > len(names):
                starts = np.cumsum([0, *(len(meaning) for meaning in meanings[:-1])])
                embeddings = np.add.reduceat(embeddings, starts)
                embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
            self._texts[key] = embeddings
            if len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return self._texts[key]

    def define(self, label: str, phrases: Iterable[str]) -> None:
        """Makes `label` stand for several phrases. Its embedding is their mean, at unit length. `save` keeps it."""
        (label,), phrases = check_labels([label]), check_labels(phrases, "phrase")
        if self.definitions.get(label) != phrases:
            self.definitions[label] = phrases
            self._texts.clear()

    def check(
        self,
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> None:
        """Embeds the words. Raises InputError for bad words or options, before any image is encoded."""
        self.texts_of(labels, templates, background, self.changed(options))

    def label(
        self,
        images: Sequence[EncodedImage],
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        groups: Sequence[int] | None = None,
        **options: Any,
    ) -> list[SegmentResult]:
        """Labels encoded images: the second half of `segment_batch`.

        `groups` has a number for each label. Labels of one number are names of one class, whose pixels count together
        for `Options.area`. None: each label is a class.
        """
        chosen, labels = self.changed(options), reusable(labels)
        names, results = list(labels), []
        for image, texts, threshold in self._with_texts(images, names, templates, background, groups, chosen):
            with jax.default_device(self.device):
                maps = self.labeller.label(image, texts, threshold, chosen)
            scores = np.ascontiguousarray(maps.scores[:, : len(names)])
            results.append(SegmentResult(image.pixels, maps.label_map, maps.segments, scores, names, maps.probability))
        return results

    def label_on_device(
        self,
        images: Sequence[EncodedImage],
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        groups: Sequence[int] | None = None,
        **options: Any,
    ) -> Iterator[MapsOnDevice]:
        """The label maps of `label`, one after the other, left on the device. An evaluation counts them there."""
        chosen, labels = self.changed(options), reusable(labels)
        for image, texts, threshold in self._with_texts(images, labels, templates, background, groups, chosen):
            with jax.default_device(self.device):
                maps = self.labeller.label_on_device(image, texts, threshold, chosen)
            yield maps

    def _with_texts(
        self,
        images: Sequence[EncodedImage],
        labels: Iterable[str],
        templates: Templates | None,
        background: Background,
        groups: Sequence[int] | None,
        chosen: Options,
    ) -> Iterator[tuple[EncodedImage, Texts, bool]]:
        """Each image with the texts that may win its pixels, and whether the background has a threshold."""
        texts, threshold = self.texts_of(labels, templates, background, chosen)
        texts = pad_texts(texts)
        classes = np.arange(int(texts.labels)) if groups is None else np.asarray(groups)
        without_threshold = texts._replace(threshold=jnp.zeros_like(texts.threshold))
        for image in images:
            allowed = texts
            if chosen.area:
                with jax.default_device(self.device):
                    before = self.labeller.label_on_device(image, without_threshold, threshold, chosen)
                    pixels = self.labeller.count_labels(before, len(classes))
                allowed = texts._replace(eligible=large_classes(pixels, texts, classes, chosen.area))
            yield image, allowed, threshold

    def with_params(self, params: Any) -> "Segmenter":
        """The same model with other weights (`method.params`). Both share their compiled functions."""
        other = copy.copy(self)
        other.method = copy.copy(self.method)
        other.method.params = params
        return other

    def on(self, device: jax.Device) -> "Segmenter":
        """The same model on `device`: its weights are there, and it computes there. It is compiled again."""
        other = self.with_params(jax.device_put(self.method.params, device))
        other.device = device
        return other

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `zeroseg_jax.load` reads: the model, its defaults, its text encoder and a model card.

        `folder` may be gs://... Raises InputError for any other address.
        """
        from zeroseg_jax.segment.io import save  # which imports this module

        save(self, folder)

    def export(
        self,
        path: str | Path,
        labels: Iterable[str] | None = None,
        *,
        image_size: ImageSize | None = None,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> None:
        """Writes the segment function as StableHLO (.jax) or ONNX, to run without this package; see `export.export`."""
        from zeroseg_jax.segment.export import export

        export(self, path, labels, image_size=image_size, templates=templates, background=background, **options)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the model to the Hugging Face hub and returns its address; see `io.push_to_hub`."""
        from zeroseg_jax.segment.io import push_to_hub

        return push_to_hub(self, repo_id, private=private, token=token)

    def changed(self, options: Mapping[str, Any]) -> Options:
        """The model's options with the changes of one call. Raises InputError for a value that is not allowed."""
        _check_readout(options.get("readout"), self.method)
        return change(self.options, options)

    def texts_of(
        self, labels: Iterable[str], templates: Templates | None, background: Background, chosen: Options
    ) -> tuple[Texts, bool]:
        """The text embeddings, and whether the background has a threshold."""
        phrases, threshold = check_background(background)
        templates, normalise = reusable(templates), chosen.normalise_prompts
        embeddings = self.embed_labels(labels, templates, normalise)
        of_background = self.embed_labels(phrases, templates, normalise) if phrases else embeddings[:0]
        texts = make_texts(embeddings, of_background, chosen.scale, threshold, self.logit_scale)
        if chosen.area or chosen.rule == "sclip":
            texts = texts._replace(eligible=eligible_texts(list(labels), phrases))
        return texts, threshold > 0


def _of_encoding(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if encodes(name)}


def _check_readout(readout: Any, method: Method) -> None:
    """Raises InputError for the name of a readout that the model does not have, with those that it has.

    None and "" stand for the model's default. `options.change` refuses values that are not texts.
    """
    if not readout or not isinstance(readout, str):
        return
    if not method.readouts:
        kind = type(method).__name__.removesuffix("Method")
        raise InputError(f"readout is {readout!r}, but this model is a {kind}, and only a CLIP has readouts")
    check_readout(readout, method.readouts)
