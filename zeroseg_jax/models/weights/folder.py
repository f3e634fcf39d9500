"""A model's files, in a folder of this machine or on the hub: configuration, weights, and what lies beside them.

A source is what a user writes: the name of a shipped model ("demo"), a folder, a single weight file, or a hub id
`owner/name[@revision]`. A folder here wins over the other meanings of its name.
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

ASSETS = Path(__file__).parents[2] / "assets"
CONFIG, OPENCLIP_CONFIG = "config.json", "open_clip_config.json"
READERS = {".safetensors": read_safetensors, ".bin": read_torch, ".pth": read_torch, ".pt": read_torch}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in Hugging Face form; the first that is there is read, whole or as the parts of its index."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of one model.

    `path` is its folder (of the hub's cache, for a hub id), `name` what the user called it, and `given` the weight file
    where the user named that. Files on the hub are fetched when they are asked for.
    """

    path: Path
    name: str
    hub: HubModel | None = None
    given: Path | None = None
    below: str = ""
    """The folder within the hub's model, with a slash at its end."""

    def find(self, name: str) -> Path | None:
        """A file of the model, None where it has none."""
        if self.hub is not None:
            return self.hub.fetch(self.below + name)
        return self.path / name if (self.path / name).is_file() else None

    def fetch(self, names: tuple[str, ...]) -> Path:
        """The folder, which then has those of the files `names` that the model has."""
        for name in names:
            self.find(name)
        return self.path

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; raises InputError where the file is missing, broken or something else."""
        return read_json(self.find(name) or self.path / name)

    def sub(self, name: str) -> "ModelFolder":
        """The folder `name` in this one."""
        return replace(self, path=self.path / name, name=f"{self.name}/{name}", below=f"{self.below}{name}/")

    def config(self, *model_types: str) -> dict[str, Any]:
        """The content of config.json; raises InputError unless it is of one of the `model_types`."""
        config = self.json(CONFIG)
        found = config.get("model_type")
        if found not in model_types:
            expected = " or ".join(map(repr, model_types))
            raise InputError(f"{self.path / CONFIG} has model_type {found!r}, expected {expected}")
        return config

    def has_weights(self) -> bool:
        """Whether there are weights in Hugging Face form, or a file that the user gave; nothing is fetched."""
        names = (name + end for name in WEIGHTS for end in ("", ".index.json"))
        return self.given is not None or any(self._has(name) for name in names)

    def tensors(self, names: tuple[str, ...] = WEIGHTS) -> dict[str, np.ndarray]:
        """All tensors of the weights, as they are stored: of the file that the user gave, else of the first of `names`.

        Raises InputError where there are none, and where they are broken or hold anything but tensors.
        """
        if self.given is not None:
            return read_weights(self.given)
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
        return (self.path / name).is_file() if self.hub is None else self.hub.has(self.below + name)

    def _parts(self, name: str) -> list[Path]:
        """The weight file `name`, or the parts that its index lists."""
        whole = self.find(name)
        if whole is not None:
            return [whole]
        index = self.find(f"{name}.index.json")
        if index is None:
            return []
        listed = read_json(index).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) else set()
        if not names or not all(isinstance(part, str) and Path(part).name == part for part in names):
            raise InputError(f"{index} has no weight_map that names files of its folder, fetch it again")
        parts = {part: self.find(part) for part in sorted(names)}
        missing = [part for part, path in parts.items() if path is None]
        if missing:
            raise InputError(f"{self.path / missing[0]} is missing though {index.name} lists it, fetch it again")
        return [path for path in parts.values() if path is not None]


def open_folder(source: "str | Path | ModelFolder") -> ModelFolder:
    """The model that `source` means (see above). Of a hub id, only the configuration is fetched.

    Raises InputError where there is neither such a folder or file nor such a model within reach.
    """
    if isinstance(source, ModelFolder):
        return source
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise InputError(f"the model is {source!r}; give its folder, a weight file, or a hub id owner/name")
    name = str(source)
    try:
        path = Path(source).expanduser()
        if name and path.is_dir():
            return ModelFolder(path, name)
        if path.is_file():
            return _folder_of(path)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a null byte, or of no user (~name)
        raise InputError(f"{name!r} is no path and no hub id ({error}), give a model's folder or owner/name") from error
    if name in shipped():
        return ModelFolder(ASSETS / name, name)
    if not is_hub_id(name):
        raise InputError(
            f"there is no folder {name}, give a model's folder, a weight file, a Hugging Face hub id owner/name, or the"
            f" shipped model {', '.join(shipped())}"
        )
    hub = open_hub_model(name, (CONFIG, OPENCLIP_CONFIG))
    found = hub.fetch(CONFIG) or hub.fetch(OPENCLIP_CONFIG)
    assert found is not None  # as `open_hub_model` saw
    return ModelFolder(found.parent, name, hub)


def shipped() -> list[str]:
    """The names of the models that come with this package."""
    return sorted(folder.name for folder in ASSETS.iterdir() if (folder / CONFIG).is_file())


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one weight file, by its kind."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no weight file, known are {', '.join(READERS)}")
    return reader(path)


def _folder_of(path: Path) -> ModelFolder:
    """The folder around a weight file, whose configuration then is that of the file."""
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path} is a file, expected a model's folder or its weights ({', '.join(READERS)})")
    return ModelFolder(path.parent, str(path), given=path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises InputError where the file is missing, broken or something else."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}, expected a model's folder in Hugging Face form")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}), fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, fetch it again")
    return content


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors as `transformers` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
