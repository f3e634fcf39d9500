"""Converts between the tensors of a weight file and the parameters of our models.

A table lists for each parameter the tensor of the file and the layout of its axes. Reading is all or nothing: a tensor
that is missing, unknown or of another shape raises, so no model ever runs with only a part of its weights.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import isqrt
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from flax import nnx, traverse_util

from zeroseg_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)

MAX_NAMED = 3
"""How many tensors an error names, for each kind of mismatch."""
FUSED = re.compile(r"(.*)\.(?:in_proj_|qkv\.)(weight|bias)")
"""Names of tensors that stack the projections of queries, keys and values: torch's `in_proj_weight`, MAE's `qkv`."""


class Layout(NamedTuple):
    """How the axes of a tensor in a file become those of our parameter, and back."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _patches_to_convolution(kernel: np.ndarray) -> np.ndarray:
    p = isqrt(len(kernel) // 3)
    return kernel.reshape(p, p, 3, -1).transpose(3, 2, 0, 1)


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(np.transpose, np.transpose)
"""torch's (out, in) <-> (in, out)"""
PATCHES = Layout(lambda a: a.transpose(2, 3, 1, 0).reshape(-1, len(a)), _patches_to_convolution)
"""torch's convolution (out, 3, p, p) <-> matrix over flattened patches (p p 3, out)"""


class Entry(NamedTuple):
    """One line of a table: the name of a tensor in the file, the path of our parameter, and the layout.

    A name with `{layer}` stands for the tensors of all layers. We keep them as one parameter, stacked on a first axis.
    """

    tensor: str
    parameter: str
    layout: Layout


class Table(NamedTuple):
    """All tensors of a model family."""

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    """Names that files may contain but that are not weights."""
    fused: tuple[str, ...] = ()
    """Attention layers whose projections are written as one tensor, `in_proj_*` (torch's `MultiheadAttention`)."""


def affine(tensor: str, parameter: str) -> tuple[Entry, ...]:
    """The entries of a linear layer."""
    return (
        Entry(f"{tensor}.weight", f"{parameter}.kernel", LINEAR),
        Entry(f"{tensor}.bias", f"{parameter}.bias", SAME),
    )


def norm(tensor: str, parameter: str) -> tuple[Entry, ...]:
    """The entries of a layer norm."""
    return (
        Entry(f"{tensor}.weight", f"{parameter}.scale", SAME),
        Entry(f"{tensor}.bias", f"{parameter}.bias", SAME),
    )


def attention(tensor: str, parameter: str, out: str = "out_proj") -> tuple[Entry, ...]:
    """The entries of an attention layer. `out` is the file's name of the output projection."""
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", out: "out"}
    return tuple(entry for a, b in names.items() for entry in affine(f"{tensor}.{a}", f"{parameter}.{b}"))


def mlp(tensor: str, parameter: str) -> tuple[Entry, ...]:
    """The entries of two linear layers, fc1 and fc2."""
    return *affine(f"{tensor}.fc1", f"{parameter}.fc1"), *affine(f"{tensor}.fc2", f"{parameter}.fc2")


def load_weights(make: Callable[[], Model], tensors: dict[str, np.ndarray], table: Table, source: str) -> Model:
    """Builds the model of `make` with the weights `tensors`, as float32 whatever their dtype.

    Raises InputError if tensors are missing, unknown or of another shape. It names `source` and the first of the
    tensors; the log has all of them.
    """
    abstract = nnx.eval_shape(make)  # shapes only: random weights would cost memory and time
    weights = {}
    for entry, arrays in match_weights(abstract, tensors, table, source):
        parts = [entry.layout.read(np.asarray(a, np.float32)) for a in arrays]
        # copied, because a tensor may be a view of a file that changes later
        weights[entry.parameter] = jax.device_put(np.stack(parts) if "{layer}" in entry.tensor else np.array(parts[0]))
    graphdef, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, _nested(weights))
    return nnx.merge(graphdef, state)


