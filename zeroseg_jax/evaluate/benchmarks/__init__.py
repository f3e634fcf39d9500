"""Evaluation datasets: images with a mask of class indices, read from where they lie on disk.

`eval.dataset` names the reader, `eval.root` the dataset's folder or the one that holds it, `eval.split` the part
("val" and "validation" are the same):

`scenes`         the procedural scenes; `eval.root` is their cache folder, as in training
`folder`         any folder with a `classes.txt`, one class name on each line in the order of the masks' values:
                 JPEGImages/NAME.jpg (or .png), SegmentationClass/NAME.png and, where there are splits,
                 ImageSets/Segmentation/SPLIT.txt; or images/ and masks/ in their place
`voc`            VOCdevkit/VOC2012, 21 classes; 0 is background, 255 void
`voc20`          the same without background, whose pixels do not count
`context`        VOCdevkit/VOC2010 with JPEGImages, SegmentationClassContext/NAME.png and
                 ImageSets/SegmentationContext/SPLIT.txt, 60 classes; see `context` for the order of its classes
`context59`      the same without background
`coco_object`    images/val2017 (or val2017) and annotations/val2017/NAME_instanceTrainIds.png, which `python -m
                 zeroseg_jax.evaluate.benchmarks.coco_object` writes; or stuffthingmaps; 81 classes, no void
`coco_stuff`     the same images with annotations/val2017/NAME_labelTrainIds.png (values 0 to 170) or the original
                 stuffthingmaps/val2017/NAME.png (0 to 181 with gaps); 171 classes
`coco_panoptic`  the same images with annotations/panoptic_val2017/NAME.png and panoptic_val2017.json; 133 classes
`ade20k`         ADEChallengeData2016 with images/validation and annotations/validation; 150 classes, 0 does not count
`cityscapes`     leftImg8bit/val/CITY and gtFine/val/CITY with _labelTrainIds.png or _labelIds.png; 19 classes
`tfds:NAME`      a dataset of TensorFlow Datasets below `eval.root` that has a feature of masks; see `prepared`

Masks are PNG files of 1 to 16 bits. Their pixel values, the indices of a palette image, are classes. 255 does not
count, and any other value that is no class is an error. Other formats may change values and are not read.

File endings may be in upper or lower case. Hidden files (._NAME, .DS_Store) and __MACOSX are skipped. Lists and class
names are UTF-8 with or without a byte order mark. Each line of a list is a name, which may contain spaces; further
columns are not read.

An image with an EXIF rotation is turned upright, and its mask is turned with it, because masks label the stored pixels.
A mask that only fits the turned image was drawn on the turned image and is not turned. `check` counts such images.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import ade20k, cityscapes, coco, context, voc
from zeroseg_jax.evaluate.benchmarks.check import check
from zeroseg_jax.evaluate.benchmarks.masks import Benchmark, Example, MaskPairs, read_mask
from zeroseg_jax.evaluate.benchmarks.scenes import Scenes
from zeroseg_jax.evaluate.vocabularies import choose_vocabulary

__all__ = ["Benchmark", "Example", "MaskPairs", "Scenes", "check", "open_benchmark", "read_mask"]

PROBES = 8
"""Number of examples that are read when a benchmark is opened."""


def open_benchmark(options: ConfigDict, probe: bool = True) -> Benchmark:
    """Opens the benchmark of the config's group `eval`: `dataset`, `root`, `split`, `limit`, `mask`, `vocabulary`.

    With `probe` it checks that no file is missing and that each mask has the size of its image, and reads a few
    examples, spread over the split. That finds most faults of a dataset in seconds. `check` finds all of them.

    Raises:
        InputError: an unknown dataset or vocabulary, a root with another layout, a split without images, a vocabulary
            with another number of classes than the masks, or a fault that the probe finds.
    """
    benchmark = _open(options)
    if not len(benchmark):
        raise InputError(f"the split {options.split!r} of {options.root} has no images; set eval.split to another")
    choose_vocabulary(options.vocabulary, benchmark.name, benchmark.classes, benchmark.vocabulary)
    if probe:
        if isinstance(benchmark, MaskPairs) and (missing := benchmark.missing()):
            raise InputError(
                f"{len(missing)} of the {2 * len(benchmark)} files of {benchmark.name} are missing, the first is"
                f" {missing[0]}; complete the dataset, or set eval.split to a part that is there"
            )
        if isinstance(benchmark, MaskPairs) and (misfit := next(benchmark.misfits(), None)):
            raise InputError(misfit)
        for i in np.linspace(0, len(benchmark) - 1, min(len(benchmark), PROBES)).round().astype(int).tolist():
            benchmark[i]
    return benchmark


def _open(options: ConfigDict) -> Benchmark:
    dataset, root, split, limit = options.dataset, options.root, options.split, options.limit
    if dataset.split("/")[0] == "scenes":
        return Scenes(root, dataset.partition("/")[2] or "default", split, limit)
    readers: dict[str, Callable[[str, str, int], Benchmark]] = {
        "folder": voc.open_folder,
        "voc": voc.open_voc,
        "voc20": voc.open_voc20,
        "context": context.open_context,
        "context59": partial(context.open_context, background=False),
        "coco_object": coco.open_object,
        "coco_stuff": coco.open_stuff,
        "coco_panoptic": coco.open_panoptic,
        "ade20k": ade20k.open_ade20k,
        "cityscapes": cityscapes.open_cityscapes,
    }
    if dataset not in readers and not dataset.startswith("tfds:"):
        known = ["scenes", *readers, "tfds:NAME"]
        raise InputError(
            f"eval.dataset is {dataset!r}; did you mean {nearest(dataset, known)!r}? It may be {', '.join(known)}"
        )
    if not root:
        raise InputError(f"eval.dataset={dataset} needs a folder; set eval.root")
    if dataset in readers:
        return readers[dataset](root, split, limit)
    # Imported here, because TFDS takes a second to import.
    from zeroseg_jax.evaluate.benchmarks.prepared import PreparedMasks

    return PreparedMasks(dataset, root, split, limit, options.mask, options.vocabulary)
