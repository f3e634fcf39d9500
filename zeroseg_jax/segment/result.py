"""The result of a segmentation: maps, scores, pictures and annotations."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as rle

from zeroseg_jax import draw
from zeroseg_jax.data.decode import DAMAGE, open_picture
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.formats import annotations
from zeroseg_jax.segment.methods import Encoding
from zeroseg_jax.segment.options import encodes
from zeroseg_jax.segment.prompts import Background, Templates
from zeroseg_jax.segment.windows import Canvas, Layout

SOFTWARE = "zeroseg_jax"
"""The text "Software" of the PNGs that are written here."""
FAST = 1
"""Level of PNG compression. It takes a fifth of the time of Pillow's default; photographs are 5 % larger."""


@dataclass(frozen=True, repr=False)
class SegmentResult:
    """The segmentation of one image. In a notebook it shows itself as the overlay."""

    image: UInt8[np.ndarray, "h w 3"]
    """The image, as given."""
    label_map: Int32[np.ndarray, "h w"]
    """For each pixel, the index into `labels`. -1 is background, if there is one."""
    segments: Int32[np.ndarray, "h w"]
    """For each pixel, the segment with the largest share. For a CLIP, which has no segments, the patch of the pixel."""
    scores: Float32[np.ndarray, "s c"]
    """Cosine of each segment (or patch) with each label, in [-1, 1]."""
    labels: list[str]
    probability: Float32[np.ndarray, "h w"] | None = None
    """For each pixel, the probability of the best label, in [0, 1], if the background is a threshold. With GroupViT's
    rule: the highest threshold at which the pixel keeps its label (1: any)."""

    def overlay(self, opacity: float = 0.55, size: int = 480) -> Image.Image:
        """The image with coloured regions, names and a legend. Small images are enlarged to about `size` pixels."""
        return draw.overlay(self.image, self.label_map, self.labels, opacity=opacity, size=size)

    def save(self, path: str | Path) -> None:
        """Writes the overlay; the ending of `path` (.png, .jpg, ...) chooses the format.

        Raises InputError for an ending that is no format, and for a place that cannot be written to.
        """
        save_picture(self.overlay(), Path(path))

    def save_mask(self, path: str | Path) -> None:
        """Writes a PNG whose pixel values are indices into `labels`: with a palette and 255 for background, as VOC's
        masks are; for more than 255 labels in 16 bits, with 65535 for background.

        Raises InputError for more than 65535 labels, and for a place that cannot be written to.
        """
        check_count(len(self.labels))
        if len(self.labels) > 255:
            deep = np.where(self.label_map < 0, 65535, self.label_map).astype(np.uint16)
            save_picture(Image.fromarray(deep), Path(path), "PNG")
            return
        mask = Image.fromarray(np.where(self.label_map < 0, 255, self.label_map).astype(np.uint8))
        colours = np.full((256, 3), draw.NO_LABEL, np.uint8)
        colours[: len(self.labels)] = draw.palette(len(self.labels))
        mask.putpalette(colours.ravel().tolist())
        save_picture(mask, Path(path), "PNG")

    def areas(self) -> dict[str, float]:
        """The share of the image that each label covers, in [0, 1]. The shares sum to 1 without a background."""
        counts = np.bincount(self.label_map[self.label_map >= 0], minlength=len(self.labels))
        return {label: float(count / self.label_map.size) for label, count in zip(self.labels, counts, strict=True)}

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """One COCO annotation for each label that is there: a run-length code as pycocotools reads it, box and area.

        Everything in it is JSON. `category_ids[i]` is the category of label i, by default i + 1, since COCO's
        categories start at 1.
        """
        regions: list[dict[str, Any]] = []
        for i, label in enumerate(self.labels):
            region = self.label_map == i
            if not region.any():
                continue
            code = rle.encode(np.asfortranarray(region, dtype=np.uint8))
            regions.append(
                {
                    "image_id": image_id,
                    "category_id": i + 1 if category_ids is None else category_ids[i],
                    "category": label,
                    "segmentation": {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")},
                    "area": int(region.sum()),
                    "bbox": [float(x) for x in rle.toBbox(code)],
                    "iscrowd": 0,
                }
            )
        return regions

    def to_yolo(self) -> str:
        """The text of a YOLO segmentation file, a line for each part of a region: `class x1 y1 x2 y2 ...`.

        Classes are indices into `labels`; x and y are shares of the image, in [0, 1]. See `annotations.yolo_lines` for
        holes.
        """
        return "".join(f"{line}\n" for line in annotations.yolo_lines(self))

    def save_voc(self, path: str | Path) -> None:
        """Writes a PNG as VOC's `SegmentationClass` has them, with VOC's palette.

        0 is background, and label i is class i + 1.

        Raises InputError for more than 254 labels, and for a place that cannot be written to.
        """
        save_picture(annotations.voc_mask(self), Path(path), "PNG")

    def to_label_studio(self, image: str) -> dict[str, Any]:
        """A Label Studio task with this result as its prediction. `image` is the address of the image there."""
        return annotations.label_studio_task(self, image)

    def to_supervision(self) -> Any:
        """`supervision.Detections`: for each label that is there a mask, a box and `class_id`, the index into `labels`.

        `confidence` is the mean score (cosine) of the label over its pixels. `data["class_name"]` has the labels.
        Raises InputError without the package supervision.
        """
        return annotations.to_supervision(self)

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.areas().items() if share)
        return f"SegmentResult({width}x{height}: {shares or 'background only'})"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=FAST)
        return buffer.getvalue()


