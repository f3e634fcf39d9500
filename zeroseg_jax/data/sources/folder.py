"""A folder of images as a source: plain, with `metadata.jsonl` (Hugging Face's imagefolder), or in VOC layout."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import logging

from zeroseg_jax.data.decode import decode_image, read_file
from zeroseg_jax.data.sources.split_list import read_split_list
from zeroseg_jax.data.text import is_text, numbered_lines, read_text, readable
from zeroseg_jax.errors import InputError

ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff"),
    *(".avif", ".jfif", ".jpe", ".jp2", ".pgm", ".pbm", ".pnm", ".dib"),
)
"""Endings of the image files that are read. `decode.FORMATS` has the formats."""
OTHER_IMAGES = (
    *(".heic", ".heif", ".jxl", ".psd", ".svg", ".eps", ".exr", ".hdr", ".tga"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"),
)
"""Endings of image files in formats that are not read."""
WHOLE = ("", "all")
"""Values of `split` that mean all images."""

VOC_LISTS = "ImageSets/Segmentation"


class FolderSource:
    """The images below `root`, sorted by path.

    If there is a `root/metadata.jsonl`, the images are its rows, and it may give captions. In VOC layout the images are
    those in `JPEGImages`; the masks are not read. Hidden files and folders (their names begin with a dot) are left out,
    and so are folders named `__MACOSX`, which come with archives from macOS.

    `split` chooses a part of the images. The first of these that exists counts:
    1. the field `split` of `metadata.jsonl`;
    2. VOC's list `ImageSets/Segmentation/{split}.txt`;
    3. a subfolder of that name.
    If none of them exists, the split "train" is the whole folder.

    An item is `{"image": uint8 (H, W, 3), "key": path relative to root, "text": caption if there is one}`. If bytes of
    a path are not UTF-8, the key has them as \\xNN.

    Raises:
        InputError: the folder or the split does not exist, there are no images, or `metadata.jsonl` is broken.
        BrokenImage: from `source[i]`, if the image cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"there is no folder {root}; set data.root to a folder of images")
        self.others: Counter[str] = Counter()
        """The number of files that are not read, by their endings."""
        self._names, self._texts = _choose(self.root, split, self.others)
        if not self._names:
            raise InputError(f"the folder {root} has no images; an image is a file that ends in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self._names)

    def key(self, i: int) -> str:
        return readable(self._names[i])

    def path(self, i: int) -> Path:
        """The file of item `i`."""
        return self.root / self._names[i]

    def text(self, i: int) -> str | None:
        return self._texts.get(self._names[i])

    def read(self, i: int) -> bytes:
        return read_file(self.path(i), readable(str(self.path(i))))

    def __getitem__(self, i: int) -> dict[str, Any]:
        text, data = self.text(i), self.read(i)
        item: dict[str, Any] = {"image": decode_image(data, readable(str(self.path(i)))), "key": self.key(i)}
        return item if text is None else item | {"text": text}


def _choose(root: Path, split: str, others: Counter[str]) -> tuple[list[str], dict[str, str]]:
    """The sorted names of the images of a split, relative to `root`, and the captions of those that have one.

    The files that are not read are counted in `others`, by their endings.
    """
    rows = _metadata(root / "metadata.jsonl")
    lists = files_by_name(root / VOC_LISTS, (".txt",))
    below = "JPEGImages" if (root / "JPEGImages").is_dir() else ""
    names = sorted(rows) if rows else _walk(root, below, others=others)
    splits = sorted({row["split"] for row in rows.values() if "split" in row})
    if split in WHOLE:
        pass
    elif split in splits:
        names = [name for name in names if rows[name].get("split") == split]
    elif split in lists:
        names = _listed(lists[split], names)
    elif not rows and (root / split).is_dir():
        others.clear()
        names, texts = _choose(root / split, "", others)
        return [f"{split}/{name}" for name in names], {f"{split}/{name}": text for name, text in texts.items()}
    elif split != "train" or splits:
        known = splits or sorted(lists)
        hint = f"it has {', '.join(known)}" if known else "set data.split to all to use the whole folder"
        raise InputError(f"the folder {root} has no split {split!r}; {hint}")
    return names, {name: rows[name]["text"] for name in names if "text" in rows.get(name, {})}


def _listed(path: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are in a list of VOC. Logs how many images of the list are missing."""
    stems = {Path(name).stem for name in names}
    listed = read_split_list(path, stems)
    if missing := [name for name in listed if name not in stems]:
        said = f"{len(missing)} of the {len(listed)} images that {path} lists are missing, the first is {missing[0]}"
        if len(missing) == len(listed):
            raise InputError(f"{said}; it must name files of {path.parents[2] / 'JPEGImages'}")
        logging.warning("%s; they are left out", said)
    chosen = set(listed)
    return [name for name in names if Path(name).stem in chosen]


def _metadata(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a `metadata.jsonl`, by file name. Empty if the file does not exist."""
    rows: dict[str, dict[str, str]] = {}
    numbers: dict[str, int] = {}
    if not path.is_file():
        return rows
    for number, line in numbered_lines(read_text(path)):
        try:
            row = json.loads(line)
            name = row["file_name"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"line {number} of {path} must be a JSON object with a file_name") from error
        row = {
            field: value for field, value in row.items() if value is not None
        }  # null means that the field is left out
        wrong = [field for field in ("file_name", "text", "split") if not isinstance(row.get(field, ""), str)]
        if wrong or "file_name" not in row:
            raise InputError(f"{(*wrong, 'file_name')[0]} in line {number} of {path} must be a string")
        if not is_text(row.get("text", "")):
            raise InputError(f"the text in line {number} of {path} holds half of a surrogate pair; write it again")
        if name in rows:
            raise InputError(
                f"{path} names {readable(name)} in line {numbers[name]} and again in line {number}; give each image one"
                " line"
            )
        rows[name], numbers[name] = row, number
    return rows


def hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own. macOS and editors make such files."""
    return name.startswith(".") or name == "__MACOSX"


def files_by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that have one of the endings, sorted, by their names without the ending.

    Upper and lower case of the ending are the same. Hidden files and folders are left out. Empty if the folder does
    not exist.

    Raises:
        InputError: two files differ only in the ending, or the folder cannot be read.
    """
    files: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        _refuse(error)
    for path in paths:
        if path.suffix.lower() not in endings or hidden(path.name) or path.is_dir():
            continue
        if path.stem in files:
            raise InputError(
                f"{readable(str(folder))} has {readable(files[path.stem].name)} and {readable(path.name)}, which differ"
                " only in the ending; remove one"
            )
        files[path.stem] = path
    return files


def _refuse(error: OSError) -> NoReturn:
    raise InputError(
        f"the folder {readable(str(error.filename))} cannot be read ({error.strerror}); change its permissions"
    ) from error


def _walk(root: Path, below: str, endings: tuple[str, ...] = ENDINGS, others: Counter[str] | None = None) -> list[str]:
    """The sorted paths of all images below `root/below`, relative to `root`.

    Links are followed. Hidden files and folders are left out. The files that are not read are counted in `others`.
    """
    images, visited = [], set()
    for folder, subfolders, files in os.walk(root / below, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not hidden(name)]
        images += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.lower().endswith(endings) and not hidden(name)
        ]
        if others is not None:
            suffixes = (os.path.splitext(name)[1].lower() for name in files if not hidden(name))
            others.update(suffix for suffix in suffixes if suffix not in ENDINGS)
    return sorted(images)
