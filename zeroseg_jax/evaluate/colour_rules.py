"""Rules that see the colour of each pixel and nothing else: how far colour alone goes on the scenes."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int32, UInt8
from ml_collections import ConfigDict

from zeroseg_jax.evaluate.benchmarks import Scenes
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.protocol import DEFAULT, Predict, Prediction
from zeroseg_jax.segment.labelling.on_device import MapsOnDevice, padded_length
from zeroseg_jax.segment.labelling.tiles import TILE

CLASSES = np.array([*range(IGNORE), -1], np.int32)
"""`Prediction.class_of_label` of a map that holds classes."""

COLOUR_SCENES = 1000
"""Number of training scenes that the rules are fitted to."""


class ColourRules:
    """Two rules, fitted to the masks of training images. A benchmark that they solve shows nothing about recognition.

    They are privileged: no other method sees masks.
    """

    def __init__(self, classes: int, levels: int = 16):
        self.classes, self.levels = classes, levels
        self._sums, self._pixels = np.zeros((classes, 3)), np.zeros(classes)
        self._table = np.zeros((levels**3, classes), np.int64)

    def fit(self, examples: Iterable[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]) -> "ColourRules":
        """Adds images with their masks."""
        for image, mask in examples:
            counted = mask != IGNORE
            colours, labels = image[counted], mask[counted].astype(np.int64)
            self._pixels += np.bincount(labels, minlength=self.classes)
            for channel in range(3):
                self._sums[:, channel] += np.bincount(labels, colours[:, channel], minlength=self.classes)
            cells = self._bins(colours) * self.classes + labels
            self._table += np.bincount(cells, minlength=self._table.size).reshape(self._table.shape)
        return self

    def nearest(self, image: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        """The class whose mean colour is nearest to the pixel's."""
        # A class without pixels is infinitely far.
        means = np.where(self._pixels[:, None] > 0, self._sums / np.maximum(self._pixels, 1)[:, None], np.inf)
        return self._nearest(image.reshape(-1, 3), means).reshape(image.shape[:2])

    def likeliest(self, image: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        """The most frequent class of training pixels of about this colour; `nearest` if there are none."""
        bins = self._bins(image.reshape(-1, 3))
        best = self._table.argmax(axis=1).astype(np.int32)[bins].reshape(image.shape[:2])
        unseen = (self._table.sum(axis=1) == 0)[bins].reshape(image.shape[:2])
        return np.where(unseen, self.nearest(image), best) if unseen.any() else best

    def _bins(self, colours: UInt8[np.ndarray, "n 3"]) -> np.ndarray:
        steps = colours.astype(np.int64) * self.levels // 256
        return (steps[:, 0] * self.levels + steps[:, 1]) * self.levels + steps[:, 2]

    def _nearest(self, colours: np.ndarray, means: Float[np.ndarray, "c 3"]) -> Int32[np.ndarray, " n"]:
        classes = np.flatnonzero(np.isfinite(means[:, 0])).astype(np.int32)
        centres = means[classes].astype(np.float32)
        # |x - m|^2 without |x|^2, which is the same for all classes.
        distance = (centres**2).sum(axis=1) - 2 * colours.astype(np.float32) @ centres.T
        return classes[distance.argmin(axis=1)]


def fit_colours(options: ConfigDict) -> ColourRules:
    """The rules, fitted to training scenes of the config's group `eval`."""
    training = Scenes(options.root, options.dataset.partition("/")[2] or "default", "train", COLOUR_SCENES)
    return ColourRules(len(training.classes)).fit(training[i][:2] for i in range(len(training)))


def predict_by_pixels(rule: Callable[[UInt8[np.ndarray, "h w 3"]], Int32[np.ndarray, "h w"]]) -> Predict:
    """A `Predict` of a rule in numpy, which needs no device."""

    def predictions(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Iterator[Prediction]:
        for image in images:
            label_map = rule(image)
            shape = [padded_length(n, TILE) for n in label_map.shape]
            padded = np.pad(label_map, [(0, n - m) for n, m in zip(shape, label_map.shape, strict=True)])
            maps = MapsOnDevice(padded, None, (label_map.shape[0], label_map.shape[1]), turned=False)
            yield Prediction(maps, CLASSES)

    return lambda images, device: {DEFAULT: predictions(images)}
