"""What the readers share: an example, a benchmark, and masks in PNG files beside images."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer, Shaped, UInt8
from PIL import UnidentifiedImageError

from zeroseg_jax.data.decode import (
    DAMAGE,
    ORIENTATION,
    decode_image,
    open_picture,
    read_file,
    read_orientation,
    turn_upright,
)
from zeroseg_jax.data.sources.folder import ENDINGS, files_by_name
from zeroseg_jax.data.text import numbered_lines, read_text, readable
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.metrics import IGNORE

UNKNOWN = -1
"""Value, in a table of `value_table`, of what may not occur in a mask."""


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

    @property
    def vocabulary(self) -> str:
        """Name of the vocabulary that asks for the classes unless `eval.vocabulary` names another; "" is none."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example:
        """Raises InputError for a missing or broken image or mask, a mask of another size, or an unknown value in
        it."""


class UnknownValues(InputError):
    """A mask with values that are neither a class nor 255."""

    def __init__(self, name: str, values: Sequence[int], classes: str):
        listed = ", ".join(str(value) for value in values)
        super().__init__(f"the mask {name} holds {listed}, but {classes}; use the class list that it was made with")
        self.values = tuple(values)


class Pair(NamedTuple):
    """The files of an example."""

    name: str
    image: Path
    mask: Path


class MaskPairs:
    """Image files with mask files. `read` turns a mask's file into class indices; `notes` are what `check` tells."""

    groups: Mapping[str, Sequence[int]] = {}

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        read: Callable[[Path], UInt8[np.ndarray, "h w"]],
        *,
        background: int | None = None,
        vocabulary: str = "",
        notes: Sequence[str] = (),
    ):
        self.name, self.pairs, self.classes, self.read = name, pairs, classes, read
        self.background, self.vocabulary, self.notes = background, vocabulary, notes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Example:
        name, image_path, mask_path = self.pairs[i]
        if not image_path.is_file():
            raise InputError(f"there is no image {show(image_path)}, but a mask may be; complete the dataset")
        data = read_file(image_path, show(image_path))
        return make_example(readable(name), data, show(image_path), self.read(mask_path), show(mask_path))

    def orientation(self, i: int) -> int:
        """EXIF's number for how the image is turned, 1 (not at all) to 8; raises BrokenImage."""
        path = self.pairs[i].image
        return read_orientation(read_file(path, show(path)), show(path))

    def missing(self) -> list[Path]:
        """The files that are not there."""
        return [path for pair in self.pairs for path in (pair.image, pair.mask) if not path.is_file()]

    def misfits(self) -> Iterator[str]:
        """A sentence for each mask whose size, as the files' headers tell it, is not that of its image."""
        with ThreadPoolExecutor(8) as pool:  # mostly waiting for files
            yield from filter(None, pool.map(_misfit, self.pairs))


def _misfit(pair: Pair) -> str:
    try:
        with open_picture(pair.image) as image, open_picture(pair.mask) as mask:
            turned = image.getexif().get(ORIENTATION, 1) > 4
            fits = mask.size == image.size or (turned and mask.size == image.size[::-1])
            return "" if fits else wrong_size(show(pair.mask), mask.size, image.size)
    except DAMAGE:
        return ""  # told, by its name, when it is read


def make_example(name: str, data: bytes, image_name: str, mask: UInt8[np.ndarray, "h w"], mask_name: str) -> Example:
    """The upright image of the bytes `data`, with its mask.

    Where EXIF turns the image, the mask is turned with it, as it labels the pixels that are stored. A mask that has the
    size of the turned image only was drawn on that, and stays as it is.

    Raises:
        InputError: the image cannot be read (`BrokenImage`), or the mask has neither of its sizes.
    """
    image, orientation = decode_image(data, image_name), read_orientation(data, image_name)
    stored = image.shape[1::-1] if orientation > 4 else image.shape[:2]  # 5 to 8 change height and width
    if mask.shape == stored:
        return Example(image, np.ascontiguousarray(turn_upright(mask, orientation)), name)
    if mask.shape != image.shape[:2]:
        raise InputError(wrong_size(mask_name, mask.shape[::-1], image.shape[1::-1]))
    return Example(image, mask, name)


def wrong_size(mask_name: str, mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    """The sentence for a mask that has not the width and height of its image."""
    return (
        f"the mask {mask_name} has {mask[0]}x{mask[1]} pixels, its image {image[0]}x{image[1]}; they must agree, so"
        " take both from the same release of the dataset"
    )


def show(path: Path) -> str:
    """A path in a sentence."""
    return readable(str(path))


def read_mask(path: Path) -> Integer[np.ndarray, "h w"]:
    """The values of a PNG: a palette image's indices (not its colours), or a grey image's values of 1 to 16 bits.

    Returns:
        uint8, or uint16 for an image of 16 bits.

    Raises:
        InputError: a missing or broken file, another format, or an image in colours, which holds no indices.
    """
    return decode_mask(read_mask_file(path), show(path))


def read_mask_file(path: Path) -> bytes:
    """The bytes of a mask's file; raises InputError for one that is not there or cannot be read."""
    if not path.is_file():
        raise InputError(f"there is no mask {show(path)}; complete the dataset, or leave its image out of the split")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the mask {show(path)} cannot be read ({error.strerror}); allow it, or fetch it again"
        ) from error


