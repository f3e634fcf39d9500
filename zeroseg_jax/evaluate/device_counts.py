"""Counts the pixels of predictions where they were computed, so that only small integers go to the host.

Pixels whose truth is IGNORE are left out. The confusion matrix has the true class in rows and the predicted class in
columns. Its last column is for predictions that are no class, such as -1; they always count as wrong.

The boundary areas count only pixels close to the border of their own region. `metrics.mean_iou` of the sum over all
images is the boundary IoU (Cheng et al. 2021, "Boundary IoU", equation 1). A pixel is close if the distance in the
maximum norm is at most `metrics.boundary_distance`. The edge of the image is a border. Ignored pixels are not: neither
the truth nor the prediction has a region there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Integer

from zeroseg_jax.evaluate.metrics import IGNORE, boundary_distance, check_truth
from zeroseg_jax.ops.histogram import histogram_of_pairs
from zeroseg_jax.segment.labelling.on_device import MapsOnDevice, inside_of

OUTSIDE = -2
"""Stands for the outside of an image. It is below every label, so that the edge of the image is a border."""


class Truth(NamedTuple):
    """The mask of an image, padded with IGNORE and turned as the maps that it is compared with."""

    mask: Integer[Array | np.ndarray, "y x"]
    near_border: Bool[Array, "y x"]
    size: Int32[np.ndarray, " 2"]
    distance: Int32[Any, ""]
    """`metrics.boundary_distance`."""
    doublings: int
    """Exponent of the largest power of two that is no longer than the window around a pixel."""


class BatchTruth:
    """The masks of a batch of images on a device. What they need beside the predictions is computed once."""

    def __init__(self, masks: Sequence[Integer[np.ndarray, "_ _"]], classes: int):
        for mask in masks:
            check_truth(mask, classes)
        self._masks, self._prepared = masks, dict[tuple[int, bool, tuple[int, ...]], Truth]()

    def of_image(self, i: int, maps: MapsOnDevice) -> Truth:
        """The mask of image i, padded and turned as `maps`."""
        key = i, maps.turned, maps.label_map.shape
        if key not in self._prepared:
            mask = self._masks[i].T if maps.turned else self._masks[i]
            if mask.shape != maps.size:
                raise ValueError(f"the truth is {mask.shape}, the prediction {maps.size}; they must agree")
            room = [(0, n - m) for m, n in zip(mask.shape, maps.label_map.shape, strict=True)]
            padded = np.pad(mask, room, constant_values=IGNORE)
            size, distance = np.array(mask.shape, np.int32), np.int32(boundary_distance(mask.shape))
            doublings = (2 * int(distance) + 1).bit_length() - 1
            border = _near_border(padded, padded == IGNORE, size, distance, doublings)
            self._prepared[key] = Truth(padded, border, size, distance, doublings)
        return self._prepared[key]


def count_image(
    maps: MapsOnDevice,
    truth: Truth,
    class_of_label: Int[np.ndarray, " c"],
    threshold: float,
    classes: int,
    sweep: tuple[Float[np.ndarray, " t"], int] | None = None,
) -> dict[str, Any]:
    """The counts of one image, still on the device.

    Args:
        class_of_label: the class of each label. The last entry is the class of pixels without a label.
        threshold: pixels with a lower probability have the last class; 0: none.
        sweep: thresholds and the class of the background, to count for a `ThresholdSweep` too.

    Returns:
        "confusion" int32 (c, c + 1), "boundary" int32 (3, c), and with a sweep and a probability "predicted" and
        "correct" (t + 1, c), "background" (t + 1).
    """
    counts: dict[str, Any] = _count(
        maps.label_map,
        maps.probability if threshold else None,
        *truth[:4],
        np.asarray(class_of_label, np.int32),
        np.float32(threshold),
        sweep and sweep[0],
        truth.doublings,
        classes,
        sweep[1] if sweep else 0,
    )
    return counts


@partial(jax.jit, static_argnums=(9, 10, 11))
def _count(
    label_map: Int32[Array, "y x"],
    probability: Float[Array, "y x"] | None,
    mask: Integer[Array, "y x"],
    truth_border: Bool[Array, "y x"],
    size: Int32[Array, " 2"],
    distance: Int32[Array, ""],
    class_of_label: Int32[Array, " c"],
    threshold: Float[Array, ""],
    thresholds: Float[Array, " t"] | None,
    doublings: int,
    classes: int,
    background: int,
) -> dict[str, Array]:
    counted = mask != IGNORE
    truth = jnp.where(counted, mask, -1).astype(jnp.int32)
    none = len(class_of_label) - 1
    best = class_of_label[jnp.where(label_map < 0, none, label_map)]
    predicted = best if probability is None else jnp.where(probability < threshold, class_of_label[none], best)
    border = _near_border(predicted, ~counted, size, distance, doublings)

    # One histogram of truth and prediction, each apart for pixels near a border of its own.
    column = jnp.where((predicted >= 0) & (predicted < classes), predicted, classes)
    rows, columns = jnp.where(counted, 2 * truth + truth_border, -1), 2 * column + border
    pairs = histogram_of_pairs(rows.ravel(), columns.ravel(), (2 * classes, 2 * classes + 2))
    pairs = pairs.reshape(classes, 2, classes + 1, 2)
    near = pairs[:, :, :-1]
    both = jnp.diagonal(near[:, 1, :, 1])
    boundary = jnp.stack([both, pairs[:, 1].sum(axis=(1, 2)), near[..., 1].sum(axis=(0, 1))])
    counts = {"confusion": pairs.sum(axis=(1, 3)), "boundary": boundary}

    if probability is not None and thresholds is not None:
        bins = jnp.searchsorted(thresholds, probability.ravel(), side="right")
        columns = best + classes * (best == truth) + 2 * classes * (truth == background)
        shape = (len(thresholds) + 1, 4 * classes)
        cells = histogram_of_pairs(jnp.where(counted.ravel(), bins, -1), columns.ravel(), shape)
        cells = cells.reshape(shape[0], 2, 2, classes)
        counts |= {"predicted": cells.sum(axis=(1, 2)), "correct": cells[:, :, 1].sum(axis=1)}
        counts["background"] = cells[:, 1].sum(axis=(1, 2))
    return counts


@partial(jax.jit, static_argnums=4)
def _near_border(
    labels: Integer[Array, "y x"],
    ignored: Bool[Array, "y x"],
    size: Int32[Array, " 2"],
    distance: Int32[Array, ""],
    doublings: int,
) -> Bool[Array, "y x"]:
    """Whether another label, or the outside of the image, is at most `distance` pixels away."""
    # A square holds several labels if its smallest and its largest label differ. Ignored pixels are neither.
    inside, labels, limits = inside_of(labels.shape, size), labels.astype(jnp.int16), jnp.iinfo(jnp.int16)
    low, high = (
        jnp.where(inside, jnp.where(ignored, limit, labels), OUTSIDE).astype(jnp.int16)
        for limit in (limits.max, limits.min)
    )
    return _in_square(low, distance, doublings, jnp.minimum) != _in_square(high, distance, doublings, jnp.maximum)


def _in_square(
    x: Int[Array, "y x"], distance: Int32[Array, ""], doublings: int, reduce: Callable[[Array, Array], Array]
) -> Int[Array, "y x"]:
    """The smallest or the largest value in the square around each pixel, by windows of 1, 2, 4, ... pixels."""
    room = 2**doublings
    for axis in (0, 1):
        length, padding = x.shape[axis], [(0, 0), (0, 0)]
        padding[axis] = (room, room)
        windows = jnp.pad(x, padding, constant_values=OUTSIDE)
        for step in (2**j for j in range(doublings)):
            count = windows.shape[axis] - step
            parts = (jax.lax.slice_in_dim(windows, start, start + count, axis=axis) for start in (0, step))
            windows = reduce(*parts)
        # Two windows that overlap make one of 2 x distance + 1 pixels.
        starts = room - distance, distance + 1
        x = reduce(*(jax.lax.dynamic_slice_in_dim(windows, start, length, axis) for start in starts))
    return x
