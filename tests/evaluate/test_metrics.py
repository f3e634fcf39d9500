"""The counts and their figures: by hand, and against scikit-learn, torchmetrics, torch and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch
from numpy_counts import boundary_areas, confusion_matrix
from sklearn.metrics import confusion_matrix as reference_matrix
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

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


def random_masks(classes, shape):
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, classes, (2, *shape))
    prediction = np.where(rng.random(shape) < 0.6, truth, prediction)
    truth[rng.random(shape) < 0.1] = 255
    return truth, prediction


def test_random_masks_agree_with_scikit_learn():
    truth, prediction = random_masks(7, (3, 20, 30))
    counted = truth != 255
    matrix = confusion_matrix(truth, prediction, 7)
    np.testing.assert_array_equal(matrix[:, :-1], reference_matrix(truth[counted], prediction[counted]))
    assert not matrix[:, -1].any()
    actual = areas(matrix)
    reference = jaccard_score(truth[counted], prediction[counted], average=None)
    np.testing.assert_allclose(class_iou(actual), reference)
    np.testing.assert_allclose(mean_iou(actual.select([1, 4])), reference[[1, 4]].mean())
    np.testing.assert_allclose(pixel_accuracy(actual), (truth == prediction)[counted].mean())


@pytest.mark.parametrize("classes", [5, 9])  # of nine, the last two are nowhere
def test_means_over_classes_agree_with_torchmetrics(classes):
    truth, prediction = (np.where(m == 255, 255, m % 7) for m in random_masks(min(classes, 7), (4, 16, 24)))
    actual = areas(confusion_matrix(truth, prediction, classes))
    for average, figure in (("macro", mean_iou), ("weighted", frequency_weighted_iou)):
        reference = multiclass_jaccard_index(
            torch.tensor(prediction), torch.tensor(truth), classes, average=average, ignore_index=255
        )
        np.testing.assert_allclose(figure(actual), reference, rtol=1e-5)


def test_absent_classes_and_no_label_by_hand():
    truth, prediction = np.array([[0, 0, 1, 255]]), np.array([[0, -1, 2, 1]])
    result = areas(confusion_matrix(truth, prediction, 4))
    np.testing.assert_allclose(class_iou(result), [1 / 2, 0, 0, np.nan])  # 2 is never true, 3 is nowhere
    assert mean_iou(result) == pytest.approx(1 / 6)
    assert frequency_weighted_iou(result) == pytest.approx(2 / 3 * 1 / 2)
    assert pixel_accuracy(result) == pytest.approx(1 / 3)
    assert mean_iou(result.select([3])) == 0


def test_sums_over_images_are_exact():
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 3, (2, 4, 8, 8))
    parts = sum(confusion_matrix(t, p, 3) for t, p in zip(truth, prediction, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, prediction, 3))


def test_masks_that_cannot_be_counted():
    with pytest.raises(ValueError, match="values from 0 to 5"):
        confusion_matrix(np.array([[0, 5]]), np.array([[0, 0]]), 2)


def blobs(rng, classes, shape=(60, 90)):
    """Patches of 10 pixels, so that the regions have an inside."""
    return rng.integers(0, classes, (shape[0] // 10, shape[1] // 10)).repeat(10, 0).repeat(10, 1)


def eroded(mask, distance):
    """Class masks without what a square of zeros, or the outside, reaches."""
    outside = torch.nn.functional.pad(1 - torch.tensor(mask, dtype=torch.float), [distance] * 4, value=1)
    return torch.nn.functional.max_pool2d(outside[None], 2 * distance + 1, stride=1)[0].numpy() == 0


def test_boundary_iou_agrees_with_the_erosion_of_each_class():
    rng = np.random.default_rng(0)
    truth, prediction = blobs(rng, 4), np.roll(blobs(np.random.default_rng(0), 4), 2, axis=1)
    prediction[:10] = -1  # no label
    distance = round(0.02 * np.hypot(60, 90))
    result = boundary_areas(truth, prediction, 5)
    for k in range(4):
        near = [mask & ~eroded(mask, distance) for mask in (truth == k, prediction == k)]
        assert result.intersection[k] == (near[0] & near[1]).sum()
        assert result.union[k] == (near[0] | near[1]).sum()
    assert result.union[4] == 0
    assert mean_iou(boundary_areas(truth, truth, 5)) == 1


def test_boundary_iou_by_hand():
    """A square of 4 x 4 with a border of one pixel has 12 pixels at the border; moved by one, they share 6."""
    truth, prediction = np.zeros((2, 10, 10), int)
    truth[3:7, 3:7], prediction[3:7, 4:8] = 1, 1
    result = boundary_areas(truth, prediction, 2, dilation=0.05)
    assert (result.truth[1], result.prediction[1], result.intersection[1]) == (12, 12, 6)


def test_what_is_ignored_makes_no_border():
    """An outline to ignore, as VOC has: whatever a prediction does below it costs nothing."""
    truth, prediction = np.zeros((2, 40, 40), int)
    truth[10:30, 10:30], prediction[9:31, 9:31] = 1, 1
    truth[8:32, 8:32][~np.pad(np.ones((20, 20), bool), 2)] = 255
    result = boundary_areas(truth, prediction, 2, dilation=0.1)
    assert mean_iou(result) == 1
    inside = 20**2 - (20 - 2 * 4) ** 2  # 6 pixels from the zeros, of which 2 are to ignore
    assert result.truth[1] == inside


def test_resampled_areas_are_those_of_the_drawn_images():
    rng = np.random.default_rng(0)
    per_image = Areas(*rng.integers(0, 50, (3, 6, 4)))
    result = bootstrap(per_image, count=150, seed=3)
    draws = np.random.default_rng(3)
    times = np.concatenate([draws.multinomial(6, [1 / 6] * 6, size=n) for n in (100, 50)])
    for mine, part in zip(result, per_image, strict=True):
        np.testing.assert_array_equal(mine[-1], np.repeat(part, times[-1], axis=0).sum(axis=0))
    np.testing.assert_array_equal(result.truth, bootstrap(per_image, 150, seed=3).truth)
    assert (result.truth != bootstrap(per_image, 150, seed=4).truth).any()


def test_the_interval_agrees_with_scipy():
    """The mean accuracy of images of one size, whose bootstrap scipy knows."""
    hits = np.random.default_rng(0).integers(0, 101, (80, 1))
    per_image = Areas(hits, np.full_like(hits, 100), np.full_like(hits, 100))
    actual = percentile_interval(pixel_accuracy(bootstrap(per_image, count=4000)))
    reference = scipy.stats.bootstrap((hits[:, 0] / 100,), np.mean, n_resamples=4000, method="percentile", rng=1)
    np.testing.assert_allclose(actual, reference.confidence_interval, atol=0.004)


def test_a_large_benchmark_is_resampled_in_seconds():
    """5000 images of 171 classes, as COCO-Stuff has."""
    per_image = Areas(*np.random.default_rng(0).integers(0, 100, (3, 5000, 171), dtype=np.int32))
    low, high = percentile_interval(mean_iou(bootstrap(per_image, count=200)))
    assert low < mean_iou(Areas(*(part.sum(axis=0) for part in per_image))) < high
