"""The protocol of an evaluation: class names become labels, and label maps become class indices again."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark
from zeroseg_jax.evaluate.vocabularies import Vocabulary, choose_vocabulary
from zeroseg_jax.segment.labelling.on_device import MapsOnDevice
from zeroseg_jax.segment.labelling.scoring import tells_probability
from zeroseg_jax.segment.options import FIELDS, Options, change, from_config
from zeroseg_jax.segment.prompts import Background, check_background
from zeroseg_jax.segment.segmenter import Segmenter

BATCH = 16
"""Images that are segmented together."""

LOWEST_THRESHOLD = float(np.finfo(np.float32).tiny)
"""A threshold that hides no pixel, but makes the segmenter return probabilities."""

DEFAULT = "default"
"""Name of the variant of a method that has only one."""


class Prediction(NamedTuple):
    """The prediction for an image, on the device that made it. The properties copy it to the host."""

    maps: MapsOnDevice
    class_of_label: Int[np.ndarray, " c"]
    """`EvaluationProtocol.class_of_label`."""
    threshold: float = 0.0
    """The threshold for the background that `maps` do not have yet; 0 if there is none."""

    @property
    def classes(self) -> Int32[np.ndarray, "h w"]:
        """Class indices; -1 for no class."""
        if self.probability is None:
            return self.best_class
        return np.where(self.probability < np.float32(self.threshold), self.class_of_label[-1], self.best_class)

    @property
    def best_class(self) -> Int32[np.ndarray, "h w"]:
        """Class of the best label, before a threshold for the background is applied."""
        return np.asarray(self.class_of_label, np.int32)[self.maps.fetch(self.maps.label_map)]

    @property
    def probability(self) -> Float32[np.ndarray, "h w"] | None:
        """Probability of the best label, which the threshold is compared with. None without a threshold."""
        probability = self.maps.probability
        return self.maps.fetch(probability) if self.threshold and probability is not None else None


Predict = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]], jax.Device | None], dict[str, Iterator[Prediction]]]
"""(images, device) -> the predictions of each variant of a method, one for each image, made one after the other. The
device None is the one that holds the model."""


@dataclasses.dataclass(frozen=True)
class EvaluationProtocol:
    """What every evaluated model gets: the same labels, templates and rule for the background."""

    labels: tuple[str, ...]
    background: Background
    templates: tuple[str, ...]
    class_of_label: Int[np.ndarray, " c"]
    """Class index of each label. The last entry is the class of pixels without a label (index -1)."""
    vocabulary: str = ""
    """Name of the vocabulary; "" if the labels are the benchmark's class names."""
    label_phrases: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Labels whose embedding is the mean over several phrases, with these phrases."""

    @property
    def threshold(self) -> float:
        """The threshold for the background; 0 if there is none."""
        return check_background(self.background)[1]

    def predictor(self, segmenter: Segmenter, variants: Mapping[str, Mapping[str, Any]] | None = None) -> Predict:
        """The function that segments images with `segmenter` by this protocol.

        Args:
            variants: by name, the fields of `Options` in which each variant differs from `segmenter.options`. They may
                only be fields that count after encoding, because images are encoded once. None: one variant, `DEFAULT`.

        Raises:
            InputError: labels, templates or a background that the model cannot use.
        """
        for label, phrases in self.label_phrases.items():
            segmenter.define(label, phrases)
        # Checked before any image is encoded.
        segmenter.check(self.labels, templates=self.templates, background=self.background)
        options_of = {DEFAULT: {}} if variants is None else dict(variants)

        @functools.cache
        def on_device(device: jax.Device | None) -> Segmenter:
            return segmenter if device is None else segmenter.on(device)

        def predict(images: Sequence[np.ndarray], device: jax.Device | None = None) -> dict[str, Iterator[Prediction]]:
            model = on_device(device)
            # The last batch is filled up, because to compile for another size takes longer than a few images.
            encoded = model.encode_batch([*images, *[images[0]] * (-len(images) % BATCH)])
            encoded, dense = encoded[: len(images)], encoded[0].assignment is None
            background = self.background
            if self.threshold and tells_probability(segmenter.options.labelling, dense):
                phrases = check_background(background)[0]
                background = [*phrases, LOWEST_THRESHOLD] if phrases else LOWEST_THRESHOLD
            arguments: dict[str, Any] = {"templates": self.templates, "background": background}
            arguments["groups"] = self.class_of_label[:-1].tolist()

            def predictions(options: Mapping[str, Any]) -> Iterator[Prediction]:
                for maps in model.label_on_device(encoded, self.labels, **arguments, **options):
                    yield Prediction(maps, self.class_of_label, 0.0 if maps.probability is None else self.threshold)

            return {name: predictions(options) for name, options in options_of.items()}

        return predict


def inference_options(benchmark: Benchmark, config: ConfigDict, default: Options) -> Options:
    """A model's options under the vocabulary that `config.eval` names for the benchmark; see `vocabulary_options`."""
    name = config.eval.vocabulary
    vocabulary = choose_vocabulary(name, benchmark.name, benchmark.classes, benchmark.vocabulary)
    return vocabulary_options(vocabulary, config, default)


