"""What every threshold for the background would have given, from one pass over the images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Integer

from zeroseg_jax.evaluate.metrics import IGNORE, Areas, mean_iou

STEPS = np.linspace(0, 1, 101, dtype=np.float32)


class ThresholdSweep:
    """Counts from which the areas of each class follow exactly, for 101 thresholds and the one in use.

    A pixel is background where its best label is less probable than the threshold. So it is enough to know how
    probable the best labels are: of the pixels that they are right for, of all pixels that they are given to, and of
    those that truly are background.
    """

    def __init__(self, classes: int, background: int, threshold: float):
        self.background, self.used = background, threshold
        self.thresholds = np.unique(np.append(STEPS, np.float32(threshold)))
        bins = len(self.thresholds) + 1
        self._right, self._given = np.zeros((2, bins, classes), np.int64)
        self._background, self._truth = np.zeros(bins, np.int64), np.zeros(classes, np.int64)

    def add(
        self,
        truth: Integer[np.ndarray, "h w"],
        best: Int32[np.ndarray, "h w"],
        probability: Float32[np.ndarray, "h w"],
    ) -> None:
        """Counts an image: the class of each pixel's best label, which is never the background, and its
        probability."""
        counted = truth != IGNORE
        truth, best = truth[counted].astype(np.int64), best[counted].astype(np.int64)
        # how many of the thresholds leave the pixel its label: bin k keeps it for the first k of them
        bins = np.searchsorted(self.thresholds, probability[counted], side="right")
        self._truth += np.bincount(truth, minlength=len(self._truth))
        self._background += np.bincount(bins[truth == self.background], minlength=len(self._background))
        cells, shape = bins * len(self._truth) + best, self._given.shape
        self._given += np.bincount(cells, minlength=self._given.size).reshape(shape)
        self._right += np.bincount(cells[best == truth], minlength=self._right.size).reshape(shape)

    @property
    def pixels(self) -> int:
        """How many are counted: none of a model that applies the threshold itself."""
        return int(self._truth.sum())

    def empty(self) -> "ThresholdSweep":
        """One like this that has counted nothing."""
        return ThresholdSweep(len(self._truth), self.background, self.used)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is counted, as `merge` takes it."""
        counts = self._right, self._given, self._background, self._truth
        return dict(zip(("right", "given", "background", "truth"), counts, strict=True))

    def merge(self, counted: Mapping[str, np.ndarray]) -> None:
        """Adds the `arrays` of another sweep of the same thresholds."""
        for name, counts in self.arrays().items():
            counts += counted[name]

    def areas(self) -> Areas:
        """The areas of each class (last axis) at each of `thresholds` (first axis)."""
        right, given = (counts.sum(axis=0) - counts.cumsum(axis=0)[:-1] for counts in (self._right, self._given))
        right[:, self.background] = self._background.cumsum()[:-1]
        given[:, self.background] = self._given.sum(axis=1).cumsum()[:-1]
        return Areas(right, np.broadcast_to(self._truth, right.shape), given)

    def figures(self) -> dict[str, Any]:
        """`thresholds` and the `miou` at each, the threshold `used`, and the `best` one (chosen on these very images,
        so that its mIoU is no fair result)."""
        miou = mean_iou(self.areas())
        thresholds = [round(float(x), 6) for x in self.thresholds]  # 0.95, not 0.949999988079071
        found = {"used": self.used, "best": thresholds[int(miou.argmax())], "best_miou": float(miou.max())}
        return found | {"thresholds": thresholds, "miou": miou.tolist()}


def draw_sweeps(sweeps: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes the curves of several models (`ThresholdSweep.figures`) as a picture; dots mark the thresholds in use."""
    from matplotlib.figure import Figure  # half a second, for those who have a threshold

    axes = (figure := Figure(figsize=(6.4, 3.6), layout="constrained")).subplots()
    for name, sweep in sweeps.items():
        (line,) = axes.plot(sweep["thresholds"], 100 * np.array(sweep["miou"]), label=name)
        used = sweep["thresholds"].index(round(sweep["used"], 6))
        axes.plot(sweep["used"], 100 * sweep["miou"][used], "o", color=line.get_color())
    axes.set(xlabel="threshold for the background", ylabel="mIoU, percent", xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
