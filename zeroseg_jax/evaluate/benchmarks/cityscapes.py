"""Cityscapes' 19 classes."""

from pathlib import Path

from zeroseg_jax.data.sources.folder import hidden
from zeroseg_jax.evaluate.benchmarks.masks import MaskPairs, Pair, find_root, mask_files, table_reader, value_table
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The ids of `_labelIds.png` that are evaluated, in the order of the classes (labels.py of cityscapesScripts)."""


def open_cityscapes(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The fine annotations: `_labelTrainIds.png` (0 to 18) if the first image has one, else `_labelIds.png`."""
    split = "val" if split == "validation" else split
    needed = (f"leftImg8bit/{split}", f"gtFine/{split}")
    folder = find_root(root, ("cityscapes",), needed, "Cityscapes")
    images = _files(folder / needed[0], "_leftImg8bit.png")
    names = list(images)[: limit or None]
    masks = _files(folder / needed[1], "_gtFine_labelTrainIds.png")
    trained = bool(names) and names[0] in masks
    if not trained:
        masks = _files(folder / needed[1], "_gtFine_labelIds.png")
    end = "_gtFine_labelTrainIds.png" if trained else "_gtFine_labelIds.png"
    pairs = [Pair(name, images[name], masks.get(name, folder / needed[1] / f"{name}{end}")) for name in names]
    classes = load_vocabulary("cityscapes_mmseg").classes
    ids = dict.fromkeys(range(34), IGNORE) | {value: i for i, value in enumerate(EVALUATED)}
    read = table_reader(value_table(range(len(classes)) if trained else ids))
    return MaskPairs("cityscapes", pairs, classes, read, vocabulary="cityscapes_mmseg")


def _files(folder: Path, end: str) -> dict[str, Path]:
    """The files in the folders of the cities that end in `end`, by CITY/NAME without the ending, sorted."""
    cities = sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    files = {f"{city.name}/{name}": path for city in cities for name, path in mask_files(city, end).items()}
    return dict(sorted(files.items()))
