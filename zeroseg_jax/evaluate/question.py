"""What every model is asked of a benchmark: its classes as labels, and how the answer becomes class indices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark
from zeroseg_jax.segment.prompts import Background
from zeroseg_jax.segment.segmenter import Segmenter

Predict = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], dict[str, list[Int32[np.ndarray, "_ _"]]]]
"""Images -> for each variant of a way to segment, a map of class indices for each image."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What every model is asked: the class names as labels, and how its answer becomes class indices."""

    labels: tuple[str, ...]
    background: Background
    templates: tuple[str, ...]
    values: Int[np.ndarray, " c"]
    """Class index of each label, and of no label (-1) at the end."""

    def ask(self, segmenter: Segmenter, **variants: Mapping[str, Any]) -> Predict:
        """A `Predict` whose variants differ in fields of `Readout`; the images are encoded once for all of them."""

        def predict(images: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
            encoded = segmenter.encode_batch(images)
            asked: dict[str, Any] = dict(templates=self.templates, background=self.background)
            found = {name: segmenter.label(encoded, self.labels, **asked, **o) for name, o in variants.items()}
            return {name: [self.values[r.label_map] for r in results] for name, results in found.items()}

        return predict


def make_question(benchmark: Benchmark, model: Segmenter, background: str) -> Question:
    """Asks for every class but the background, which is a threshold, or phrases (its own name, if none are given)."""
    classes = [i for i in range(len(benchmark.classes)) if i != benchmark.background]
    labels = tuple(benchmark.classes[i] for i in classes)
    if benchmark.background is None:
        if background:
            raise InputError(f"eval.background is set, but {benchmark.name} has no background class; leave it empty")
        return Question(labels, None, model.templates, np.array([*classes, -1], np.int32))
    rule: Background = background or benchmark.classes[benchmark.background]
    try:
        rule = float(background)
    except ValueError:
        rule = [phrase.strip() for phrase in str(rule).split(",")]
    return Question(labels, rule, model.templates, np.array([*classes, benchmark.background], np.int32))
