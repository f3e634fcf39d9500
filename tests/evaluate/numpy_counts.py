"""The counts of `evaluate.device_counts` in plain numpy and scipy: the reference of the tests."""

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer
from scipy import ndimage

from zeroseg_jax.evaluate.counts import PixelCounts
from zeroseg_jax.evaluate.metrics import DILATION, IGNORE, Areas, boundary_distance, check_truth
from zeroseg_jax.evaluate.thresholds import ThresholdSweep


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


def add_image(counts: PixelCounts, truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"]) -> None:
    """Counts one image."""
    classes = len(counts.confusion)
    boundary = np.stack(boundary_areas(truth, prediction, classes))
    counts.add_counts(confusion_matrix(truth, prediction, classes), boundary)


def add_to_sweep(
    sweep: ThresholdSweep,
    classes: int,
    truth: Integer[np.ndarray, "h w"],
    best_class: Int32[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"],
) -> None:
    """Counts one image by the class of each pixel's best label (the background for its phrases), and its
    probability."""
    counted = truth != IGNORE
    truth, best_class = truth[counted].astype(np.int64), best_class[counted].astype(np.int64)
    # A pixel in bin k keeps its label at the first k thresholds.
    bins = np.searchsorted(sweep.thresholds, probability[counted], side="right")
    shape = len(sweep.thresholds) + 1, classes
    cells, size = bins * classes + best_class, shape[0] * classes
    sweep.add_arrays(
        {
            "truth": np.bincount(truth, minlength=classes),
            "background": np.bincount(bins[truth == sweep.background], minlength=shape[0]),
            "predicted": np.bincount(cells, minlength=size).reshape(shape),
            "correct": np.bincount(cells[best_class == truth], minlength=size).reshape(shape),
        }
    )
