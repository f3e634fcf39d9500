"""The objects of the procedural scenes: twelve categories that differ in outline and pattern, but not in colour.

A category is a function of the coordinates `u` (to the right) and `v` (down), which are scaled so that the object fits
into the unit disc. It returns two arrays: whether each point is inside the object (bool), and the paint of each point.
Paint 0 is the colour of the object, 1 white, 2 almost black, and 3 a darker shade of the colour. Each category has all
the colours of `COLOURS`.
"""

from collections.abc import Callable

import numpy as np

BASE, WHITE, DARK, SHADE = 0, 1, 2, 3

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 45),
    "orange": (240, 135, 30),
    "yellow": (240, 210, 50),
    "green": (55, 150, 65),
    "blue": (45, 90, 205),
    "purple": (145, 65, 175),
}

Paint = tuple[np.ndarray, np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray, x: float | int, y: float | int, radius: float | int) -> np.ndarray:
    return (u - x) ** 2 + (v - y) ** 2 < radius**2


def _plain(inside: np.ndarray) -> Paint:
    return inside, np.zeros(inside.shape, np.uint8)


def star(u: np.ndarray, v: np.ndarray) -> Paint:
    """Five points, plain."""
    angle, radius = np.arctan2(u, -v), np.hypot(u, v)
    sector = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    # the edge goes from the tip (1, 0) to the inner corner at radius 0.4 and angle 36 degrees
    inner = 0.4
    dx, dy = inner * np.cos(np.pi / 5) - 1, inner * np.sin(np.pi / 5)
    edge = (radius * np.cos(sector) - 1) * dy - radius * np.sin(sector) * dx
    return _plain(edge < 0)


def heart(u: np.ndarray, v: np.ndarray) -> Paint:
    """A heart, plain."""
    x, y = u * 1.2, 0.12 - v * 1.15
    return _plain((x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0)


def moon(u: np.ndarray, v: np.ndarray) -> Paint:
    """A crescent, plain."""
    return _plain(_disc(u, v, 0, 0, 1) & ~_disc(u, v, 0.5, -0.12, 0.82))


def donut(u: np.ndarray, v: np.ndarray) -> Paint:
    """A ring with white sprinkles and an open hole."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    sprinkle = (np.abs(radius - 0.7) < 0.17) & (np.abs((angle * 7 / (2 * np.pi)) % 1 - 0.5) < 0.14)
    return (radius < 1) & (radius > 0.4), np.where(sprinkle, WHITE, BASE).astype(np.uint8)


def ball(u: np.ndarray, v: np.ndarray) -> Paint:
    """A beach ball: a disc of eight wedges, every other one white."""
    wedge = np.floor((np.arctan2(v, u) / np.pi + 1) * 4).astype(int) % 2 == 0
    return _disc(u, v, 0, 0, 1), np.where(wedge, WHITE, BASE).astype(np.uint8)


def flower(u: np.ndarray, v: np.ndarray) -> Paint:
    """Five round petals around an almost black centre."""
    turns = np.arange(5) * 2 * np.pi / 5
    inside = np.any([_disc(u, v, 0.6 * np.sin(t), -0.6 * np.cos(t), 0.4) for t in turns], axis=0)
    centre = _disc(u, v, 0, 0, 0.3)
    return inside | centre, np.where(centre, DARK, BASE).astype(np.uint8)


def fish(u: np.ndarray, v: np.ndarray) -> Paint:
    """A body with two white stripes, a forked tail and a dark eye."""
    body = ((u + 0.22) / 0.78) ** 2 + (v / 0.62) ** 2 < 1
    tail = (u > 0.35) & (np.abs(v) < (u - 0.3) * 0.95) & (u < 1 - 0.35 * (1 - np.abs(v) / 0.65))
    stripe = body & ((np.abs(u + 0.3) < 0.1) | (np.abs(u - 0.1) < 0.1))
    paint = np.where(stripe, WHITE, BASE)
    return body | tail, np.where(_disc(u, v, -0.68, -0.12, 0.12), DARK, paint).astype(np.uint8)


def butterfly(u: np.ndarray, v: np.ndarray) -> Paint:
    """Four wings with white spots and a thin dark body."""
    x = np.abs(u)
    upper = ((x - 0.52) / 0.48) ** 2 + ((v + 0.36) / 0.5) ** 2 < 1
    lower = ((x - 0.4) / 0.34) ** 2 + ((v - 0.5) / 0.4) ** 2 < 1
    body = (x < 0.11) & (np.abs(v) < 0.75)
    paint = np.where(_disc(x, v, 0.58, -0.38, 0.2), WHITE, BASE)
    return upper | lower | body, np.where(body, DARK, paint).astype(np.uint8)


def mushroom(u: np.ndarray, v: np.ndarray) -> Paint:
    """A cap with white dots on a white stem."""
    cap = (u**2 + ((v - 0.1) / 1.02) ** 2 < 0.95) & (v < 0.12)
    stem = (np.abs(u) < 0.27 + 0.1 * np.maximum(v - 0.5, 0)) & (v >= 0.12) & (v < 0.95)
    dots = _disc(u, v, 0, -0.52, 0.2) | _disc(u, v, -0.52, -0.16, 0.17) | _disc(u, v, 0.52, -0.16, 0.17)
    return cap | stem, np.where(stem | dots, WHITE, BASE).astype(np.uint8)


def house(u: np.ndarray, v: np.ndarray) -> Paint:
    """Walls with a dark door and a white window, and a roof in a darker shade."""
    roof = (v < -0.05) & (np.abs(u) < (v + 0.95) * 1.1)
    walls = (np.abs(u) < 0.74) & (v >= -0.05) & (v < 0.85)
    door = (np.abs(u + 0.3) < 0.16) & (v > 0.25)
    window = (np.abs(u - 0.27) < 0.2) & (np.abs(v - 0.3) < 0.2)
    paint = np.where(roof, SHADE, BASE)
    return roof | walls, np.where(window, WHITE, np.where(door, DARK, paint)).astype(np.uint8)


def ladybird(u: np.ndarray, v: np.ndarray) -> Paint:
    """A round back with dark spots and a dark line, and a dark head."""
    back, head = _disc(u, v, 0, 0.18, 0.8), _disc(u, v, 0, -0.66, 0.34)
    x = np.abs(u)
    spots = _disc(x, v, 0.4, -0.1, 0.17) | _disc(x, v, 0.44, 0.42, 0.17) | (x < 0.06)
    return back | head, np.where(head & ~back | spots, DARK, BASE).astype(np.uint8)


def kite(u: np.ndarray, v: np.ndarray) -> Paint:
    """A diamond of four quarters, of which two are white, with a small tail."""
    sail = np.abs(u) / 0.84 + np.where(v < -0.15, -(v + 0.15) / 0.8, (v + 0.15) / 0.95) < 1
    tail = (v > 0.72) & (v < 1) & (np.abs(u) < 0.22 * np.abs(v - 0.86) / 0.14)
    quarter = sail & ((u > 0) != (v > -0.15))
    return sail | tail, np.where(quarter, WHITE, BASE).astype(np.uint8)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], Paint]] = {
    shape.__name__: shape
    for shape in (star, heart, moon, donut, ball, flower, fish, butterfly, mushroom, house, ladybird, kite)
}
