"""Paths on the disk and in Google Cloud Storage (`gs://...`).

An object in a bucket appears when all of it is written. It cannot be changed, only replaced. So a file that grows is
written again from time to time, as a whole. Buckets have no locks; `lease.py` has a replacement.
"""

import atexit
import contextlib
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath
from ml_collections import ConfigDict

from zeroseg_jax.errors import InputError

AnyPath: TypeAlias = Path | epath.Path
"""A path on the disk or in a bucket. Both have the methods of `pathlib.Path`, except recursive `glob`."""

REMOTE_KEYS = ("data.root", "teacher.path", "teacher.cache", "init.mae", "init.student", "model")
"""Keys of a config that may be gs://... . data.root may be so only if data.source is "arrayrecord"."""
LOCAL_KEYS = ("eval.root",)
"""Keys that must be paths on the disk."""
UPLOAD_SECONDS = 30
"""A file of lines in a bucket is written again at most this often."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


def to_path(path: str | os.PathLike) -> AnyPath:
    """The path that a user has given; `~` is the user's home.

    Raises:
        InputError: it is a URL other than gs://, or the package for gs:// is missing.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(path).expanduser()
    if not text.startswith("gs://") or len(text) == len("gs://"):
        raise InputError(f"{text} cannot be reached; give a path on the disk, or gs://BUCKET/FOLDER")
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"{text} needs the package {error.name}; pip install 'zeroseg_jax[gcs]'") from error
    # Other processes write to the same folders, so listings are not cached.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(text)


def disk_path(path: str | os.PathLike) -> Path:
    """A path on the disk that a user has given; `~` is the user's home. Raises InputError for any xxx://..."""
    text = os.fspath(path)
    if re.match(r"[a-z][a-z0-9+.-]+:/", text):  # `Path` makes one of two slashes
        raise InputError(f"{text} is not on the disk; write to a folder there, and copy it afterwards")
    return Path(path).expanduser()


def check_paths(config: ConfigDict) -> None:
    """Raises InputError if a key of a config has a path of a kind that it cannot use."""
    for key in (*REMOTE_KEYS, *LOCAL_KEYS):
        value: Any = config
        for part in key.split("."):
            value = value.get(part, "") if isinstance(value, ConfigDict) else ""
        if not isinstance(value, str) or "://" not in value:
            continue
        if key in LOCAL_KEYS or (key == "data.root" and config.data.source != "arrayrecord"):
            raise InputError(f"{key}={value} must be on the disk; copy it there, or mount the bucket (docs/launch.md)")
        try:
            to_path(value)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error


def store() -> Any:
    """The fsspec file system of gs://."""
    import fsspec

    return fsspec.filesystem("gs", use_listings_cache=False)


def write_text(path: AnyPath, text: str) -> None:
    """Writes a file so that it is never half written, even if the process ends or the disk is full."""
    if is_remote(path):
        path.write_bytes(text.encode())
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def walk(folder: AnyPath, prefix: str = "") -> Iterator[str]:
    """The names of all files below `folder`, relative to it, with `/` between folders."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from walk(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def save_picture(picture: Any, path: AnyPath, form: str = "PNG") -> None:
    """Writes an image of Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, form)
    path.write_bytes(buffer.getvalue())


def local_copy(place: AnyPath) -> Path:
    """A copy on the disk of a folder or a file in a bucket, of the same name. It is removed when the process ends.

    Raises:
        InputError: there is nothing at that place, or the disk has too little room for it.
    """
    root = os.fspath(place).removeprefix("gs://").rstrip("/")
    objects = {name: info["size"] for name, info in store().find(root, detail=True).items() if not name.endswith("/")}
    if not objects:
        raise InputError(f"there is nothing at {place}; check the name of the bucket and your credentials")
    size, free = sum(objects.values()), shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise InputError(
            f"{place} holds {size / 1e9:.1f} GB, and {tempfile.gettempdir()} has {free / 1e9:.1f} GB free for a copy;"
            " let TMPDIR name a folder on a larger disk"
        )
    folder = Path(tempfile.mkdtemp(prefix="zeroseg_jax_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / root.rpartition("/")[2]
    for name in objects:
        target = copy / name[len(root) :].lstrip("/")
        if ".." in target.parts:
            raise InputError(f"gs://{name} has '..' in its name; rename it")
        target.parent.mkdir(parents=True, exist_ok=True)
        store().get_file(name, str(target))
    return copy


@contextlib.contextmanager
def written_locally(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder on the disk to write into: `folder` itself or, for one in a bucket, one that is uploaded at the end.

    Nothing is uploaded when the body raises.
    """
    place = to_path(folder)
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="zeroseg_jax_") as temporary:
        yield Path(temporary)
        for name in walk(Path(temporary)):
            upload(Path(temporary) / name, place / name)


def upload(file: Path, place: AnyPath) -> None:
    """Copies a file on the disk to an object in a bucket."""
    store().put_file(str(file), os.fspath(place))


class LineWriter:
    """Adds lines to a file. Readers see them at once, or in a bucket at most `UPLOAD_SECONDS` later."""

    def __init__(self, path: AnyPath):
        self._path = path
        self._file = None if is_remote(path) else path.open("a", buffering=1, encoding="utf-8")
        self._text = "" if self._file else path.read_bytes().decode() if path.exists() else ""
        self._uploaded = -float(UPLOAD_SECONDS)

    def write(self, line: str) -> None:
        """Adds a line. It must end in a line feed."""
        if self._file:
            self._file.write(line)
            return
        self._text += line
        if time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self._upload()

    def close(self) -> None:
        if self._file:
            self._file.close()
        else:
            self._upload()

    def _upload(self) -> None:
        self._path.write_bytes(self._text.encode())
        self._uploaded = time.monotonic()
