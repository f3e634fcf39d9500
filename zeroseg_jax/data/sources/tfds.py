"""Reads datasets that TensorFlow Datasets (TFDS) has prepared, in ArrayRecord or TFRecord files, without TensorFlow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_parser import ExampleParserNp

from zeroseg_jax.data.decode import BrokenImage, decode_image
from zeroseg_jax.data.sources.folder import WHOLE
from zeroseg_jax.data.sources.tfrecord import Shard, TFRecords
from zeroseg_jax.data.text import read_json
from zeroseg_jax.errors import InputError

_TEXT_NAMES = ("caption", "text")


class PreparedSource:
    """A split of a dataset that is prepared below `root`.

    The image is the feature `image`, or the only image feature. The caption is the text feature `caption` or `text`.
    Other features are not decoded. Images are decoded here and not by TFDS, because TFDS would open any format.

    An item is `{"image": uint8 (H, W, 3), "key": "SPLIT/number", "text": caption if there is one}`.

    Args:
        name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`, such as `imagenet2012:5.1.0`. Without a version, the newest
            version is read.
        root: the data folder of TFDS, which has the folder `NAME`, or the folder of one prepared version.
        split: its name, or a slice such as `train[:10%]`.

    Raises:
        InputError: the dataset or the split does not exist, it has no image feature, it is in another format, it has
            features that are not TFDS's own, or files are damaged or missing.
        BrokenImage: from `source[i]`, if the image cannot be read.
    """

    def __init__(self, name: str, root: str | Path, split: str = "train"):
        builder = _open(_version_folder(name, Path(root)))
        self._split = "all" if split in WHOLE else split
        self.features = dict(builder.info.features.items())
        self.image_feature, self._text = _features(builder)
        self._parsers: dict[str, ExampleParserNp] = {}
        self._items = _records(builder, self._split)

    def __len__(self) -> int:
        return len(self._items)

    def key(self, i: int) -> str:
        return f"{self._split}/{i:07d}"

    def text(self, i: int) -> str | None:
        if not self._text:
            return None
        try:
            return self.feature(i, self._text).decode()
        except (AttributeError, UnicodeDecodeError) as error:
            raise BrokenImage(self.key(i), f"its {self._text} is not a text: {error}") from error

    def read(self, i: int) -> bytes:
        return self.feature(i, self.image_feature)

    def __getitem__(self, i: int) -> dict[str, Any]:
        key, text = self.key(i), self.text(i)
        item: dict[str, Any] = {"image": decode_image(self.read(i), key), "key": key}
        return item if text is None else item | {"text": text}

    def feature(self, i: int, name: str) -> Any:
        """A feature of item `i`. An image feature gives the encoded bytes, other features give arrays.

        Raises:
            BrokenImage: the record cannot be read, or does not have this feature.
        """
        feature = self.features[name]
        if name not in self._parsers:
            self._parsers[name] = ExampleParserNp({name: feature.get_serialized_info()})
        try:
            value = self._parsers[name].parse_example(self._items[i])[name]
            if not isinstance(feature, tfds.features.Image):
                return feature.decode_example_np(value)
        except Exception as error:  # ArrayRecord, protobuf and TFDS do not document what they raise
            raise BrokenImage(self.key(i), f"its record is damaged: {error}") from error
        if not isinstance(value, bytes):
            raise BrokenImage(self.key(i), f"its record has no encoded image as {name}")
        return value


def _open(folder: Path) -> tfds.core.DatasetBuilder:
    """TFDS's reader of a prepared dataset. Raises InputError if its files are damaged or cannot be trusted."""
    path = folder / "features.json"
    names = _tfds_features()
    for name in _class_names(read_json(path, "description of the features of a dataset"), path):
        if name not in names:
            raise InputError(
                f"{path} names the class {name!r}, which is not a feature of TFDS's own; other classes are not"
                " imported, because a dataset must not choose what code runs"
            )
    try:
        return tfds.builder_from_directory(folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the dataset in {folder} has a feature that needs {error.name}; prepare it without this feature"
        ) from error
    except Exception as error:  # protobuf and TFDS do not document what they raise
        said = " ".join(str(error).split())
        raise InputError(f"the dataset in {folder} cannot be read ({said}); prepare it again") from error


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """The serialised examples of a split, with random access."""
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split=split, deserialize_method=raw)
    except NotImplementedError as error:  # not in ArrayRecord format
        if "tfrecord" not in {form.value for form in builder.info.available_file_formats()}:
            raise InputError(
                f"the dataset in {builder.data_dir} is in neither ArrayRecord nor TFRecord format; convert it with"
                " `tfds convert_format --out_file_format=array_record`"
            ) from error
    except (ValueError, KeyError) as error:
        raise _no_split(builder, split) from error
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        raise _no_split(builder, split) from error
    shards = [Shard(Path(part.filename), part.skip, part.take, part.examples_in_shard) for part in parts]
    if missing := [shard.path for shard in shards if not shard.path.is_file()]:
        raise InputError(
            f"{len(missing)} of the {len(shards)} files of the split {split!r} are missing, the first is {missing[0]};"
            " fetch them again"
        )
    return TFRecords(shards)


def _no_split(builder: tfds.core.DatasetBuilder, split: str) -> InputError:
    known = ", ".join(builder.info.splits) or "none"
    return InputError(f"the dataset in {builder.data_dir} has no split {split!r}; it has {known}")


def _tfds_features() -> set[str]:
    """The names of the classes of TFDS's own features, and their former names."""
    classes = [c for c in vars(tfds.features).values() if isinstance(c, type)]
    features = [c for c in classes if issubclass(c, tfds.features.FeatureConnector)]
    names = {f"{c.__module__}.{c.__name__}" for c in features}
    return names | {alias for c in features for alias in getattr(c, "ALIASES", ())}


def _class_names(value: Any, path: Path) -> Iterator[Any]:
    """Every value in features.json that TFDS may take for the name of a class. Its strings may contain JSON.

    TFDS imports these classes. A name that it does not know can name any module.
    """
    if isinstance(value, list):
        for inner in value:
            yield from _class_names(inner, path)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in ("pythonClassName", "python_class_name") or (key == "type" and "content" in value):
            yield from [inner] if isinstance(inner, str) else ()
        if key in ("json", "content") and isinstance(inner, str):
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} has broken JSON ({error}); prepare the dataset again") from error
        yield from _class_names(inner, path)


def _version_folder(name: str, root: Path) -> Path:
    """The folder with the `dataset_info.json` of the chosen version, or else of the newest."""
    if (root / "dataset_info.json").is_file():
        return root
    name, _, version = name.partition(":")
    pattern = version or "*"
    # NAME/VERSION and NAME/CONFIG/VERSION
    versions = [p.parent for depth in ("", "*/") for p in (root / name).glob(f"{depth}{pattern}/dataset_info.json")]
    configs = sorted({folder.parent for folder in versions})
    if not versions:
        raise InputError(
            f"there is no prepared dataset {name}{':' + version if version else ''} in {root}; the root must"
            " be the folder that TensorFlow Datasets prepared it in"
        )
    if len(configs) > 1:
        names = ", ".join(f"tfds:{folder.relative_to(root)}" for folder in configs)
        raise InputError(f"{root / name} has several configs; set data.source to one of {names}")
    return max(versions, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])


def _features(builder: tfds.core.DatasetBuilder) -> tuple[str, str | None]:
    """The names of the image feature and of the caption. The caption is None if there is none."""
    features = builder.info.features
    images = [name for name, feature in features.items() if type(feature) is tfds.features.Image]
    if "image" not in images and len(images) != 1:
        has = f"several image features ({', '.join(images)}), none named image" if images else "no image feature"
        raise InputError(f"the dataset in {builder.data_dir} has {has}; choose a dataset with one feature named image")
    texts = [name for name in _TEXT_NAMES if name in features and isinstance(features[name], tfds.features.Text)]
    return "image" if "image" in images else images[0], texts[0] if texts else None
