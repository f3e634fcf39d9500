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
import copy
import io
import json
import random
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_records import write_records
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.array_record import ArrayRecordSource
from zeroseg_jax.data.sources.folder import FolderSource
from zeroseg_jax.data.sources.tar import TarSource
from zeroseg_jax.data.sources.tfds import PreparedSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import open_benchmark
from zeroseg_jax.evaluate.benchmarks.coco_object import write_masks

RUNS = r"\9:R9"
"""COCO's text for runs of 300, 10 and 290 pixels."""

STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 3.5, 10**9, -(10**30), float("nan"), float("inf"), "", "x", "a\u2028b", "\ud800", "\0"),
    *("../../x", "x" * 300, [], [[]], {}, [None], [1, 2], [[1, 2, 3, 4]], {"a": 1}, [[[1]]], "[1]", "é", "\n"),
)


def picture(ending: str = "PNG", mode: str = "RGB", level: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(level).integers(0, 4, (9, 12), dtype=np.uint8)
    image = Image.fromarray(pixels if mode == "L" else 60 * pixels).convert(mode)
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes or pieces are replaced, removed, doubled or moved."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not result:
            break
        start = rng.randrange(len(result))
        piece = result[start : start + rng.choice((1, 2, 4, 16, 100, 512))]
        way = rng.randrange(6)
        if way == 0:
            result[start] = rng.randrange(256)
        elif way == 1:
            result[start] ^= 1 << rng.randrange(8)
        elif way == 2:
            del result[start : start + len(piece)]
        elif way == 3:
            result[start:start] = piece
        elif way == 4:
            result[start : start + len(piece)] = rng.choice((b"\0", b"\xff", b"0", b"7")) * len(piece)
        else:
            del result[start:]
    return bytes(result)


def change_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one part is another, or is not there."""
    value = copy.deepcopy(value)
    place, key = None, None
    while isinstance(value if place is None else place[key], dict | list):
        inner = value if place is None else place[key]
        if not inner or (place is not None and rng.random() < 0.2):
            break
        place = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
    if place is None:
        return rng.choice(STRANGE)
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(STRANGE)
    return value


def change_json(value: Any, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = change_value(value, rng)
    text = json.dumps(value).encode()
    return change_bytes(text, rng) if rng.random() < 0.1 else text


def read_all(source: Any) -> list[Any]:
    """Everything in a source; BrokenImage for what is not readable."""
    result = []
    for i in range(len(source)):
        try:
            result.append((source.key(i), source.text(i), source[i]["image"].tobytes()))
        except BrokenImage as error:
            check_sentence(error)
            result.append(None)
    return result


def check_sentence(error: InputError) -> None:
    said = str(error)
    assert "\n" not in said and len(said) < 1000 and said.strip(), f"no sentence: {said[:300]!r}"
    said.encode()


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
            found = decode_image(change_bytes(good, rng), "a")
        except BrokenImage as error:
            check_sentence(error)
            return "skipped"
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        return "right" if np.array_equal(found, decode_image(good, "a")) else "other"


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
        found = read_all(TarSource(self.folder))
        if found == self.good[good]:
            return "right"
        return "skipped" if None in found else "other"

    def _change_header(self, data: bytes, rng: random.Random) -> bytes:
        found = bytearray(data)
        starts = [i for i in range(0, len(found), 512) if found[i + 257 : i + 262] == b"ustar"]
        start = rng.choice(starts)
        header = found[start : start + 512]
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
        found[start : start + 512] = header
        return bytes(found)


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
            found = read_all(FolderSource(self.folder))
        finally:
            (self.folder / "metadata.jsonl").write_bytes(before)
        if found == self.good:
            return "right"
        return "skipped" if None in found else "other"


class Benchmarks:
    """A folder to evaluate on: its mask, its list, its classes or its image change."""

    def __init__(self, folder: Path):
        self.folder = folder
        pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
        files = {"classes.txt": b"cat\ndog\ncow\nhen\n", "ImageSets/Segmentation/val.txt": b"a\nb c 1\n"}
        for name in ("a", "b c"):
            for place, mode in (("JPEGImages", "RGB"), ("SegmentationClass", "P")):
                buffer = io.BytesIO()
                image = Image.fromarray(pixels)
                if mode == "P":
                    image.putpalette(list(range(12)))
                image.convert(mode).save(buffer, "PNG")
                files[f"{place}/{name}.png"] = buffer.getvalue()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.files = files
        self.config = default_config()
        self.config.eval.update(dataset="folder", root=str(folder), split="val")
        self.good = self._read()

    def _read(self) -> list[Any]:
        benchmark = open_benchmark(self.config.eval, probe=False)
        examples = [benchmark[i] for i in range(len(benchmark))]
        for example in examples:
            assert example.mask.shape == example.image.shape[:2]
            assert set(np.unique(example.mask)) <= {*range(len(benchmark.classes)), 255}
        return [tuple(benchmark.classes), *((e.name, e.image.tobytes(), e.mask.tobytes()) for e in examples)]

    def __call__(self, rng: random.Random) -> str:
        name = rng.choice(list(self.files))
        (self.folder / name).write_bytes(change_bytes(self.files[name], rng))
        try:
            return "right" if self._read() == self.good else "other"
        finally:
            (self.folder / name).write_bytes(self.files[name])


class Annotations:
    """COCO's annotations, of which a value or the bytes change."""

    def __init__(self, folder: Path):
        self.folder = folder
        size = {"height": 20, "width": 30}
        common = {"image_id": 7, "area": 30, "iscrowd": 0}
        self.content = {
            "images": [{"id": i, "file_name": f"{i}.jpg"} | size for i in (7, 8)],
            "annotations": [
                {"id": 1, "category_id": 1, "segmentation": [[3, 3, 14, 3, 14, 15, 3, 15], [1, 1, 2, 1, 2, 2]]}
                | common,
                {"id": 2, "category_id": 90, "segmentation": {"size": [20, 30], "counts": [100, 50, 450]}} | common,
                {"id": 3, "category_id": 2, "segmentation": {"size": [20, 30], "counts": RUNS}} | common,
            ],
        }
        (folder / "annotations").mkdir()
        self.good = self._read(json.dumps(self.content).encode())

    def _read(self, data: bytes) -> tuple[bytes, int]:
        (self.folder / "annotations/instances_val2017.json").write_bytes(data)
        written = write_masks(self.folder)
        return (self.folder / "annotations/val2017/7_instanceTrainIds.png").read_bytes(), len(written.left_out)

    def __call__(self, rng: random.Random) -> str:
        for path in (self.folder / "annotations/val2017").glob("*"):
            path.unlink()
        try:
            mask, left_out = self._read(change_json(self.content, rng))
        except FileNotFoundError:  # the image has another name now
            return "other"
        if left_out:
            return "skipped"
        return "right" if mask == self.good[0] else "other"


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
        found = read_all(ArrayRecordSource(self.folder))
        if found == self.good:
            return "right"
        return "skipped" if None in found else "other"


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
            found = read_all(PreparedSource("fuzzed_pictures", self.folder))
        finally:
            path.write_bytes(data)
            assert "this" not in set(sys.modules) - before
        if found == self.good:
            return "right"
        return "skipped" if None in found else "other"


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
