"""Counting on the device against counting in numpy, to the last pixel."""

import numpy as np
import pytest
from numpy_counts import add_image, add_to_sweep

from zeroseg_jax.evaluate.counts import PixelCounts
from zeroseg_jax.evaluate.device_counts import BatchTruth, count_image
from zeroseg_jax.evaluate.thresholds import ThresholdSweep
from zeroseg_jax.segment.labelling.on_device import MapsOnDevice, padded_length

CLASSES, BACKGROUND = 4, 0


def blobs(rng, values, shape, side):
    small = rng.choice(np.array(values), (shape[0] // side + 1, shape[1] // side + 1))
    return np.kron(small, np.ones((side, side), small.dtype))[: shape[0], : shape[1]]


def on_device(label_map, probability, turned):
    """What the labeller leaves there. The padding holds labels like any others."""
    maps = [x.T if turned else x for x in (label_map, probability)]
    size = maps[0].shape
    room = [(0, padded_length(n, 16) - n) for n in size]
    label_map, probability = (np.pad(x, room, mode="edge") for x in maps)
    return MapsOnDevice(label_map, probability, size, turned)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (45, 33), (70, 150)])
def test_counts_are_those_of_numpy(shape, threshold, turned):
    rng = np.random.default_rng(0)
    mask = blobs(rng, [0, 1, 2, 3, 255], shape, 7).astype(np.uint8)
    label_map = blobs(rng, [-1, 0, 1, 2, 3, 4], shape, 5).astype(np.int32)
    probability = blobs(rng, np.linspace(0, 1, 11), shape, 4).astype(np.float32)
    # Without a threshold one label belongs to no class of the masks.
    class_of_label = np.array([1, 2, 2, 3, 3 if threshold else 7, BACKGROUND], np.int32)
    best = class_of_label[label_map]
    classes = np.where(probability < np.float32(threshold), BACKGROUND, best)
    expected, sweep = PixelCounts(CLASSES), ThresholdSweep(CLASSES, BACKGROUND, threshold)
    add_image(expected, mask, classes)

    maps, truth = on_device(label_map, probability, turned), BatchTruth([mask], CLASSES)
    thresholds = (sweep.thresholds, BACKGROUND)
    counts = count_image(maps, truth.of_image(0, maps), class_of_label, threshold, CLASSES, thresholds)
    actual = PixelCounts(CLASSES)
    actual.add_counts(np.asarray(counts["confusion"]), np.asarray(counts["boundary"]))
    for name, value in expected.arrays().items():
        np.testing.assert_array_equal(actual.arrays()[name], value)
    assert ("predicted" in counts) == (threshold > 0)
    if threshold:
        sweep.add_counts({name: np.asarray(x) for name, x in counts.items()})
        reference = sweep.new()
        add_to_sweep(reference, CLASSES, mask, best, probability)
        for name, value in reference.arrays().items():
            np.testing.assert_array_equal(sweep.arrays()[name], value)


def test_masks_that_cannot_be_counted():
    with pytest.raises(ValueError, match="values from 5 to 5"):
        BatchTruth([np.full((2, 2), 5, np.uint8)], CLASSES)
    maps = on_device(np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32), False)
    with pytest.raises(ValueError, match="must agree"):
        BatchTruth([np.zeros((2, 2), np.uint8)], CLASSES).of_image(0, maps)


def test_lengths_are_few():
    lengths = [padded_length(n, 128) for n in (1, 128, 500, 1024, 1025, 2048, 2049)]
    assert lengths == [128, 128, 512, 1024, 1280, 2048, 2560]
