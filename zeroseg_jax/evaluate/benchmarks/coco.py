"""The benchmarks on the images of COCO 2017: COCO-Object, COCO-Stuff and panoptic segmentation."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from zeroseg_jax.data.text import read_json
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import (
    MaskPairs,
    Pair,
    UnknownValues,
    decode_png,
    find_root,
    image_files,
    mask_files,
    read_mask_file,
    show,
    table_reader,
    value_table,
)
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Category ids that COCO does not use. The 80 object categories have ids up to 90, the 91 of stuff up to 182."""
THINGS = tuple(i for i in range(1, 91) if i not in UNUSED)
CATEGORIES = tuple(i for i in range(1, 183) if i not in UNUSED)

SPLITS = {"val": "val2017", "validation": "val2017", "train": "train2017"}
BELOW = ("coco", "coco2017", "coco_stuff164k")
"""Folders below eval.root that are searched too."""


def open_object(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO-Object: background and the 80 object classes.

    Stuff and unlabelled pixels are background, so every pixel counts. VOC's void has no counterpart here. Masks are
    `_instanceTrainIds.png` with values 0 to 80. If there are none, COCO-Stuff's original maps are read: objects are
    classes, and all other values, 255 included, are background.
    """
    folder, images, split = _images(root, split, limit, "COCO-Object")
    classes = load_vocabulary("coco_object_groupvit").classes
    pairs, converted = _pairs(folder, split, "_instanceTrainIds.png", images)
    table = np.zeros(256, np.int64)
    table[[i - 1 for i in THINGS]] = range(1, 1 + len(THINGS))
    read = table_reader(value_table(range(len(classes))) if converted else table)
    return MaskPairs("coco_object", pairs, classes, read, background=0, vocabulary="coco_object_groupvit")


def open_stuff(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO-Stuff 164k: 80 object classes and 91 of stuff.

    Masks are `_labelTrainIds.png` with values 0 to 170, or the original maps, whose values are the category id - 1.
    """
    folder, images, split = _images(root, split, limit, "COCO-Stuff")
    classes = load_vocabulary("coco_stuff_mmseg").classes
    pairs, converted = _pairs(folder, split, "_labelTrainIds.png", images)
    original = {category - 1: i for i, category in enumerate(CATEGORIES)}
    read = table_reader(value_table(range(len(classes)) if converted else original))
    return MaskPairs("coco_stuff", pairs, classes, read, vocabulary="coco_stuff_mmseg")


def open_panoptic(root: str, split: str, limit: int = 0) -> MaskPairs:
    """COCO's panoptic segmentation as a semantic one: all instances of a class are that class.

    The masks are colour images, where the id of a segment is R + 256 G + 65536 B. The JSON beside them has the category
    of each segment. Pixels without a segment (id 0) do not count.
    """
    folder, images, split = _images(root, split, 0, "COCO panoptic")
    path = folder / "annotations" / f"panoptic_{split}.json"
    classes, segments = _read_panoptic(path)
    folder = path.with_suffix("")
    masks = mask_files(folder)
    # The path of a missing image ends in .jpg.
    place = next(iter(images.values())).parent
    pairs = [
        Pair(name, images.get(name, place / f"{name}.jpg"), masks.get(name, folder / f"{name}.png"))
        for name in list(segments)[: limit or None]
    ]
    vocabulary = load_vocabulary("coco_panoptic_plain")
    return MaskPairs(
        "coco_panoptic",
        pairs,
        classes,
        functools.partial(read_panoptic_mask, segments),
        # For other categories than COCO's the labels are the names in the file.
        vocabulary=vocabulary.name if vocabulary.classes == classes else "",
    )


def read_panoptic_mask(segments: Mapping[str, Mapping[int, int]], path: Path) -> UInt8[np.ndarray, "h w"]:
    """Class indices from a panoptic PNG. `segments[image name][segment id]` is the class of a segment.

    Raises:
        InputError: the file is missing, broken or no colour image, or a segment is not in the JSON.
    """
    mode, bits, values = decode_png(read_mask_file(path), show(path))
    if mode != "RGB" or bits != 8:
        raise InputError(
            f"the panoptic mask {show(path)} has the mode {mode} of {bits} bits; its segments' ids are RGB colours of 8"
        )
    red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
    ids = red + 256 * green + 65536 * blue
    classes = {0: IGNORE} | dict(segments[path.stem])
    known = np.array(sorted(classes))
    positions = np.searchsorted(known, ids).clip(max=len(known) - 1)
    unknown = known[positions] != ids
    if unknown.any():
        raise UnknownValues(show(path), np.unique(ids[unknown]).tolist(), "its JSON has no such segments")
    return np.array([classes[i] for i in known.tolist()], np.uint8)[positions]


def _images(root: str, split: str, limit: int, dataset: str) -> tuple[Path, dict[str, Path], str]:
    """The dataset's folder, the split's images by name, and COCO's name of the split."""
    split = SPLITS.get(split, split)
    places = (f"images/{split}", split)
    base = Path(root).expanduser()
    place = next((p for p in places for f in (base, *(base / b for b in BELOW)) if (f / p).is_dir()), places[0])
    folder = find_root(root, BELOW, (place,), dataset)
    images = dict(list(image_files(folder / place).items())[: limit or None])
    if not images:
        raise InputError(f"the folder {folder / place} has no images; unpack {split} of COCO there")
    return folder, images, split


def _pairs(folder: Path, split: str, end: str, images: Mapping[str, Path]) -> tuple[list[Pair], bool]:
    """The images with their masks, and whether the masks are converted ones (and not COCO-Stuff's maps)."""
    first = next(iter(images))
    annotations, maps = folder / "annotations" / split, folder / "stuffthingmaps" / split
    for place, ending in ((annotations, end), (maps, ".png"), (annotations, ".png")):
        masks = mask_files(place, ending)
        if first in masks:
            break
    else:
        place, ending, masks = annotations, end, mask_files(annotations, end)
    if not masks:
        command = "make them with `python -m zeroseg_jax.evaluate.benchmarks.coco_object`, or "
        raise InputError(
            f"there are no masks NAME{end} in {annotations}, nor maps in {maps};"
            f" {command if end.startswith('_instance') else ''}unpack stuffthingmaps_trainval2017.zip there"
        )
    pairs = [Pair(name, path, masks.get(name, place / f"{name}{ending}")) for name, path in images.items()]
    return pairs, ending == end


def _read_panoptic(path: Path) -> tuple[tuple[str, ...], dict[str, dict[int, int]]]:
    """The category names sorted by id, and for each image the class of each segment."""
    if not path.is_file():
        raise InputError(f"there is no {path}; unpack COCO's panoptic annotations into {path.parent}")
    content = read_json(path, "file of COCO's panoptic annotations")
    try:
        names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        index = {category: i for i, category in enumerate(sorted(names))}
        segments = {
            Path(annotation["file_name"]).stem: {
                int(segment["id"]): index[segment["category_id"]] for segment in annotation["segments_info"]
            }
            for annotation in content["annotations"]
        }
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a file of COCO's panoptic annotations ({error!r}); fetch it again") from error
    count = len(content["annotations"]), len(content["categories"])
    if (len(segments), len(names)) != count or len(names) > IGNORE:
        raise InputError(
            f"{path} has {count[0]} annotations of {len(segments)} images and {count[1]} categories with {len(names)}"
            f" ids; each needs its own, and {IGNORE} categories are the most"
        )
    return tuple(names[category] for category in sorted(names)), segments
