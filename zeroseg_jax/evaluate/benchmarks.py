"""Evaluation datasets: images with a mask of class indices, read from where they lie on disk.

`scenes`   the procedural scenes; `eval.root` is their cache folder, as in training
`folder`   any folder in VOC layout with a `classes.txt`, one class name on each line in the order of the masks' values:
           JPEGImages/NAME.jpg (or .png), SegmentationClass/NAME.png, ImageSets/Segmentation/SPLIT.txt
`voc`      PASCAL VOC 2012: `eval.root` is VOCdevkit, VOCdevkit/VOC2012, or a folder of that layout

Masks are PNG files whose pixel values (of a palette image: the indices) are classes; 255 does not count.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from rich.table import Table

from zeroseg_jax.data.decode import read_image
from zeroseg_jax.data.folder import ENDINGS, VOC_LISTS, WHOLE
from zeroseg_jax.data.scenes.render import MATERIALS, NAMES, OBJECTS
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.metrics import IGNORE
from zeroseg_jax.evaluate.vocabularies import VOC
from zeroseg_jax.log import ProgressBar


class Example(NamedTuple):
    """One image with its truth."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """Indices into the benchmark's classes; 255 does not count."""
    name: str


@runtime_checkable
class Benchmark(Protocol):
    """A dataset with masks. `classes[i]` is the name of mask value i."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def groups(self) -> Mapping[str, Sequence[int]]:
        """Classes that are also reported apart, by the name of the group."""

    @property
    def background(self) -> int | None:
        """The class that means everything which no other class names."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example:
        """Raises InputError for a missing or broken image or mask, a mask of another size, or an unknown value in
        it."""


def open_benchmark(options: ConfigDict) -> Benchmark:
    """Opens what the `eval` group of a config describes: its `dataset`, `root`, `split` and `limit`.

    Raises:
        InputError: an unknown dataset, a root that is not laid out as it should be, or a split without images.
    """
    dataset, root = options.dataset, Path(options.root).expanduser()
    if dataset.split("/")[0] == "scenes":
        return Scenes(options.root, dataset.partition("/")[2] or "default", options.split, options.limit)
    if dataset not in ("folder", "voc"):
        raise InputError(f"eval.dataset is {dataset!r}; it must be scenes, folder or voc")
    if not options.root:
        raise InputError(f"eval.dataset={dataset} needs a folder; set eval.root")
    if dataset == "voc":
        root = next((root / below for below in ("VOC2012", "VOCdevkit/VOC2012") if (root / below).is_dir()), root)
        return VocFolder(root, options.split, options.limit, classes=VOC, background=0)
    return VocFolder(root, options.split, options.limit)


class Scenes:
    """A split of the procedural scenes; objects and materials are reported apart."""

    name = "scenes"
    classes = NAMES
    background = None
    groups: Mapping[str, Sequence[int]] = {
        "objects": range(len(OBJECTS)),
        "materials": range(len(OBJECTS), len(OBJECTS) + len(MATERIALS)),
    }

    def __init__(self, root: str, config: str = "default", split: str = "validation", limit: int = 0):
        # TFDS takes a second to import
        from zeroseg_jax.data.scenes.builder import SIZES, ZerosegScenes, prepare

        folder = prepare(root, config)
        if split not in SIZES[config]:
            raise InputError(f"the scenes have no split {split!r}; set eval.split to one of {', '.join(SIZES[config])}")
        self._items = ZerosegScenes(data_dir=str(folder), config=config).as_data_source(split)
        self._count = min(limit, len(self._items)) if limit else len(self._items)
        self._split = split

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self._count:
            raise IndexError(i)
        item = self._items[i]
        return Example(item["image"], item["segmentation"][..., 0], f"{self._split}/{i:05d}")


class VocFolder:
    """A folder in VOC layout. Class names come from its `classes.txt` unless given."""

    name = "folder"
    groups: Mapping[str, Sequence[int]] = {}

    def __init__(
        self,
        root: Path,
        split: str = "val",
        limit: int = 0,
        classes: Sequence[str] | None = None,
        background: int | None = None,
    ):
        if not root.is_dir():
            raise InputError(
                f"there is no folder {root}; set eval.root to a folder with JPEGImages and SegmentationClass"
            )
        for part in ("JPEGImages", "SegmentationClass"):
            if not (root / part).is_dir():
                raise InputError(f"there is no folder {root / part}; eval.root must be laid out as VOC is")
        self.root, self.classes, self.background = root, classes or _read_classes(root / "classes.txt"), background
        if classes:
            self.name = "voc"
        self.names = _read_split(root, split)[: limit or None]
        if not self.names:
            raise InputError(f"the split {split!r} of {root} has no images")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Example:
        name = self.names[i]
        path = next((p for e in ENDINGS if (p := self.root / "JPEGImages" / f"{name}{e}").is_file()), None)
        if path is None:
            raise InputError(
                f"there is no image {self.root / 'JPEGImages' / name} with the ending {', '.join(ENDINGS)}"
            )
        image, mask_path = read_image(path), self.root / "SegmentationClass" / f"{name}.png"
        mask = read_mask(mask_path)
        if mask.shape != image.shape[:2]:
            sizes = f"{mask.shape[1]}x{mask.shape[0]}", f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"the mask {mask_path} has {sizes[0]} pixels, its image {sizes[1]}; they must agree")
        unknown = unknown_values(mask, len(self.classes))
        if unknown:
            values = ", ".join(str(value) for value in unknown)
            raise InputError(
                f"the mask {mask_path} holds {values}, but there are {len(self.classes)} classes, 0 to"
                f" {len(self.classes) - 1}; use the class list that the masks were made with"
            )
        return Example(image, mask, name)


