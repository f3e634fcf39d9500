"""PASCAL Context with 60 and 59 classes, and a check of the order of its classes.

Two orders of the classes are in use. Neither the masks nor their folder says which one they have. One is the
alphabetical order of mmsegmentation's converter, used by GroupViT, TCL and CLIP-DINOiser. The other is that of the
authors' 59_labels.txt, which begins with VOC's 20 classes. The wrong order gives a wrong mean IoU without any error.

The order is read from `classes.txt` or `59_labels.txt` in the dataset's folder, with lines "12: dog" or "dog". Without
such a file it is alphabetical. It is then checked with VOC's boxes in `Annotations/NAME.xml`, in up to 100 images
spread over the split: each box should hold pixels of its class. If less than half of the boxes do, the masks are
refused. The boxes have 20 of the 59 classes, and the two orders differ in these. Without Annotations the order cannot
be checked, and `--mode=check` says so.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from absl import logging

from zeroseg_jax.data.text import numbered_lines, read_text
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import MaskPairs, Pair, find_root, read_mask, show, table_reader, value_table
from zeroseg_jax.evaluate.benchmarks.voc import list_pairs
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import load_vocabulary

FOLDERS = ("JPEGImages", "SegmentationClassContext")
LISTS = "ImageSets/SegmentationContext"
LABELS = ("classes.txt", "59_labels.txt")

VOC_FIRST = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed"),
    *("bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor"),
    *("flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign"),
    *("plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall"),
    *("water", "window", "wood"),
)
"""The order of 59_labels.txt."""

SAME = {
    **{"airplane": "aeroplane", "diningtable": "table", "dining table": "table", "potted plant": "pottedplant"},
    **{"plant": "pottedplant", "monitor": "tvmonitor", "tv monitor": "tvmonitor", "motorcycle": "motorbike"},
}
"""Other words for a class."""

SAMPLE = 100
LEAST = 0.5
"""Smallest share of boxes that hold their class. In the right order it is close to 1, in a wrong one close to 0."""


def open_context(root: str, split: str, limit: int = 0, background: bool = True) -> MaskPairs:
    """The 60 classes, of which the first is background, or the 59 without it; background then does not count.

    Raises:
        InputError: a folder or list is missing, or the masks have another order of classes.
    """
    folder = find_root(root, ("VOCdevkit/VOC2010", "VOC2010"), FOLDERS, "PASCAL Context")
    pairs = list_pairs(folder, split, limit, *FOLDERS, lists=LISTS)
    names = load_vocabulary("context_mmseg").classes  # the alphabetical order
    order, said = _read_order(folder, names)
    note = check_order(folder, pairs, order, said)
    first = 0 if background else 1
    classes = {value: names.index(name) - first for value, name in enumerate(order)}
    if not background:
        classes[order.index("background")] = IGNORE
    kind = "context" if background else "context59"
    vocabulary = "context_groupvit" if background else "context59_mmseg"
    return MaskPairs(
        kind,
        pairs,
        load_vocabulary(vocabulary).classes,
        table_reader(value_table(classes)),
        background=0 if background else None,
        vocabulary=vocabulary,
        notes=(note,),
    )


def _read_order(folder: Path, names: Sequence[str]) -> tuple[Sequence[str], str]:
    """The class name of each mask value, and the source of this order."""
    path = next((folder / name for name in LABELS if (folder / name).is_file()), None)
    if path is None:
        return names, "alphabetical order"
    lines = [re.sub(r"^\d+\s*[:.]\s*", "", line) for _, line in numbered_lines(read_text(path))]
    order = [SAME.get(line, line) for line in lines if line]
    if len(order) == len(names) - 1:
        order.insert(0, "background")
    if sorted(order) != sorted(names):
        strange = sorted(set(order) - set(names)) or sorted(set(names) - set(order)) or order
        raise InputError(
            f"{path} does not hold the names of the 59 classes, each once ({strange[0]!r} is one too many or missing);"
            " list them in the order of the masks' values, or remove it"
        )
    return order, f"the order of {path.name}"


def check_order(folder: Path, pairs: Sequence[Pair], order: Sequence[str], said: str) -> str:
    """Compares the masks with VOC's boxes, and returns a sentence with the result.

    Raises:
        InputError: most boxes do not hold pixels of their class.
    """
    boxes = list(_sample_boxes(folder, pairs))
    if not boxes:
        note = f"the classes are taken to be in {said}; without {folder / 'Annotations'} that could not be checked"
        logging.warning("%s", note)
        return note
    orders = {said: order, "alphabetical order": load_vocabulary("context_mmseg").classes}
    orders["the order of 59_labels.txt"] = orders.get("the order of 59_labels.txt", VOC_FIRST)
    shares = {name: float(np.mean([list(o).index(b.name) in b.values for b in boxes])) for name, o in orders.items()}
    if shares[said] < LEAST:
        best = max(shares, key=lambda name: shares[name])
        hint = (
            f"{best} fits ({shares[best]:.0%}), so put that list into {folder} as classes.txt"
            if shares[best] >= LEAST
            else f"list the names in the order of the masks' values in {folder / 'classes.txt'}"
        )
        raise InputError(
            f"the masks in {folder / FOLDERS[1]} do not have their classes in {said}: only {shares[said]:.0%} of"
            f" {len(boxes)} annotated objects hold pixels of their class; {hint}"
        )
    return f"the classes are in {said}: {shares[said]:.0%} of {len(boxes)} annotated objects hold pixels of their class"


class Box(NamedTuple):
    """An object of `Annotations`: its class, and the values of the mask inside its box."""

    name: str
    values: frozenset[int]


def _sample_boxes(folder: Path, pairs: Sequence[Pair]) -> Iterator[Box]:
    """The objects of some images that have annotations and masks, without those marked as difficult."""
    for i in np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLE)).round().astype(int).tolist():
        path = folder / "Annotations" / f"{pairs[i].name}.xml"
        if not path.is_file() or not pairs[i].mask.is_file():
            continue
        try:
            mask = read_mask(pairs[i].mask)
        except InputError:  # reported when the example is read
            continue
        yield from (Box(name, frozenset(np.unique(mask[place]).tolist())) for name, place in _read_boxes(path))


def _read_boxes(path: Path) -> list[tuple[str, tuple[slice, slice]]]:
    """Class and box of each object of VOC's classes in an annotation file, without difficult objects."""
    try:
        boxes = []
        for element in ElementTree.parse(path).findall("object"):
            name = element.findtext("name", "").strip()
            name = SAME.get(name, name)
            sides = [float(element.findtext(f"bndbox/{side}", "1")) for side in ("ymin", "ymax", "xmin", "xmax")]
            top, bottom, left, right = (max(round(side), 0) for side in sides)
            if element.findtext("difficult", "0").strip() != "1" and name in VOC_FIRST:
                boxes.append((name, (slice(max(top - 1, 0), bottom), slice(max(left - 1, 0), right))))
        return boxes
    except (ElementTree.ParseError, OSError, ValueError, OverflowError, LookupError) as error:
        raise InputError(f"{show(path)} is no annotation of VOC ({error}); fetch it again, or remove it") from error
