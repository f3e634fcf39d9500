"""The kinds of `fuzz.py` that are benchmarks: damaged masks and annotations."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_changes import RUNS, change_bytes, change_json
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.evaluate.benchmarks import open_benchmark
from zeroseg_jax.evaluate.benchmarks.coco_object import write_masks


class Benchmarks:
    """A folder to evaluate on: its mask, its list, its classes or its image change."""

    def __init__(self, folder: Path):
        self.folder = folder
        pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
        files = {"classes.txt": b"cat\ndog\ncow\nhen\n", "ImageSets/Segmentation/val.txt": b"a\nb c 1\n"}
        for name in ("a", "b c"):
            for place, mode in (("JPEGImages", "RGB"), ("SegmentationClass", "P")):
                buffer = io.BytesIO()
                image = Image.fromarray(pixels)
                if mode == "P":
                    image.putpalette(list(range(12)))
                image.convert(mode).save(buffer, "PNG")
                files[f"{place}/{name}.png"] = buffer.getvalue()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.files = files
        self.config = default_config()
        self.config.eval.update(dataset="folder", root=str(folder), split="val")
        self.good = self._read()

    def _read(self) -> list[Any]:
        benchmark = open_benchmark(self.config.eval, probe=False)
        examples = [benchmark[i] for i in range(len(benchmark))]
        for example in examples:
            assert example.mask.shape == example.image.shape[:2]
            assert set(np.unique(example.mask)) <= {*range(len(benchmark.classes)), 255}
        return [tuple(benchmark.classes), *((e.name, e.image.tobytes(), e.mask.tobytes()) for e in examples)]

    def __call__(self, rng: random.Random) -> str:
        name = rng.choice(list(self.files))
        (self.folder / name).write_bytes(change_bytes(self.files[name], rng))
        try:
            return "right" if self._read() == self.good else "other"
        finally:
            (self.folder / name).write_bytes(self.files[name])


class Annotations:
    """COCO's annotations, of which a value or the bytes change."""

    def __init__(self, folder: Path):
        self.folder = folder
        size = {"height": 20, "width": 30}
        common = {"image_id": 7, "area": 30, "iscrowd": 0}
        self.content = {
            "images": [{"id": i, "file_name": f"{i}.jpg"} | size for i in (7, 8)],
            "annotations": [
                {"id": 1, "category_id": 1, "segmentation": [[3, 3, 14, 3, 14, 15, 3, 15], [1, 1, 2, 1, 2, 2]]}
                | common,
                {"id": 2, "category_id": 90, "segmentation": {"size": [20, 30], "counts": [100, 50, 450]}} | common,
                {"id": 3, "category_id": 2, "segmentation": {"size": [20, 30], "counts": RUNS}} | common,
            ],
        }
        (folder / "annotations").mkdir()
        self.good = self._read(json.dumps(self.content).encode())

    def _read(self, data: bytes) -> tuple[bytes, int]:
        (self.folder / "annotations/instances_val2017.json").write_bytes(data)
        written = write_masks(self.folder)
        return (self.folder / "annotations/val2017/7_instanceTrainIds.png").read_bytes(), len(written.left_out)

    def __call__(self, rng: random.Random) -> str:
        for path in (self.folder / "annotations/val2017").glob("*"):
            path.unlink()
        try:
            mask, left_out = self._read(change_json(self.content, rng))
        except FileNotFoundError:  # the image has another name now
            return "other"
        if left_out:
            return "skipped"
        return "right" if mask == self.good[0] else "other"
