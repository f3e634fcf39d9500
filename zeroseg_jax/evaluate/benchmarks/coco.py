"""The benchmarks on the images of COCO 2017: COCO-Object, COCO-Stuff and panoptic segmentation."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import (
    MaskPairs,
    Pair,
    UnknownValues,
    decode_png,
    find_root,
    image_files,
    table_reader,
    value_table,
)
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids of COCO that no image has; those of the 80 categories of objects run to 90, those of the 91 of stuff to 182."""
THINGS = tuple(i for i in range(1, 91) if i not in UNUSED)
CATEGORIES = tuple(i for i in range(1, 183) if i not in UNUSED)

SPLITS = {"val": "val2017", "validation": "val2017", "train": "train2017"}
BELOW = ("coco", "coco2017", "coco_stuff164k")
"""Folders below eval.root that are looked for too."""


def open_object(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO-Object: background and the 80 classes of objects. All stuff and what has no label are background, so that
    every pixel counts (other than void in VOC).

    Masks are `_instanceTrainIds.png`, values 0 to 80; where there are none, COCO-Stuff's original maps, whose objects
    are counted and whose other values, 255 too, are background.
    """
    folder, images, split = _images(root, split, limit, "COCO-Object")
    classes = load_vocabulary("coco_object_groupvit").classes
    masks, end, converted = _masks(folder, split, "_instanceTrainIds.png", images)
    table = np.zeros(256, np.int64)
    table[[i - 1 for i in THINGS]] = range(1, 1 + len(THINGS))
    read = table_reader(value_table(range(len(classes))) if converted else table)
    pairs = [Pair(name, path, masks / f"{name}{end}") for name, path in images.items()]
    return MaskPairs("coco_object", pairs, classes, read, background=0, vocabulary="coco_object_groupvit")


def open_stuff(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO-Stuff 164k: 80 classes of objects and 91 of stuff.

    Masks are `_labelTrainIds.png`, values 0 to 170, or the original maps, whose values are a category's id less 1.
    """
    folder, images, split = _images(root, split, limit, "COCO-Stuff")
    classes = load_vocabulary("coco_stuff_mmseg").classes
    masks, end, converted = _masks(folder, split, "_labelTrainIds.png", images)
    original = {category - 1: i for i, category in enumerate(CATEGORIES)}
    read = table_reader(value_table(range(len(classes)) if converted else original))
    pairs = [Pair(name, path, masks / f"{name}{end}") for name, path in images.items()]
    return MaskPairs("coco_stuff", pairs, classes, read, vocabulary="coco_stuff_mmseg")


def open_panoptic(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO's panoptic segmentation read as a semantic one: instances of a class are not told apart.

    The masks are in colours, a segment's id being R + 256 G + 65536 B; the JSON beside them has its category. Pixels
    without a segment (id 0) do not count.
    """
    folder, images, split = _images(root, split, 0, "COCO panoptic")
    path = folder / "annotations" / f"panoptic_{split}.json"
    classes, segments = _read_panoptic(path)
    masks = path.with_suffix("")
    names = [Path(name).stem for name in segments][: limit or None]
    # an image that is not there is one that ends in .jpg, next to the others
    place = next(iter(images.values())).parent
    pairs = [Pair(name, images.get(name, place / f"{name}.jpg"), masks / f"{name}.png") for name in names]
    vocabulary = load_vocabulary("coco_panoptic_plain")
    return MaskPairs(
        "coco_panoptic",
        pairs,
        classes,
        functools.partial(read_panoptic_mask, segments),
        # of other categories than COCO's, the names in the file are asked for
        vocabulary=vocabulary.name if vocabulary.classes == classes else "",
    )


def read_panoptic_mask(segments: Mapping[str, Mapping[int, int]], path: Path) -> UInt8[np.ndarray, "h w"]:
    """Class indices from a panoptic PNG, where `segments[name of the file]` gives the class of each segment's id.

    Raises:
        InputError: a missing or broken file, one that is not in colours, or a segment that the JSON does not have.
    """
    if not path.is_file():
        raise InputError(f"there is no mask {path}; unpack the panoptic PNG files of this split there")
    image = decode_png(path.read_bytes(), str(path))
    if image.mode != "RGB":
        raise InputError(f"the panoptic mask {path} has the mode {image.mode}; its segments' ids are RGB colours")
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int32), -1, 0)
    ids = red + 256 * green + 65536 * blue
    classes = {0: IGNORE} | dict(segments[path.name])
    known = np.array(sorted(classes))
    places = np.searchsorted(known, ids).clip(max=len(known) - 1)
    strange = known[places] != ids
    if strange.any():
        raise UnknownValues(str(path), np.unique(ids[strange]).tolist(), "its JSON has no such segments")
    return np.array([classes[i] for i in known.tolist()], np.uint8)[places]


def _images(root: str, split: str, limit: int, dataset: str) -> tuple[Path, dict[str, Path], str]:
    """The dataset's folder, the split's images by name, and the split as COCO calls it."""
    split = SPLITS.get(split, split)
    places = (f"images/{split}", split)
    base = Path(root).expanduser()
    place = next((p for p in places for f in (base, *(base / b for b in BELOW)) if (f / p).is_dir()), places[0])
    folder = find_root(root, BELOW, (place,), dataset)
    images = dict(list(image_files(folder / place).items())[: limit or None])
    if not images:
        raise InputError(f"the folder {folder / place} has no images; unpack {split} of COCO there")
    return folder, images, split


def _masks(folder: Path, split: str, end: str, images: Mapping[str, Path]) -> tuple[Path, str, bool]:
    """The folder of the masks, the ending of their names, and whether they are converted (not COCO-Stuff's maps)."""
    first = next(iter(images))
    own = folder / "annotations" / split
    if (own / f"{first}{end}").is_file():
        return own, end, True
    for maps in (folder / "stuffthingmaps" / split, own):
        if (maps / f"{first}.png").is_file():
            return maps, ".png", False
    if not any(own.glob(f"*{end}")):
        command = "make them with `python -m zeroseg_jax.evaluate.benchmarks.coco_object`, or "
        raise InputError(
            f"there are no masks NAME{end} in {own}, nor maps in {folder / 'stuffthingmaps' / split};"
            f" {command if end.startswith('_instance') else ''}unpack stuffthingmaps_trainval2017.zip there"
        )
    return own, end, True


def _read_panoptic(path: Path) -> tuple[tuple[str, ...], dict[str, dict[int, int]]]:
    """The names of the categories by id, and for each mask's file the class of each segment."""
    if not path.is_file():
        raise InputError(f"there is no {path}; unpack COCO's panoptic annotations into {path.parent}")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        index = {category["id"]: i for i, category in enumerate(categories)}
        segments = {
            annotation["file_name"]: {s["id"]: index[s["category_id"]] for s in annotation["segments_info"]}
            for annotation in content["annotations"]
        }
        return tuple(category["name"] for category in categories), segments
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of COCO's panoptic annotations ({error!r}); fetch it again") from error
