"""Figures of merit of a segmentation, all from exact counts of pixels.

`confusion_matrix` and `boundary_areas` count one image or several; counts of several images may be added. `areas` takes
from a confusion matrix what the figures need, and those of each image apart are what the bootstrap draws from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Integer, Shaped
from scipy import ndimage

IGNORE = 255
"""Value of mask pixels that do not count."""

DILATION = 0.02
"""Width of the boundaries of `boundary_areas`, as a share of the image's diagonal: the default of Cheng et al. 2021."""

Figure = Float[np.ndarray | np.floating, "*b"]
"""One number, or one for each of several sets of images."""


class Areas(NamedTuple):
    """Pixels of each class, of one set of images or (with leading axes) of several; all that the figures need."""

    intersection: Shaped[np.ndarray, "*b c"]
    truth: Shaped[np.ndarray, "*b c"]
    prediction: Shaped[np.ndarray, "*b c"]

    @property
    def union(self) -> Shaped[np.ndarray, "*b c"]:
        return self.truth + self.prediction - self.intersection

    def of(self, classes: Sequence[int]) -> "Areas":
        """Those of some classes."""
        return Areas(*(part[..., list(classes)] for part in self))


def confusion_matrix(
    truth: Integer[np.ndarray, "*b h w"],
    prediction: Integer[np.ndarray, "*b h w"],
    classes: int,
    ignore: int = IGNORE,
) -> Int64[np.ndarray, "c c+1"]:
    """Counts of pixels by true class (row) and predicted class (column); matrices of several images may be added.

    Pixels whose truth is `ignore` do not count. The last column counts predictions of no class, such as -1, which are
    wrong everywhere.

    Raises:
        ValueError: the shapes differ, or the truth holds a value that is neither a class nor `ignore`.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth is {truth.shape}, the prediction {prediction.shape}; they must agree")
    counted = truth != ignore
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < classes:
        raise ValueError(f"the truth holds values from {rows.min()} to {rows.max()}, but there are {classes} classes")
    columns = np.where((columns >= 0) & (columns < classes), columns, classes)
    counts = np.bincount(rows * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.astype(np.int64).reshape(classes, classes + 1)


def areas(confusion: Int[np.ndarray, "c c+1"]) -> Areas:
    """The areas of each class from a confusion matrix."""
    return Areas(np.diagonal(confusion).copy(), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0))


def class_iou(areas: Areas) -> Float[np.ndarray, "*b c"]:
    """Intersection over union of each class, in [0, 1]; NaN for a class in neither the truth nor the prediction."""
    union = areas.union
    return np.divide(areas.intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(areas: Areas) -> Figure:
    """Mean IoU in [0, 1] over the classes.

    A class that is in neither the truth nor the prediction has no IoU and does not count (as in mmsegmentation and
    torchmetrics); one that is predicted but never true counts as 0. 0 where no class counts.
    """
    counted = areas.union > 0
    iou = areas.intersection / np.maximum(areas.union, 1)
    return iou.sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)


def frequency_weighted_iou(areas: Areas) -> Figure:
    """Mean IoU in which each class counts as often as its pixels in the truth (Long et al. 2015, section 5)."""
    iou = areas.intersection / np.maximum(areas.union, 1)
    return (iou * areas.truth).sum(axis=-1) / np.maximum(areas.truth.sum(axis=-1), 1)


def pixel_accuracy(areas: Areas) -> Figure:
    """Share of the counted pixels whose class is right, in [0, 1]; 0 where none counts."""
    return areas.intersection.sum(axis=-1) / np.maximum(areas.truth.sum(axis=-1), 1)


def boundary_areas(
    truth: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    classes: int,
    ignore: int = IGNORE,
    dilation: float = DILATION,
) -> Areas:
    """The areas of one image that lie within a distance of their own region's border: `mean_iou` of their sums over
    all images is the boundary IoU (Cheng et al. 2021, "Boundary IoU", equation 1).

    The distance is `dilation` x the image's diagonal in pixels, at least 1, and is measured in the maximum norm, as by
    erosion with a square; the border of the image counts as a border. Pixels to ignore make no border: they hide what
    is below them from the truth and from the prediction alike.
    """
    distance = max(1, round(dilation * float(np.hypot(*truth.shape))))
    ignored = truth == ignore
    near_truth, near_prediction = (_near_border(m, ignored, distance) for m in (truth, prediction))
    # as int32, because newer versions of numpy do not put a -1 among the uint8 of a mask
    inside = [
        np.where(near, labels.astype(np.int32), -1)
        for near, labels in ((near_truth, truth), (near_prediction, prediction))
    ]
    counts = [
        np.bincount(labels[(labels >= 0) & (labels < classes) & ~ignored], minlength=classes)
        for labels in (np.where(inside[0] == inside[1], inside[0], -1), *inside)
    ]
    return Areas(*counts)


def _near_border(
    labels: Integer[np.ndarray, "h w"], ignored: Bool[np.ndarray, "h w"], distance: int
) -> Bool[np.ndarray, "h w"]:
    """Whether another label, or the outside of the image, is at most `distance` pixels away."""
    # a square of one label only has the same smallest and largest one; what is ignored is neither
    low, high = labels.astype(np.int16), labels.astype(np.int16)
    low[ignored], high[ignored] = np.iinfo(np.int16).max, np.iinfo(np.int16).min
    size = 2 * distance + 1
    outside = -2  # below every label: next to the image's border the smallest and the largest always differ
    return ndimage.minimum_filter(low, size, mode="constant", cval=outside) != ndimage.maximum_filter(
        high, size, mode="constant", cval=outside
    )


def resample(per_image: Areas, count: int = 1000, seed: int = 0) -> Areas:
    """The summed areas of `count` bootstrap samples of the images: (n, c) -> (count, c), exact.

    Each sample draws as many images as there are, with replacement. The same seed draws the same images, so that the
    samples of two models on the same images are paired.
    """
    images = len(per_image.truth)
    rng = np.random.default_rng(seed)
    parts = [part.astype(np.float64) for part in per_image]  # integers, exact up to 2**53
    sums = [np.zeros((count, part.shape[-1])) for part in parts]
    for start in range(0, count, 100):  # how often each image is drawn: 100 x n numbers at once
        times = rng.multinomial(images, np.full(images, 1 / images), size=min(100, count - start)).astype(np.float64)
        for total, part in zip(sums, parts, strict=True):
            total[start : start + len(times)] = times @ part
    return Areas(*sums)


def interval(samples: Float[np.ndarray, " n"], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples of a figure (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
