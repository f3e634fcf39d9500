"""Datasets that TensorFlow Datasets has prepared to ArrayRecord, read without TensorFlow."""

import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.folder import WHOLE
from zeroseg_jax.errors import InputError

_TEXT_NAMES = ("caption", "text")


class PreparedSource:
    """`split` (slices such as `train[:10%]` too) of the dataset `name` prepared below `root`.

    `name` is `NAME`, `NAME/CONFIG` or `NAME:VERSION`, as in `imagenet2012:5.1.0`; without a version the newest one is
    read. `root` is the TFDS data folder (the one that holds `NAME`) or the folder of one prepared version. The image
    is the feature `image`, or the only image feature there is; a text feature `caption` or `text` gives the caption.

    An item is `{"image": uint8 (H, W, 3), "key": "SPLIT/number", "text": caption if there is one}`.

    Raises:
        InputError: no such dataset or split, no image feature, or a dataset that is not in ArrayRecord format.
        BrokenImage: from `source[i]`, an image that cannot be read.
    """

    def __init__(self, name: str, root: str | Path, split: str = "train"):
        builder = tfds.builder_from_directory(_version_folder(name, Path(root)))
        self._split = "all" if split in WHOLE else split
        self.features = dict(builder.info.features.items())
        self.image_feature, self._text = _features(builder)
        # No image is decoded by TFDS, which may choose OpenCV. (PartialDecoding does not work without TensorFlow.)
        pictures = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
        skipped = {name: tfds.decode.SkipDecoding() for name in pictures}
        try:
            self._items = builder.as_data_source(split=self._split, decoders=skipped)
        except NotImplementedError as error:
            raise InputError(
                f"the dataset in {builder.data_dir} is not in ArrayRecord format, which random access needs;"
                " convert it with `tfds convert_format --out_file_format=array_record`"
            ) from error
        except ValueError as error:
            known = ", ".join(builder.info.splits)
            raise InputError(f"the dataset in {builder.data_dir} has no split {split!r}; it has {known}") from error

    def __len__(self) -> int:
        return len(self._items)

    def key(self, i: int) -> str:
        return f"{self._split}/{i:07d}"

    def text(self, i: int) -> str | None:
        return self._items[i][self._text].decode() if self._text else None

    def read(self, i: int) -> bytes:
        return self.record(i)[self.image_feature]

    def __getitem__(self, i: int) -> dict[str, Any]:
        item, key = self.record(i), self.key(i)
        text = {"text": item[self._text].decode()} if self._text else {}
        return {"image": decode_image(item[self.image_feature], key), "key": key} | text

    def record(self, i: int) -> dict[str, Any]:
        """All features of item `i`, those of images as encoded bytes."""
        item = self._items[i]
        if not isinstance(item[self.image_feature], bytes):
            raise BrokenImage(self.key(i), "the record holds no encoded image")
        return item


def _version_folder(name: str, root: Path) -> Path:
    """The folder with the `dataset_info.json` of the newest version (or of the version asked for)."""
    if (root / "dataset_info.json").is_file():
        return root
    name, _, version = name.partition(":")
    pattern = version or "*"
    # NAME/VERSION and NAME/CONFIG/VERSION
    found = [p.parent for depth in ("", "*/") for p in (root / name).glob(f"{depth}{pattern}/dataset_info.json")]
    configs = sorted({folder.parent for folder in found})
    if not found:
        raise InputError(
            f"there is no prepared dataset {name}{':' + version if version else ''} in {root}; the root must"
            " be the folder that TensorFlow Datasets prepared it in"
        )
    if len(configs) > 1:
        names = ", ".join(f"tfds:{folder.relative_to(root)}" for folder in configs)
        raise InputError(f"{root / name} holds several configs; set data.source to one of {names}")
    return max(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])


def _features(builder: tfds.core.DatasetBuilder) -> tuple[str, str | None]:
    """The names of the image feature and of the caption (None where there is none)."""
    features = builder.info.features
    images = [name for name, feature in features.items() if type(feature) is tfds.features.Image]
    if "image" not in images and len(images) != 1:
        has = f"several image features ({', '.join(images)}), none named image" if images else "no image feature"
        raise InputError(f"the dataset in {builder.data_dir} has {has}; choose a dataset with one feature named image")
    texts = [name for name in _TEXT_NAMES if name in features and isinstance(features[name], tfds.features.Text)]
    return "image" if "image" in images else images[0], texts[0] if texts else None
