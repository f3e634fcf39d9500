"""ArrayRecord shards of encoded images as a source.

A record is either the bytes of an image file, or a msgpack map `{"image": bytes of an image file, "key": str,
"text": str}`. Only `image` is required. The shards of a split are the files `SPLIT-*.array_record` or
`SPLIT.array_record*`. The ending `arrayrecord` is read too.
"""

from pathlib import Path
from typing import Any

import msgpack
from grain.sources import ArrayRecordDataSource

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.folder import WHOLE, hidden
from zeroseg_jax.data.text import is_text
from zeroseg_jax.errors import InputError
from zeroseg_jax.storage import to_path

# Beginnings of image files. PNG's first byte would also begin a msgpack map, but not with a number as its first key.
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"GIF8", b"P5", b"P6", b"II*\0", b"MM\0*")


class ArrayRecordSource:
    """The records of the shards of `split` in `root`, in the order of the shards' names.

    An item is `{"image": uint8 (H, W, 3), "key": str, "text": caption if the record has one}`. A record without a key
    gets its number.

    Raises:
        InputError: the folder does not exist, it has no shard of this split, or a shard is damaged.
        BrokenImage: from `source[i]`, if the record has no readable image.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        self.root = to_path(root)
        endings = (".array_record", ".arrayrecord")
        paths = sorted(self.root.iterdir()) if self.root.is_dir() else []
        shards = [
            path
            for path in paths
            if any(ending in path.name.lower() for ending in endings) and not hidden(path.name) and path.is_file()
        ]
        if not shards:
            raise InputError(
                f"there are no ArrayRecord shards (*.array_record) in {root}; set data.root to their folder"
            )
        chosen = [path for path in shards if split in WHOLE or path.name.startswith((f"{split}-", f"{split}."))]
        if not chosen:
            raise InputError(
                f"no shard in {root} is named {split}-*.array_record; it has {shards[0].name}, ...; set data.split to"
                " the part of their names before the first '-', or to all"
            )
        try:
            self._records = ArrayRecordDataSource([str(path) for path in chosen])
            self._length = len(self._records)  # opens the shards
        except RuntimeError as error:
            raise InputError(f"a shard in {root} is damaged ({error}); write it again") from error

    def __len__(self) -> int:
        return self._length

    def key(self, i: int) -> str:
        try:
            return self._fields(i)["key"]
        except BrokenImage as error:
            return error.key

    def text(self, i: int) -> str | None:
        return self._fields(i).get("text")

    def read(self, i: int) -> bytes:
        return self._fields(i)["image"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        fields = self._fields(i)
        return fields | {"image": decode_image(fields["image"], fields["key"])}

    def _fields(self, i: int) -> dict[str, Any]:
        """The `image`, the `key` and, if there is one, the `text` of a record. Raises BrokenImage for a bad record."""
        number = f"{self.root}, record {i}"
        try:
            record = self._records[i]
        except RuntimeError as error:  # ArrayRecord raises it for a wrong checksum
            raise BrokenImage(number, f"its shard is damaged there: {error}") from error
        if record.startswith(_IMAGE_MAGIC):
            return {"image": record, "key": number}
        try:
            fields = msgpack.unpackb(record)
        except (ValueError, msgpack.UnpackException):
            fields = None
        if not isinstance(fields, dict) or not isinstance(fields.get("image"), bytes):
            raise BrokenImage(number, "the record is neither an image file nor a msgpack map with an image")
        item = {"key": number} | {name: fields[name] for name in ("image", "key", "text") if name in fields}
        for name in ("key", "text"):
            if not isinstance(item.get(name, ""), str) or not is_text(item.get(name, "")):
                raise BrokenImage(number, f"its {name} is not a text")
        return item
