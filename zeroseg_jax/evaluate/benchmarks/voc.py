"""PASCAL VOC 2012, with and without background, and any folder in its layout."""

from collections.abc import Collection, Sequence
from pathlib import Path

from zeroseg_jax.data.sources.folder import VOC_LISTS, WHOLE, files_by_name
from zeroseg_jax.data.sources.split_list import read_split_list
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import (
    MaskPairs,
    Pair,
    find_root,
    image_files,
    mask_files,
    read_classes,
    table_reader,
    value_table,
)
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

FOLDERS = ("JPEGImages", "SegmentationClass")


def open_voc(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The 21 classes. Mask value 0 is background, 255 is void."""
    pairs, classes = _voc_pairs(root, split, limit), load_vocabulary("voc_groupvit").classes
    read = table_reader(value_table(range(len(classes))))
    return MaskPairs("voc", pairs, classes, read, background=0, vocabulary="voc_groupvit")


def open_voc20(root: str, split: str, limit: int = 0) -> MaskPairs:
    """The 20 object classes. Pixels of void and of background do not count."""
    pairs, classes = _voc_pairs(root, split, limit), load_vocabulary("voc20_mmseg").classes
    read = table_reader(value_table((IGNORE, *range(len(classes)))))
    return MaskPairs("voc20", pairs, classes, read, vocabulary="voc20_mmseg")


def open_folder(root: str, split: str, limit: int = 0) -> MaskPairs:
    """A folder with a `classes.txt`, in VOC's layout or with the folders images/ and masks/."""
    base, plain = Path(root).expanduser(), ("images", "masks")
    voc = (base / FOLDERS[0]).is_dir() and not all((base / name).is_dir() for name in plain)
    images, masks = FOLDERS if voc else plain
    folder = find_root(root, (), (images, masks), "images and masks")
    classes = read_classes(folder / "classes.txt")
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
    """The images of a split with their masks. The path of a missing image ends in .jpg."""
    files, drawn = image_files(root / images), mask_files(root / masks)
    names = _read_split(root / lists, split, files, drawn)[: limit or None]
    if not names:
        raise InputError(f"the split {split!r} of {root} has no images; its list, or {root / masks}, is empty")
    return [
        Pair(name, files.get(name, root / images / f"{name}.jpg"), drawn.get(name, root / masks / f"{name}.png"))
        for name in names
    ]


def _read_split(folder: Path, split: str, images: Collection[str], masks: Collection[str]) -> Sequence[str]:
    """The names of a split's images, from its list. Without lists, or for "all", all images with a mask."""
    lists = files_by_name(folder, (".txt",))
    split = "val" if split == "validation" and split not in lists else split
    if split in lists:
        return read_split_list(lists[split], {*images, *masks})
    if lists and split not in WHOLE:
        known = ", ".join(lists)
        raise InputError(f"there is no {folder / split}.txt; set eval.split to one of {known}, or all")
    return sorted(masks)