def read_mask(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Class indices from a PNG: a palette image's indices (not its colours), or a grey image's values.

    Raises:
        InputError: a missing or broken file, or an image in colours, which holds no indices.
    """
    if not path.is_file():
        raise InputError(f"there is no mask {path}")
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"the mask {path} cannot be read ({error})") from error
    if image.mode not in ("P", "L"):
        raise InputError(
            f"the mask {path} has the mode {image.mode}; it must be a palette or an 8-bit grey PNG of indices"
        )
    return np.array(image)


def unknown_values(mask: UInt8[np.ndarray, "h w"], classes: int) -> list[int]:
    """Values of a mask that are neither a class nor 255."""
    return [int(value) for value in np.unique(mask) if value >= classes and value != IGNORE]


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f"there is no {path}; write one class name on each line, in the order of the masks' values")
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    double = sorted({name for name in names if names.count(name) > 1})
    if double or not names or len(names) > IGNORE:
        problem = f"names {', '.join(double)} twice" if double else f"holds {len(names)} names, not 1 to {IGNORE}"
        raise InputError(f"{path} {problem}; each line must be the name of one class")
    return names


def _read_split(root: Path, split: str) -> list[str]:
    """The names of a split's images, from its list; without any list, or for "all", every image with a mask."""
    path = root / VOC_LISTS / f"{split}.txt"
    if path.is_file():
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    known = sorted(p.stem for p in (root / VOC_LISTS).glob("*.txt"))
    if known and split not in WHOLE:
        raise InputError(f"there is no {path}; set eval.split to one of {', '.join(known)}, or all")
    return sorted(p.stem for p in (root / "SegmentationClass").glob("*.png"))


def check(config: ConfigDict) -> dict[str, Any]:
    """Walks the evaluation dataset of `config` and prints what it finds, before hours are spent on it.

    Returns:
        `pairs`: images with a good mask; `sizes`: how many of each "WIDTHxHEIGHT"; `pixels`: how many of each class,
        and `ignored`: how many of none; `problems`: one sentence for each image that cannot be used.

    Raises:
        InputError: the dataset cannot be opened, or there are problems (after all have been printed).
    """
    benchmark = open_benchmark(config.eval)
    counts, sizes, problems, pairs = np.zeros(256, np.int64), dict[str, int](), list[str](), 0
    bar = ProgressBar("check", len(benchmark))
    for i in range(len(benchmark)):
        try:
            example = benchmark[i]
        except InputError as error:
            problems.append(str(error))
        else:
            pairs += 1
            size = f"{example.mask.shape[1]}x{example.mask.shape[0]}"
            sizes[size] = sizes.get(size, 0) + 1
            counts += np.bincount(example.mask.ravel(), minlength=256)
        bar.update(i + 1)
    bar.close()
    report = {
        "dataset": benchmark.name,
        "pairs": pairs,
        "sizes": dict(sorted(sizes.items(), key=lambda item: -item[1])),
        "pixels": {name: int(count) for name, count in zip(benchmark.classes, counts, strict=False)},
        "ignored": int(counts[IGNORE]),
        "problems": problems,
    }
    _print_report(report, len(benchmark))
    if problems:
        raise InputError(f"{len(problems)} of {len(benchmark)} images cannot be used; the first: {problems[0]}")
    return report


def _print_report(report: Mapping[str, Any], images: int) -> None:
    console = Console()
    console.print(f"{report['pairs']} of {images} images of {report['dataset']} have a good mask")
    sizes = list(report["sizes"].items())
    listed = ", ".join(f"{size} ({count})" for size, count in sizes[:8])
    console.print(f"{len(sizes)} sizes: {listed}{', ...' if len(sizes) > 8 else ''}")
    total = max(1, sum(report["pixels"].values()))
    table = Table("value", "class", "pixels", "share")
    for value, (name, count) in enumerate(report["pixels"].items()):
        table.add_row(str(value), name, f"{count:,}", f"{count / total:.1%}")
    table.add_row(str(IGNORE), "(does not count)", f"{report['ignored']:,}", "")
    console.print(table)
    for problem in report["problems"]:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
