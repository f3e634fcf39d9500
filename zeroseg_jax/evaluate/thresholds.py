"""The mean IoU at every threshold for the background, from one pass over the images."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from zeroseg_jax.evaluate.metrics import Areas, mean_iou
from zeroseg_jax.storage import AnyPath

STEPS = np.linspace(0, 1, 101, dtype=np.float32)


class ThresholdSweep:
    """Pixel counts at 101 thresholds and at the threshold in use.

    A pixel is background if the probability of its best label is below the threshold. Histograms of that probability
    are therefore enough: one of the pixels whose best label is right, one of all pixels of each label, and one of the
    pixels that are background in the truth.
    """

    def __init__(self, classes: int, background: int, threshold: float):
        self.background, self.threshold_in_use = background, threshold
        self.thresholds = np.unique(np.append(STEPS, np.float32(threshold)))
        bins = len(self.thresholds) + 1
        self._correct, self._predicted = np.zeros((2, bins, classes), np.int64)
        self._background, self._truth = np.zeros(bins, np.int64), np.zeros(classes, np.int64)

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Adds one image by what `device_counts.count_image` counted."""
        truth = counts["confusion"].sum(axis=1)
        self.add_arrays({name: counts[name] for name in ("correct", "predicted", "background")} | {"truth": truth})

    @property
    def pixels(self) -> int:
        """Number of counted pixels; 0 for a model that applies the threshold itself."""
        return int(self._truth.sum())

    def new(self) -> "ThresholdSweep":
        """A sweep of the same thresholds without any counts."""
        return ThresholdSweep(len(self._truth), self.background, self.threshold_in_use)

    def arrays(self) -> dict[str, np.ndarray]:
        """All counts as arrays, in the form that `add_arrays` takes."""
        return {
            "correct": self._correct,
            "predicted": self._predicted,
            "background": self._background,
            "truth": self._truth,
        }

    def add_arrays(self, counts: Mapping[str, np.ndarray]) -> None:
        """Adds the `arrays` of another sweep of the same thresholds."""
        for name, total in self.arrays().items():
            total += counts[name]

    def areas(self) -> Areas:
        """The areas of each class (last axis) at each of `thresholds` (first axis)."""
        correct, predicted = (
            histogram.sum(axis=0) - histogram.cumsum(axis=0)[:-1] for histogram in (self._correct, self._predicted)
        )
        # Above the threshold, a phrase for background may be the best label too.
        correct[:, self.background] += self._background.cumsum()[:-1]
        predicted[:, self.background] += self._predicted.sum(axis=1).cumsum()[:-1]
        return Areas(correct, np.broadcast_to(self._truth, correct.shape), predicted)

    def figures(self) -> dict[str, Any]:
        """`thresholds` with the `miou` at each, the threshold `used`, and the `best` one with its `best_miou`.

        The best threshold is chosen on the evaluated images, so its mIoU is not a fair result.
        """
        miou = mean_iou(self.areas())
        thresholds = [round(float(x), 6) for x in self.thresholds]  # 0.95, not 0.949999988079071
        return {
            "used": self.threshold_in_use,
            "best": thresholds[int(miou.argmax())],
            "best_miou": float(miou.max()),
            "thresholds": thresholds,
            "miou": miou.tolist(),
        }


def draw_sweeps(sweeps: Mapping[str, Mapping[str, Any]], path: AnyPath) -> None:
    """Draws the `ThresholdSweep.figures` of several models as curves, with a dot at the threshold in use."""
    from matplotlib.figure import Figure  # imported here, because it takes half a second

    axes = (figure := Figure(figsize=(6.4, 3.6), layout="constrained")).subplots()
    for name, sweep in sweeps.items():
        (line,) = axes.plot(sweep["thresholds"], 100 * np.array(sweep["miou"]), label=name)
        used = sweep["thresholds"].index(round(sweep["used"], 6))
        axes.plot(sweep["used"], 100 * sweep["miou"][used], "o", color=line.get_color())
    axes.set(xlabel="threshold for the background", ylabel="mIoU, percent", xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    path.write_bytes(picture.getvalue())
