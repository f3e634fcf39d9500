"""Random resized crop and flip. Every draw comes from (seed, epoch, index), never from the order of the work."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zeroseg_jax.errors import InputError

_STORED = 3
"""Keeps the stored crops' random streams apart from the others'."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to an image on its way to `size` x `size` pixels, all resizing bicubic with antialiasing.

    Attributes:
        size: side of the result in pixels.
        crop: cut a random part (the random resized crop of Szegedy et al. 2015, with MAE's bicubic filter); otherwise
            the whole image is resized, without keeping its aspect.
        scale: area of the crop as a share of the image, uniform.
        ratio: width by height of the crop, log-uniform.
        flip: mirror every other image, by chance.
        seed: of all draws, at least 0.
        stored_crops: 0 for another crop in each epoch, else how many an image has: epoch e takes crop e modulo this.
            They do not depend on the seed, so that runs of any seed share what is stored of them.
    """

    size: int
    crop: bool = True
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    seed: int = 0
    stored_crops: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be at least 0")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InputError(f"data.scale is {self.scale}; it must be two increasing shares above 0 and at most 1")
        low, high = self.ratio
        if not 0 < low <= high:
            raise InputError(f"data.ratio is {self.ratio}; it must be two increasing positive numbers")

    @classmethod
    def from_config(cls, data: Any, image_size: int, seed: int, stored_crops: int = 0) -> "Augmentation":
        """Reads `augment` ("crop" or "none"), `scale`, `ratio` and `flip` of the `data` group of a config."""
        if data.augment not in ("crop", "none"):
            raise InputError(f"data.augment is {data.augment!r}; it must be crop or none")
        return cls(
            image_size,
            crop=data.augment == "crop",
            scale=_bounds("data.scale", data.scale),
            ratio=_bounds("data.ratio", data.ratio),
            flip=data.flip,
            seed=seed,
            stored_crops=stored_crops,
        )

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "a b 3"]:
        """The part that is the same in every epoch, and that a cache may keep: the resize, where nothing is cropped."""
        return image if self.crop else resize(image, self.size)

    def finish(
        self, prepared: UInt8[np.ndarray, "a b 3"], epoch: int, index: int
    ) -> tuple[UInt8[np.ndarray, "s s 3"], bool]:
        """The random part for image `index` in `epoch`; returns the pixels and whether they are mirrored."""
        rng = np.random.default_rng((self.seed, epoch, index))
        mirrored = bool(self.flip and rng.random() < 0.5)
        if self.stored_crops:
            prepared = self.stored(prepared, epoch % self.stored_crops, index)
        elif self.crop:
            prepared = resize(prepared, self.size, random_box(rng, prepared.shape[:2], self.scale, self.ratio))
        return prepared[:, ::-1] if mirrored else prepared, mirrored

    def stored(self, prepared: UInt8[np.ndarray, "a b 3"], crop: int, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """Crop number `crop` of image `index`, not mirrored; without cropping it is `prepared`."""
        if not self.crop:
            return prepared
        rng = np.random.default_rng((crop, index, _STORED))
        return resize(prepared, self.size, random_box(rng, prepared.shape[:2], self.scale, self.ratio))


def _bounds(key: str, value: Any) -> tuple[float, float]:
    if len(value) != 2:
        raise InputError(f"{key} is {tuple(value)}; it must be two numbers, the smaller first")
    return float(value[0]), float(value[1])


def resize(
    image: UInt8[np.ndarray, "h w 3"], size: int, box: tuple[int, int, int, int] | None = None
) -> UInt8[np.ndarray, "s s 3"]:
    """Pillow's antialiased bicubic resize to a square, of `box` (left, top, right, bottom) or of all."""
    if image.shape == (size, size, 3) and box in (None, (0, 0, size, size)):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))


def random_box(
    rng: np.random.Generator, extent: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) inside an image of `extent` (height, width).

    A box that does not fit is drawn again; after ten, the largest central box of an allowed ratio is taken.
    """
    height, width = extent
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(min(width, round(height * aspect)), 1), max(min(height, round(width / aspect)), 1)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
