"""Writes results in the formats that the command line offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.formats import annotations
from zeroseg_jax.segment.result import SegmentResult

FORMATS = {
    "png": "NAME_mask.png, and NAME_overlay.png unless --no-overlay",
    "yolo": "labels/NAME.txt with polygons, and data.yaml",
    "voc": "SegmentationClass/NAME.png with VOC's palette (0 background, label i is i + 1), and labels.txt",
    "coco": "coco.json with all images, categories and annotations",
    "labelstudio": "labelstudio.json with tasks to import, and labelstudio.xml, the labelling interface",
    "geotiff": "NAME.tif with the georeference of the input, which may be larger than memory (extra geo)",
}
"""The names that --format takes, and what each writes."""


def read_formats(text: str) -> tuple[str, ...]:
    """The formats in a list with commas. Raises InputError for one that is not known."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in FORMATS:
            raise InputError(f"there is no format {name!r}; the formats are {', '.join(FORMATS)}")
    if not names:
        raise InputError(f"--format is empty; the formats are {', '.join(FORMATS)}")
    if "geotiff" in names and len(names) > 1:
        raise InputError("geotiff is written window by window, without other formats; give it alone")
    return names


class Writer:
    """Writes the files of each image, and at the end the files about all of them."""

    def __init__(self, folder: Path, labels: Sequence[str], chosen: Sequence[str], overlays: bool = True):
        if "voc" in chosen:
            annotations.check_voc(labels)
        self.folder, self.labels, self.formats, self.overlays = folder, list(labels), chosen, overlays
        self.images: list[dict[str, Any]] = []
        self._tasks: list[dict[str, Any]] = []

    def add(self, result: SegmentResult, file: Path, name: str) -> None:
        """Writes what belongs to one image. `name` is its path below the folder, without an ending."""
        height, width = result.label_map.shape
        entry: dict[str, Any] = {"file": str(file), "width": width, "height": height}
        if "png" in self.formats:
            entry["mask"] = f"{name}_mask.png"
            result.save_mask(self.folder / entry["mask"])
            if self.overlays:
                entry["overlay"] = f"{name}_overlay.png"
                result.save(self.folder / entry["overlay"])
        if "yolo" in self.formats:
            entry["yolo"] = f"labels/{name}.txt"
            path = self.folder / entry["yolo"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(result.to_yolo(), encoding="utf-8")
        if "voc" in self.formats:
            entry["voc"] = f"SegmentationClass/{name}.png"
            result.save_voc(self.folder / entry["voc"])
        if "labelstudio" in self.formats:
            self._tasks.append(result.to_label_studio(str(file)))
        regions = result.to_coco(image_id=len(self.images))
        self.images.append(entry | {"areas": result.areas(), "annotations": regions})

    def close(self) -> None:
        """Writes the files about all images."""
        if "yolo" in self.formats:
            names = {"names": dict(enumerate(self.labels))}
            annotations.write_json(self.folder / "data.yaml", names)  # JSON is YAML, so any label can be in it
        if "voc" in self.formats:
            lines = "".join(f"{label}\n" for label in ["background", *self.labels])
            (self.folder / "labels.txt").write_text(lines, encoding="utf-8")
        if "coco" in self.formats:
            annotations.write_json(self.folder / "coco.json", annotations.coco_dataset(self.labels, self.images))
        if "labelstudio" in self.formats:
            annotations.write_json(self.folder / "labelstudio.json", self._tasks)
            config = annotations.label_studio_config(self.labels)
            (self.folder / "labelstudio.xml").write_text(config, encoding="utf-8")
