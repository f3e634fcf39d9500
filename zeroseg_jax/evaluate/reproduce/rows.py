"""The table of published results: published.toml as rows, each with all that is needed to run it."""

import dataclasses
import fnmatch
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a method."""

    id: str
    title: str
    source: str
    """What `zeroseg_jax.load` takes to fetch them; "" if nobody publishes them."""
    gflops: float
    """Cost of one image of 224 x 224 pixels."""
    download: str = ""
    """What to do to get them; "" if they come from the hub."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set."""

    id: str
    title: str
    dataset: str
    """`eval.dataset`."""
    images: int
    """In the split."""
    size: tuple[int, int]
    """Height and width of a typical image."""
    folders: tuple[str, ...]
    """Where it is looked for below the root. The last one is its usual place."""
    download: str
    """Where it comes from; "" for the scenes, which are drawn."""
    split: str = "val"


@dataclasses.dataclass(frozen=True)
class Row:
    """A published result, and how it was measured."""

    name: str
    """METHOD-DATA, such as "sclip-voc21"."""
    method: str
    weights: Weights
    data: Data
    published: float | None
    """Mean IoU in percent; None for a row without a published figure."""
    source: str
    readout: str = ""
    """`Options.readout`; "" for a model that is no CLIP."""
    vocabulary: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the config's group `eval` that differ from the vocabulary's, and `threshold`."""
    missing: str = ""
    """Why the row cannot run in this project; "" if it can."""


def read_rows() -> list[Row]:
    """All rows of published.toml, in its order."""
    text = (resources.files("zeroseg_jax.evaluate.reproduce") / "published.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    weights = {key: Weights(id=key, **values) for key, values in table["weights"].items()}
    data = {
        key: Data(id=key, **values | {"size": tuple(values["size"]), "folders": tuple(values["folders"])})
        for key, values in table["data"].items()
    }
    return [
        _row(method, weights[method["weights"]], data[key], figure)
        for method in table["methods"]
        for key, figure in method["figures"].items()
    ]


def _row(method: dict[str, Any], weights: Weights, data: Data, figure: float) -> Row:
    vocabulary = method.get("vocabulary_of", {}).get(data.id, "")
    if not vocabulary and "vocabulary" in method:
        vocabulary = f"{data.id}_{method['vocabulary']}"
    return Row(
        f"{method['name']}-{data.id}",
        method["title"],
        weights,
        data,
        float(figure) or None,
        method["source"],
        method.get("readout", ""),
        vocabulary,
        method.get("options", {}) | method.get("options_of", {}).get(data.id, {}),
        method.get("missing", ""),
    )


def choose_rows(rows: Sequence[Row], names: str) -> list[Row]:
    """The rows that `names` lists, with commas between and * for any text; "" gives all with a published figure.

    Raises:
        InputError: a name that fits no row.
    """
    if not names.strip():
        return [row for row in rows if row.published is not None]
    patterns = [name.strip() for name in names.split(",") if name.strip()]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in rows):
            near = nearest(pattern, [row.name for row in rows])
            raise InputError(f"there is no row {pattern!r}; did you mean {near!r}? --list shows all")
    return [row for row in rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