def decode_mask(data: bytes, name: str) -> Integer[np.ndarray, "h w"]:
    """`read_mask` for the bytes of a file; `name` is for messages."""
    mode, bits, values = decode_png(data, name)
    if values.ndim != 2:
        raise InputError(f"the mask {name} has the mode {mode}; it must be a palette or a grey PNG of indices")
    if mode == "L" and bits in (2, 4):  # which Pillow spreads over 0 to 255
        values = values // (255 // (2**bits - 1))
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def decode_png(data: bytes, name: str) -> tuple[str, int, Shaped[np.ndarray, "h w *c"]]:
    """Pillow's mode of a PNG, its bits for each channel, and its values as Pillow reads them.

    No other format is read, since JPEG and WebP change values, and PGM and TIFF may scale them.

    Raises:
        InputError: another format, or a broken file.
    """
    try:
        with open_picture(data, ("PNG",)) as image:
            image.load()
            return image.mode, data[24], np.asarray(image)  # a PNG's header says how many bits there
    except UnidentifiedImageError as error:  # Pillow's own message is the address of the buffer
        raise InputError(
            f"the mask {name} cannot be read, as it is no PNG; other formats do not keep values"
        ) from error
    except DAMAGE as error:
        raise InputError(f"the mask {name} cannot be read ({error}); fetch it again") from error


def value_table(classes: Mapping[int, int] | Sequence[int]) -> Int[np.ndarray, " 256"]:
    """The class of each mask value: `classes` maps values to classes or 255; 255 stays 255, others are UNKNOWN."""
    table = np.full(256, UNKNOWN, np.int64)
    table[IGNORE] = IGNORE
    pairs = classes.items() if isinstance(classes, Mapping) else enumerate(classes)
    for value, found in pairs:
        table[value] = found
    return table


def apply_table(
    mask: Integer[np.ndarray, "h w"], table: Int[np.ndarray, " 256"], name: str
) -> UInt8[np.ndarray, "h w"]:
    """The mask with the classes of its values; raises UnknownValues for a value that has none, as above 255."""
    found = table[mask] if mask.dtype == np.uint8 else table[mask.clip(0, 255)]
    if mask.dtype != np.uint8:
        found[(mask < 0) | (mask > 255)] = UNKNOWN
    if (found == UNKNOWN).any():
        known = np.flatnonzero(table[:IGNORE] != UNKNOWN)
        classes = f"{len(known)} values from {known.min()} to {known.max()}, and 255, are known"
        raise UnknownValues(name, np.unique(mask[found == UNKNOWN]).tolist(), classes)
    return found.astype(np.uint8)


def table_reader(table: Int[np.ndarray, " 256"]) -> Callable[[Path], UInt8[np.ndarray, "h w"]]:
    """A `read` of `MaskPairs` for masks whose values become classes by a table; it can be pickled."""
    return functools.partial(_read_by_table, table)


def _read_by_table(table: Int[np.ndarray, " 256"], path: Path) -> UInt8[np.ndarray, "h w"]:
    return apply_table(read_mask(path), table, show(path))


def find_root(root: str | Path, below: Sequence[str], needed: Sequence[str], dataset: str) -> Path:
    """The first of `root` and its folders `below` that has all the folders `needed`.

    Raises:
        InputError: none has; the sentence names the folder that was looked for.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise InputError(f"there is no folder {base}; set eval.root to that of {dataset}, with {', '.join(needed)}")
    there = [folder for folder in (base, *(base / name for name in below)) if folder.is_dir()]
    for folder in there:
        if all((folder / name).is_dir() for name in needed):
            return folder
    lacking = next(there[-1] / name for name in needed if not (there[-1] / name).is_dir())
    raise InputError(f"there is no folder {lacking}; set eval.root to a folder of {dataset}, with {', '.join(needed)}")


def image_files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without the ending, sorted; `files_by_name` says what it refuses."""
    return files_by_name(folder, ENDINGS)


def mask_files(folder: Path, end: str = ".png") -> dict[str, Path]:
    """The masks of a folder by the names of their images: what stands before `end`, in either case."""
    return {
        path.name[: -len(end)]: path
        for path in files_by_name(folder, (".png",)).values()
        if path.name.lower().endswith(end.lower())
    }


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one on each line; raises InputError for a missing one, or one that repeats."""
    if not path.is_file():
        raise InputError(f"there is no {path}; write one class name on each line, in the order of the masks' values")
    names = tuple(name for _, name in numbered_lines(read_text(path)))
    double = sorted({name for name in names if names.count(name) > 1})
    if double or not names or len(names) > IGNORE:
        problem = f"names {', '.join(double)} twice" if double else f"holds {len(names)} names, not 1 to {IGNORE}"
        raise InputError(f"{path} {problem}; each line must be the name of one class")
    return names
