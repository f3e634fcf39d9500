"""The one pass over the images of a benchmark, on all devices of all processes.

Whole batches are what is shared out: a batch of the same images goes through the same compiled shapes wherever it is
computed, and what is counted are integers, so that the result does not depend on the number of devices or processes.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zeroseg_jax.evaluate.benchmarks import Benchmark, Example
from zeroseg_jax.evaluate.counts import Tally
from zeroseg_jax.evaluate.metrics import mean_iou
from zeroseg_jax.evaluate.protocol import BATCH, Predict
from zeroseg_jax.evaluate.thresholds import ThresholdSweep
from zeroseg_jax.progress import ProgressBar

AHEAD = 2
"""Batches that are worked on at once for each device: one is decoded, resized or counted while another one computes."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Contender:
    """A way to segment, in one or several variants, and what is counted of it."""

    predict: Predict
    tallies: dict[str, Tally] = dataclasses.field(default_factory=dict)
    sweep: ThresholdSweep | None = None

    def count(self, batch: Sequence[Example], classes: int, device: jax.Device | None) -> "Contender":
        """Predicts a batch, and counts it alone."""
        found = Contender(self.predict, sweep=self.sweep and self.sweep.empty())
        for variant, answers in self.predict([example.image for example in batch], device).items():
            tally = found.tallies.setdefault(variant, Tally(classes))
            for example, answer in zip(batch, answers, strict=True):
                tally.add(example.mask, answer.classes)
                if found.sweep and answer.best is not None and answer.probability is not None:
                    found.sweep.add(example.mask, answer.best, answer.probability)
        return found

    def arrays(self) -> Arrays:
        """All that is counted, as `merge` takes it."""
        parts = {f"variant {name}": tally.arrays() for name, tally in self.tallies.items()}
        if self.sweep:
            parts["sweep"] = self.sweep.arrays()
        return {f"{part}\n{name}": x for part, arrays in parts.items() for name, x in arrays.items()}

    def merge(self, counted: Mapping[str, np.ndarray], classes: int) -> None:
        """Adds the `arrays` of the images that follow."""
        for part, arrays in _by_first_line(counted).items():
            if part == "sweep":
                assert self.sweep is not None
                self.sweep.merge(arrays)
            else:
                self.tallies.setdefault(part.removeprefix("variant "), Tally(classes)).merge(arrays)

    @property
    def best(self) -> str:
        """The variant with the best mean IoU."""
        return max(self.tallies, key=lambda variant: mean_iou(self.tallies[variant].areas))

    @property
    def tally(self) -> Tally:
        """What is counted of the best variant."""
        return self.tallies[self.best]

    def maps(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Predicts a few images once more, by the best variant, to show them."""
        return [answer.classes for answer in self.predict([e.image for e in examples], None)[self.best]]


def count_all(contenders: Mapping[str, Contender], benchmark: Benchmark) -> None:
    """Counts the images of the benchmark for every contender; in the end each process has the counts of all."""
    classes, local = len(benchmark.classes), jax.local_devices()
    devices = local if len(local) > 1 else [None]
    batches = [range(i, min(i + BATCH, len(benchmark))) for i in range(0, len(benchmark), BATCH)]
    mine = np.array_split(np.arange(len(batches)), jax.process_count())[jax.process_index()].tolist()

    def count(i: int) -> dict[str, Arrays]:
        batch = [benchmark[image] for image in batches[i]]
        device = devices[i % len(devices)]
        return {name: each.count(batch, classes, device).arrays() for name, each in contenders.items()}

    bar, done = ProgressBar("evaluate", sum(len(batches[i]) for i in mine)), 0
    with ThreadPoolExecutor(AHEAD * len(devices)) as pool:
        for i, counted in zip(mine, pool.map(count, mine), strict=True):
            for name, arrays in counted.items():
                contenders[name].merge(arrays, classes)
            done += len(batches[i])
            bar.update(done)
    bar.close()
    if jax.process_count() > 1:
        _exchange(contenders, classes)


def _exchange(contenders: Mapping[str, Contender], classes: int) -> None:
    """Gives every process the counts of all, in the order of the images."""
    own = io.BytesIO()
    found: dict[str, Any] = {f"{name}\n{key}": x for name, c in contenders.items() for key, x in c.arrays().items()}
    np.savez(own, **found)
    for contender in contenders.values():
        contender.tallies.clear()
        contender.sweep = contender.sweep and contender.sweep.empty()
    for data in _of_all_processes(own.getvalue()):
        with np.load(io.BytesIO(data), allow_pickle=False) as counted:
            for name, arrays in _by_first_line(counted).items():
                contenders[name].merge(arrays, classes)


def _of_all_processes(data: bytes) -> list[bytes]:
    """What each process gives, in their order."""
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    filled = np.zeros(lengths.max(), np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(filled)
    return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]


def _by_first_line(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """{"a\\nb": x} -> {"a": {"b": x}}."""
    found: dict[str, Arrays] = {}
    for key, x in arrays.items():
        first, _, rest = key.partition("\n")
        found.setdefault(first, {})[rest] = x
    return found
