"""Metrics of segmentation, computed from exact counts of pixels.

`confusion_matrix` and `boundary_areas` count images, and their counts may be added. `areas` reduces a confusion matrix
to the areas that the metrics need. `bootstrap` resamples the areas of single images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Integer, Shaped
from scipy import ndimage

IGNORE = 255
"""Mask value of pixels that are left out of all counts."""

DILATION = 0.02
"""Width of a boundary as a share of the image's diagonal: the default of Cheng et al. 2021."""

Figure = Float[np.ndarray | np.floating, "*b"]
"""One number, or one for each set of images."""


class Areas(NamedTuple):
    """Numbers of pixels of each class. Leading axes are sets of images."""

    intersection: Shaped[np.ndarray, "*b c"]
    """Pixels of the class that are predicted as the class."""
    truth: Shaped[np.ndarray, "*b c"]
    prediction: Shaped[np.ndarray, "*b c"]

    @property
    def union(self) -> Shaped[np.ndarray, "*b c"]:
        return self.truth + self.prediction - self.intersection

    def select(self, classes: Sequence[int]) -> "Areas":
        """The areas of some classes."""
        return Areas(*(part[..., list(classes)] for part in self))


def confusion_matrix(
    truth: Integer[np.ndarray, "*b h w"],
    prediction: Integer[np.ndarray, "*b h w"],
    classes: int,
    ignore: int = IGNORE,
) -> Int64[np.ndarray, "c c+1"]:
    """Numbers of pixels by true class (row) and predicted class (column).

    Pixels whose truth is `ignore` are left out. The last column is for predictions that are no class, such as -1; they
    always count as wrong.

    Raises:
        ValueError: the shapes differ, or the truth holds a value that is neither a class nor `ignore`.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth is {truth.shape}, the prediction {prediction.shape}; they must agree")
    counted = truth != ignore
    check_truth(truth, classes, ignore)
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    columns = np.where((columns >= 0) & (columns < classes), columns, classes)
    counts = np.bincount(rows * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.astype(np.int64).reshape(classes, classes + 1)


def check_truth(truth: Integer[np.ndarray, "*b h w"], classes: int, ignore: int = IGNORE) -> None:
    """Raises ValueError if the truth holds a value that is neither a class nor `ignore`."""
    values = truth[truth != ignore]
    if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"the truth holds values from {values.min()} to {values.max()}, but there are {classes} classes"
        )


def boundary_distance(shape: Sequence[int], dilation: float = DILATION) -> int:
    """Largest distance of a pixel that is close to a border, in an image of this shape."""
    return max(1, round(dilation * float(np.hypot(shape[0], shape[1]))))


def areas(confusion: Int[np.ndarray, "c c+1"]) -> Areas:
    """The areas of each class."""
    return Areas(np.diagonal(confusion).copy(), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0))


def class_iou(areas: Areas) -> Float[np.ndarray, "*b c"]:
    """Intersection over union of each class, in [0, 1]; NaN for a class in neither the truth nor the prediction."""
    union = areas.union
    return np.divide(areas.intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(areas: Areas) -> Figure:
    """Mean IoU over the classes, in [0, 1]; 0 if there is no class to count.

    A class in neither the truth nor the prediction has no IoU and is left out of the mean, as in mmsegmentation and
    torchmetrics. A class that is predicted but never true has an IoU of 0.
    """
    counted = areas.union > 0
    iou = areas.intersection / np.maximum(areas.union, 1)
    return iou.sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)


def frequency_weighted_iou(areas: Areas) -> Figure:
    """Mean IoU weighted by the number of true pixels of each class (Long et al. 2015, section 5)."""
    iou = areas.intersection / np.maximum(areas.union, 1)
    return (iou * areas.truth).sum(axis=-1) / np.maximum(areas.truth.sum(axis=-1), 1)


def pixel_accuracy(areas: Areas) -> Figure:
    """Share of the counted pixels whose class is right, in [0, 1]; 0 if no pixel counts."""
    return areas.intersection.sum(axis=-1) / np.maximum(areas.truth.sum(axis=-1), 1)


def boundary_areas(
    truth: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    classes: int,
    ignore: int = IGNORE,
    dilation: float = DILATION,
) -> Areas:
    """Areas of one image, of those pixels only that are close to the border of their own region.

    `mean_iou` of the sum over all images is the boundary IoU (Cheng et al. 2021, "Boundary IoU", equation 1). A pixel
    is close if the distance in the maximum norm is at most `dilation` x the image's diagonal, and at least one pixel.
    The edge of the image is a border. Ignored pixels are not: neither the truth nor the prediction has a region there.
    """
    distance = boundary_distance(truth.shape, dilation)
    ignored = truth == ignore
    # As int32, because a uint8 mask cannot hold -1.
    truth_border, prediction_border = (
        np.where(_near_border(labels, ignored, distance), labels.astype(np.int32), -1) for labels in (truth, prediction)
    )
    both = np.where(truth_border == prediction_border, truth_border, -1)
    return Areas(
        *(
            np.bincount(labels[(labels >= 0) & (labels < classes) & ~ignored], minlength=classes)
            for labels in (both, truth_border, prediction_border)
        )
    )


def _near_border(
    labels: Integer[np.ndarray, "h w"], ignored: Bool[np.ndarray, "h w"], distance: int
) -> Bool[np.ndarray, "h w"]:
    """Whether another label, or the outside of the image, is at most `distance` pixels away."""
    # A square holds several labels if its smallest and its largest label differ. Ignored pixels are neither.
    low, high = labels.astype(np.int16), labels.astype(np.int16)
    low[ignored], high[ignored] = np.iinfo(np.int16).max, np.iinfo(np.int16).min
    size = 2 * distance + 1
    outside = -2  # Below every label, so that the edge of the image is a border.
    return ndimage.minimum_filter(low, size, mode="constant", cval=outside) != ndimage.maximum_filter(
        high, size, mode="constant", cval=outside
    )


def bootstrap(per_image: Areas, count: int = 1000, seed: int = 0) -> Areas:
    """Areas of `count` bootstrap samples of the images: (n, c) -> (count, c), exact sums.

    Each sample draws n images with replacement. The same seed draws the same images, so the samples of two models are
    paired.
    """
    images = len(per_image.truth)
    rng = np.random.default_rng(seed)
    parts = [part.astype(np.float64) for part in per_image]  # Integers below 2**53 stay exact.
    sums = [np.zeros((count, part.shape[-1])) for part in parts]
    for start in range(0, count, 100):  # 100 samples at once, to bound the memory
        draws = rng.multinomial(images, np.full(images, 1 / images), size=min(100, count - start)).astype(np.float64)
        for total, part in zip(sums, parts, strict=True):
            total[start : start + len(draws)] = draws @ part
    return Areas(*sums)


def percentile_interval(samples: Float[np.ndarray, " n"], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples of a metric (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
