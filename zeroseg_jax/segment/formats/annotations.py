"""Results in the forms that other tools read: YOLO, VOC, COCO data sets, Label Studio, supervision."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.formats.polygons import join_holes, trace

if TYPE_CHECKING:
    from zeroseg_jax.segment.result import SegmentResult

RUN_BITS = (3, 4, 8, 16)
"""How many bits the length of a run may take in Label Studio's code."""


def mean_scores(result: "SegmentResult") -> Float32[np.ndarray, " c"]:
    """For each label, the mean of its scores over its pixels, in [-1, 1]; 0 for a label without pixels."""
    means = np.zeros(len(result.labels), np.float32)
    for i in range(len(result.labels)):
        region = result.label_map == i
        if region.any():
            means[i] = result.scores[result.segments[region], i].mean()
    return means


def yolo_lines(result: "SegmentResult") -> list[str]:
    """The lines of YOLO's segmentation format: `class x1 y1 x2 y2 ...`, with x and y as shares of the image.

    Classes count from 0 as the labels do. Each connected part of a region is a line. The format has no holes, so a
    polygon goes from the outline to each hole and back (`polygons.join_holes`). Background has no line.
    """
    height, width = result.label_map.shape
    lines = []
    for i in range(len(result.labels)):
        for outlines in trace(result.label_map == i):
            shares = join_holes(outlines) / (width, height)
            lines.append(f"{i} {' '.join(f'{value:.6g}' for value in shares.ravel())}")
    return lines


def voc_colours() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's palette: the bits of the class, three at a time, are the upper bits of red, green and blue."""
    classes, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((classes >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colours


def voc_mask(result: "SegmentResult") -> Image.Image:
    """A mask as in VOC's folder `SegmentationClass`, with VOC's palette: 0 is background, and label i is class i + 1.

    Raises InputError for more than 254 labels, because 255 means "not labelled" in VOC.
    """
    check_voc(result.labels)
    mask = Image.fromarray((result.label_map + 1).astype(np.uint8))
    mask.putpalette(voc_colours().ravel().tolist())
    return mask


def check_voc(labels: Sequence[str]) -> None:
    """Raises InputError for more labels than a VOC mask has room for."""
    if len(labels) > 254:
        raise InputError(f"a VOC mask has room for 254 labels, got {len(labels)}; give fewer, or take another format")


def coco_dataset(labels: Sequence[str], images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """COCO's annotation file, as `pycocotools.coco.COCO` reads it.

    Args:
        labels: the categories, which count from 1.
        images: for each image its "file", "width", "height" and "annotations" (`SegmentResult.to_coco`).
    """
    annotations = [annotation for image in images for annotation in image["annotations"]]
    return {
        "images": [
            {"id": i, "file_name": image["file"], "width": image["width"], "height": image["height"]}
            for i, image in enumerate(images)
        ],
        "categories": [{"id": i, "name": label} for i, label in enumerate(labels, start=1)],
        "annotations": [{"id": i} | annotation for i, annotation in enumerate(annotations, start=1)],
    }


def label_studio_task(result: "SegmentResult", image: str) -> dict[str, Any]:
    """A task with a prediction, as Label Studio imports it: one brush region for each label that is there.

    `image` is the address at which Label Studio finds the image. The names fit `label_studio_config`.
    """
    height, width = result.label_map.shape
    scores = mean_scores(result)
    regions = [
        {
            "id": f"label{i}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": float(scores[i]),
            "value": {"format": "rle", "rle": label_studio_rle(region), "brushlabels": [label]},
        }
        for i, label in enumerate(result.labels)
        for region in [result.label_map == i]
        if region.any()
    ]
    return {"data": {"image": image}, "predictions": [{"model_version": "zeroseg_jax", "result": regions}]}


def label_studio_config(labels: Sequence[str]) -> str:
    """The labelling interface (XML) of a Label Studio project for these labels."""
    from xml.sax.saxutils import quoteattr

    choices = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in labels)
    return f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="label" toName="image">
{choices}
  </BrushLabels>
</View>
"""


def label_studio_rle(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """A mask in Label Studio's run-length code: the bytes of thi.ng's rle-pack, for an RGBA image.

    The code begins with the number of values (32 bits), the bits of a value less one (5), and the bits of each of four
    sizes of runs less one (4 each). A run is a 1, the index of its size (2 bits), its length less one, and its value.
    """
    values = np.repeat(mask.ravel(), 4)  # red, green, blue and opacity
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, len(values))
    code = [format(len(values), "032b"), format(7, "05b"), *(format(bits - 1, "04b") for bits in RUN_BITS)]
    start = 0
    for end in ends.tolist():
        value = "1" * 8 if values[start] else "0" * 8
        while start < end:
            length = min(end - start, 1 << RUN_BITS[-1])
            size = next(i for i, bits in enumerate(RUN_BITS) if length <= 1 << bits)
            code += ["1", format(size, "02b"), format(length - 1, f"0{RUN_BITS[size]}b"), value]
            start += length
    bits = np.frombuffer("".join(code).encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def to_supervision(result: "SegmentResult") -> Any:
    """`supervision.Detections` with one detection for each label that is there; see `SegmentResult.to_supervision`."""
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise InputError(f"detections need the package {error.name}; pip install supervision") from error
    classes = np.unique(result.label_map[result.label_map >= 0])
    masks = result.label_map == classes[:, None, None]
    boxes = np.zeros((len(classes), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=mean_scores(result)[classes],
        class_id=classes.astype(int),
        data={"class_name": np.array(result.labels)[classes]},
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
