"""Cityscapes' 19 classes."""

from zeroseg_jax.evaluate.benchmarks.masks import MaskPairs, Pair, find_root, table_reader, value_table
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Of the 34 ids in `_labelIds.png`, those with a class, in its order (labels.py of cityscapesScripts)."""


def open_cityscapes(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The fine annotations: `_labelTrainIds.png` (0 to 18) where the first image has it, else `_labelIds.png`."""
    split = "val" if split == "validation" else split
    needed = (f"leftImg8bit/{split}", f"gtFine/{split}")
    folder = find_root(root, ("cityscapes",), needed, "Cityscapes")
    end = "_leftImg8bit.png"
    images = sorted((folder / needed[0]).glob(f"*/*{end}"))[: limit or None]
    names = [str(path.relative_to(folder / needed[0])).removesuffix(end) for path in images]
    trained = bool(names) and (folder / needed[1] / f"{names[0]}_gtFine_labelTrainIds.png").is_file()
    kind = "labelTrainIds" if trained else "labelIds"
    pairs = [
        Pair(name, path, folder / needed[1] / f"{name}_gtFine_{kind}.png")
        for name, path in zip(names, images, strict=True)
    ]
    classes = load_vocabulary("cityscapes_mmseg").classes
    ids = dict.fromkeys(range(34), IGNORE) | {value: i for i, value in enumerate(EVALUATED)}
    read = table_reader(value_table(range(len(classes)) if trained else ids))
    return MaskPairs("cityscapes", pairs, classes, read, vocabulary="cityscapes_mmseg")