def match_weights(
    model: nnx.Module, tensors: dict[str, np.ndarray], table: Table, source: str
) -> list[tuple[Entry, list[np.ndarray]]]:
    """The tensors of each entry of the table, after a check of all names and shapes.

    `model` may be abstract (`nnx.eval_shape`). The content of the tensors is not read. Raises InputError as
    `load_weights` does.
    """
    shapes = {path: leaf.shape for path, leaf in flat(nnx.state(model)).items()}
    _check_depth(table, shapes, len(tensors), source)
    unused, missing, wrong, matched = split_fused(tensors), [], [], []
    for entry, names in _expand(table, shapes):
        shape = shapes[entry.parameter][1:] if "{layer}" in entry.tensor else shapes[entry.parameter]
        expected = entry.layout.write(np.broadcast_to(np.float32(0), shape)).shape
        present = {name: unused.pop(name) for name in names if name in unused}
        missing += [name for name in names if name not in present]
        wrong += [f"{name} {a.shape} instead of {expected}" for name, a in present.items() if a.shape != expected]
        matched.append((entry, list(present.values())))
    left_over = [name for name in unused if name not in table.ignored]
    if missing or left_over or wrong:
        mismatches = {"missing": missing, "left over": left_over, "of another shape": wrong}
        if max(map(len, mismatches.values())) > MAX_NAMED:
            logging.info("the weights of %s do not fit: %s", source, mismatches)
        details = "; ".join(f"{kind}: {_first(names)}" for kind, names in mismatches.items())
        raise InputError(f"the weights of {source} do not fit its config.json, fetch both again ({details})")
    return matched


def _first(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (", ".join(names[:MAX_NAMED]) + more) or "none"


def _check_depth(table: Table, shapes: dict[str, tuple[int, ...]], tensors: int, source: str) -> None:
    """Raises InputError for a depth above the number of tensors. Without it, the list of names could be endless."""
    layered = [entry.parameter for entry in table.entries if "{layer}" in entry.tensor and entry.parameter in shapes]
    depth = max((shapes[parameter][0] for parameter in layered), default=0)
    if depth > tensors:
        raise InputError(
            f"the config.json of {source} has {depth} layers, its weights only {tensors} tensors; fetch both again"
        )


def dump_weights(model: nnx.Module, table: Table, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The reverse of `load_weights`: the tensors of a weight file, in `dtype`."""
    values = flat(nnx.split(model)[1])
    tensors = {}
    for entry, names in _expand(table, {path: leaf.shape for path, leaf in values.items()}):
        value = np.asarray(values[entry.parameter], dtype)
        for name, part in zip(names, value if "{layer}" in entry.tensor else [value], strict=True):
            tensors[name] = np.array(entry.layout.write(part), order="C")  # safetensors does not take views
    for layer, kind in product(table.fused, ("weight", "bias")):
        tensors[f"{layer}.in_proj_{kind}"] = np.concatenate([tensors.pop(f"{layer}.{x}_proj.{kind}") for x in "qkv"])
    return tensors


def rename(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    """Applies regular expressions and their replacements to a name, one after the other."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def split_fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, with each `FUSED` one split into `q_proj`, `k_proj` and `v_proj`.

    A fused tensor whose length is not divisible by 3 stays as it is.
    """
    split: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        fused = FUSED.fullmatch(name)
        if fused and tensor.ndim and len(tensor) % 3 == 0:
            layer, kind = fused.groups()
            split |= {f"{layer}.{x}_proj.{kind}": part for x, part in zip("qkv", np.split(tensor, 3), strict=True)}
        else:
            split[name] = tensor
    return split


def flat(state: Any) -> dict[str, Any]:
    """The leaves of a module's state by dotted path. The items of a list are numbered."""
    return {
        ".".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(state)).items()
    }


def _nested(leaves: dict[str, Any]) -> dict[Any, Any]:
    """The reverse of `flat`."""
    paths = {tuple(int(k) if k.isdigit() else k for k in path.split(".")): leaf for path, leaf in leaves.items()}
    return traverse_util.unflatten_dict(paths)


def _expand(table: Table, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[Entry, list[str]]]:
    """The entries with the names of their tensors, one for each layer. The table must cover the model exactly."""
    parameters = {entry.parameter for entry in table.entries}
    if parameters != set(shapes):
        raise AssertionError(f"the table of names and the model differ in {sorted(parameters ^ set(shapes))}")
    for entry in table.entries:
        layered = "{layer}" in entry.tensor
        depth = shapes[entry.parameter][0] if layered else 1
        yield entry, [entry.tensor.format(layer=i) for i in range(depth)] if layered else [entry.tensor]
