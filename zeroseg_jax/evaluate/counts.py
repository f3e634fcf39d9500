"""Pixel counts of an evaluated method, and the figures that follow from them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zeroseg_jax.evaluate.metrics import (
    Areas,
    areas,
    bootstrap,
    class_iou,
    frequency_weighted_iou,
    mean_iou,
    percentile_interval,
    pixel_accuracy,
)

RESAMPLES, LEVEL = 1000, 0.95
"""Number of bootstrap samples of the images, and the level of the confidence intervals."""


class PixelCounts:
    """Confusion matrix, boundary areas and the areas of each image.

    All counts are integers, so the order in which images are added changes nothing but the order of `per_image`.
    """

    def __init__(self, classes: int):
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        self.boundary = Areas(*np.zeros((3, classes), np.int64))
        self._per_image = np.zeros((0, 3, classes), np.int32)

    def add_counts(self, confusion: Int[np.ndarray, "c c+1"], boundary: Int[np.ndarray, "3 c"]) -> None:
        """Adds the confusion matrix and the boundary areas of one image."""
        # Three numbers a class, not a matrix, are kept for each image: 5000 images of 171 classes take 10 MB.
        self.add_arrays({"confusion": confusion, "boundary": boundary, "per_image": np.stack(areas(confusion))[None]})

    def arrays(self) -> dict[str, np.ndarray]:
        """All counts as arrays, in the form that `add_arrays` takes."""
        return {"confusion": self.confusion, "boundary": np.stack(self.boundary), "per_image": self._per_image}

    def add_arrays(self, counts: Mapping[str, np.ndarray]) -> None:
        """Adds the `arrays` of other counts, whose images follow the images counted here."""
        self.confusion = self.confusion + counts["confusion"]
        self.boundary = Areas(*(a + b for a, b in zip(self.boundary, counts["boundary"], strict=True)))
        self._per_image = np.concatenate([self._per_image, counts["per_image"].astype(np.int32)])

    @property
    def areas(self) -> Areas:
        """Areas of each class, summed over the images."""
        return areas(self.confusion)

    @cached_property
    def per_image(self) -> Areas:
        """Areas of each class in each image, (images, classes). Read it only when all images are counted."""
        return Areas(*self._per_image.swapaxes(0, 1))

    @property
    def image_iou(self) -> Float[np.ndarray, " n"]:
        """Mean IoU of each image over the classes in its truth or prediction."""
        return np.asarray(mean_iou(self.per_image))

    @cached_property
    def bootstrap_miou(self) -> Float[np.ndarray, " n"]:
        """Mean IoU of each bootstrap sample. The samples are the same images for all methods."""
        return np.asarray(mean_iou(bootstrap(self.per_image, RESAMPLES)))

    def figures(self, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Means over all classes and over each group of classes, in [0, 1], and the `interval` of the mean IoU."""
        figures = {
            "miou": mean_iou(self.areas),
            "pixel_accuracy": pixel_accuracy(self.areas),
            "frequency_weighted_iou": frequency_weighted_iou(self.areas),
            "boundary_iou": mean_iou(self.boundary),
            **{name: mean_iou(self.areas.select(classes)) for name, classes in groups.items()},
        }
        interval = percentile_interval(self.bootstrap_miou, LEVEL)
        return {name: float(x) for name, x in figures.items()} | {"interval": list(interval)}

    def difference(self, other: "PixelCounts") -> dict[str, Any]:
        """Mean IoU minus that of `other`, with its paired interval: both are sampled at the same images."""
        difference = float(mean_iou(self.areas) - mean_iou(other.areas))
        interval = percentile_interval(self.bootstrap_miou - other.bootstrap_miou, LEVEL)
        return {"miou": difference, "interval": list(interval)}


class ClassRow(NamedTuple):
    """Figures of one class. Shares are in [0, 1], or None where the denominator is 0."""

    name: str
    iou: float | None
    boundary_iou: float | None
    recall: float | None
    """Share of the class's pixels that are predicted as the class."""
    precision: float | None
    """Share of the pixels predicted as the class that belong to it."""
    pixels: int
    """Pixels of the class in the truth."""
    predicted: int
    """Pixels of the class in the predictions."""


def class_rows(counts: PixelCounts, names: Sequence[str]) -> list[ClassRow]:
    """One row for each class, in the benchmark's order."""
    total = counts.areas
    columns = class_iou(total), class_iou(counts.boundary), *(part.tolist() for part in total)
    return [
        ClassRow(
            name,
            finite_or_none(iou),
            finite_or_none(boundary_iou),
            ratio(correct, pixels),
            ratio(correct, predicted),
            pixels,
            predicted,
        )
        for name, iou, boundary_iou, correct, pixels, predicted in zip(names, *columns, strict=True)
    ]


def most_confused(counts: PixelCounts, names: Sequence[str], count: int = 20) -> list[dict[str, Any]]:
    """The pairs of true and predicted class with the most errors.

    `share` is the share of the true class's pixels, by which the pairs are sorted, and `share_of_all` that of all
    pixels. The `prediction` is "" where no class was predicted.
    """
    errors = counts.confusion.copy()
    np.fill_diagonal(errors, 0)
    shares = errors / np.maximum(counts.confusion.sum(axis=1, keepdims=True), 1)
    total = max(1, int(counts.confusion.sum()))
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, shares.shape), strict=True) if errors[i, j]]
    return [
        {
            "truth": names[i],
            "prediction": [*names, ""][j],
            "share": float(shares[i, j]),
            "share_of_all": float(errors[i, j] / total),
        }
        for i, j in pairs
    ]


def finite_or_none(x: float) -> float | None:
    """None in place of NaN, which JSON does not have."""
    return float(x) if np.isfinite(x) else None


def ratio(part: int, whole: int) -> float | None:
    """part / whole, or None if `whole` is 0."""
    return part / whole if whole else None
