"""Hugging Face weight files <-> our parameters: one table of names a model family, and the strict reader and writer.

A table says for every tensor of a file which parameter it is and how its axes lie. Reading is all or nothing: a
tensor that is missing, left over or of another shape raises, so that no model ever runs with a part of its weights.
Only safetensors files are read; pickles never are.
"""

import json
from collections.abc import Callable, Iterator
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp  # also teaches numpy (and with it safetensors) the name "bfloat16"
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zeroseg_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)


class Layout(NamedTuple):
    """How the axes of a file's tensor become those of our parameter, and back."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _patches_to_convolution(kernel: np.ndarray) -> np.ndarray:
    p = isqrt(len(kernel) // 3)
    return kernel.reshape(p, p, 3, -1).transpose(3, 2, 0, 1)


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(np.transpose, np.transpose)
"""torch (out, in) <-> (in, out)"""
PATCHES = Layout(lambda a: a.transpose(2, 3, 1, 0).reshape(-1, len(a)), _patches_to_convolution)
"""torch convolution (out, 3, p, p) <-> matrix over flattened patches (p p 3, out)"""


class Entry(NamedTuple):
    """One line of a table. A name with `{layer}` stands for the tensors of all layers, which we keep as one array."""

    theirs: str
    ours: str
    layout: Layout


class Table(NamedTuple):
    """The names of a model family, and the names in its files that hold no weight."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()


def affine(theirs: str, ours: str) -> tuple[Entry, Entry]:
    """The two lines of a linear layer."""
    return Entry(f"{theirs}.weight", f"{ours}.kernel", LINEAR), Entry(f"{theirs}.bias", f"{ours}.bias", SAME)


def norm(theirs: str, ours: str) -> tuple[Entry, Entry]:
    """The two lines of a layer norm."""
    return Entry(f"{theirs}.weight", f"{ours}.scale", SAME), Entry(f"{theirs}.bias", f"{ours}.bias", SAME)


