"""CLIP's and SigLIP's image preprocessing, equal to `transformers.CLIPImageProcessor` and `SiglipImageProcessor` on
their Pillow backend.

OpenAI's preprocessing is Pillow's: bicubic with antialiasing on uint8. Other libraries' "bicubic" differ by up to a
whole unit of normalised intensity, so this part stays on the CPU.
"""

import os
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from zeroseg_jax.data.decode import DAMAGE, read_image, to_rgb
from zeroseg_jax.errors import InputError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

ImageInput = Any
"""uint8 (B, H, W, 3), or a list of paths, PIL images or uint8 (H, W, 3) arrays. Users' input: `check_images` looks."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, rescale and normalise; the fields are those of preprocessor_config.json.

    `resize` is the target of the shorter side (int) or a (height, width); `crop` a (height, width). None leaves the
    step out, as the file's `do_*` switches do.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = Image.Resampling.BICUBIC
    scale: float | None = 1 / 255
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @classmethod
    def square(cls, size: int) -> "Preprocessing":
        """CLIP's own preprocessing at another size."""
        return cls(resize=size, crop=(size, size))

    @classmethod
    def whole(cls, size: int) -> "Preprocessing":
        """SigLIP's own preprocessing: the whole image becomes a square, whatever its aspect, in [-1, 1]."""
        return cls(resize=(size, size), crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    @classmethod
    def from_hf(cls, raw: dict[str, Any], default: "Preprocessing | None" = None) -> "Preprocessing":
        """Reads preprocessor_config.json; what it does not say is as in `default`, by default `CLIPImageProcessor`."""
        default = default or cls()
        size, crop = raw.get("size") or default.resize or 224, raw.get("crop_size") or default.crop or 224
        if isinstance(size, dict):
            size = size["shortest_edge"] if size.get("shortest_edge") else _pair(size, "size")
        crop = _pair(crop, "crop_size") if isinstance(crop, dict) else (crop, crop) if isinstance(crop, int) else crop
        normalise = _said(raw, "do_normalize", True)
        return cls(
            resize=size if _said(raw, "do_resize", True) else None,
            crop=crop if _said(raw, "do_center_crop", default.crop is not None) else None,
            resample=_said(raw, "resample", default.resample),
            scale=_said(raw, "rescale_factor", default.scale) if _said(raw, "do_rescale", True) else None,
            mean=tuple(_said(raw, "image_mean", default.mean)) if normalise else (0.0, 0.0, 0.0),
            std=tuple(_said(raw, "image_std", default.std)) if normalise else (1.0, 1.0, 1.0),
        )

    def to_hf(self, processor: str = "CLIPImageProcessor") -> dict[str, Any]:
        """The content of a preprocessor_config.json for `processor`, a class of `transformers`."""
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
        """The same with another input size."""
        resize = (size, size) if isinstance(self.resize, tuple) else size
        return replace(self, resize=resize, crop=(size, size))

    def __call__(self, images: ImageInput) -> Float[np.ndarray, "b y x 3"]:
        """Normalised float32; raises InputError for an unreadable image, naming it."""
        check_images(images)
        done = [self._one(open_image(image)) for image in images]
        if len({image.shape for image in done}) > 1:
            raise InputError("images of several sizes need a preprocessing with a centre crop or a fixed size")
        return np.stack(done)

    def _one(self, image: Image.Image) -> Float[np.ndarray, "y x 3"]:
        if self.resize is not None:
            height, width = _resized_shape(image.height, image.width, self.resize)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _centre_crop(pixels, *self.crop)
        if self.scale is not None:
            # multiplied in float64, as in CLIPImageProcessor
            pixels = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        return self.normalise(pixels.astype(np.float32))

    def normalise(self, images: Any) -> Any:
        """By mean and standard deviation; float32 (..., 3), of numpy or JAX."""
        return (images - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def check_images(images: ImageInput) -> None:
    """Raises InputError unless `images` is a list or a uint8 array of images; files are not looked into."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(f"the images are {images.dtype} {images.shape}, expected uint8 (B, H, W, 3) or a list")
    elif isinstance(images, str | os.PathLike | Image.Image):
        raise InputError("expected a list of images, got a single one; put it in a list")
    elif not isinstance(images, list | tuple):
        raise InputError(f"the images are a {type(images).__name__}, expected uint8 (B, H, W, 3) or a list")


def open_image(image: Any) -> Image.Image:
    """An RGB image, upright, transparency laid on white; raises InputError where it cannot be read."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(f"an image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        return Image.fromarray(image)
    if isinstance(image, str | os.PathLike):
        return Image.fromarray(read_image(image))
    if not isinstance(image, Image.Image):
        raise InputError(f"an image is a {type(image).__name__}, expected a path, a PIL image or uint8 (H, W, 3)")
    try:
        return to_rgb(image)
    except DAMAGE as error:  # a lazy PIL image reads its file only now
        raise InputError(f"the PIL image cannot be read ({error}); repair its file") from error


def _said(raw: dict[str, Any], name: str, default: Any) -> Any:
    """A value of the file; null is as good as nothing, as in files of transformers 4.50 and later."""
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
    """Cut from the middle; a smaller image gets a black border, the odd pixel of it before the image."""
    before = [max(0, ceil((n - m) / 2)) for n, m in zip((height, width), pixels.shape, strict=False)]
    after = [max(0, (n - m) // 2) for n, m in zip((height, width), pixels.shape, strict=False)]
    pixels = np.pad(pixels, [*zip(before, after, strict=True), (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
