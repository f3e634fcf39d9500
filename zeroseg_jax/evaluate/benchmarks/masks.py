"""Parts that all readers share: an example, a benchmark, and masks in PNG files beside images."""

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
"""Entry of a `value_table` for values that may not occur in a mask."""


class Example(NamedTuple):
    """One image with its mask."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """Indices into the benchmark's classes; 255 for pixels that do not count."""
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
        """Groups of classes whose mean is reported too, by name."""

    @property
    def background(self) -> int | None:
        """Index of the class for everything that no other class names; None if there is no such class."""

    @property
    def vocabulary(self) -> str:
        """Name of the vocabulary that counts unless `eval.vocabulary` names another; "" for none."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example:
        """Raises InputError for a missing or broken file, a mask of another size, or an unknown value in it."""


class UnknownValues(InputError):
    """A mask holds values that are neither a class nor 255."""

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
    """A benchmark of image files with mask files.

    `read` turns a mask's file into class indices. `notes` are sentences about the dataset that `check` prints.
    """

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
            raise InputError(f"there is no image {show(image_path)}; complete the dataset")
        data = read_file(image_path, show(image_path))
        return make_example(readable(name), data, show(image_path), self.read(mask_path), show(mask_path))

    def orientation(self, i: int) -> int:
        """EXIF's number for the rotation of the image, 1 (none) to 8. Raises BrokenImage."""
        path = self.pairs[i].image
        return read_orientation(read_file(path, show(path)), show(path))

    def missing(self) -> list[Path]:
        """Files that do not exist."""
        return [path for pair in self.pairs for path in (pair.image, pair.mask) if not path.is_file()]

    def misfits(self) -> Iterator[str]:
        """A sentence for each mask whose size is not that of its image. Only the headers of the files are read."""
        with ThreadPoolExecutor(8) as pool:  # The threads mostly wait for files.
            yield from filter(None, pool.map(_misfit, self.pairs))


def _misfit(pair: Pair) -> str:
    try:
        with open_picture(pair.image) as image, open_picture(pair.mask) as mask:
            turned = image.getexif().get(ORIENTATION, 1) > 4
            fits = mask.size == image.size or (turned and mask.size == image.size[::-1])
            return "" if fits else wrong_size(show(pair.mask), mask.size, image.size)
    except DAMAGE:
        return ""  # The error is reported when the image is read.


def make_example(name: str, data: bytes, image_name: str, mask: UInt8[np.ndarray, "h w"], mask_name: str) -> Example:
    """The upright image of the encoded bytes `data`, with its mask.

    If EXIF turns the image, the mask is turned with it, because it labels the stored pixels. A mask that only has the
    size of the turned image was drawn on the turned image, and is not turned.

    Raises:
        InputError: the image cannot be read (`BrokenImage`), or the mask does not have its size.
    """
    image, orientation = decode_image(data, image_name), read_orientation(data, image_name)
    stored = image.shape[1::-1] if orientation > 4 else image.shape[:2]  # 5 to 8 swap height and width
    if mask.shape == stored:
        return Example(image, np.ascontiguousarray(turn_upright(mask, orientation)), name)
    if mask.shape != image.shape[:2]:
        raise InputError(wrong_size(mask_name, mask.shape[::-1], image.shape[1::-1]))
    return Example(image, mask, name)


def wrong_size(mask_name: str, mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    """The message for a mask whose size, (width, height), is not that of its image."""
    return (
        f"the mask {mask_name} has {mask[0]}x{mask[1]} pixels, its image {image[0]}x{image[1]}; they must agree, so"
        " take both from the same release of the dataset"
    )


def show(path: Path) -> str:
    """A path as text for messages."""
    return readable(str(path))


def read_mask(path: Path) -> Integer[np.ndarray, "h w"]:
    """The values of a PNG: the indices of a palette image, or the values of a grey image of 1 to 16 bits.

    Returns:
        uint8, or uint16 for an image of 16 bits.

    Raises:
        InputError: the file is missing or broken, has another format, or is a colour image.
    """
    return decode_mask(read_mask_file(path), show(path))


def read_mask_file(path: Path) -> bytes:
    """The bytes of a mask's file. Raises InputError if it does not exist or cannot be read."""
    if not path.is_file():
        raise InputError(f"there is no mask {show(path)}; complete the dataset, or leave its image out of the split")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the mask {show(path)} cannot be read ({error.strerror}); allow it, or fetch it again"
        ) from error