def encoder_layer(theirs: str, ours: str) -> tuple[Entry, ...]:
    """The lines of a pre-norm block as CLIP and GroupViT name its parts."""
    return (
        *norm(f"{theirs}.layer_norm1", f"{ours}.norm1"),
        *affine(f"{theirs}.self_attn.q_proj", f"{ours}.attention.query"),
        *affine(f"{theirs}.self_attn.k_proj", f"{ours}.attention.key"),
        *affine(f"{theirs}.self_attn.v_proj", f"{ours}.attention.value"),
        *affine(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out"),
        *norm(f"{theirs}.layer_norm2", f"{ours}.norm2"),
        *affine(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1"),
        *affine(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2"),
    )


def text_tower() -> tuple[Entry, ...]:
    """The lines of CLIP's text tower."""
    return (
        Entry("text_model.embeddings.token_embedding.weight", "text_tower.token_embedding", SAME),
        Entry("text_model.embeddings.position_embedding.weight", "text_tower.position_embedding", SAME),
        *encoder_layer("text_model.encoder.layers.{layer}", "text_tower.transformer.blocks"),
        *norm("text_model.final_layer_norm", "text_tower.final_norm"),
    )


CLIP_TABLE = Table(
    entries=(
        Entry("logit_scale", "logit_scale", SAME),
        Entry("vision_model.embeddings.class_embedding", "vision_tower.class_embedding", SAME),
        Entry("vision_model.embeddings.patch_embedding.weight", "vision_tower.patch_embedding.kernel", PATCHES),
        Entry("vision_model.embeddings.position_embedding.weight", "vision_tower.position_embedding", SAME),
        *norm("vision_model.pre_layrnorm", "vision_tower.pre_norm"),  # [sic]
        *encoder_layer("vision_model.encoder.layers.{layer}", "vision_tower.transformer.blocks"),
        *norm("vision_model.post_layernorm", "vision_tower.post_norm"),
        Entry("visual_projection.weight", "visual_projection.kernel", LINEAR),
        *text_tower(),
        Entry("text_projection.weight", "text_projection.kernel", LINEAR),
    ),
    # the numbers 0, 1, 2, ... that files of transformers before 4.31 hold
    ignored=("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
)


def find_folder(source: str | Path) -> Path:
    """The folder itself, or the local copy of a Hugging Face hub id `owner/name`, downloaded where it is not yet.

    Raises InputError where there is neither such a folder nor such a model within reach.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists():
        raise InputError(f"{name} is a file, expected the model's folder with config.json and model.safetensors")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise InputError(f"there is no folder {name}, give a model's folder or a Hugging Face hub id owner/name")

    import huggingface_hub  # half a second that a local folder need not wait for
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    try:
        files = ["*.json", "*.txt", "model*.safetensors", "clip/model*.safetensors"]  # the last one beside our students
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except (HFValidationError, httpx.HTTPError, OSError) as error:  # offline, and not in the cache
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name} is neither a folder here nor a model that could be fetched from the Hugging Face hub ({reason});"
            " check the spelling or give the folder of a downloaded copy"
        ) from error


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


def load_weights(make: Callable[[], Model], tensors: dict[str, np.ndarray], table: Table, source: str) -> Model:
    """Builds the model of `make` with the weights of a file, as float32 whatever the file holds.

    Raises InputError, naming `source` and every tensor that is missing, left over or of another shape.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))  # no memory and no time for a random start
    shapes = {path: leaf.shape for path, leaf in flat(state).items()}
    left, missing, wrong, weights = dict(tensors), [], [], {}
    for entry, names in _expand(table, shapes):
        shape = shapes[entry.ours][1:] if "{layer}" in entry.theirs else shapes[entry.ours]
        expected = entry.layout.write(np.broadcast_to(np.float32(0), shape)).shape
        found = [left.pop(name, None) for name in names]
        missing += [name for name, a in zip(names, found, strict=True) if a is None]
        present = [(name, a) for name, a in zip(names, found, strict=True) if a is not None]
        bad = [f"{name} {a.shape} instead of {expected}" for name, a in present if a.shape != expected]
        wrong += bad
        if not bad and len(present) == len(names):
            parts = [entry.layout.read(np.asarray(a, np.float32)) for _, a in present]
            weights[entry.ours] = jnp.asarray(np.stack(parts) if "{layer}" in entry.theirs else parts[0])
    left_over = [name for name in left if name not in table.ignored]
    if missing or left_over or wrong:
        lists = {"missing": missing, "left over": left_over, "of another shape": wrong}
        said = "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in lists.items())
        raise InputError(f"the weights of {source} do not fit its config.json, fetch both again ({said})")
    nnx.replace_by_pure_dict(state, _nested(weights))
    return nnx.merge(graphdef, state)


def dump_weights(model: nnx.Module, table: Table, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The reverse of `load_weights`: the tensors of a file."""
    values = flat(nnx.split(model)[1])
    tensors = {}
    for entry, names in _expand(table, {path: leaf.shape for path, leaf in values.items()}):
        value = np.asarray(values[entry.ours], dtype)
        for name, part in zip(names, value if "{layer}" in entry.theirs else [value], strict=True):
            tensors[name] = np.array(entry.layout.write(part), order="C")  # safetensors wants no views
    return tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors as `transformers` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flat(state: Any) -> dict[str, Any]:
    """The leaves of a module's state by dotted path; the items of a list are numbered."""
    return {
        ".".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(state)).items()
    }


def _nested(leaves: dict[str, Any]) -> dict[Any, Any]:
    """The reverse of `flat`."""
    paths = {tuple(int(k) if k.isdigit() else k for k in path.split(".")): leaf for path, leaf in leaves.items()}
    return traverse_util.unflatten_dict(paths)


def _expand(table: Table, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[Entry, list[str]]]:
    """The table's lines with the file's names that they stand for; the table must cover the model exactly."""
    ours = {entry.ours for entry in table.entries}
    if ours != set(shapes):
        raise AssertionError(f"the table of names and the model differ in {sorted(ours ^ set(shapes))}")
    for entry in table.entries:
        layered = "{layer}" in entry.theirs
        depth = shapes[entry.ours][0] if layered else 1
        yield entry, [entry.theirs.format(layer=i) for i in range(depth)] if layered else [entry.theirs]