def check_count(labels: int) -> None:
    """Raises InputError for more labels than a mask can tell apart."""
    if labels > 65535:
        raise InputError(f"a mask of 16 bits tells 65535 labels apart, not {labels}; give fewer")


def is_output(path: Path) -> bool:
    """Whether a PNG was written here. Its text says so."""
    try:
        with open_picture(path, ("PNG",)) as picture:
            return picture.info.get("Software") == SOFTWARE
    except DAMAGE:
        return False


def save_picture(picture: Image.Image, path: Path, form: str | None = None) -> None:
    """Writes a picture with the mark of this software, if it is a PNG. `form` is its format; None: by its ending.

    Raises InputError for a place that cannot be written to.
    """
    path, about = path.expanduser(), PngInfo()
    about.add_text("Software", SOFTWARE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, form, compress_level=FAST, pnginfo=about)  # other formats than PNG leave these two out
    except (OSError, ValueError) as error:  # Pillow's for an ending that it does not know
        raise InputError(
            f"{path} cannot be written ({error}); give another path, such as one that ends in .png"
        ) from error


class EncodedView(NamedTuple):
    """An image after one pass of the model at one size."""

    windows: tuple[Encoding, ...]
    """The encoding of each window, row by row. Its arrays are on the device, with the patches on their `canvas`."""
    layout: Layout
    mirrored: bool
    """Whether the model saw the mirror image of each window."""
    canvas: Canvas

    @property
    def encoding(self) -> Encoding:
        """The encodings as numpy arrays with an axis for the windows: (v, s, d), (v, n, s), (v, d)."""
        encodings: list[Encoding] = jax.device_get(list(self.windows))
        if encodings[0].assignment is None:
            encodings = [x._replace(embeddings=self.canvas.remove_padding(x.embeddings)) for x in encodings]
        else:
            encodings = [x._replace(assignment=self.canvas.remove_padding(x.assignment)) for x in encodings]
        return jax.tree.map(lambda *x: np.stack(x), *encodings)


@dataclass(frozen=True, repr=False)
class EncodedImage:
    """An encoded image. `segment` takes any labels, without another run of the model."""

    pixels: UInt8[np.ndarray, "h w 3"]
    views: tuple[EncodedView, ...]
    _segmenter: Any

    @property
    def embeddings(self) -> Float32[np.ndarray, "s d"]:
        """The embedding of each segment of each window of the first view, of unit length."""
        embeddings: Any = self.views[0].encoding.embeddings
        return embeddings.reshape(-1, embeddings.shape[-1])

    @property
    def assignment(self) -> Float32[np.ndarray, "v n s"] | None:
        """The share of each patch in each segment of its window, row-major. None if every patch is a segment."""
        assignment: Any = self.views[0].encoding.assignment
        return assignment

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        layout, window = self.views[0].layout, self.views[0].windows[0]
        if window.assignment is None:
            return f"EncodedImage({width}x{height}: {len(layout) * layout.grid[0] * layout.grid[1]} patches)"
        return f"EncodedImage({width}x{height}: {len(layout) * window.embeddings.shape[0]} segments)"

    def segment(
        self,
        labels: Iterable[str],
        *,
        templates: Templates | None = None,
        background: Background = None,
        **options: Any,
    ) -> SegmentResult:
        """As `Segmenter.segment`. `options` are those that do not change the encoding, such as `mix` and `guide`."""
        for name in options:
            if encodes(name):
                raise InputError(f"{name} counts when an image is encoded; give it to encode instead of to segment")
        return self._segmenter.label([self], labels, templates=templates, background=background, **options)[0]
