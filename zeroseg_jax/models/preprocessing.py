"""Image preprocessing of CLIP and SigLIP: resize, crop, rescale and normalise.

The result equals `transformers.CLIPImageProcessor` and `SiglipImageProcessor` with their Pillow backend. Images are
resized by Pillow on the CPU, because the bicubic filters of other libraries differ from OpenAI's by up to 1 in
normalised intensity.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from zeroseg_jax.data.image_like import ImageList, check_image_list, to_pixels
from zeroseg_jax.errors import InputError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's mean and standard deviation of each channel, for images in [0, 1]."""


@dataclass(frozen=True)
class Preprocessing:
    """The settings of preprocessor_config.json. None leaves a step out."""

    resize: int | tuple[int, int] | None = 224
    """Size of the shorter side, or (height, width)."""
    crop: tuple[int, int] | None = (224, 224)
    """(height, width) of the centre crop."""
    resample: int = Image.Resampling.BICUBIC
    """Pillow's number of the filter."""
    scale: float | None = 1 / 255
    """Factor for the pixel values 0 to 255."""
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @classmethod
    def square(cls, size: int) -> "Preprocessing":
        """CLIP's preprocessing for square inputs of `size` pixels."""
        return cls(resize=size, crop=(size, size))

    @classmethod
    def whole(cls, size: int) -> "Preprocessing":
        """SigLIP's preprocessing: the whole image is resized to a square of `size` pixels, with values in [-1, 1]."""
        return cls(resize=(size, size), crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    @classmethod
    def from_hf(cls, raw: dict[str, Any], default: "Preprocessing | None" = None) -> "Preprocessing":
        """Reads the content of preprocessor_config.json. Missing settings come from `default` (None: CLIP's).

        Raises InputError if a size has neither a shortest edge nor a height and a width.
        """
        default = default or cls()
        size, crop = raw.get("size") or default.resize or 224, raw.get("crop_size") or default.crop or 224
        if isinstance(size, dict):
            size = size["shortest_edge"] if size.get("shortest_edge") else _pair(size, "size")
        crop = _pair(crop, "crop_size") if isinstance(crop, dict) else (crop, crop) if isinstance(crop, int) else crop
        normalise = _get(raw, "do_normalize", True)
        return cls(
            resize=size if _get(raw, "do_resize", True) else None,
            crop=crop if _get(raw, "do_center_crop", default.crop is not None) else None,
            resample=_get(raw, "resample", default.resample),
            scale=_get(raw, "rescale_factor", default.scale) if _get(raw, "do_rescale", True) else None,
            mean=tuple(_get(raw, "image_mean", default.mean)) if normalise else (0.0, 0.0, 0.0),
            std=tuple(_get(raw, "image_std", default.std)) if normalise else (1.0, 1.0, 1.0),
        )

    def to_hf(self, processor: str = "CLIPImageProcessor") -> dict[str, Any]:
        """The content of preprocessor_config.json. `processor` is the name of a class of `transformers`."""
        square = self.resize if isinstance(self.resize, tuple) else None
        crop = self.crop or (224, 224)
        return {
            "image_processor_type": processor,
            "do_resize": self.resize is not None,
            "size": {"height": square[0], "width": square[1]} if square else {"shortest_edge": self.resize or 224},
            "resample": int(self.resample),
            "do_center_crop": self.crop is not None,
            "crop_size": {"height": crop[0], "width": crop[1]},
            "do_rescale": self.scale is not None,
            "rescale_factor": 1 / 255 if self.scale is None else self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def resized(self, size: int) -> "Preprocessing":
        """The same settings with another input size."""
        resize = (size, size) if isinstance(self.resize, tuple) else size
        return replace(self, resize=resize, crop=(size, size))

    def __call__(self, images: ImageList) -> Float[np.ndarray, "b y x 3"]:
        """Preprocessed images, float32.

        Raises InputError for an image that cannot be read, and for images whose sizes still differ at the end.
        """
        check_image_list(images)
        processed = [self._process(Image.fromarray(to_pixels(image))) for image in images]
        if len({image.shape for image in processed}) > 1:
            raise InputError("images of several sizes need a preprocessing with a centre crop or a fixed size")
        return np.stack(processed)

    def _process(self, image: Image.Image) -> Float[np.ndarray, "y x 3"]:
        if self.resize is not None:
            height, width = _resized_shape(image.height, image.width, self.resize)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _centre_crop(pixels, *self.crop)
        if self.scale is not None:
            # in float64, as CLIPImageProcessor does it
            pixels = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        return self.normalise(pixels.astype(np.float32))

    def normalise(self, images: Any) -> Any:
        """Subtracts the mean and divides by the standard deviation; float32 (..., 3), numpy or JAX."""
        return (images - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def _get(raw: dict[str, Any], name: str, default: Any) -> Any:
    """A value of the file. Null counts as missing, since transformers 4.50 and later write null for defaults."""
    return default if raw.get(name) is None else raw[name]


def _pair(raw: dict[str, Any], name: str) -> tuple[int, int]:
    if not raw.get("height") or not raw.get("width"):
        raise InputError(f"the preprocessing's {name} is {raw}, expected a shortest_edge or a height and a width")
    return raw["height"], raw["width"]


def _resized_shape(height: int, width: int, target: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(target, tuple):
        return target
    long = int(target * max(height, width) / min(height, width))
    return (long, target) if width <= height else (target, long)


def _centre_crop(pixels: UInt8[np.ndarray, "y x 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Cuts out the middle. A smaller image gets a black border; an odd pixel goes to its top or left side."""
    before = [max(0, ceil((n - m) / 2)) for n, m in zip((height, width), pixels.shape, strict=False)]
    after = [max(0, (n - m) // 2) for n, m in zip((height, width), pixels.shape, strict=False)]
    pixels = np.pad(pixels, [*zip(before, after, strict=True), (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