def decode_mask(data: bytes, name: str) -> Integer[np.ndarray, "h w"]:
    """`read_mask` of a file's bytes. `name` is for messages."""
    mode, bits, values = decode_png(data, name)
    if values.ndim != 2:
        raise InputError(f"the mask {name} has the mode {mode}; it must be a palette or a grey PNG of indices")
    if mode == "L" and bits in (2, 4):  # Pillow scales them to 0 to 255.
        values = values // (255 // (2**bits - 1))
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def decode_png(data: bytes, name: str) -> tuple[str, int, Shaped[np.ndarray, "h w *c"]]:
    """Pillow's mode of a PNG, its bits for each channel, and its values as Pillow reads them.

    Other formats are not read: JPEG and WebP change values, and PGM and TIFF may scale them.

    Raises:
        InputError: the file has another format or is broken.
    """
    try:
        with open_picture(data, ("PNG",)) as image:
            image.load()
            return image.mode, data[24], np.asarray(image)  # byte 24 of a PNG's header
    except UnidentifiedImageError as error:  # Pillow's message would name a buffer.
        raise InputError(
            f"the mask {name} cannot be read, as it is no PNG; other formats do not keep values"
        ) from error
    except DAMAGE as error:
        raise InputError(f"the mask {name} cannot be read ({error}); fetch it again") from error


def value_table(classes: Mapping[int, int] | Sequence[int]) -> Int[np.ndarray, " 256"]:
    """The class of each mask value. `classes` maps values to classes or 255. 255 stays 255, the rest is UNKNOWN."""
    table = np.full(256, UNKNOWN, np.int64)
    table[IGNORE] = IGNORE
    pairs = classes.items() if isinstance(classes, Mapping) else enumerate(classes)
    for value, index in pairs:
        table[value] = index
    return table


def apply_table(
    mask: Integer[np.ndarray, "h w"], table: Int[np.ndarray, " 256"], name: str
) -> UInt8[np.ndarray, "h w"]:
    """The class of each value of the mask. Raises UnknownValues for values without a class, such as those above 255."""
    classes_of_pixels = table[mask] if mask.dtype == np.uint8 else table[mask.clip(0, 255)]
    if mask.dtype != np.uint8:
        classes_of_pixels[(mask < 0) | (mask > 255)] = UNKNOWN
    if (classes_of_pixels == UNKNOWN).any():
        known = np.flatnonzero(table[:IGNORE] != UNKNOWN)
        classes = f"{len(known)} values from {known.min()} to {known.max()}, and 255, are known"
        raise UnknownValues(name, np.unique(mask[classes_of_pixels == UNKNOWN]).tolist(), classes)
    return classes_of_pixels.astype(np.uint8)


def table_reader(table: Int[np.ndarray, " 256"]) -> Callable[[Path], UInt8[np.ndarray, "h w"]]:
    """A `read` of `MaskPairs` that looks mask values up in a table. It can be pickled."""
    return functools.partial(_read_by_table, table)


def _read_by_table(table: Int[np.ndarray, " 256"], path: Path) -> UInt8[np.ndarray, "h w"]:
    return apply_table(read_mask(path), table, show(path))


def find_root(root: str | Path, below: Sequence[str], needed: Sequence[str], dataset: str) -> Path:
    """The first of `root` and its folders `below` that holds all the folders `needed`.

    Raises:
        InputError: there is no such folder; the message names a missing one.
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
    """The images of a folder by their names without the ending, sorted. Raises what `files_by_name` raises."""
    return files_by_name(folder, ENDINGS)


def mask_files(folder: Path, end: str = ".png") -> dict[str, Path]:
    """The masks of a folder by the names of their images: the file name without `end`, in upper or lower case."""
    return {
        path.name[: -len(end)]: path
        for path in files_by_name(folder, (".png",)).values()
        if path.name.lower().endswith(end.lower())
    }


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one on each line. Raises InputError for a missing file or a repeated name."""
    if not path.is_file():
        raise InputError(f"there is no {path}; write one class name on each line, in the order of the masks' values")
    names = tuple(name for _, name in numbered_lines(read_text(path)))
    double = sorted({name for name in names if names.count(name) > 1})
    if double or not names or len(names) > IGNORE:
        problem = f"names {', '.join(double)} twice" if double else f"holds {len(names)} names, not 1 to {IGNORE}"
        raise InputError(f"{path} {problem}; each line must be the name of one class")
    return names
