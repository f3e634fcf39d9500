"""One pass over the images of a benchmark, on all devices of all processes.

Whole batches are distributed over the devices, so a batch runs through the same compiled shapes on any of them. The
counts are integers. The result therefore does not depend on the number of devices or processes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental import multihost_utils

from zeroseg_jax.data.workers import usable_cpus
from zeroseg_jax.evaluate.benchmarks import Benchmark, Example
from zeroseg_jax.evaluate.counts import PixelCounts
from zeroseg_jax.evaluate.device_counts import BatchTruth, count_image
from zeroseg_jax.evaluate.metrics import mean_iou
from zeroseg_jax.evaluate.protocol import BATCH, Predict
from zeroseg_jax.evaluate.thresholds import ThresholdSweep
from zeroseg_jax.progress import ProgressBar

BATCHES_AHEAD = (2, 8)
"""Least and largest number of batches in work for each device. While one is computed, others are decoded and
resized, each by a CPU."""


@dataclasses.dataclass
class EvaluatedMethod:
    """A way to segment, in one or several variants, with the counts of each variant."""

    predict: Predict
    counts: dict[str, PixelCounts] = dataclasses.field(default_factory=dict)
    """By the name of the variant."""
    sweep: ThresholdSweep | None = None

    def count_batch(
        self, batch: Sequence[Example], truth: BatchTruth, classes: int, device: jax.Device | None
    ) -> dict[str, Any]:
        """Predicts a batch, and returns its counts in the form of `arrays`."""
        sweep = (self.sweep.thresholds, self.sweep.background) if self.sweep else None
        on_device = {
            variant: [
                count_image(p.maps, truth.of_image(i, p.maps), p.class_of_label, p.threshold, classes, sweep)
                for i, p in enumerate(predictions)
            ]
            for variant, predictions in self.predict([example.image for example in batch], device).items()
        }
        new = EvaluatedMethod(self.predict, sweep=self.sweep and self.sweep.new())
        on_host = jax.device_get(on_device)
        for variant in on_device:  # of equal variants the first one is the best, and device_get sorts them by name
            counts = new.counts.setdefault(variant, PixelCounts(classes))
            for image in on_host[variant]:
                counts.add_counts(image["confusion"], image["boundary"])
                if new.sweep and "predicted" in image:
                    new.sweep.add_counts(image)
        return new.arrays()

    def arrays(self) -> dict[str, Any]:
        """All counts: {"counts": {variant: arrays of it}, "sweep": arrays of the sweep, or none}."""
        counts = {variant: counts.arrays() for variant, counts in self.counts.items()}
        return {"counts": counts, "sweep": self.sweep.arrays() if self.sweep else {}}

    def add_arrays(self, arrays: Mapping[str, Any], classes: int) -> None:
        """Adds the `arrays` of the images that follow."""
        for variant, counts in arrays["counts"].items():
            self.counts.setdefault(variant, PixelCounts(classes)).add_arrays(counts)
        if self.sweep:
            self.sweep.add_arrays(arrays["sweep"])

    def clear(self, classes: int) -> None:
        """Sets all counts to 0."""
        self.counts = {variant: PixelCounts(classes) for variant in self.counts}
        self.sweep = self.sweep and self.sweep.new()

    @property
    def best_variant(self) -> str:
        """Name of the variant with the highest mean IoU."""
        return max(self.counts, key=lambda variant: mean_iou(self.counts[variant].areas))

    @property
    def best_counts(self) -> PixelCounts:
        """Counts of the best variant."""
        return self.counts[self.best_variant]

    def class_maps(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Class maps of a few images by the best variant, predicted again for pictures."""
        predictions = self.predict([example.image for example in examples], None)
        return [prediction.classes for prediction in predictions[self.best_variant]]


def run_benchmark(methods: Mapping[str, EvaluatedMethod], benchmark: Benchmark) -> None:
    """Counts all images of the benchmark for every method. Every process has all counts at the end."""
    classes, local = len(benchmark.classes), jax.local_devices()
    devices = local if len(local) > 1 else [None]
    batches = [range(i, min(i + BATCH, len(benchmark))) for i in range(0, len(benchmark), BATCH)]
    of_this_process = np.array_split(np.arange(len(batches)), jax.process_count())[jax.process_index()].tolist()

    def count(i: int) -> dict[str, Any]:
        batch = [benchmark[image] for image in batches[i]]
        device = devices[i % len(devices)]
        with jax.default_device(device):
            truth = BatchTruth([example.mask for example in batch], classes)
            return {name: method.count_batch(batch, truth, classes, device) for name, method in methods.items()}

    total, done = sum(len(batches[i]) for i in of_this_process), 0
    logging.info("evaluating %d images; the first take longest, because the models are compiled for them", total)
    bar = ProgressBar("evaluate", total)
    ahead = min(max(BATCHES_AHEAD[0], usable_cpus() // len(devices)), BATCHES_AHEAD[1])
    with ThreadPoolExecutor(ahead * len(devices)) as pool:
        for i, arrays in zip(of_this_process, pool.map(count, of_this_process), strict=True):
            for name, method in methods.items():
                method.add_arrays(arrays[name], classes)
            done += len(batches[i])
            bar.update(done)
    bar.close()
    if jax.process_count() > 1:
        _share_counts(methods, classes)


def _share_counts(methods: Mapping[str, EvaluatedMethod], classes: int) -> None:
    """Gives every process the counts of all processes, in the order of the images."""
    local = msgpack_serialize({name: method.arrays() for name, method in methods.items()})
    for method in methods.values():
        method.clear(classes)
    for data in _gather_bytes(local):
        arrays = msgpack_restore(data)
        for name, method in methods.items():
            method.add_arrays(arrays[name], classes)


def _gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of each process, in the order of the processes."""
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]
