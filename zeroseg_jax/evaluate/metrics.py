"""Figures of merit of a segmentation, all from one exact confusion matrix."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int64, Integer

IGNORE = 255
"""Value of mask pixels that do not count."""


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


def class_iou(confusion: Int[np.ndarray, "c c+1"]) -> Float[np.ndarray, " c"]:
    """Intersection over union of each class, in [0, 1]; NaN for a class in neither the truth nor the prediction."""
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: Int[np.ndarray, "c c+1"], classes: Sequence[int] | None = None) -> float:
    """Mean IoU in [0, 1] over all classes, or over those of `classes`.

    A class that is in neither the truth nor the prediction has no IoU and does not count (as in mmsegmentation and
    torchmetrics); one that is predicted but never true counts as 0. 0 where no class counts.
    """
    iou = class_iou(confusion)
    iou = iou if classes is None else iou[list(classes)]
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else 0.0


def pixel_accuracy(confusion: Int[np.ndarray, "c c+1"]) -> float:
    """Share of the counted pixels whose class is right, in [0, 1]; 0 where none counts."""
    total = confusion.sum()
    return float(np.trace(confusion[:, :-1]) / total) if total else 0.0
