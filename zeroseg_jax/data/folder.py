"""Any folder of images as a source: plain, with `metadata.jsonl` (Hugging Face's imagefolder), or in VOC layout."""

import json
import os
from pathlib import Path
from typing import Any

from zeroseg_jax.data.decode import decode_image, read_file
from zeroseg_jax.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
WHOLE = ("", "all")
"""Values of `split` that mean every image there is."""

VOC_LISTS = "ImageSets/Segmentation"


class FolderSource:
    """The images below `root`, sorted by path, with captions where `root/metadata.jsonl` gives them.

    `split` picks a part: by the `split` field of `metadata.jsonl`, else by VOC's `ImageSets/Segmentation/{split}.txt`,
    else by a subfolder of that name. A folder without any of these is one whole, which "train" means too.
    With `metadata.jsonl` the images are its rows; in VOC layout they are those of `JPEGImages`, never the masks.

    An item is `{"image": uint8 (H, W, 3), "key": path relative to root, "text": caption if there is one}`.

    Raises:
        InputError: no such folder, no images in it, no such split, or a broken `metadata.jsonl`.
        BrokenImage: from `source[i]`, an image that cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"there is no folder {root}; set data.root to a folder of images")
        self._names, self._texts = _choose(self.root, split)
        if not self._names:
            raise InputError(f"the folder {root} holds no images, which are files that end in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self._names)

    def key(self, i: int) -> str:
        return self._names[i]

    def text(self, i: int) -> str | None:
        return self._texts.get(self._names[i])

    def read(self, i: int) -> bytes:
        return read_file(self.root / self._names[i], str(self.root / self._names[i]))

    def __getitem__(self, i: int) -> dict[str, Any]:
        name, text = self._names[i], self.text(i)
        item: dict[str, Any] = {"image": decode_image(self.read(i), str(self.root / name)), "key": name}
        return item if text is None else item | {"text": text}


def _choose(root: Path, split: str) -> tuple[list[str], dict[str, str]]:
    """The sorted names of the split's images, relative to `root`, and the captions of those that have one."""
    rows = _metadata(root / "metadata.jsonl")
    voc_list = root / VOC_LISTS / f"{split}.txt"
    names = sorted(rows) if rows else _walk(root, "JPEGImages" if (root / "JPEGImages").is_dir() else "")
    splits = sorted({row["split"] for row in rows.values() if "split" in row})
    if split in WHOLE:
        pass
    elif split in splits:
        names = [name for name in names if rows[name].get("split") == split]
    elif voc_list.is_file():
        wanted = set(voc_list.read_text().split())
        names = [name for name in names if Path(name).stem in wanted]
    elif not rows and (root / split).is_dir():
        names, texts = _choose(root / split, "")
        return [f"{split}/{name}" for name in names], {f"{split}/{name}": text for name, text in texts.items()}
    elif split != "train" or splits:
        known = splits or sorted(path.stem for path in (root / VOC_LISTS).glob("*.txt"))
        hint = f"it has {', '.join(known)}" if known else "set data.split to all to use the whole folder"
        raise InputError(f"the folder {root} has no split {split!r}; {hint}")
    return names, {name: rows[name]["text"] for name in names if "text" in rows.get(name, {})}


def _metadata(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a `metadata.jsonl` by file name; empty if there is none."""
    rows: dict[str, dict[str, str]] = {}
    if not path.is_file():
        return rows
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"line {number} of {path} must be a JSON object with a file_name") from error
        wrong = [field for field in ("file_name", "text", "split") if not isinstance(row.get(field, ""), str)]
        if wrong:
            raise InputError(f"{wrong[0]} in line {number} of {path} is not a string, as it must be")
        rows[name] = row
    return rows


def _walk(root: Path, below: str) -> list[str]:
    """Every image below `root/below`, relative to `root`, links followed, hidden files and folders left out."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root / below, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return sorted(found)
