"""Tar files of images as a source: sets of them (webdataset), and tar files inside a tar file (ImageNet)."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from absl import logging

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.folder import ENDINGS, WHOLE, files_by_name, hidden
from zeroseg_jax.data.text import decode_text, is_text, readable
from zeroseg_jax.errors import InputError

_TEXT_FIELDS = ("caption", "text")


class _Part(NamedTuple):
    """A file inside a tar file."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{readable(self.tar.name)}/{readable(self.name)}"


class TarSource:
    """The images in the tar files of `root`, in the order of the names of the tar files and then of the files in them.

    `root` is a folder of tar files, or a single tar file. Tar files inside a tar file are read too, but not tar files
    inside of those. `ILSVRC2012_img_train.tar` has one for each class.

    Names are read as in webdataset. The name up to the first dot of its last part is the key of a sample. The rest, in
    lower or upper case, is the name of a field. So `a/000017.jpg`, `a/000017.txt` and `a/000017.depth.png` are the
    fields `jpg`, `txt` and `depth.png` of `a/000017`. The image is the field whose name is an image format, so
    `depth.png` is not the image. If there are several, the first in the order of `ENDINGS` is taken. The caption is the
    field `txt`, or `caption` or `text` in the field `json`. Files and folders that begin with a dot, and `__MACOSX`,
    are left out.

    `split` chooses the tar files named `SPLIT-*.tar`, `*_SPLIT.tar` or `SPLIT.tar`. If there are none, "train" means
    all. A single tar file is its whole split. The headers are read at the start. Images are read by seeking.

    An item is `{"image": uint8 (H, W, 3), "key": "TAR/NAME", "text": caption if there is one}`. If bytes of a name are
    not UTF-8, the key has them as \\xNN.

    Raises:
        InputError: the folder or file does not exist, there are no tar files of this split, a tar file is damaged, a
            sample has a field twice, or there is no image.
        BrokenImage: from `source[i]`, if the image cannot be read; from `text`, if the caption cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        chosen = _choose(Path(root), split)
        self._samples: list[tuple[_Part, _Part | None]] = []
        others: list[_Part] = []
        for tar in chosen:
            samples, lonely = _samples(tar)
            self._samples += samples
            others += lonely
        hint = ""
        if others:
            hint = (
                f"; {len(others)} look like images, but belong to samples without one: the first dot in the last part"
                f" of {others[0]} begins its field {_field(others[0])!r}"
            )
        if not self._samples:
            raise InputError(f"the tar files of {root} hold no images, files that end in {', '.join(ENDINGS)}{hint}")
        if hint:
            logging.warning("the tar files of %s hold %d images%s", root, len(self._samples), hint)

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, i: int) -> str:
        image, _ = self._samples[i]
        return str(image)

    def text(self, i: int) -> str | None:
        _, text = self._samples[i]
        if text is None:
            return None
        try:
            content = decode_text(text.read())
            return content.strip() if _field(text) == "txt" else _caption(json.loads(content))
        except OSError as error:
            raise BrokenImage(self.key(i), f"its caption {text}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BrokenImage(self.key(i), f"its caption {text} is broken: {error}") from error

    def read(self, i: int) -> bytes:
        image, _ = self._samples[i]
        try:
            return image.read()
        except OSError as error:
            raise BrokenImage(self.key(i), error.strerror or type(error).__name__) from error

    def __getitem__(self, i: int) -> dict[str, Any]:
        key, text = self.key(i), self.text(i)
        item: dict[str, Any] = {"image": decode_image(self.read(i), key), "key": key}
        return item if text is None else item | {"text": text}


def _choose(root: Path, split: str) -> list[Path]:
    """The tar files of a split. Raises InputError if there are none."""
    if root.is_file():
        return [root]
    tars = files_by_name(root, (".tar",))
    if not tars:
        raise InputError(
            f"there are no tar files (*.tar, not compressed) in {root}; set data.root to their folder or to one of them"
        )
    if split in WHOLE:
        return list(tars.values())
    chosen = [
        path
        for name, path in tars.items()
        if name == split or path.name.startswith(f"{split}-") or name.endswith(f"_{split}")
    ]
    if not chosen and split != "train":
        some = next(iter(tars.values())).name
        raise InputError(f"no tar file in {root} is named {split}-*.tar or *_{split}.tar; it holds {some}, ...")
    return chosen or list(tars.values())


def _caption(fields: Any) -> str | None:
    """The caption in the JSON of a sample, or None. Raises ValueError if it is not a caption."""
    if not isinstance(fields, dict):
        raise ValueError(f"it is no JSON object but a {type(fields).__name__}")
    caption = next((fields[name] for name in _TEXT_FIELDS if fields.get(name) is not None), None)
    if caption is not None and not (isinstance(caption, str) and is_text(caption)):
        raise ValueError(f"it has {caption!r}, which is not a text")
    return caption


def _field(part: _Part) -> str:
    return PurePosixPath(part.name).name.partition(".")[2].lower()


def _samples(tar: Path) -> tuple[list[tuple[_Part, _Part | None]], list[_Part]]:
    """Each image of a tar file with the file that holds its caption, a .txt rather than a .json; and the files that
    end like images, of samples that have no image."""
    images: dict[str, dict[str, _Part]] = {}
    texts: dict[str, dict[str, _Part]] = {}
    others: dict[str, _Part] = {}
    for part in _files(tar):
        path = PurePosixPath(part.name)
        if any(hidden(name) for name in path.parts):
            continue
        sample, field = str(path.parent / path.name.partition(".")[0]), _field(part)
        if f".{field}" in ENDINGS:
            fields = images.setdefault(sample, {})
        elif field in ("txt", "json"):
            fields = texts.setdefault(sample, {})
        else:
            if path.suffix.lower() in ENDINGS:
                others.setdefault(sample, part)
            continue
        if field in fields:
            raise InputError(
                f"{tar} holds {readable(fields[field].name)} and {readable(part.name)}, both the field {field!r} of"
                f" the sample {readable(sample)}, whose name ends at the first dot as in webdataset; rename one"
            )
        fields[field] = part
    pairs = []
    for sample, fields in images.items():
        captions = texts.get(sample, {})
        image = fields[min(fields, key=lambda field: ENDINGS.index(f".{field}"))]
        pairs.append((image, captions.get("txt", captions.get("json"))))
    return pairs, [part for sample, part in others.items() if sample not in images]


class _Archive(io.BufferedReader):
    """A file up to byte `end`. No more is asked for at once, since memory for all that is asked for is taken first."""

    def __init__(self, path: Path, end: int):
        super().__init__(io.FileIO(path))
        self._end = end

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._end - self.tell(), 0)
        return super().read(left if size is None or not 0 <= size <= left else size)


def _files(tar: Path) -> Iterator[_Part]:
    """The files in a tar file and in the tar files inside it, in their order.

    Raises:
        InputError: a tar file is damaged.
    """
    for part in _members(tar, str(tar), 0, None):
        path = PurePosixPath(part.name)
        if path.suffix.lower() != ".tar" or any(map(hidden, path.parts)):
            yield part
            continue
        for inner in _members(tar, f"{tar}/{readable(part.name)}", part.offset, part.offset + part.size):
            yield inner._replace(name=f"{part.name}/{inner.name}")


def _members(tar: Path, name: str, begin: int, end: int | None) -> Iterator[_Part]:
    """The files in the archive `name`, which is the bytes from `begin` to `end` of the file `tar`."""
    try:
        end = tar.stat().st_size if end is None else end
        with _Archive(tar, end) as file:
            file.seek(begin)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                before = begin
                for member in archive:
                    # a negative size would lead back to what was read, and the pieces of a sparse file lie elsewhere
                    if member.size < 0 or member.offset_data <= before or member.issparse():
                        raise tarfile.ReadError(f"the size of {readable(member.name)} is impossible, or it is sparse")
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"it ends inside {readable(member.name)}")
                    before = member.offset_data
                    if member.isfile():
                        yield _Part(tar, member.name, member.offset_data, member.size)
                _check_end(file, archive.offset, begin, name)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"the tar file {name} cannot be read ({error}); unpack it if it is compressed, or fetch it again"
        ) from error


def _check_end(file: _Archive, offset: int, begin: int, name: str) -> None:
    """Raises ReadError unless a block of zeros, the mark of an archive's end, is at `offset`, where reading stopped.

    `tarfile` takes a damaged header for the end.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block and block != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged at byte {offset - begin}")
    if not block:
        logging.warning("the tar file %s has no mark of its end, so it may have been cut off", name)
