"""A model's folder in Hugging Face form: config.json beside the weights.

Only safetensors files are read; pickles never are.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (teaches numpy, and with it safetensors, the name "bfloat16")
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zeroseg_jax.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises InputError where the file is missing, broken or something else."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}, expected a model's folder in Hugging Face form")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}), fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, fetch it again")
    return content


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """The folder's config.json; raises InputError unless it is of the `model_type`."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        found = config.get("model_type")
        raise InputError(f"{folder / 'config.json'} has model_type {found!r}, expected {model_type!r}")
    return config


def read_tensors(folder: Path, model_class: str = "CLIPModel") -> dict[str, np.ndarray]:
    """All tensors of model.safetensors, or of the parts that model.safetensors.index.json lists, as they are stored.

    Raises InputError where there are none; for a pickle it says how `transformers.<model_class>` converts it.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise InputError(f"{index} has no weight_map, fetch it again")
        files = [folder / part for part in sorted(set(parts.values()))]
    elif (folder / "pytorch_model.bin").is_file() or (folder / "pytorch_model.bin.index.json").is_file():
        raise InputError(
            f"{folder} holds its weights as pytorch_model.bin, a pickle, which is never opened here; convert it once"
            f" with transformers: {model_class}.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    else:
        raise InputError(
            f"{folder} has no model.safetensors; where the checkpoint is published as a pickle only, convert it once"
            f" with transformers: {model_class}.from_pretrained(ID).save_pretrained(FOLDER)"
        )

    tensors = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing though {index.name} lists it, fetch it again")
        try:
            with safe_open(file, framework="np") as content:
                tensors.update({name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{file} is broken or cut short ({error}), fetch it again") from error
    return tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors as `transformers` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
