"""The confusion matrix and its figures, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as reference_matrix
from sklearn.metrics import jaccard_score

from zeroseg_jax.evaluate.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy


def test_random_masks_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 7, (2, 3, 20, 30))
    truth[rng.random(truth.shape) < 0.1] = 255
    counted = truth != 255
    matrix = confusion_matrix(truth, prediction, 7)
    np.testing.assert_array_equal(matrix[:, :-1], reference_matrix(truth[counted], prediction[counted]))
    assert not matrix[:, -1].any()
    reference = jaccard_score(truth[counted], prediction[counted], average=None)
    np.testing.assert_allclose(class_iou(matrix), reference)
    np.testing.assert_allclose(mean_iou(matrix, [1, 4]), reference[[1, 4]].mean())
    np.testing.assert_allclose(pixel_accuracy(matrix), (truth == prediction)[counted].mean())


def test_absent_classes_and_no_label_by_hand():
    truth, prediction = np.array([[0, 0, 1, 255]]), np.array([[0, -1, 2, 1]])
    matrix = confusion_matrix(truth, prediction, 4)
    np.testing.assert_allclose(class_iou(matrix), [1 / 2, 0, 0, np.nan])  # 2 is never true, 3 is nowhere
    assert mean_iou(matrix) == pytest.approx(1 / 6)
    assert pixel_accuracy(matrix) == pytest.approx(1 / 3)


def test_sums_over_images_are_exact():
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 3, (2, 4, 8, 8))
    parts = sum(confusion_matrix(t, p, 3) for t, p in zip(truth, prediction, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, prediction, 3))


def test_masks_that_cannot_be_counted():
    with pytest.raises(ValueError, match="values from 0 to 5"):
        confusion_matrix(np.array([[0, 5]]), np.array([[0, 0]]), 2)
