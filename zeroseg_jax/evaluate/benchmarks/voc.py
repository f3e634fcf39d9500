"""PASCAL VOC 2012, with and without background, and any folder in its layout."""

from collections.abc import Sequence
from pathlib import Path

from zeroseg_jax.data.folder import VOC_LISTS, WHOLE
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import (
    MaskPairs,
    Pair,
    find_root,
    image_files,
    read_classes,
    table_reader,
    value_table,
)
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

FOLDERS = ("JPEGImages", "SegmentationClass")


def open_voc(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The 21 classes; mask value 0 is background, 255 the void around objects."""
    pairs, classes = _voc_pairs(root, split, limit), load_vocabulary("voc_groupvit").classes
    read = table_reader(value_table(range(len(classes))))
    return MaskPairs("voc", pairs, classes, read, background=0, vocabulary="voc_groupvit")


def open_voc20(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The 20 classes of objects; neither void nor background counts."""
    pairs, classes = _voc_pairs(root, split, limit), load_vocabulary("voc20_mmseg").classes
    read = table_reader(value_table((IGNORE, *range(len(classes)))))
    return MaskPairs("voc20", pairs, classes, read, vocabulary="voc20_mmseg")


def open_folder(root: str, split: str, limit: int = 0) -> MaskPairs:
    """A folder with a `classes.txt`, in VOC's layout or with images/ and masks/ in place of its folders."""
    plain = ("images", "masks")
    there = all((Path(root).expanduser() / name).is_dir() for name in plain)
    folder = find_root(root, (), plain if there else FOLDERS, "images and masks")
    classes = read_classes(folder / "classes.txt")
    images, masks = plain if there else FOLDERS
    return MaskPairs(
        "folder",
        list_pairs(folder, split, limit, images, masks),
        classes,
        table_reader(value_table(range(len(classes)))),
    )


def _voc_pairs(root: str, split: str, limit: int) -> list[Pair]:
    folder = find_root(root, ("VOCdevkit/VOC2012", "VOC2012"), FOLDERS, "PASCAL VOC 2012")
    return list_pairs(folder, split, limit, *FOLDERS)


def list_pairs(root: Path, split: str, limit: int, images: str, masks: str, lists: str = VOC_LISTS) -> list[Pair]:
    """The images of a split with their masks; an image that is not there is one that ends in .jpg."""
    names = read_split(root, split, masks, lists)[: limit or None]
    if not names:
        raise InputError(f"the split {split!r} of {root} has no images; its list, or {root / masks}, is empty")
    files = image_files(root / images)
    return [Pair(name, files.get(name, root / images / f"{name}.jpg"), root / masks / f"{name}.png") for name in names]


def read_split(root: Path, split: str, masks: str, lists: str) -> Sequence[str]:
    """The names of a split's images, from its list; without any list, or for "all", every image with a mask."""
    known = sorted(path.stem for path in (root / lists).glob("*.txt"))
    split = "val" if split == "validation" and split not in known else split
    if split in known:
        lines = (root / lists / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        return [line.split()[0] for line in lines if line.strip()]
    if known and split not in WHOLE:
        raise InputError(f"there is no {root / lists / split}.txt; set eval.split to one of {', '.join(known)}, or all")
    return sorted(path.stem for path in (root / masks).glob("*.png"))
