"""The regions of COCO's annotations: polygons and run-length codes, checked before they are drawn.

pycocotools draws the polygons and checks nothing: it reads four numbers as a box, fills up codes that are too short
from uninitialised memory, and crashes on infinite coordinates.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as rle

from zeroseg_jax.errors import InputError


def read_region(segmentation: Any, size: tuple[int, int], said: str) -> Bool[np.ndarray, "h w"] | None:
    """The pixels of an annotation's `segmentation`; None if it has no region.

    Args:
        segmentation: polygons, each a list x, y, x, y, ...; or {"size": [height, width], "counts": a list or COCO's
            text}.
        size: height and width of the image.
        said: name of the annotation, for messages.

    Raises:
        InputError: it is neither, has another size than the image, or is damaged.
    """
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, size, said)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str | list):
        raise InputError(f"{said} has neither polygons nor a run-length code; fetch its file again")
    if segmentation.get("size") != list(size):
        raise InputError(
            f"{said} is a code for {segmentation.get('size')!r} pixels (height, width), but its image has {list(size)};"
            " take both from the same release"
        )
    counts = segmentation["counts"]
    return _draw_runs(_parse_counts(counts) if isinstance(counts, str) else counts, size, said)


def _draw_polygons(polygons: list[Any], size: tuple[int, int], said: str) -> Bool[np.ndarray, "h w"] | None:
    """Draws polygons. Those with fewer than three points are left out."""
    height, width = size
    whole = []
    for polygon in polygons:
        try:
            corners = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{said} has a polygon that is no list of numbers; fetch its file again") from error
        if corners.ndim != 1 or len(corners) % 2:
            raise InputError(f"{said} has a polygon that is not x, y, x, y, ...; fetch its file again")
        if not (np.isfinite(corners).all() and (abs(corners) <= 2 * max(size)).all()):
            raise InputError(f"{said} has a corner far outside of its image of {width}x{height} pixels; repair it")
        if len(corners) >= 6:
            whole.append(corners.tolist())
    if not whole:
        return None
    return rle.decode(rle.merge(rle.frPyObjects(whole, height, width))) == 1


def _parse_counts(text: str) -> list[int]:
    """The runs of COCO's text, or [] if it is damaged.

    A character is five bits of a number, the lowest first, plus 48. From the fourth run on, the numbers are differences
    to the run two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if shift > 60:  # no run is that long
            return []
        if group & 32:  # more follow
            continue
        if group & 16:  # a negative number
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


def _draw_runs(counts: list[Any], size: tuple[int, int], said: str) -> Bool[np.ndarray, "h w"]:
    """Draws runs of pixels down the columns, alternately outside and inside the region."""
    height, width = size
    good = all(isinstance(count, int) and 0 <= count <= height * width for count in counts)
    if not good or sum(counts) != height * width:
        raise InputError(
            f"{said} has a run-length code that does not fill {width}x{height} pixels; fetch its file again"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T
