"""Metrics of segmentation, computed from exact counts of pixels.

`device_counts` counts images, and the counts may be added. `areas` reduces a confusion matrix to the areas that the
metrics need. `bootstrap` resamples the areas of single images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped

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
