"""What every model is asked of a benchmark: its classes as labels, and how the answer becomes class indices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark
from zeroseg_jax.evaluate.vocabularies import Vocabulary, fitting
from zeroseg_jax.segment.decode import tells_probability
from zeroseg_jax.segment.loading import readout_of
from zeroseg_jax.segment.options import Options, change
from zeroseg_jax.segment.prompts import Background
from zeroseg_jax.segment.result import SegmentResult
from zeroseg_jax.segment.segmenter import Segmenter

BATCH = 16
"""Images that are asked about at once."""

ANY = float(np.finfo(np.float32).tiny)
"""A threshold that every label passes."""


class Answer(NamedTuple):
    """The class of each pixel of an image."""

    classes: Int32[np.ndarray, "h w"]
    best: Int32[np.ndarray, "h w"] | None = None
    """Where the background is a threshold: the class of the best label, whether it passes or not."""
    probability: Float32[np.ndarray, "h w"] | None = None
    """Its probability, which is held against the threshold."""


Predict = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]], jax.Device | None], dict[str, list[Answer]]]
"""(images, the device that computes; None: where the model is) -> for each variant of a way to segment, an answer for
each image."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What every model is asked: the class names as labels, and how its answer becomes class indices."""

    labels: tuple[str, ...]
    background: Background
    templates: tuple[str, ...]
    values: Int[np.ndarray, " c"]
    """Class index of each label, and of no label (-1) at the end."""
    vocabulary: str = ""
    """Name of the vocabulary that it follows; "" where the classes are asked for by their own names."""
    means: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Labels that stand for the mean of several phrases."""

    def ask(self, segmenter: Segmenter, **variants: Mapping[str, Any]) -> Predict:
        """A `Predict` whose variants differ in fields of `Options`; the images are encoded once for all of them."""
        for label, phrases in self.means.items():
            segmenter.define(label, phrases)
        # a label that is too long is told before any image is encoded
        segmenter.check(self.labels, templates=self.templates, background=self.background)

        @functools.cache
        def on(device: jax.Device | None) -> Segmenter:
            return segmenter if device is None else segmenter.on(device)

        def predict(images: Sequence[np.ndarray], device: jax.Device | None = None) -> dict[str, list[Answer]]:
            # a last incomplete batch is filled up, because compiling another size takes longer than a few images
            encoded = on(device).encode_batch([*images, *[images[0]] * (-len(images) % BATCH)])
            later = isinstance(self.background, float) and tells_probability(
                segmenter.readout.labelling, dense=encoded[0].assignment is None
            )
            rule = ANY if later else self.background
            asked: dict[str, Any] = dict(templates=self.templates, background=rule)
            found = {name: on(device).label(encoded, self.labels, **asked, **o) for name, o in variants.items()}
            return {name: [self.answer(r) for r in results[: len(images)]] for name, results in found.items()}

        return predict

    def answer(self, result: SegmentResult) -> Answer:
        """The classes of what a model answers; a threshold for the background is applied here, unless the model has
        applied it."""
        best = self.values[result.label_map]
        if result.probability is None or not isinstance(self.background, float):
            return Answer(best)
        hidden = result.probability < np.float32(self.background)
        return Answer(np.where(hidden, self.values[-1], best), best, result.probability)


def protocol_of(benchmark: Benchmark, config: ConfigDict, default: Options) -> Options:
    """The readout of a model by the vocabulary that `config.eval` chooses; what is set in `config.eval` itself wins.

    A vocabulary that says how large images are decides on all of inference: what it does not name, such as mirror
    images and the guided filter, which is ours, is left out. Otherwise the rest is as in `default`.
    """
    options = config.eval
    vocabulary = fitting(options.vocabulary, benchmark.name, benchmark.classes, benchmark.vocabulary)
    asked = dataclasses.asdict(vocabulary)
    names = [field.name for field in dataclasses.fields(Options) if field.name in asked]
    stated = {name: asked[name] for name in names if vocabulary.short_side or asked[name] != getattr(Options(), name)}
    whole = {"guide": 0.0, "slide": 0.0, "flip": False, "scales": ()} if vocabulary.short_side else {}
    return readout_of(config, change(default, whole | stated))


def make_question(benchmark: Benchmark, model: Segmenter, options: ConfigDict) -> Question:
    """Asks for every class but the background, as the vocabulary says that `options` (`config.eval`) chooses.

    Of the vocabulary come the phrases, the templates (unless `options.templates` are given, which `model` then has)
    and the rule for background (unless `options.background` is given): a threshold, or phrases. Where neither says how,
    the background is asked for by the name of its class.

    Raises:
        InputError: a vocabulary that does not fit the masks, or a rule for a background that they do not have.
    """
    vocabulary = fitting(options.vocabulary, benchmark.name, benchmark.classes, benchmark.vocabulary)
    rule = _background(benchmark, vocabulary, options.background)
    # a folder or a dataset of TFDS has a background only if its vocabulary says so
    hidden = benchmark.background
    if hidden is None and vocabulary.background is not None:
        hidden = vocabulary.classes.index("background")
    classes = [i for i in range(len(benchmark.classes)) if i != hidden]
    means = {}
    if vocabulary.combine == "mean":
        joined = {i: " / ".join(vocabulary.phrases[i]) for i in classes}
        means = {joined[i]: vocabulary.phrases[i] for i in classes if len(vocabulary.phrases[i]) > 1}
        asked = [(label, i) for i, label in joined.items()]
    else:
        asked = [(phrase, i) for i in classes for phrase in vocabulary.phrases[i]]
    labels, values = zip(*asked, strict=True)
    templates = vocabulary.templates if options.templates is None else None
    return Question(
        labels,
        rule,
        model.templates if templates is None else templates,
        np.array([*values, -1 if hidden is None else hidden], np.int32),
        vocabulary.name,
        means,
    )


def _background(benchmark: Benchmark, vocabulary: Vocabulary, given: str) -> Background:
    """The rule for the background's pixels; None where there is no such class."""
    if benchmark.background is None and vocabulary.background is None:
        if given:
            raise InputError(f"eval.background is set, but {benchmark.name} has no background class; leave it empty")
        return None
    if not given:
        rule = vocabulary.background or (vocabulary.classes[benchmark.background or 0],)
        return rule if isinstance(rule, float) else list(rule)
    try:
        return float(given)
    except ValueError:
        return [phrase.strip() for phrase in given.split(",")]
