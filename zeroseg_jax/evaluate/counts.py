"""What is counted of one way to segment, and the figures that follow from it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32, Integer

from zeroseg_jax.evaluate.metrics import (
    Areas,
    areas,
    boundary_areas,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    interval,
    mean_iou,
    pixel_accuracy,
    resample,
)

RESAMPLES, LEVEL = 1000, 0.95
"""Bootstrap samples of the images, and the share of them that the intervals hold."""


class Tally:
    """The counts of one way to segment on the images of a benchmark: integers, so that no order of summing matters."""

    def __init__(self, classes: int):
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        self.boundary = Areas(*np.zeros((3, classes), np.int64))
        self._per_image = np.zeros((0, 3, classes), np.int32)

    def add(self, truth: Integer[np.ndarray, "h w"], prediction: Int32[np.ndarray, "h w"]) -> None:
        """Counts an image."""
        counts = confusion_matrix(truth, prediction, len(self.confusion))
        boundary = np.stack(boundary_areas(truth, prediction, len(self.confusion)))
        # three numbers a class instead of a matrix: 5000 images of 171 classes take 10 MB
        self.merge({"confusion": counts, "boundary": boundary, "per_image": np.stack(areas(counts))[None]})

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is counted, as `merge` takes it."""
        return {"confusion": self.confusion, "boundary": np.stack(self.boundary), "per_image": self._per_image}

    def merge(self, counted: Mapping[str, np.ndarray]) -> None:
        """Adds the `arrays` of another tally, whose images come after those that are counted here."""
        self.confusion = self.confusion + counted["confusion"]
        self.boundary = Areas(*(a + b for a, b in zip(self.boundary, counted["boundary"], strict=True)))
        self._per_image = np.concatenate([self._per_image, counted["per_image"].astype(np.int32)])

    @property
    def areas(self) -> Areas:
        """Of all images together."""
        return areas(self.confusion)

    @cached_property
    def per_image(self) -> Areas:
        """Of each image (first axis), when all are counted."""
        return Areas(*self._per_image.swapaxes(0, 1))

    @property
    def image_iou(self) -> Float[np.ndarray, " n"]:
        """The mean IoU of each image over the classes in its truth or prediction."""
        return np.asarray(mean_iou(self.per_image))

    @cached_property
    def samples(self) -> Float[np.ndarray, " n"]:
        """The mean IoU of bootstrap samples of the images, which are the same samples for every tally."""
        return np.asarray(mean_iou(resample(self.per_image, RESAMPLES)))

    def figures(self, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """All in [0, 1]: the means, those of groups of classes, and the interval of the mean IoU."""
        found = {
            "miou": mean_iou(self.areas),
            "pixel_accuracy": pixel_accuracy(self.areas),
            "frequency_weighted_iou": frequency_weighted_iou(self.areas),
            "boundary_iou": mean_iou(self.boundary),
            **{name: mean_iou(self.areas.of(classes)) for name, classes in groups.items()},
        }
        return {name: float(x) for name, x in found.items()} | {"interval": list(interval(self.samples, LEVEL))}

    def difference(self, other: "Tally") -> dict[str, Any]:
        """By how much the mean IoU exceeds `other`'s, with the paired interval: both see the same sampled images."""
        gap = float(mean_iou(self.areas) - mean_iou(other.areas))
        return {"miou": gap, "interval": list(interval(self.samples - other.samples, LEVEL))}


class ClassRow(NamedTuple):
    """What is known of a class; shares are in [0, 1], or None where there is nothing to divide by."""

    name: str
    iou: float | None
    boundary_iou: float | None
    recall: float | None
    """Share of its pixels that are called so."""
    precision: float | None
    """Share of the pixels called so that are."""
    pixels: int
    """In the truth."""
    predicted: int


def class_rows(tally: Tally, names: Sequence[str]) -> list[ClassRow]:
    """One row a class, in the benchmark's order."""
    found, boundary = tally.areas, class_iou(tally.boundary)
    rows = zip(names, class_iou(found), boundary, *(part.tolist() for part in found), strict=True)
    return [
        ClassRow(name, known(iou), known(near), share(hits, truth), share(hits, given), truth, given)
        for name, iou, near, hits, truth, given in rows
    ]


def confused(tally: Tally, names: Sequence[str], count: int = 20) -> list[dict[str, Any]]:
    """The pairs "sofa taken for chair" with the largest `share` of the pixels of the true class.

    `share_of_all` is that of all pixels. A prediction of no class has the name "".
    """
    wrong = tally.confusion.copy()
    np.fill_diagonal(wrong, 0)
    shares = wrong / np.maximum(tally.confusion.sum(axis=1, keepdims=True), 1)
    total = max(1, int(tally.confusion.sum()))
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, shares.shape), strict=True) if wrong[i, j]]
    return [
        {
            "truth": names[i],
            "prediction": [*names, ""][j],
            "share": float(shares[i, j]),
            "share_of_all": float(wrong[i, j] / total),
        }
        for i, j in pairs
    ]


def known(x: float) -> float | None:
    """None, which JSON has, for NaN, which it has not."""
    return float(x) if np.isfinite(x) else None


def share(part: int, whole: int) -> float | None:
    """None where there is nothing to have a share of."""
    return part / whole if whole else None
