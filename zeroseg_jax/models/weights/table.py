"""Tensors of a weight file <-> our parameters, by a table of names: `load_weights` and `dump_weights`.

A table says for every tensor of a file which parameter it is and how its axes lie. Reading is all or nothing: a
tensor that is missing, left over or of another shape raises, so that no model ever runs with a part of its weights.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import isqrt
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx, traverse_util

from zeroseg_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)


SHOWN = 3
"""How many tensors that do not fit a sentence names, of each kind."""


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
    packed: tuple[str, ...] = ()
    """Attention layers of torch, `MultiheadAttention`, whose files have the projections of queries, keys and values in
    one tensor, `in_proj_*`; the entries have them as `q_proj`, `k_proj` and `v_proj`."""


def affine(theirs: str, ours: str) -> tuple[Entry, Entry]:
    """The two lines of a linear layer."""
    return Entry(f"{theirs}.weight", f"{ours}.kernel", LINEAR), Entry(f"{theirs}.bias", f"{ours}.bias", SAME)


def norm(theirs: str, ours: str) -> tuple[Entry, Entry]:
    """The two lines of a layer norm."""
    return Entry(f"{theirs}.weight", f"{ours}.scale", SAME), Entry(f"{theirs}.bias", f"{ours}.bias", SAME)


def load_weights(make: Callable[[], Model], tensors: dict[str, np.ndarray], table: Table, source: str) -> Model:
    """Builds the model of `make` with the weights of a file, as float32 whatever the file holds.

    Raises InputError, naming `source` and the first tensors that are missing, left over or of another shape; the log
    has all of them.
    """
    abstract = nnx.eval_shape(make)  # no memory and no time for a random start
    weights = {}
    for entry, arrays in match_weights(abstract, tensors, table, source):
        parts = [entry.layout.read(np.asarray(a, np.float32)) for a in arrays]
        # copied: the tensors may be views of a file that somebody writes over later
        weights[entry.ours] = jnp.array(np.stack(parts) if "{layer}" in entry.theirs else parts[0])
    graphdef, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, _nested(weights))
    return nnx.merge(graphdef, state)


def match_weights(
    model: nnx.Module, tensors: dict[str, np.ndarray], table: Table, source: str
) -> list[tuple[Entry, list[np.ndarray]]]:
    """The tensors of each line of the table, where all fit the shapes of `model`, which may be abstract.

    Raises InputError as `load_weights` does; no tensor is read.
    """
    shapes = {path: leaf.shape for path, leaf in flat(nnx.state(model)).items()}
    _check_depth(table, shapes, len(tensors), source)
    left, missing, wrong, matched = _unpacked(tensors, table.packed), [], [], []
    for entry, names in _expand(table, shapes):
        shape = shapes[entry.ours][1:] if "{layer}" in entry.theirs else shapes[entry.ours]
        expected = entry.layout.write(np.broadcast_to(np.float32(0), shape)).shape
        found = [left.pop(name, None) for name in names]
        missing += [name for name, a in zip(names, found, strict=True) if a is None]
        present = [(name, a) for name, a in zip(names, found, strict=True) if a is not None]
        bad = [f"{name} {a.shape} instead of {expected}" for name, a in present if a.shape != expected]
        wrong += bad
        matched.append((entry, [a for _, a in present]))
    left_over = [name for name in left if name not in table.ignored]
    if missing or left_over or wrong:
        lists = {"missing": missing, "left over": left_over, "of another shape": wrong}
        said = "; ".join(f"{what}: {_first(names)}" for what, names in lists.items())
        if max(map(len, lists.values())) > SHOWN:
            logging.info("the weights of %s do not fit: %s", source, lists)
        raise InputError(f"the weights of {source} do not fit its config.json, fetch both again ({said})")
    return matched


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) or "none"


def _check_depth(table: Table, shapes: dict[str, tuple[int, ...]], tensors: int, source: str) -> None:
    """Raises InputError for more layers than the file has tensors, whose names need not be listed then."""
    depth = max((shapes[e.ours][0] for e in table.entries if "{layer}" in e.theirs and e.ours in shapes), default=0)
    if depth > tensors:
        raise InputError(
            f"the config.json of {source} has {depth} layers, its weights only {tensors} tensors; fetch both again"
        )


def dump_weights(model: nnx.Module, table: Table, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The reverse of `load_weights`: the tensors of a file."""
    values = flat(nnx.split(model)[1])
    tensors = {}
    for entry, names in _expand(table, {path: leaf.shape for path, leaf in values.items()}):
        value = np.asarray(values[entry.ours], dtype)
        for name, part in zip(names, value if "{layer}" in entry.theirs else [value], strict=True):
            tensors[name] = np.array(entry.layout.write(part), order="C")  # safetensors wants no views
    return _repacked(tensors, table.packed)


def _unpacked(tensors: dict[str, np.ndarray], packed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors with one for each projection; a packed tensor that is no three equal parts stays as it is."""
    found = dict(tensors)
    for layer, kind in product(packed, ("weight", "bias")):
        whole = found.get(f"{layer}.in_proj_{kind}")
        if whole is not None and whole.ndim and len(whole) % 3 == 0:
            del found[f"{layer}.in_proj_{kind}"]
            found |= {f"{layer}.{x}_proj.{kind}": part for x, part in zip("qkv", np.split(whole, 3), strict=True)}
    return found


def _repacked(tensors: dict[str, np.ndarray], packed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The reverse of `_unpacked`."""
    found = dict(tensors)
    for layer, kind in product(packed, ("weight", "bias")):
        found[f"{layer}.in_proj_{kind}"] = np.concatenate([found.pop(f"{layer}.{x}_proj.{kind}") for x in "qkv"])
    return found


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