def vocabulary_options(vocabulary: Vocabulary, config: ConfigDict, default: Options) -> Options:
    """A model's options under a vocabulary. Values set in `config.eval` itself win.

    A vocabulary that sets the image size decides on all of inference: the options that it does not set, such as mirror
    images and the guided filter, are off. Any other vocabulary changes only what it sets, and the rest is `default`.
    """
    if vocabulary.options.get("short_side"):
        of_model = ("mix", "scale", "rename", "rename_weight", "rename_margin", "readout")
        plain = {name: field.default for name, field in FIELDS.items() if name not in of_model}
        default = change(default, plain | {"guide": 0, "slide": 0})
    return from_config(config.eval, change(default, vocabulary.options))


def make_protocol(benchmark: Benchmark, model: Segmenter, options: ConfigDict) -> EvaluationProtocol:
    """The protocol of the vocabulary that `options` (`config.eval`) names, or else of the benchmark's own.

    The vocabulary gives the phrases, the templates and the rule for the background. `options.templates`, which `model`
    then has, and `options.background` replace the vocabulary's. Every class but the background has a label; without
    any rule the name of the background's class is the prompt for background.

    Raises:
        InputError: a vocabulary that does not fit the masks, or a rule for a background that the masks do not have.
    """
    vocabulary = choose_vocabulary(options.vocabulary, benchmark.name, benchmark.classes, benchmark.vocabulary)
    # A folder or a dataset of TFDS has a background only if its vocabulary says so.
    background_class = benchmark.background
    if background_class is None and vocabulary.background is not None:
        background_class = vocabulary.classes.index("background")
    classes = [i for i in range(len(benchmark.classes)) if i != background_class]
    label_phrases = {}
    if vocabulary.combine == "mean":
        label_classes = [(" / ".join(vocabulary.phrases[i]), i) for i in classes]
        label_phrases = {label: vocabulary.phrases[i] for label, i in label_classes if len(vocabulary.phrases[i]) > 1}
    else:
        label_classes = [(phrase, i) for i in classes for phrase in vocabulary.phrases[i]]
    labels, label_values = zip(*label_classes, strict=True)
    templates = vocabulary.templates if options.templates is None else None
    return EvaluationProtocol(
        labels,
        _background_rule(benchmark, vocabulary, options.background),
        model.templates if templates is None else templates,
        np.array([*label_values, -1 if background_class is None else background_class], np.int32),
        vocabulary.name,
        label_phrases,
    )


def _background_rule(benchmark: Benchmark, vocabulary: Vocabulary, text: str) -> Background:
    """A threshold, phrases or both; None if there is no background class. `given` is `eval.background`."""
    if benchmark.background is None and vocabulary.background is None:
        if text:
            raise InputError(f"eval.background is set, but {benchmark.name} has no background class; leave it empty")
        return None
    if not text:
        rule = vocabulary.background or (vocabulary.classes[benchmark.background or 0],)
        return rule if isinstance(rule, float) else list(rule)
    parts = [_number_or_text(part.strip()) for part in text.split(",")]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], float) else parts


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
