"""Damaged data sets by the thousand: every one is read right, skipped and counted, or told in one sentence.

    PYTHONPATH=tests python tests/data/fuzz.py [--cases 1000] [--seed 0] [--kind tars,masks,...]

Each case takes a good file, changes it by chance (bytes, pieces, values; or a value of JSON by one that nobody expects)
and reads it as a user would. What counts as an outcome:

right      everything is what it is without the change
other      something was read that differs: the change made another valid file
skipped    one image is left out: BrokenImage
sentence   the whole is refused: InputError, in one line

Anything else, such as another exception, is a fault, and is printed. `test_fuzz.py` runs some dozens of each kind.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_records import write_records
from fuzz_benchmarks import Annotations, Benchmarks
from fuzz_changes import change_bytes, change_json, change_value, check_sentence, picture, read_all
from PIL import Image

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.data.sources.folder import FolderSource
from zeroseg_jax.data.sources.tar import TarSource
from zeroseg_jax.data.sources.tfds import PreparedSource
from zeroseg_jax.errors import InputError


class Images:
    """Images of every format, in every way of reading them."""

    def __init__(self, folder: Path):
        palette = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), "P")
        palette.putpalette(list(range(36)))
        buffer = io.BytesIO()
        palette.save(buffer, "PNG", transparency=bytes(range(12)))
        self.good = [buffer.getvalue()]
        exif = Image.Exif()
        exif[0x0112] = 6
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
            for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"):
                try:
                    self.good.append(picture(form, mode, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {})))
                except (OSError, KeyError, ValueError):  # the format has no such mode
                    continue

    def __call__(self, rng: random.Random) -> str:
        good = rng.choice(self.good)
        try:
            actual = decode_image(change_bytes(good, rng), "a")
        except BrokenImage as error:
            check_sentence(error)
            return "skipped"
        assert actual.dtype == np.uint8 and actual.ndim == 3 and actual.shape[2] == 3
        return "right" if np.array_equal(actual, decode_image(good, "a")) else "other"


class Tars:
    """A tar file with captions, changed anywhere, or in one of its members' headers with the right checksum."""

    def __init__(self, folder: Path):
        self.folder = folder
        members = {
            "0.png": picture(level=1),
            "0.txt": b"a cat",
            "a/1.jpg": picture("JPEG"),
            "a/1.json": b'{"caption": "b"}',
        }
        members |= {"2" * 150 + ".png": picture(level=2), "é.webp": picture("WEBP"), "3.png": picture(level=3)}
        self.good = {}
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
                for name, data in members.items():
                    if form == tarfile.USTAR_FORMAT and len(name) > 100:
                        continue
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
            data = buffer.getvalue()
            (folder / "x.tar").write_bytes(data)
            self.good[data] = read_all(TarSource(folder))

    def __call__(self, rng: random.Random) -> str:
        good = rng.choice(list(self.good))
        data = self._change_header(good, rng) if rng.random() < 0.5 else change_bytes(good, rng)
        (self.folder / "x.tar").write_bytes(data)
        actual = read_all(TarSource(self.folder))
        if actual == self.good[good]:
            return "right"
        return "skipped" if None in actual else "other"

    def _change_header(self, data: bytes, rng: random.Random) -> bytes:
        changed = bytearray(data)
        starts = [i for i in range(0, len(changed), 512) if changed[i + 257 : i + 262] == b"ustar"]
        start = rng.choice(starts)
        header = changed[start : start + 512]
        for _ in range(rng.choice((1, 2))):
            place, length = rng.choice(
                ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (482, 30))
            )
            kinds = (b"\xff" * 12, b"77777777777\0", b"00000000000\0", b"\x80" + b"\x7f" * 11, b"x", b"gxLKS10257V" * 2)
            new = rng.choice((*kinds, rng.randbytes(length)))[:length]
            if place == 156:
                new = bytes([rng.choice(b"gxLKS0123456789XDMNV\0")])
            header[place : place + len(new)] = new
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
        changed[start : start + 512] = header
        return bytes(changed)


