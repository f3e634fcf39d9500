"""Writes a data set of images as ArrayRecord shards, which training reads fastest.

    python -m zeroseg_jax.data.convert --source SOURCE --root PLACE [--split train] --out DIR
        [--center_crop 224 [--quality 95]]

SOURCE says what is at PLACE:
    folder        a folder of images, such as one with a folder for each class
    tar           a folder of tar files (webdataset), or one tar file, such as ILSVRC2012_img_train.tar
    tfds:NAME     a data folder of TensorFlow Datasets, in ArrayRecord or TFRecord files; needs no TensorFlow
    parquet       a folder of Parquet files, as Hugging Face stores data sets, or one of them
    hf:NAME       a data set that the library `datasets` loads from the hub, or a local folder; --root is for downloads

The encoded images are copied without change. Each is decoded once. Broken images are left out, and
DIR/SPLIT-broken.txt names them. With --center_crop, the largest centred square of each image is stored as a JPEG of
that size. A run with --config.data.augment=center and this image_size shows the same pixels, apart from the loss of
the JPEG, and decodes much less. If the command was stopped, run it again: it continues. Train on the result with
--config.data.source=arrayrecord --config.data.root=DIR --config.data.split=SPLIT.

PLACE and DIR may be gs://... A source in a bucket is copied to the disk first, below TMPDIR. A shard is written on the
disk, and uploaded when it is complete.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter

from zeroseg_jax.command_line import make_parser
from zeroseg_jax.data.augment import Augmentation, center_box
from zeroseg_jax.data.decode import BrokenImage, EncodedImage, decode_image
from zeroseg_jax.data.sources.open import CaptionedSource, Subset, open_source
from zeroseg_jax.data.text import is_text, read_json, readable
from zeroseg_jax.data.workers import usable_cpus
from zeroseg_jax.errors import InputError
from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.storage import AnyPath, is_remote, local_copy, to_path, upload, write_text

QUALITY = 95
"""The default JPEG quality of centred squares."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m zeroseg_jax.data.convert", __doc__)
    parser.add_argument("--source", required=True, help="folder, tar, tfds:NAME, parquet or hf:NAME")
    parser.add_argument("--root", default="", help="the folder or file of the source, or gs://...")
    parser.add_argument("--split", default="train", help="the part of the source (train)")
    parser.add_argument("--limit", type=int, default=0, help="number of images to convert, the first ones (0: all)")
    parser.add_argument("--out", required=True, help="folder of the shards, SPLIT-*.array_record")
    parser.add_argument(
        "--center_crop", type=int, default=0, metavar="SIZE", help="store centred squares with this side in pixels"
    )
    parser.add_argument("--quality", type=int, default=QUALITY, help=f"of their JPEGs, 1 to 100 ({QUALITY})")
    parser.add_argument("--images-per-shard", type=int, default=4096, help="(4096)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="that read and decode (all cores)")
    return parser.parse_args(argv)


def open_convertible(data: argparse.Namespace) -> CaptionedSource:
    """Opens what `source`, `root`, `split` and `limit` describe: as `open_source`, and `parquet` and `hf:NAME` too.

    Raises:
        InputError: an unknown source, a missing package, or what the source says of its files.
    """
    kind, _, name = data.source.partition(":")
    root = os.path.expanduser(data.root)
    if kind == "hf" and "://" in name + root:
        raise InputError(f"--source {data.source} must be on the disk, and so must its --root; copy it there")
    if "://" in root:
        # of a folder of TFDS, the one data set
        place = to_path(root) / name.partition(":")[0] if kind == "tfds" else to_path(root)
        copy = local_copy(place)
        root = str(copy.parent if kind == "tfds" else copy)
        data = argparse.Namespace(**(vars(data) | {"root": root}))
    try:
        if data.source == "parquet" and root:
            from zeroseg_jax.data.sources.parquet import ParquetSource

            source: CaptionedSource = ParquetSource(root, data.split)
        elif kind == "hf" and name:
            from zeroseg_jax.data.sources.hf_datasets import HFDatasetSource

            source = HFDatasetSource(name, root, data.split)
        else:
            return open_source(data)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--source {data.source} needs the package {error.name}; pip install 'zeroseg_jax[convert]'"
        ) from error
    return Subset(source, range(min(data.limit, len(source)))) if data.limit else source


