"""Data sets that the library `datasets` of Hugging Face loads, from its hub or from a folder, for conversion."""

from pathlib import Path
from typing import Any

import datasets

from zeroseg_jax.data.decode import BrokenImage, decode_image, read_file
from zeroseg_jax.data.sources.folder import WHOLE
from zeroseg_jax.data.sources.parquet import TEXT_COLUMNS, caption
from zeroseg_jax.errors import InputError


class HFDatasetSource:
    """`split` of the data set `name`: `ORGANISATION/NAME` or `ORGANISATION/NAME:CONFIG` of the hub, or a local folder.

    A folder is one that `datasets.save_to_disk` wrote, or one that `datasets.load_dataset` takes. `root` is the folder
    that downloads go to ("" is the library's own choice). The image is the column `image`, or the only column of the
    type `datasets.Image`; a column `caption` or `text` of strings gives the caption.

    An item is `{"image": uint8 (H, W, 3), "key": "SPLIT/number", "text": caption if there is one}`.

    Raises:
        InputError: the library cannot load the data set, it has no such split, or no column of images.
        BrokenImage: from `source[i]` and `read`, an image that cannot be read.
    """

    def __init__(self, name: str, root: str, split: str = "train"):
        self._split = "all" if split in WHOLE else split
        rows = _load(name, root, self._split)
        images = [column for column, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if "image" not in images and len(images) != 1:
            raise InputError(
                f"the data set {name} has {len(images)} columns of images, none named image, among the columns"
                f" {', '.join(rows.column_names)}; give one with a column image"
            )
        self._image = "image" if "image" in images else images[0]
        texts = [text for text in TEXT_COLUMNS if getattr(rows.features.get(text), "dtype", "") == "string"]
        self._text = texts[0] if texts else ""
        rows = rows.select_columns([self._image, *texts[:1]])
        self._rows = rows.cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, i: int) -> str:
        return f"{self._split}/{i:07d}"

    def text(self, i: int) -> str | None:
        return caption(self._rows[i][self._text], self.key(i)) if self._text else None

    def read(self, i: int) -> bytes:
        value = self._rows[i][self._image] or {}
        if value.get("bytes"):
            return value["bytes"]
        if not value.get("path"):
            raise BrokenImage(self.key(i), f"its column {self._image!r} is empty")
        return read_file(value["path"], self.key(i))

    def __getitem__(self, i: int) -> dict[str, Any]:
        key, text = self.key(i), self.text(i)
        item: dict[str, Any] = {"image": decode_image(self.read(i), key), "key": key}
        return item if text is None else item | {"text": text}


def _load(name: str, root: str, split: str) -> datasets.Dataset:
    folder = Path(name).expanduser()
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(folder)
        else:
            name, _, config = (str(folder), "", "") if folder.is_dir() else name.partition(":")
            return datasets.load_dataset(name, config or None, split=split, cache_dir=root or None)
    except Exception as error:  # the library does not limit what it raises
        said = " ".join(str(error).split())
        raise InputError(f"the library datasets cannot load {name} ({said}); check the name or the folder") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split == "all":
        return datasets.concatenate_datasets(list(loaded.values()))
    if split not in loaded:
        raise InputError(f"the data set {name} has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]
