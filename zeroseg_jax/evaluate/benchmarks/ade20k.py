"""ADE20K's 150 classes, as in the MIT Scene Parsing Benchmark."""

from zeroseg_jax.evaluate.benchmarks.masks import (
    MaskPairs,
    Pair,
    find_root,
    image_files,
    mask_files,
    table_reader,
    value_table,
)
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

SPLITS = {"val": "validation", "train": "training"}


def open_ade20k(root: str, split: str, limit: int = 0) -> MaskPairs:
    """`ADEChallengeData2016`, the release with 150 classes. The full ADE20K and TFDS's instances are not read.

    Mask values 1 to 150 are the classes. Value 0 is everything else and does not count.
    """
    split = SPLITS.get(split, split)
    needed = (f"images/{split}", f"annotations/{split}")
    folder = find_root(root, ("ADEChallengeData2016",), needed, "ADE20K")
    classes = load_vocabulary("ade20k_mmseg").classes
    images = list(image_files(folder / needed[0]).items())[: limit or None]
    masks = mask_files(folder / needed[1])
    pairs = [Pair(name, path, masks.get(name, folder / needed[1] / f"{name}.png")) for name, path in images]
    read = table_reader(value_table((IGNORE, *range(len(classes)))))
    return MaskPairs("ade20k", pairs, classes, read, vocabulary="ade20k_mmseg")