def convert(
    source: CaptionedSource,
    out: AnyPath,
    split: str,
    *,
    images_per_shard: int,
    threads: int,
    center_crop: int = 0,
    quality: int = QUALITY,
) -> dict[str, str]:
    """Writes the shards of `source` that `out` lacks.

    Returns:
        Why each broken image cannot be read, by its key.

    Args:
        center_crop: side in pixels of the centred squares to store; 0 stores the files as they are.
        quality: JPEG quality of these squares, 1 to 100; their colours are not subsampled.

    Raises:
        InputError: `out` holds shards of another source or of another number of images, or it cannot be written, for
            example because the disk is full. Complete shards stay, and the same call continues after them.
    """
    if images_per_shard < 1 or threads < 1:
        raise InputError("--images-per-shard and --threads must be at least 1")
    if center_crop < 0 or not 1 <= quality <= 100:
        raise InputError("--center_crop must be at least 1, or 0 for none, and --quality 1 to 100")
    if not is_text(str(out)):
        raise InputError(f"--out={readable(str(out))} is not UTF-8, as ArrayRecord needs it; choose another name")
    # the code of a run, so that the stored square is what a run would show
    crop = Augmentation(center_crop, augment="center", flip=False) if center_crop else None
    note: dict[str, Any] = {"center_crop": center_crop, "quality": quality} if center_crop else {}
    with _writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    _same_source(out / f"{split}-source.json", source, note | {"images_per_shard": images_per_shard})
    count = -(-len(source) // images_per_shard)
    shards = [out / f"{split}-{i:05d}-of-{count:05d}.array_record" for i in range(count)]
    parts = {s: range(i * images_per_shard, min((i + 1) * images_per_shard, len(source))) for i, s in enumerate(shards)}
    missing = [shard for shard in shards if not shard.exists()]
    list_of_broken = out / f"{split}-broken.txt"
    done = len(source) - sum(len(parts[shard]) for shard in missing)
    bar = ProgressBar("convert", len(source), done)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for shard in missing:
            broken = []
            with _open_shard(shard) as writer:
                for record in pool.map(lambda i: _record(source, i, crop, quality), parts[shard]):
                    if isinstance(record, BrokenImage):
                        broken.append(f"{readable(record.key)}\t{readable(record.reason)}\n")
                    else:
                        writer.write(record)
                        if not writer.ok():  # close raises the reason
                            break
                    done += 1
                    bar.update(done, "images")
                if broken:
                    before = list_of_broken.read_bytes() if list_of_broken.exists() else b""
                    write_text(list_of_broken, before.decode() + "".join(broken))
    bar.close()
    return _broken(list_of_broken)


@contextlib.contextmanager
def _writing_to(place: AnyPath) -> Iterator[None]:
    """Raises InputError if its block cannot write."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{place} cannot be written ({error.strerror or error}); free some space or choose another"
            " --out, and give the same command again, which continues after the complete shards"
        ) from error


@contextlib.contextmanager
def _open_shard(shard: AnyPath) -> Iterator[ArrayRecordWriter]:
    """The writer of a shard. The file gets its name when it is complete; an unfinished file is removed."""
    with contextlib.ExitStack() as stack:
        if is_remote(shard):
            unfinished = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shard"
        else:
            unfinished = Path(shard).with_suffix(".unfinished")  # which no reader takes for a shard
            stack.callback(unfinished.unlink, missing_ok=True)
        stack.enter_context(_writing_to(shard))
        try:
            writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
            try:
                yield writer
            finally:
                writer.close()
        except RuntimeError as error:  # ArrayRecord raises it for any error of the disk
            raise OSError(None, str(error).split(";")[0]) from error
        if is_remote(shard):
            upload(unfinished, shard)
            return
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(shard)


def _same_source(path: AnyPath, source: CaptionedSource, options: dict[str, Any]) -> None:
    """Writes a note of what is converted. If there is a note, compares it."""
    ends = [source.key(0), source.key(len(source) - 1)] if len(source) else []
    now = {"images": len(source), "first_and_last": ends, **options}
    if not path.exists():
        with _writing_to(path):
            write_text(path, json.dumps(now) + "\n")
    before = read_json(path, "note of what was converted")
    if not isinstance(before, dict):
        raise InputError(f"{path} is not a note of what was converted; choose another --out")
    different = sorted(key for key in now | before if before.get(key) != now.get(key))
    if different:
        told = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in different)
        raise InputError(f"{path.parent} holds a conversion of something else ({told}); choose another --out")


def _record(source: CaptionedSource, i: int, crop: Augmentation | None, quality: int) -> bytes | BrokenImage:
    try:
        data, text = source.read(i), source.text(i)
        assert isinstance(data, bytes)  # every source that can be named here holds encoded images
        if crop is None:
            decode_image(data, source.key(i))
        else:
            data = _squared(data, source.key(i), crop, quality)
    except BrokenImage as error:
        return error
    fields: dict[str, Any] = {"image": data, "key": source.key(i)}
    return msgpack.packb(fields if text is None else fields | {"text": text})


def _squared(data: bytes, key: str, crop: Augmentation, quality: int) -> bytes:
    """The centred square of an encoded image, as a JPEG. A JPEG that has this size already is returned as it is."""
    image = EncodedImage(data, key)
    box = center_box(image.extent)
    picture = image.decode(crop.reduction(box))
    if picture.extent == (crop.size, crop.size) and data.startswith(b"\xff\xd8"):
        return data
    pixels = crop.crop(picture, box)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444")


def _broken(path: AnyPath) -> dict[str, str]:
    """The reasons in a list of broken images, by their keys; a shard that was begun again is in it twice."""
    lines = path.read_bytes().decode().split("\n") if path.exists() else []
    return dict(line.split("\t", 1) for line in lines if "\t" in line)  # type: ignore[misc]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        out = to_path(arguments.out)
        source = open_convertible(arguments)
        broken = convert(
            source,
            out,
            arguments.split,
            images_per_shard=arguments.images_per_shard,
            threads=arguments.threads,
            center_crop=arguments.center_crop,
            quality=arguments.quality,
        )
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    size = arguments.center_crop
    print(
        f"{len(source) - len(broken)} images are in {arguments.out}; train on them with"
        f" --config.data.source=arrayrecord --config.data.root={arguments.out} --config.data.split={arguments.split}"
        + (f" --config.data.augment=center --config.image_size={size}" if size else "")
    )
    if broken:
        key, reason = next(iter(broken.items()))
        print(
            f"{len(broken)} images cannot be read and were left out, the first of them {key} ({reason});"
            f" {out / (arguments.split + '-broken.txt')} names them all",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
