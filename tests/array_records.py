"""Writes shards of ArrayRecord for tests."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter


def write_records(path: str | Path, items: Iterable[Mapping[str, bytes | str]], shards: int = 1) -> list[Path]:
    """Writes `{"image": bytes of an image file, "key": str, "text": str (optional)}` items, to the shards in turn.

    `path` ends in the name of the split: `data/train` gives `data/train-00000-of-00001.array_record`.

    Returns the shards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [path.with_name(f"{path.name}-{i:05d}-of-{shards:05d}.array_record") for i in range(shards)]
    writers = [ArrayRecordWriter(str(name), "group_size:1") for name in names]  # one record a group: random access
    for i, item in enumerate(items):
        writers[i % shards].write(msgpack.packb(dict(item)))
    for writer in writers:
        writer.close()
    return names
