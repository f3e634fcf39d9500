"""Prepared datasets of TensorFlow Datasets that have a feature of masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zeroseg_jax.data.sources.tfds import PreparedSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import (
    Example,
    apply_table,
    decode_mask,
    make_example,
    read_classes,
    value_table,
)
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

MASKS = ("segmentation", "segmentation_mask", "segmentation_label", "mask", "label_map", "annotation")
"""Common names of mask features."""


class PreparedMasks:
    """The dataset `tfds:NAME` below `root`, as in `data.source`.

    The masks are the feature `mask` if it is given, else the first of `MASKS`, else the only image feature besides the
    image. The feature may be an image or an integer tensor of one channel. The class names are those of the feature
    (`LabeledImage`), else those of `classes.txt` in `root`, else those of the vocabulary.

    Raises:
        InputError: there is no such dataset or split, no mask feature or several, or the classes have no names.
    """

    groups: Mapping[str, Sequence[int]] = {}
    background = None
    vocabulary = ""

    def __init__(self, name: str, root: str, split: str, limit: int = 0, mask: str = "", vocabulary: str = ""):
        folder = Path(root).expanduser()
        self.name, self._source = name, PreparedSource(name.removeprefix("tfds:"), folder, split)
        self._mask = _find_mask(self._source.features, self._source.image_feature, mask, name)
        self.classes = _find_classes(self._source.features[self._mask], folder, vocabulary, name)
        self._count = min(limit, len(self._source)) if limit else len(self._source)
        self._table = value_table(range(len(self.classes)))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self._count:
            raise IndexError(i)
        key, value = self._source.key(i), self._source.feature(i, self._mask)
        mask = decode_mask(value, key) if isinstance(value, bytes) else np.asarray(value).reshape(np.shape(value)[:2])
        return make_example(key, self._source.read(i), key, apply_table(mask, self._table, key), key)


def _find_mask(features: Mapping[str, Any], image: str, wanted: str, dataset: str) -> str:
    candidates = sorted(name for name, feature in features.items() if name != image and _may_be_mask(feature))
    listed = f"it has {', '.join(candidates)}" if candidates else "it has no image feature beside the image"
    if wanted:
        if wanted not in candidates:
            raise InputError(f"{dataset} has no feature of masks {wanted!r}; {listed}, set eval.mask to one")
        return wanted
    common = [name for name in MASKS if name in candidates]
    if not common and len(candidates) != 1:
        raise InputError(f"eval.mask must say which feature of {dataset} has the masks; {listed}")
    return common[0] if common else candidates[0]


def _may_be_mask(feature: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    if type(feature) is not tfds.features.Tensor or not np.issubdtype(feature.np_dtype, np.integer):
        return False
    return len(feature.shape) == 2 or (len(feature.shape) == 3 and feature.shape[-1] == 1)


def _find_classes(feature: Any, folder: Path, vocabulary: str, dataset: str) -> tuple[str, ...]:
    names = getattr(feature, "names", None)
    if names:
        return tuple(names)
    if (folder / "classes.txt").is_file():
        return read_classes(folder / "classes.txt")
    if vocabulary:
        return load_vocabulary(vocabulary).classes
    raise InputError(
        f"the masks of {dataset} have no names of classes; write one on each line of {folder / 'classes.txt'}, in the"
        " order of the masks' values, or set eval.vocabulary"
    )
