"""Sets of tar files (webdataset) as a source."""

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.folder import ENDINGS, WHOLE
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


class TarSource:
    """The images in the tar files of `root`, in the order of the tar files' names and of the images inside.

    What belongs to a sample has one name up to the first dot, as in webdataset: `000017.jpg` with `000017.txt`, which
    is the caption, or `000017.json`, whose `caption` or `text` is. `split` picks the tar files that are named
    `SPLIT-*.tar`; where none is, "train" means all. The headers are read at the start, the images by seeking.

    An item is `{"image": uint8 (H, W, 3), "key": "TAR/NAME", "text": caption if there is one}`.

    Raises:
        InputError: no such folder, no tar files or none of this split in it, a damaged one, or no image in them.
        BrokenImage: from `source[i]`, an image that cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        tars = sorted(Path(root).glob("*.tar"))
        if not tars:
            raise InputError(f"there are no tar files (*.tar, not compressed) in {root}; set data.root to their folder")
        chosen = tars if split in WHOLE else [tar for tar in tars if tar.name.startswith(f"{split}-")]
        if not chosen and split != "train":
            raise InputError(f"no tar file in {root} is named {split}-*.tar; it holds {tars[0].name}, ...")
        self._samples = [sample for tar in chosen or tars for sample in _samples(tar)]
        if not self._samples:
            raise InputError(f"the tar files in {root} hold no images, files that end in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, i: int) -> str:
        image, _ = self._samples[i]
        return f"{image.tar.name}/{image.name}"

    def text(self, i: int) -> str | None:
        _, text = self._samples[i]
        if text is None:
            return None
        content = text.read().decode(errors="replace")
        if text.name.endswith(".txt"):
            return content.strip()
        try:
            fields = json.loads(content)
        except json.JSONDecodeError as error:
            raise InputError(f"{text.name} in {text.tar} is not JSON ({error}); repair or remove it") from error
        return next((str(fields[name]) for name in _TEXT_FIELDS if name in fields), None)

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


def _samples(tar: Path) -> list[tuple[_Part, _Part | None]]:
    """Each image of a tar file with the file that holds its caption, a .txt rather than a .json."""
    images: dict[str, _Part] = {}
    texts: dict[str, _Part] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                sample = str(path.parent / path.name.partition(".")[0])
                part = _Part(tar, member.name, member.offset_data, member.size)
                ending = path.suffix.lower()
                if ending in ENDINGS:
                    images.setdefault(sample, part)
                elif ending == ".txt" or (ending == ".json" and sample not in texts):
                    texts[sample] = part
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"the tar file {tar} cannot be read ({error}); unpack it if it is compressed, or fetch it again"
        ) from error
    return [(image, texts.get(sample)) for sample, image in images.items()]