class Metadata:
    """A folder with metadata.jsonl, of which the lines or the bytes change."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = [{"file_name": f"{i}.png", "text": f"thing {i}", "split": "train"} for i in range(4)]
        for i in range(4):
            (folder / f"{i}.png").write_bytes(picture(level=i))
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, self.rows)))
        self.good = read_all(FolderSource(folder))

    def __call__(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            rows = change_value(self.rows, rng)
            rows = rows if isinstance(rows, list) else [rows]
            data = "\n".join(map(json.dumps, rows)).encode()
        else:
            data = change_bytes((self.folder / "metadata.jsonl").read_bytes(), rng)
        before = (self.folder / "metadata.jsonl").read_bytes()
        (self.folder / "metadata.jsonl").write_bytes(data)
        try:
            actual = read_all(FolderSource(self.folder))
        finally:
            (self.folder / "metadata.jsonl").write_bytes(before)
        if actual == self.good:
            return "right"
        return "skipped" if None in actual else "other"


class Records:
    """An ArrayRecord shard whose bytes change."""

    def __init__(self, folder: Path):
        self.folder = folder
        items = [{"image": picture(level=i), "key": f"k{i}", "text": "a"} for i in range(5)]
        (self.path,) = write_records(folder / "train", items)
        self.data = self.path.read_bytes()
        self.used = self.data.rstrip(b"\0")
        self.good = read_all(ArrayRecordSource(folder))

    def __call__(self, rng: random.Random) -> str:
        changed = change_bytes(self.data, rng) if rng.random() < 0.5 else change_bytes(self.used, rng)
        self.path.write_bytes(changed)
        actual = read_all(ArrayRecordSource(self.folder))
        if actual == self.good:
            return "right"
        return "skipped" if None in actual else "other"


class FuzzedPictures(tfds.core.GeneratorBasedBuilder):
    """Three images with captions and a table."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        features["table"] = tfds.features.Tensor(shape=(2, None), dtype=np.int32)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"image": io.BytesIO(picture(level=i)), "caption": "a cat", "table": np.ones((2, 3), np.int32)}


class Prepared:
    """A dataset of TFDS, whose descriptions or shard change; classes of other modules may be named."""

    def __init__(self, folder: Path):
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            FuzzedPictures(data_dir=str(folder)).download_and_prepare(file_format="array_record")
        self.folder = folder / "fuzzed_pictures/1.0.0"
        self.files = {path: path.read_bytes() for path in self.folder.iterdir()}
        self.good = read_all(PreparedSource("fuzzed_pictures", self.folder))

    def __call__(self, rng: random.Random) -> str:
        path = rng.choice(list(self.files))
        data = self.files[path]
        before = set(sys.modules)
        changed = change_json(json.loads(data), rng) if path.suffix == ".json" and rng.random() < 0.7 else None
        if changed and rng.random() < 0.3:
            changed = changed.replace(b"tensorflow_datasets.core.features.image_feature", b"this", 1)
        path.write_bytes(changed or change_bytes(data, rng))
        try:
            actual = read_all(PreparedSource("fuzzed_pictures", self.folder))
        finally:
            path.write_bytes(data)
            assert "this" not in set(sys.modules) - before
        if actual == self.good:
            return "right"
        return "skipped" if None in actual else "other"


KINDS: dict[str, Callable[[Path], Callable[[random.Random], str]]] = {
    "images": Images,
    "tars": Tars,
    "metadata": Metadata,
    "benchmarks": Benchmarks,
    "annotations": Annotations,
    "records": Records,
    "prepared": Prepared,
}


def outcome(case: Callable[[random.Random], str], rng: random.Random) -> str:
    try:
        return case(rng)
    except InputError as error:
        check_sentence(error)
        return "skipped" if isinstance(error, BrokenImage) else "sentence"


def run(kind: str, cases: int, seed: int = 0) -> tuple[collections.Counter[str], list[str]]:
    """How often each outcome came out, and the faults."""
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        case = KINDS[kind](Path(folder))
        for number in range(seed, seed + cases):
            try:
                counts[outcome(case, random.Random(f"{kind} {number}"))] += 1
            except Exception:
                faults.append(f"{kind} {number}: {traceback.format_exc()}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", default=",".join(KINDS))
    options = parser.parse_args()
    failed = 0
    for kind in options.kind.split(","):
        counts, faults = run(kind, options.cases, options.seed)
        print(kind, dict(counts), f"{len(faults)} faults", flush=True)
        for fault in faults:
            print(fault)
        failed += len(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
