"""Random access to the records of TFRecord files, without TensorFlow.

A file is a sequence of records. A record is the length of its data (uint64), a checksum of these 8 bytes, the data, and
a checksum of the data, all little-endian. A checksum is a masked CRC-32C. Source:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import bisect
import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

_HEADER, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")


class DamagedRecord(ValueError):
    """A record that does not fit its checksum, or that its file does not hold; the message says why."""


class Shard(NamedTuple):
    """Some records of a file: `take` of them from number `skip` on, of the `total` that the file must hold."""

    path: Path
    skip: int
    take: int
    total: int


class TFRecords:
    """The records of some shards, one shard after the other.

    A file's index is made when its first record is asked for, by a walk from header to header.
    """

    def __init__(self, shards: Sequence[Shard]):
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(shard.take for shard in shards))
        self._indices: dict[int, tuple[list[int], str]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> bytes:
        """The data of record `i`; raises DamagedRecord, or OSError where the file cannot be read."""
        number = bisect.bisect_right(self._ends, i)
        shard = self._shards[number]
        if number not in self._indices:
            self._indices[number] = _index(shard)
        offsets, damage = self._indices[number]
        place = shard.skip + i - (self._ends[number] - shard.take)
        if place >= len(offsets):
            raise DamagedRecord(f"{shard.path} {damage}, after {len(offsets)} of its {shard.total} records")
        with shard.path.open("rb") as file:
            file.seek(offsets[place])
            length, _ = _HEADER.unpack(file.read(_HEADER.size))
            data, checksum = file.read(length), file.read(_CHECKSUM.size)
        if len(checksum) != _CHECKSUM.size or _CHECKSUM.unpack(checksum)[0] != masked_crc(data):
            raise DamagedRecord(f"record {place} of {shard.path} does not fit its checksum")
        return data


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data`, rotated right by 15 bits plus a constant, as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _index(shard: Shard) -> tuple[list[int], str]:
    """Where the records of a file begin, up to the first damaged length; and what is wrong behind the last one."""
    offsets: list[int] = []
    size = os.path.getsize(shard.path)
    with shard.path.open("rb", buffering=0) as file:
        offset = 0
        while offset < size:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return offsets, "is cut off"
            length, checksum = _HEADER.unpack(header)
            if masked_crc(header[:8]) != checksum:
                return offsets, f"is damaged at byte {offset}"
            end = offset + _HEADER.size + length + _CHECKSUM.size
            if end > size:
                return offsets, "is cut off"
            offsets.append(offset)
            offset = end
    return offsets, "ends"
