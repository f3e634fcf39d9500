"""Image-caption pairs for the demo's teacher: square crops of procedural scenes with captions.

Half of the crops are centred on an object. The others are at random positions, like the views in distillation and
evaluation. A caption names one object that the crop clearly shows, sometimes with its colour or the material around it.
If the crop shows no object clearly, the caption names the material. Some other captions do so too.
"""

import dataclasses

import numpy as np
from PIL import Image

from zeroseg_jax.data.scenes.render import MATERIALS, NAMES, OBJECTS, Placed, Scene, article, scene

CROPS_PER_SCENE = 8

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the scene."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A crop and its caption."""

    image: np.ndarray
    """uint8 (size, size, 3)."""
    text: str
    """The caption."""
    name: str
    """If the crop shows a single thing, its name ("a star", "grass"); otherwise ""."""
    target: Placed | None
    """The only object of the crop, or None."""
    radius: float = 0.0
    """Radius of the target as a share of the crop's width."""
    visible: float = 0.0
    """Share of the target that is inside the crop."""


def pairs(seed: int, split: str = "pairs", size: int = 32) -> list[Pair]:
    """Cuts `CROPS_PER_SCENE` pairs of `size` pixels from scene number `seed` of `split`."""
    drawn, rng = scene(seed, split), np.random.default_rng([seed, *split.encode()])
    picture = Image.fromarray(drawn.image)
    return [_pair(rng, drawn, picture, size, centred=i % 2 == 0) for i in range(CROPS_PER_SCENE)]


def _pair(rng: np.random.Generator, drawn: Scene, picture: Image.Image, size: int, centred: bool) -> Pair:
    extent = picture.width
    if centred and drawn.objects:
        placed = drawn.objects[int(rng.integers(len(drawn.objects)))]
        side = min(placed.radius / rng.uniform(0.18, 0.5), extent)
        x, y = np.array([placed.x, placed.y]) + rng.uniform(-0.12, 0.12, 2) * side
    else:
        side = extent * np.exp(rng.uniform(np.log(0.2), 0))
        x, y = rng.uniform(side / 2, extent - side / 2, 2)
    left, top = (float(np.clip(c - side / 2, 0, extent - side)) for c in (x, y))
    box = (left, top, left + side, top + side)
    crop = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
    shares = _shares(drawn.mask, box)
    text = _caption(rng, drawn, shares, box)
    inside = [o for o in drawn.objects if _visible(o, box) > 0.1]
    if len(inside) == 1:
        target = inside[0]
        visible, radius = _visible(target, box), target.radius / side
        single = visible > 0.8 and radius > 0.18
        return Pair(crop, text, article(target.name) if single else "", target, radius, visible)
    largest = int(shares.argmax())
    single = largest >= len(OBJECTS) and shares[largest] > 0.95
    return Pair(crop, text, NAMES[largest] if single else "", None)


def _visible(target: Placed, box: Box) -> float:
    """The approximate share of the target's disc that is inside the crop."""
    y, x = np.mgrid[-1:1:21j, -1:1:21j]
    disc = x**2 + y**2 < 1
    x, y = target.x + x[disc] * target.radius, target.y + y[disc] * target.radius
    return float(np.mean((x > box[0]) & (y > box[1]) & (x < box[2]) & (y < box[3])))


def _shares(mask: np.ndarray, box: Box) -> np.ndarray:
    """The share of the crop's pixels for each of `NAMES`, float64 (18,). The sum is 1."""
    left, top, right, bottom = (round(c) for c in box)
    counts = np.bincount(mask[top : max(bottom, top + 1), left : max(right, left + 1)].ravel(), minlength=len(NAMES))
    return counts / counts.sum()


def _caption(rng: np.random.Generator, drawn: Scene, shares: np.ndarray, box: Box) -> str:
    """Names an object that is clearly visible, sometimes with its colour or material; if there is none, a material.

    Objects and materials are drawn at random, with probabilities in proportion to their areas.
    """
    salient = [o for o in drawn.objects if _visible(o, box) > 0.4 and shares[NAMES.index(o.name)] > 0.03]
    grounds = shares[len(OBJECTS) :]
    if grounds.sum() > 0.1 and (not salient or rng.uniform() < 0.12):
        return str(rng.choice(MATERIALS, p=grounds / grounds.sum()))
    if not salient:  # the crop lies inside an object
        return article(OBJECTS[int(shares[: len(OBJECTS)].argmax())])
    areas = np.array([shares[NAMES.index(o.name)] for o in salient])
    chosen = salient[int(rng.choice(len(salient), p=areas / areas.sum()))]
    noun = article(f"{chosen.colour} {chosen.name}" if rng.uniform() < 0.2 else chosen.name)
    if rng.uniform() < 0.3 and grounds.max() > 0.15:
        return f"{noun} on {MATERIALS[int(grounds.argmax())]}"
    return noun
