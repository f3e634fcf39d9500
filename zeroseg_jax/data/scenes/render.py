"""Draws the procedural scenes: one to three objects on one or two materials, with an exact mask and a caption.

A scene depends only on its split and seed. The pairs of colour and category in `HELD_OUT` appear only in the
`composition` splits.
"""

import dataclasses

import numpy as np

from zeroseg_jax.data.scenes.categories import BASE, COLOURS, DARK, SHADE, SHAPES, WHITE
from zeroseg_jax.data.scenes.materials import TEXTURES

OBJECTS: tuple[str, ...] = tuple(SHAPES)
MATERIALS: tuple[str, ...] = tuple(TEXTURES)
NAMES: tuple[str, ...] = OBJECTS + MATERIALS
"""The names of the classes. The values of a mask are indices into them."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (list(COLOURS)[i % len(COLOURS)], name) for i, name in enumerate(OBJECTS)
)
"""The (colour, category) pairs that only the `composition` splits contain: one colour of each category."""

SPLITS: tuple[str, ...] = ("train", "validation", "test", "composition", "pairs", "pairs_test", "pairs_composition")
"""Splits of the scenes, and splits from which the teacher's pairs are cut (`pairs`)."""

SIZE = 96
"""Side of a scene in pixels."""

_OVERSAMPLE = 3
"""Objects are drawn with this many points along each side of a pixel, for smooth edges."""
_RADIUS = (0.17, 0.33)
"""Least and greatest radius of an object, as a share of the scene's width."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """An object of a scene. The centre `x`, `y` and the `radius` are in pixels."""

    name: str
    colour: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn scene."""

    image: np.ndarray
    """uint8 (96, 96, 3)."""
    mask: np.ndarray
    """uint8 (96, 96). The values are indices into `NAMES`."""
    caption: str
    objects: tuple[Placed, ...]
    materials: tuple[str, ...]


def generator(split: str, seed: int) -> np.random.Generator:
    """The random generator of one scene."""
    return np.random.default_rng([SPLITS.index(split), seed])


def article(noun: str) -> str:
    """The noun with its article: "a star", "an orange fish"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def scene(seed: int, split: str = "train") -> Scene:
    """Draws scene number `seed` of `split`."""
    rng = generator(split, seed)
    materials = tuple(rng.choice(MATERIALS, size=1 if rng.uniform() < 0.3 else 2, replace=False).tolist())
    image, mask = _ground(rng, materials)
    objects = _place(rng, held_out=split.endswith("composition"))
    for placed in objects:
        _draw(rng, image, mask, placed)
    image = image * rng.uniform(0.85, 1.1) + rng.normal(0, 2.5, image.shape)
    nouns = " and ".join(article(o.name) for o in objects)
    caption = f"{nouns} on {' and '.join(materials)}"
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask, caption, objects, materials)


def _ground(rng: np.random.Generator, materials: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of one material, or of two that meet along a curve."""
    image = TEXTURES[materials[0]](SIZE, rng)
    mask = np.full((SIZE, SIZE), NAMES.index(materials[0]), np.uint8)
    if len(materials) == 2:
        y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        bend = rng.uniform(0, 0.07) * np.sin(along * rng.uniform(4, 10) + rng.uniform(0, 6.3))
        second = across > bend + rng.uniform(-0.18, 0.18)
        image = np.where(second[..., None], TEXTURES[materials[1]](SIZE, rng), image)
        mask[second] = NAMES.index(materials[1])
    return image, mask


def _place(rng: np.random.Generator, held_out: bool) -> tuple[Placed, ...]:
    """One to three objects. They overlap little, and are mostly inside the scene."""
    placed: list[Placed] = []
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(OBJECTS))
        colours = [c for c in COLOURS if ((c, name) in HELD_OUT) == held_out]
        colour = str(rng.choice(colours))
        for _ in range(30):
            radius = rng.uniform(*_RADIUS) * SIZE
            x, y = rng.uniform(0.7 * radius, SIZE - 0.7 * radius, 2)
            if all(np.hypot(x - o.x, y - o.y) > 0.95 * (radius + o.radius) for o in placed):
                placed.append(Placed(name, colour, x, y, radius))
                break
    return tuple(placed)


def _draw(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, placed: Placed) -> None:
    """Draws one object into `image`, with smooth edges, and into `mask`, by the centre of each pixel; in place."""
    left, top = (max(int(c - placed.radius) - 1, 0) for c in (placed.x, placed.y))
    right, bottom = (min(int(c + placed.radius) + 2, SIZE) for c in (placed.x, placed.y))
    k = _OVERSAMPLE
    y, x = (np.mgrid[: (bottom - top) * k, : (right - left) * k] + 0.5) / k
    u, v = (x + left - placed.x) / placed.radius, (y + top - placed.y) / placed.radius
    turn, mirror, stretch = rng.uniform(-0.3, 0.3), rng.choice([-1, 1]), rng.uniform(0.9, 1.0)
    u, v = mirror * (u * np.cos(turn) + v * np.sin(turn)), (v * np.cos(turn) - u * np.sin(turn)) / stretch
    inside, paint = SHAPES[placed.name](u, v)
    base = np.clip(np.array(COLOURS[placed.colour]) + rng.normal(0, 14, 3), 0, 255) * rng.uniform(0.8, 1.1)
    palette = np.empty((4, 3))
    palette[BASE], palette[SHADE] = base, 0.55 * base
    palette[WHITE], palette[DARK] = rng.uniform(225, 250), rng.uniform(20, 50)
    colours = palette[paint] * inside[..., None] * (1 - 0.18 * np.clip(v, -1, 1))[..., None]

    def pool(a: np.ndarray) -> np.ndarray:
        return a.reshape(bottom - top, k, right - left, k, -1).mean(axis=(1, 3))

    part = image[top:bottom, left:right]
    part[:] = part * (1 - pool(inside.astype(float))) + pool(colours)
    mask[top:bottom, left:right][inside[k // 2 :: k, k // 2 :: k]] = NAMES.index(placed.name)
