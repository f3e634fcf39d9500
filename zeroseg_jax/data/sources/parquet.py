"""Parquet files of images, as Hugging Face stores data sets, read in order for conversion."""

import collections
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.folder import WHOLE, files_by_name
from zeroseg_jax.data.text import is_text
from zeroseg_jax.errors import InputError

TEXT_COLUMNS = ("caption", "text")
_KEPT_GROUPS = 3


class ParquetSource:
    """The rows of the Parquet files of `split`, in the order of the files' names.

    `root` is one file, or a folder with the files `SPLIT-*.parquet` in it, in its folder `data` or in its folder
    `SPLIT`. The image is the column `image`, or the only column of images there is. A column of images holds bytes, or
    structs with a field `bytes`. A column `caption` or `text` of strings gives the caption.

    A file is read by row groups, often of 100 rows, of which the last few are kept. So reading in order is fast, and
    reading at random is slow.

    An item is `{"image": uint8 (H, W, 3), "key": "FILE/ROW", "text": caption if there is one}`.

    Raises:
        InputError: no such folder or file, no file of this split, a damaged one, or no column of images.
        BrokenImage: from `source[i]` and `read`, an image that cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        self._files = [_open(path) for path in _choose(Path(root), split)]
        self._image, self._text = columns(self._files[0][1].schema_arrow, str(self._files[0][0]))
        for path, file in self._files[1:]:
            if columns(file.schema_arrow, str(path)) != (self._image, self._text):
                raise InputError(f"{path} has other columns than {self._files[0][0]}; convert them apart")
        groups = [(f, g) for f, (_, file) in enumerate(self._files) for g in range(file.num_row_groups)]
        self._groups = groups
        sizes = [self._files[f][1].metadata.row_group(g).num_rows for f, g in groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._begins_of_files = np.cumsum([0, *(file.metadata.num_rows for _, file in self._files)])
        self._cache: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, i: int) -> str:
        number = int(np.searchsorted(self._begins_of_files, i, side="right")) - 1
        return f"{self._files[number][0].name}/{i - self._begins_of_files[number]}"

    def text(self, i: int) -> str | None:
        return caption(self._value(i, self._text), self.key(i)) if self._text else None

    def read(self, i: int) -> bytes:
        value = self._value(i, self._image)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BrokenImage(self.key(i), f"its column {self._image!r} holds no bytes of an image")
        return data

    def __getitem__(self, i: int) -> dict[str, Any]:
        key, text = self.key(i), self.text(i)
        item: dict[str, Any] = {"image": decode_image(self.read(i), key), "key": key}
        return item if text is None else item | {"text": text}

    def _value(self, i: int, column: str) -> Any:
        number = int(np.searchsorted(self._ends, i, side="right"))
        try:
            group = self._group(number)
        except (pa.ArrowException, OSError) as error:
            said = " ".join(str(error).split())
            raise BrokenImage(self.key(i), f"its row group is damaged: {said}") from error
        return group[column][i - int(self._ends[number]) + len(group)].as_py()

    def _group(self, number: int) -> pa.Table:
        """A row group with the columns that count; one thread at a time reads."""
        with self._lock:
            if number not in self._cache:
                file, group = self._groups[number]
                wanted = [name for name in (self._image, self._text) if name]
                self._cache[number] = self._files[file][1].read_row_group(group, columns=wanted)
                while len(self._cache) > _KEPT_GROUPS:
                    self._cache.popitem(last=False)
            return self._cache[number]


def _choose(root: Path, split: str) -> list[Path]:
    """The files of a split. Raises InputError if there are none."""
    if root.is_file():
        return [root]
    for folder in (root, root / "data", root / split):
        files = list(files_by_name(folder, (".parquet",)).values())
        chosen = [path for path in files if path.name.startswith((f"{split}-", f"{split}."))]
        if split in WHOLE or folder.name == split:
            chosen = files
        if chosen:
            return chosen
    raise InputError(
        f"there are no Parquet files of the split {split!r} in {root}: neither {split}-*.parquet there or in its folder"
        f" data, nor a folder {split} of them; set --root and --split to what you have"
    )


def _open(path: Path) -> tuple[Path, pq.ParquetFile]:
    try:
        return path, pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"the Parquet file {path} cannot be read ({said}); fetch it again") from error


def columns(schema: pa.Schema, name: str) -> tuple[str, str]:
    """The columns of the image and of the caption ("" if there is none). Raises InputError without images."""
    images = [field.name for field in schema if _holds_images(field.type)]
    if "image" not in images and len(images) != 1:
        has = f"several columns of images ({', '.join(images)}), none named image" if images else "no column of images"
        raise InputError(f"{name} has {has}, but the columns {', '.join(schema.names)}; give one with a column image")
    texts = [text for text in TEXT_COLUMNS if text in schema.names and _is_string(schema.field(text).type)]
    return "image" if "image" in images else images[0], texts[0] if texts else ""


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in [field.name for field in kind] and _holds_images(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def caption(value: Any, key: str) -> str | None:
    """A stored caption, or None for null. Raises BrokenImage for anything else."""
    if value is not None and not (isinstance(value, str) and is_text(value)):
        raise BrokenImage(key, "its caption is not a text")
    return value
