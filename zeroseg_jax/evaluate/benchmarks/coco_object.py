"""Makes the masks of COCO-Object from COCO's own annotations.

    python -m zeroseg_jax.evaluate.benchmarks.coco_object COCO [--split val2017] [--out FOLDER]

reads COCO/annotations/instances_val2017.json and writes COCO/annotations/val2017/NAME_instanceTrainIds.png for every
image in it (or below `--out`): the 80 categories become 1 to 80 in the order of their ids, everything else 0,
background. So all stuff is background, and so is what nobody labelled: no pixel is left out of the figures. Where
objects overlap, the smaller one is on top; regions of a crowd lie below all of them.

GroupViT made its masks from COCO-Stuff's maps instead, which may decide such overlaps otherwise. For exactly its pixels
leave out this command and unpack the maps into COCO/stuffthingmaps/val2017, which `coco_object` reads too.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools.coco import COCO

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.coco import SPLITS, THINGS
from zeroseg_jax.log import ProgressBar

CLASS = {category: i for i, category in enumerate(THINGS, 1)}
"""Mask value of each category."""


def write_masks(root: Path, split: str = "val2017", out: Path | None = None) -> int:
    """Writes the masks of all images of a split, and returns how many.

    Raises:
        InputError: there are no annotations, they are of another kind, or the masks cannot be written.
    """
    split = SPLITS.get(split, split)
    source, folder = root / "annotations" / f"instances_{split}.json", (out or root / "annotations") / split
    coco = _read(source)
    bar = ProgressBar("masks", len(coco.imgs))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, (key, image) in enumerate(sorted(coco.imgs.items()), 1):
            mask = draw_mask(coco, key)
            path = folder / f"{Path(image['file_name']).stem}_instanceTrainIds.png"
            # in one piece, so that a killed command leaves no half of a file
            Image.fromarray(mask).save(path.with_suffix(".tmp"), "PNG")
            path.with_suffix(".tmp").replace(path)
            bar.update(done)
    except OSError as error:
        raise InputError(f"the masks cannot be written to {folder} ({error.strerror}); set --out") from error
    finally:
        bar.close()
    return len(coco.imgs)


def draw_mask(coco: COCO, image: int) -> UInt8[np.ndarray, "h w"]:
    """The classes of an image's pixels, 0 to 80: crowds first, then the objects from the largest to the smallest."""
    size = coco.imgs[image]["height"], coco.imgs[image]["width"]
    mask = np.zeros(size, np.uint8)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image]))
    for annotation in sorted(annotations, key=lambda a: (not a.get("iscrowd", 0), -a["area"])):
        if annotation["category_id"] not in CLASS:
            raise InputError(
                f"annotation {annotation['id']} has the category {annotation['category_id']}, which is no object of"
                " COCO; give instances_*.json, not those of stuff or panoptic segmentation"
            )
        mask[coco.annToMask(annotation) == 1] = CLASS[annotation["category_id"]]
    return mask


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no {path}; unpack COCO's annotations_trainval2017.zip in {path.parent.parent}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells every step
            return COCO(str(path))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{path} is no file of COCO's annotations ({error!r}); fetch it again") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the masks of COCO-Object from COCO's own annotations.")
    parser.add_argument("coco", type=Path, help="folder of COCO, with annotations/instances_val2017.json")
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--out", type=Path, help="folder for the masks' folder; COCO/annotations if not given")
    options = parser.parse_args(argv)
    try:
        count = write_masks(options.coco.expanduser(), options.split, options.out)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"wrote {count} masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
