"""Random crops and mirroring of training images. They depend on (seed, epoch, index), not on the order of the work."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zeroseg_jax.config_ranges import check_ranges
from zeroseg_jax.data.decode import Picture
from zeroseg_jax.data.resize import resize

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
_STORED = 3
"""Makes the random numbers of stored crops differ from those of other crops."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to an image on its way to `size` x `size` pixels, all resizing bicubic with antialiasing.

    Attributes:
        size: side of the result in pixels.
        augment: the part of an image that is shown. "crop": a random one (the random resized crop of Szegedy et al.
            2015, with MAE's bicubic filter); "center": the largest centred square; "none": all of it, resized without
            keeping its aspect.
        scale: area of the crop as a share of the image, uniform.
        ratio: width by height of the crop, log-uniform.
        flip: mirror every other image, by chance.
        seed: of all draws, at least 0.
        stored_crops: 0 for another crop in each epoch, else how many an image has: epoch e takes crop e modulo this.
            They do not depend on the seed, so runs with any seed share stored embeddings.
    """

    size: int
    augment: str = "crop"
    scale: tuple[int | float, ...] = (0.2, 1.0)
    ratio: tuple[int | float, ...] = (3 / 4, 4 / 3)
    flip: bool = True
    seed: int = 0
    stored_crops: int = 0

    def __post_init__(self) -> None:
        values = {"augment": self.augment, "scale": self.scale, "ratio": self.ratio}
        check_ranges({"seed": self.seed} | {f"data.{name}": value for name, value in values.items()})

    @classmethod
    def from_config(cls, data: Any, image_size: int, seed: int, stored_crops: int = 0) -> "Augmentation":
        """Reads `augment`, `scale`, `ratio` and `flip` of the `data` group of a config."""
        return cls(
            image_size,
            augment=data.augment,
            scale=tuple(data.scale),
            ratio=tuple(data.ratio),
            flip=data.flip,
            seed=seed,
            stored_crops=stored_crops,
        )

    def draw(self, extent: tuple[int, int], epoch: int, index: int) -> tuple[Box, bool]:
        """The part of image `index` that `epoch` shows, and whether it is mirrored. `extent` is (height, width)."""
        rng = np.random.default_rng((self.seed, epoch, index))
        flip = bool(self.flip and rng.random() < 0.5)
        if self.augment == "none":
            return (0, 0, extent[1], extent[0]), flip
        if self.augment == "center":
            return center_box(extent), flip
        if self.stored_crops:
            rng = np.random.default_rng((epoch % self.stored_crops, index, _STORED))
        return random_box(rng, extent, self.scale, self.ratio), flip

    def reduction(self, box: Box) -> int:
        """The largest of 1, 2, 4 and 8 by which an image may be made smaller before `box` of it is resized.

        What is left of the box has at least `size` pixels along each side, so the resize only shrinks it further.
        """
        shorter = min(box[2] - box[0], box[3] - box[1])
        return next(factor for factor in (8, 4, 2, 1) if factor == 1 or shorter >= factor * self.size)

    def crop(self, picture: Picture, box: Box) -> UInt8[np.ndarray, "s s 3"]:
        """`box`, which is in pixels of the stored image, of a picture that may be decoded smaller, resized."""
        if self.augment == "none":  # all pixels, also those that rounding adds to a smaller picture
            return resize(picture.pixels, self.size)
        left, top, right, bottom = (side / picture.reduction for side in box)
        return resize(picture.pixels, self.size, (left, top, right, bottom))

    def reusable(self, picture: Picture, pixels: UInt8[np.ndarray, "s s 3"]) -> Picture | None:
        """What other epochs can start from, None if each decodes for itself; `pixels` are a crop of `picture`.

        Where no crop is random the pixels themselves. Otherwise the whole picture, if it is never decoded smaller.
        """
        if self.augment != "crop":
            return Picture(pixels, (self.size, self.size), 1)
        return picture if min(picture.extent) < 2 * self.size else None


def mirrored(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with left and right exchanged, in half of numpy's time."""
    return np.asarray(Image.fromarray(pixels).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def center_box(extent: tuple[int, int]) -> Box:
    """The largest centred square of an image of `extent` (height, width); half a pixel left of or above the centre
    where the sides differ by an odd number."""
    height, width = extent
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_box(
    rng: np.random.Generator,
    extent: tuple[int, int],
    scale: tuple[int | float, ...],
    ratio: tuple[int | float, ...],
) -> Box:
    """A random box inside an image of `extent` (height, width).

    A box that does not fit is drawn again; after ten, the largest central box of an allowed ratio is taken.
    """
    height, width = extent
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(min(width, round(height * aspect)), 1), max(min(height, round(width / aspect)), 1)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
