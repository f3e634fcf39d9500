"""Writes a folder of images, a set of tar files (webdataset) or a TFDS dataset as ArrayRecord shards.

    python -m zeroseg_jax.data.convert --source folder|tar|tfds:NAME --root FOLDER [--split train] --out DIR

The images keep their encoding; each is decoded once, and those that cannot be are left out and named in
DIR/SPLIT-broken.txt. A command that was stopped goes on where it was. Train on the result with
--config.data.source=arrayrecord --config.data.root=DIR --config.data.split=SPLIT.
"""

import argparse
import concurrent.futures
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from zeroseg_jax.command_line import make_parser
from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.images import CaptionedSource, open_source
from zeroseg_jax.errors import InputError
from zeroseg_jax.log import ProgressBar


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m zeroseg_jax.data.convert", __doc__)
    parser.add_argument("--source", required=True, help="folder, tar or tfds:NAME, as data.source of a config")
    parser.add_argument("--root", required=True, help="the folder of the source, as data.root")
    parser.add_argument("--split", default="train", help="the part of the source, as data.split (train)")
    parser.add_argument("--limit", type=int, default=0, help="convert only so many images, the first (0: all)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the shards, SPLIT-*.array_record")
    parser.add_argument("--images-per-shard", type=int, default=4096, help="(4096)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that read and decode (all cores)")
    return parser.parse_args(argv)


def convert(source: CaptionedSource, out: Path, split: str, *, images_per_shard: int, threads: int) -> dict[str, str]:
    """Writes the shards of `source` that are missing in `out`; returns the reasons of the broken images by their keys.

    Raises:
        InputError: `out` holds shards of another source, or of another number of images.
    """
    if images_per_shard < 1 or threads < 1:
        raise InputError("--images-per-shard and --threads must be at least 1")
    out.mkdir(parents=True, exist_ok=True)
    _same_source(out / f"{split}-source.json", source, images_per_shard)
    count = -(-len(source) // images_per_shard)
    shards = [out / f"{split}-{i:05d}-of-{count:05d}.array_record" for i in range(count)]
    parts = {s: range(i * images_per_shard, min((i + 1) * images_per_shard, len(source))) for i, s in enumerate(shards)}
    missing = [shard for shard in shards if not shard.exists()]
    done = len(source) - sum(len(parts[shard]) for shard in missing)
    bar = ProgressBar("convert", len(source), done)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for shard in missing:
            # a name that no reader takes for a shard, until it is complete
            unfinished = shard.with_suffix(".unfinished")
            writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
            for record in pool.map(lambda i: _record(source, i), parts[shard]):
                if isinstance(record, BrokenImage):
                    with (out / f"{split}-broken.txt").open("a") as file:
                        file.write(f"{record.key}\t{record.reason}\n")
                else:
                    writer.write(record)
                done += 1
                bar.update(done, "images")
            writer.close()
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(shard)
    bar.close()
    return _broken(out / f"{split}-broken.txt")


def _same_source(path: Path, source: CaptionedSource, images_per_shard: int) -> None:
    """Notes what is converted, or compares it with what was."""
    ends = [source.key(0), source.key(len(source) - 1)] if len(source) else []
    now = {"images": len(source), "first_and_last": ends, "images_per_shard": images_per_shard}
    if not path.exists():
        path.write_text(json.dumps(now) + "\n")
    before = json.loads(path.read_text())
    different = sorted(key for key in now if before.get(key) != now[key])
    if different:
        told = ", ".join(f"{key} was {before.get(key)} and is {now[key]}" for key in different)
        raise InputError(f"{path.parent} holds a conversion of something else ({told}); choose another --out")


def _record(source: CaptionedSource, i: int) -> bytes | BrokenImage:
    try:
        data = source.read(i)
        assert isinstance(data, bytes)  # all sources that can be named here hold encoded images
        decode_image(data, source.key(i))
    except BrokenImage as error:
        return error
    text = source.text(i)
    fields: dict[str, Any] = {"image": data, "key": source.key(i)}
    return msgpack.packb(fields if text is None else fields | {"text": text})


def _broken(path: Path) -> dict[str, str]:
    """A shard that was begun again names its broken images twice."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("\t", 1) for line in lines)  # type: ignore[misc]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        source = open_source(arguments)
        broken = convert(
            source,
            arguments.out,
            arguments.split,
            images_per_shard=arguments.images_per_shard,
            threads=arguments.threads,
        )
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(
        f"{len(source) - len(broken)} images are in {arguments.out}; train on them with"
        f" --config.data.source=arrayrecord --config.data.root={arguments.out} --config.data.split={arguments.split}"
    )
    if broken:
        key, reason = next(iter(broken.items()))
        print(
            f"{len(broken)} images cannot be read and were left out, the first of them {key} ({reason});"
            f" {arguments.out / (arguments.split + '-broken.txt')} names them all",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
