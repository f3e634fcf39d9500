"""The sweep over thresholds against counting anew for each of them."""

import numpy as np
from numpy_counts import add_to_sweep, confusion_matrix
from PIL import Image

from zeroseg_jax.evaluate.metrics import areas, mean_iou
from zeroseg_jax.evaluate.thresholds import ThresholdSweep, draw_sweeps


def test_every_threshold_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    classes, background = 4, 2
    sweep = ThresholdSweep(classes, background, used := 0.555)
    images = []
    for _ in range(3):
        truth = rng.integers(0, classes, (9, 11))
        truth[rng.random(truth.shape) < 0.1] = 255
        best = rng.choice([0, 1, 3], truth.shape).astype(np.int32)
        probability = rng.random(truth.shape, np.float32)
        # values that are thresholds themselves count as passing
        probability[0] = sweep.thresholds[rng.integers(0, 102, 11)]
        images.append((truth, best, probability))
        add_to_sweep(sweep, classes, truth, best, probability)
    actual = sweep.areas()
    assert len(sweep.thresholds) == 102
    for j, threshold in enumerate(sweep.thresholds):
        maps = [(t, np.where(p < threshold, background, b)) for t, b, p in images]
        reference = areas(sum(confusion_matrix(t, m, classes) for t, m in maps))
        for mine, part in zip(actual, reference, strict=True):
            np.testing.assert_array_equal(mine[j], part)

    figures = sweep.figures()
    at = figures["thresholds"].index(used)
    assert figures["miou"][at] == mean_iou(actual)[at]
    assert figures["best_miou"] == max(figures["miou"])
    assert 0.95 in ThresholdSweep(classes, background, 0.95).figures()["thresholds"]
    draw_sweeps({"a": figures, "b": figures}, tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").width > 500
