"""Makes the masks of COCO-Object from COCO's own annotations.

    python -m zeroseg_jax.evaluate.benchmarks.coco_object COCO [--split val2017] [--out FOLDER]

reads COCO/annotations/instances_val2017.json and writes COCO/annotations/val2017/NAME_instanceTrainIds.png for every
image (or below `--out`). The 80 categories become 1 to 80 in the order of their ids. Everything else, also stuff and
unlabelled pixels, is 0, the background, so no pixel is left out of the figures. Where objects overlap, the smaller one
is on top. Regions of a crowd are below all objects. An annotation without a region, such as an empty list or polygons
of two points, is left out, and the command says how many there are.

GroupViT made its masks from COCO-Stuff's maps, where overlaps may be drawn in another order. To get exactly its masks,
do not run this command, but unpack the maps into COCO/stuffthingmaps/val2017. `coco_object` reads them too.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from zeroseg_jax.data.text import is_text, read_json, readable
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.coco import SPLITS, THINGS
from zeroseg_jax.evaluate.benchmarks.coco_regions import read_region
from zeroseg_jax.progress import ProgressBar

CLASS = {category: i for i, category in enumerate(THINGS, 1)}
"""Mask value of each category."""


class Written(NamedTuple):
    """The result of `write_masks`."""

    masks: int
    left_out: list[str]
    """Annotations without a region or an image, such as "annotation 12 of image.jpg"."""


class _Picture(NamedTuple):
    """An image of the file, with its annotations."""

    name: str
    size: tuple[int, int]
    """Height and width."""
    annotations: list[Mapping[str, Any]]


def write_masks(root: Path, split: str = "val2017", out: Path | None = None) -> Written:
    """Writes the masks of all images of a split.

    Raises:
        InputError: there are no annotations, they are of another kind or damaged, or the masks cannot be written. Masks
            written before the error stay.
    """
    split = SPLITS.get(split, split)
    source, folder = root / "annotations" / f"instances_{split}.json", (out or root / "annotations") / split
    pictures, left_out = _read(source)
    bar = ProgressBar("masks", len(pictures))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, picture in enumerate(pictures, 1):
            mask, empty = draw_mask(picture)
            left_out += empty
            _save(mask, folder / f"{Path(picture.name).stem}_instanceTrainIds.png")
            bar.update(done)
    except OSError as error:
        raise InputError(
            f"the masks cannot be written to {folder} ({error.strerror or error}); make room there, or set --out"
        ) from error
    finally:
        bar.close()
    return Written(len(pictures), left_out)


def _save(mask: UInt8[np.ndarray, "h w"], path: Path) -> None:
    """Writes under another name first, so that a killed command leaves no half of a file."""
    unfinished = path.with_suffix(".tmp")
    try:
        Image.fromarray(mask).save(unfinished, "PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw_mask(picture: _Picture) -> tuple[UInt8[np.ndarray, "h w"], list[str]]:
    """The class of each pixel, 0 to 80. Crowds are drawn first, then the objects from the largest to the smallest.

    Returns:
        The mask, and the annotations without a region.
    """
    regions: list[tuple[bool, float, int, Bool[np.ndarray, "h w"]]] = []
    empty = []
    for annotation in picture.annotations:
        said = f"annotation {annotation.get('id')!r} of {readable(picture.name)}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in CLASS:
            raise InputError(
                f"{said} has the category {category!r}, which is no object of COCO; give instances_*.json, not those of"
                " stuff or panoptic segmentation"
            )
        region = read_region(annotation.get("segmentation"), picture.size, said)
        if region is None:
            empty.append(said)
            continue
        area = annotation.get("area")
        if not isinstance(area, int | float) or not 0 <= area < 1e18:  # nor NaN
            area = region.sum()
        regions.append((not annotation.get("iscrowd"), -float(area), CLASS[category], region))
    mask = np.zeros(picture.size, np.uint8)
    for _, _, value, region in sorted(regions, key=lambda region: region[:2]):
        mask[region] = value
    return mask, empty


def _read(path: Path) -> tuple[list[_Picture], list[str]]:
    """The images of an annotation file in the order of their ids, and the annotations that belong to no image."""
    if not path.is_file():
        raise InputError(f"there is no {path}; unpack COCO's annotations_trainval2017.zip in {path.parent.parent}")
    content = read_json(path, "file of COCO's annotations")
    try:
        images, annotations = content["images"], content["annotations"]
        pictures = {
            image["id"]: _Picture(str(image["file_name"]), (int(image["height"]), int(image["width"])), [])
            for image in sorted(images, key=lambda image: image["id"])
        }
        lost = []
        for annotation in annotations:
            if annotation["image_id"] in pictures:
                pictures[annotation["image_id"]].annotations.append({**annotation})
            else:
                lost.append(
                    f"annotation {annotation.get('id')!r} of the image {annotation['image_id']!r}, which is unknown"
                )
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path} is not a file of COCO's annotations ({error!r}); fetch it again") from error
    for picture in pictures.values():
        if min(picture.size) < 1 or picture.size[0] * picture.size[1] > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise InputError(
                f"{path} says that {readable(picture.name)} has {picture.size} pixels; repair its height and width"
            )
        if not Path(picture.name).stem or "\0" in picture.name or not is_text(picture.name):
            raise InputError(f"{path} has an image named {picture.name!r}, as no file can be; repair its file_name")
    stems = Counter(Path(picture.name).stem for picture in pictures.values())
    double = [stem for stem, count in stems.items() if count > 1]
    if double or len(pictures) != len(images):
        named = f"several images named {readable(double[0])}" if double else "several images with one id"
        raise InputError(f"{path} holds {named}, whose masks would be one file; give each its own")
    return list(pictures.values()), lost


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the masks of COCO-Object from COCO's own annotations.")
    parser.add_argument("coco", type=Path, help="folder of COCO, with annotations/instances_val2017.json")
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--out", type=Path, help="folder for the masks' folder; COCO/annotations if not given")
    options = parser.parse_args(argv)
    try:
        written = write_masks(options.coco.expanduser(), options.split, options.out)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"wrote {written.masks} masks")
    if written.left_out:
        print(
            f"{len(written.left_out)} annotations have no region or no image and were left out, the first is"
            f" {written.left_out[0]}",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
