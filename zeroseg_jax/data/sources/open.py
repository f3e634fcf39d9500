"""Opens the source of images that `data.source` chooses. All sources give random access, and decode on request."""

import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from zeroseg_jax.data.sources.folder import OTHER_IMAGES, FolderSource
from zeroseg_jax.data.text import is_text, readable
from zeroseg_jax.errors import InputError


@runtime_checkable
class ImageSource(Protocol):
    """Random access to images. Sources can be pickled, because each worker process reads for itself."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The name of item `i`, without decoding the image."""

    def read(self, i: int) -> bytes | np.ndarray:
        """The encoded image, such as the bytes of a JPEG file. A source that has pixels gives them: uint8 (H, W, 3).

        Raises:
            BrokenImage: the image cannot be read.
        """

    def __getitem__(self, i: int) -> dict[str, Any]:
        """`{"image": uint8 (H, W, 3), "key": str}`, and `"text": str` if there is a caption.

        Raises:
            BrokenImage: the image cannot be read.
        """


@runtime_checkable
class CaptionedSource(ImageSource, Protocol):
    """A source that can also give a caption without its image."""

    def text(self, i: int) -> str | None:
        """The caption of item `i`, without decoding the image. None if there is none."""


class Subset:
    """The images of a source at `indices`, in that order."""

    def __init__(self, source: CaptionedSource, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, i: int) -> str:
        return self._source.key(self._indices[i])

    def text(self, i: int) -> str | None:
        return self._source.text(self._indices[i])

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.read(self._indices[i])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[self._indices[i]]


def open_source(data: Any, split: str | None = None) -> CaptionedSource:
    """Opens the source that the `data` group of a config describes.

    Args:
        data: `source` is `scenes` (drawn scenes; `scenes/tiny` has a few), `folder`, `tar`, `tfds:NAME` or
            `arrayrecord`. `root` is its folder. For scenes it is the folder where they are stored; "" is
            `~/.cache/zeroseg_jax`. `split` is the part of the source. `limit`, if it is there and not 0, is the number
            of images to use, the first ones. `held_out`, if it is there, is the number of images to leave out.
        split: replaces `data.split`, unless it is None.

    Raises:
        InputError: the source is unknown, the root is missing, or the source cannot use its folder.
    """
    source = _open_all(data, data.split if split is None else split)
    return Subset(source, _split_off(data, len(source))[0]) if _option(data, "held_out") else source


def open_held_out(data: Any) -> CaptionedSource:
    """The `data.held_out` images that `open_source` leaves out. They are spread evenly over the source."""
    source = _open_all(data, data.split)
    return Subset(source, _split_off(data, len(source))[1])


def _open_all(data: Any, split: str) -> CaptionedSource:
    """The first `data.limit` images, with those that are held out."""
    kind, root = data.source, os.path.expanduser(data.root)
    if kind != "scenes" and not kind.startswith("scenes/") and not root:
        raise InputError(f"data.source={kind} needs a folder; set data.root")
    if kind != "folder" and kind != "tar" and not is_text(root):
        raise InputError(
            f"data.root={readable(root)} is not UTF-8, as data.source={kind} needs it; give the folder another name"
        )
    source = _open(kind, root, split)
    limit = _option(data, "limit")
    return Subset(source, range(min(limit, len(source)))) if limit else source


def _option(data: Any, name: str) -> int:
    """A number in the `data` group. A config of evaluation does not have it."""
    return data.get(name, 0) if hasattr(data, "get") else getattr(data, name, 0)


def _split_off(data: Any, count: int) -> tuple[list[int], list[int]]:
    """Splits `count` images. Returns the indices of the images to train on, and of those that are held out."""
    wanted = _option(data, "held_out")
    if wanted >= count:
        raise InputError(
            f"data.held_out={wanted} leaves nothing of {count} images to train on; set a smaller number, or 0"
        )
    out = np.linspace(0, count - 1, wanted).round().astype(int).tolist()
    return sorted(set(range(count)) - set(out)), out


def _open(kind: str, root: str, split: str) -> CaptionedSource:
    name, _, rest = kind.partition(":")
    # The libraries behind the other sources take a second to import; a folder needs none of them.
    if kind == "folder":
        source = FolderSource(root, split)
        unread = {ending: count for ending, count in source.others.items() if ending in OTHER_IMAGES}
        if unread:
            told = ", ".join(f"{count} {ending}" for ending, count in sorted(unread.items()))
            logging.warning(
                "%s holds images of formats that are not read: %s; they are left out, so convert them to JPEG or PNG",
                readable(root),
                told,
            )
        return source
    if kind == "tar":
        from zeroseg_jax.data.sources.tar import TarSource

        return TarSource(root, split)
    if kind == "arrayrecord":
        from zeroseg_jax.data.sources.array_record import ArrayRecordSource

        return ArrayRecordSource(root, split)
    if name == "tfds" and rest:
        from zeroseg_jax.data.sources.tfds import PreparedSource

        return PreparedSource(rest, root, split)
    if kind.split("/")[0] == "scenes":
        from zeroseg_jax.data.scenes.builder import prepare
        from zeroseg_jax.data.sources.tfds import PreparedSource

        return PreparedSource("zeroseg_scenes", prepare(root, kind.partition("/")[2] or "default"), split)
    if kind == "parquet" or name == "hf":
        raise InputError(
            f"data.source={kind} cannot be read at random; make shards of it first with"
            f" `python -m zeroseg_jax.data.convert --source {kind}`"
        )
    raise InputError(
        f"data.source is {kind!r}; it must be scenes, folder, tar, tfds:NAME or arrayrecord;"
        " zeroseg_jax.data.convert also takes parquet and hf:NAME"
    )
