"""Finds and reads the files of a model in a local folder or on the hub.

A source is what a user writes: the name of a shipped model ("demo"), a folder, a single weight file, or a hub id
`owner/name[@revision]`. If a local folder has the same name as a shipped model or a hub id, the folder is used.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.weights.hub import HubModel, is_hub_id, open_hub_model
from zeroseg_jax.models.weights.safetensors import read_safetensors
from zeroseg_jax.models.weights.torch_zip import read_torch
from zeroseg_jax.storage import local_copy, to_path

ASSETS = Path(__file__).parents[2] / "assets"
CONFIG, OPENCLIP_CONFIG = "config.json", "open_clip_config.json"
READERS = {".safetensors": read_safetensors, ".bin": read_torch, ".pth": read_torch, ".pt": read_torch}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in Hugging Face form. The first that exists is read, as one file or as parts."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of one model. Files on the hub are fetched when they are needed."""

    path: Path
    """The local folder; for a hub id, a folder of the hub's cache."""
    name: str
    """The source as the user wrote it, for messages."""
    hub: HubModel | None = None
    file: Path | None = None
    """The weight file, if the source is a file."""
    hub_folder: str = ""
    """The folder inside the hub's model, with a slash at its end."""

    def find(self, name: str) -> Path | None:
        """The local path of a file of the model, or None if the model does not have it."""
        if self.hub is not None:
            return self.hub.fetch(self.hub_folder + name)
        return self.path / name if (self.path / name).is_file() else None

    def fetch(self, names: tuple[str, ...]) -> Path:
        """Fetches the files in `names` that the model has, and returns the local folder."""
        for name in names:
            self.find(name)
        return self.path

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file. Raises InputError if the file is missing, broken or not a JSON object."""
        return read_json_object(self.find(name) or self.path / name)

    def sub(self, name: str) -> "ModelFolder":
        """The folder `name` inside this one."""
        return replace(self, path=self.path / name, name=f"{self.name}/{name}", hub_folder=f"{self.hub_folder}{name}/")

    def config(self, *model_types: str) -> dict[str, Any]:
        """The content of config.json. Raises InputError if its `model_type` is not one of `model_types`."""
        config = self.json(CONFIG)
        model_type = config.get("model_type")
        if model_type not in model_types:
            expected = " or ".join(map(repr, model_types))
            raise InputError(f"{self.path / CONFIG} has model_type {model_type!r}, expected {expected}")
        return config

    def has_weights(self) -> bool:
        """Whether the model has weights in Hugging Face form, or the source is a file. Fetches nothing."""
        names = (name + end for name in WEIGHTS for end in ("", ".index.json"))
        return self.file is not None or any(self._has(name) for name in names)

    def tensors(self, names: tuple[str, ...] = WEIGHTS) -> dict[str, np.ndarray]:
        """All tensors of the weights, in their stored dtypes: of the user's file, or of the first file of `names`.

        Raises InputError if there are no weights, or if they are broken or contain anything but tensors.
        """
        if self.file is not None:
            return read_weights(self.file)
        for name in names:
            parts = self._parts(name)
            if parts:
                return {tensor: value for part in parts for tensor, value in read_weights(part).items()}
        if self.hub is not None and not self.hub.reachable:
            raise InputError(
                f"the weights of {self.name} are not in the cache, and the Hugging Face hub is out of reach; try again"
                " with a connection, or give the folder of a downloaded copy"
            )
        raise InputError(f"{self.path} has no weights, expected {' or '.join(names)}, whole or with an index of parts")

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file() if self.hub is None else self.hub.has(self.hub_folder + name)

    def _parts(self, name: str) -> list[Path]:
        """The weight file `name`, or the files that its index lists; empty if there is neither."""
        whole = self.find(name)
        if whole is not None:
            return [whole]
        index = self.find(f"{name}.index.json")
        if index is None:
            return []
        weight_map = read_json_object(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or not all(isinstance(part, str) and Path(part).name == part for part in names):
            raise InputError(f"{index} has no weight_map that names files of its folder, fetch it again")
        parts = {part: self.find(part) for part in sorted(names)}
        missing = [part for part, path in parts.items() if path is None]
        if missing:
            raise InputError(f"{self.path / missing[0]} is missing though {index.name} lists it, fetch it again")
        return [path for path in parts.values() if path is not None]


def open_folder(source: "str | Path | ModelFolder") -> ModelFolder:
    """The model that `source` means (see the module). For a hub id, only the configuration is fetched.

    Raises InputError if there is no such folder, file or model, or the hub cannot be reached.
    """
    if isinstance(source, ModelFolder):
        return source
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise InputError(f"the model is {source!r}; give its folder, a weight file, or a hub id owner/name")
    name = str(source)
    if "://" in name:
        folder = to_path(name)
        if not folder.is_dir():
            raise InputError(f"there is no folder {name}; check the name of the bucket and your credentials")
        # a workdir may be large, and its files are read from the bucket
        return ModelFolder(folder if (folder / "checkpoints").is_dir() else local_copy(folder), name)
    try:
        path = Path(source).expanduser()
        if name and path.is_dir():
            return ModelFolder(path, name)
        if path.is_file():
            return _folder_of(path)
    except (OSError, ValueError, RuntimeError) as error:  # the name is too long, has a null byte, or an unknown ~user
        raise InputError(
            f"{name!r} is neither a path nor a hub id ({error}), give a model's folder or owner/name"
        ) from error
    if name in shipped():
        return ModelFolder(ASSETS / name, name)
    if not is_hub_id(name):
        raise InputError(
            f"there is no folder {name}, give a model's folder, a weight file, a Hugging Face hub id owner/name, or the"
            f" shipped model {', '.join(shipped())}"
        )
    hub = open_hub_model(name, (CONFIG, OPENCLIP_CONFIG))
    config = hub.fetch(CONFIG) or hub.fetch(OPENCLIP_CONFIG)
    assert config is not None  # `open_hub_model` has checked it
    return ModelFolder(config.parent, name, hub)


def shipped() -> list[str]:
    """The names of the models that this package contains."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / CONFIG).is_file())


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one weight file. The end of its name says its format; InputError for an unknown one."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is not a weight file, known are {', '.join(READERS)}")
    return reader(path)


def _folder_of(path: Path) -> ModelFolder:
    """The model whose weights are the file `path`. Its other files, such as config.json, are in the same folder."""
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path} is a file, expected a model's folder or its weights ({', '.join(READERS)})")
    return ModelFolder(path.parent, str(path), file=path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if the file is missing, broken or not a JSON object."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}, expected a model's folder in Hugging Face form")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}), fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object, fetch it again")
    return content


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors in the form that `transformers` reads.

    Raises InputError for a place that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be written to ({error.strerror}); give another") from error
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
