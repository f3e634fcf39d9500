"""Polygons around the regions of a mask, along the sides of the pixels."""

from collections import defaultdict

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

Polygon = Int[np.ndarray, "_ 2"]
"""Corners (x, y) in pixels, from the upper left corner of the image. The last corner is joined to the first."""

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up. The region lies to the right of each step."""


def trace(mask: Bool[np.ndarray, "h w"]) -> list[list[Polygon]]:
    """The outlines of each part of a mask: the outer one first, then one for each hole.

    A part is 4-connected, so pixels that touch at a corner only are two parts. The outlines run along the sides of the
    pixels, so that filling them gives exactly the mask. Outer outlines run clockwise (with y downwards), and holes run
    the other way.
    """
    parts, _ = ndimage.label(mask)
    traced = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        offset = np.array([box[1].start, box[0].start])
        traced.append([outline + offset for outline in _outlines(parts[box] == number)])
    return traced


def join_holes(outlines: list[Polygon]) -> Polygon:
    """One polygon for a part with holes.

    Formats without holes take this: a line goes from the outline to each hole and the same way back, and encloses
    nothing.
    """
    joined, *holes = outlines
    for hole in holes:
        near = int(np.abs(joined - hole[0]).sum(axis=1).argmin())
        joined = np.concatenate([joined[: near + 1], hole, hole[:1], joined[near:]])
    return joined


def _outlines(part: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """The outlines of a single part; the outer one first."""
    padded = np.pad(part, 1)
    inside, height, width = padded[1:-1, 1:-1], *part.shape
    y, x = np.indices((height, width))
    leaving: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    """The directions in which sides of pixels leave each corner."""
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, corners, strict=True)):
        side = inside & ~neighbour
        for start in zip((x[side] + dx).tolist(), (y[side] + dy).tolist(), strict=True):
            leaving[start].append(direction)
    first = min(leaving, key=lambda corner: (corner[1], corner[0]))  # on the outer outline
    outlines = [_follow(leaving, first)]
    while leaving:
        outlines.append(_follow(leaving, next(iter(leaving))))
    return outlines


def _follow(leaving: defaultdict[tuple[int, int], list[int]], start: tuple[int, int]) -> Polygon:
    """Takes one closed outline out of `leaving`. Only the corners where it turns are kept."""
    corner, before, corners = start, -1, []
    first = leaving[start][0]
    while True:
        choices = leaving.get(corner, [])
        # where two pixels touch at this corner, the outline turns right and stays at its pixel
        right = (before + 1) % 4
        if before >= 0 and corner == start and right not in choices:
            break
        direction = right if before >= 0 and right in choices else choices[0]
        choices.remove(direction)
        if not choices:
            del leaving[corner]
        if direction != before:
            corners.append(corner)
        (x, y), (dx, dy) = corner, STEPS[direction]
        corner, before = (x + dx, y + dy), direction
    return np.array(corners[1:] if before == first else corners)  # no corner where it goes straight on at the start
