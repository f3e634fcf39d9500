"""Runs rows of the table: what is at hand, how long a row takes, and the report of the rows that are finished."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import open_benchmark
from zeroseg_jax.evaluate.protocol import vocabulary_options
from zeroseg_jax.evaluate.report.tables import markdown_table
from zeroseg_jax.evaluate.reproduce.rows import Row
from zeroseg_jax.evaluate.vocabularies import load_vocabulary
from zeroseg_jax.evaluate.zero_shot import evaluate
from zeroseg_jax.segment.io import load
from zeroseg_jax.segment.options import Options
from zeroseg_jax.segment.windows import lay_out

CLOSE = 0.5
"""Points of mean IoU within which a figure is reproduced."""
EFFICIENCY = 0.4
"""About the share that an image tower reaches of the FLOP/s of a large matrix product."""
STATE = "row.json"
"""File in a row's folder that says that the row is finished, and with which settings."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished row."""

    miou: float
    """In percent."""
    images: int
    seconds: float


def row_config(row: Row, root: Path, folder: str, source: str, limit: int = 0) -> ConfigDict:
    """The config that runs a row: with data in `root / folder`, and weights that `load` takes as `source`."""
    config = default_config()
    options = dict(row.options)
    if "threshold" in options:
        options["background"] = background_with(row.vocabulary, options.pop("threshold"))
    place = root / folder if folder else root
    config.eval.update(dataset=row.data.dataset, root=str(place), split=row.data.split, limit=limit)
    config.eval.update(vocabulary=row.vocabulary, readout=row.readout or None, baselines=(), **options)
    config.model = source
    return config


def background_with(vocabulary: str, threshold: float) -> str:
    """`eval.background` with the phrases of a vocabulary and another threshold."""
    rule = load_vocabulary(vocabulary).background
    phrases = [part for part in rule if isinstance(part, str)] if isinstance(rule, tuple) else []
    return ", ".join([*phrases, str(threshold)])


def find_data(row: Row, root: Path) -> str | None:
    """The folder below `root` that holds the row's data; None if there is none."""
    for folder in row.data.folders:
        if row.data.dataset == "scenes":
            return folder
        config = row_config(row, root, folder, "")
        config.eval.vocabulary = ""
        try:
            if (root / folder).is_dir() and len(open_benchmark(config.eval, probe=False)):
                return folder
        except InputError:
            continue  # The next folder may hold the data; `needs` says what is missing if none does.
    return None


def find_weights(row: Row, root: Path, download: bool) -> str | None:
    """What `load` takes for the row's weights: a folder below `root`, a model in the hub's cache, or, with `download`,
    the hub's id. None if they are not at hand."""
    source = row.weights.source
    for name in filter(None, (row.weights.id, source.rpartition("/")[2])):
        for place in (root / "weights" / name, root / name):
            if place.is_dir() or (place.is_file() and not download):
                return str(place)
    if not source or "/" not in source:
        return source or None
    import huggingface_hub  # imported here, because it takes half a second

    cached = isinstance(huggingface_hub.try_to_load_from_cache(source, "config.json"), str)
    return source if cached or download else None


def needs(row: Row, root: Path, download: bool = False) -> dict[str, str]:
    """What the row lacks, by name, each with a sentence: where it comes from and where to put it. {} if it can run."""
    if row.missing:
        return {"not built": f"{row.method}: {row.missing}"}
    lacking = {}
    if find_weights(row, root, download) is None:
        place = root / "weights" / row.weights.id
        source = row.weights.download or f"huggingface.co/{row.weights.source} (or give --download)"
        lacking[row.weights.id] = f"weights of {row.weights.title} in {place}: {source}"
    if find_data(row, root) is None:
        folder = root / row.data.folders[-1]
        lacking[row.data.id] = f"{row.data.title} in {folder}: {row.data.download}"
    return lacking


def run_row(row: Row, root: Path, out: Path, limit: int = 0, download: bool = False) -> Result:
    """Evaluates a row, and keeps the results in `out / row.name`.

    Raises:
        InputError: the weights or the data are not at hand or cannot be used.
    """
    lacking = needs(row, root, download)
    if lacking:
        raise InputError(f"the row {row.name} cannot run; it needs {'; '.join(lacking.values())}")
    source, data = find_weights(row, root, download), find_data(row, root)
    assert source is not None and data is not None
    start = time.monotonic()
    results = evaluate(load(source), row_config(row, root, data, source, limit), out / row.name)
    assert results is not None
    result = Result(100 * results["miou"], results["images"], time.monotonic() - start)
    state = {"row": row_settings(row, limit), "result": dataclasses.asdict(result), "settings": results["settings"]}
    (out / row.name / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return result


def row_settings(row: Row, limit: int) -> dict[str, Any]:
    """The settings that a finished row must have been run with, to count."""
    keys = ("readout", "vocabulary", "options")
    settings = {"weights": row.weights.id, "data": row.data.id, "limit": limit}
    return settings | {name: getattr(row, name) for name in keys}


def finished(row: Row, out: Path, limit: int = 0) -> Result | None:
    """The result of a row that ran with the same settings before; None if there is none."""
    path = out / row.name / STATE
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return Result(**state["result"]) if state["row"] == row_settings(row, limit) else None
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and the row runs again") from error


def verdict(row: Row, result: Result, limit: int = 0) -> str:
    """Whether the published figure is reproduced; "" for a row without one or for a part of the images."""
    if row.published is None or limit:
        return ""
    return "reproduced" if abs(result.miou - row.published) <= CLOSE else "differs"


TITLES = ("row", "method", "weights", "data", "published", "ours", "difference", "verdict", "images", "source")


def cells(row: Row, result: Result | None, limit: int = 0) -> list[str]:
    """A row of the report."""
    published = "" if row.published is None else f"{row.published:.2f}".rstrip("0").rstrip(".")
    ours = "" if result is None else f"{result.miou:.2f}"
    difference = ""
    if result is not None and row.published is not None and not limit:
        difference = f"{result.miou - row.published:+.2f}"
    said = "" if result is None else verdict(row, result, limit)
    images = "" if result is None else str(result.images)
    return [
        *(row.name, row.method, row.weights.title, row.data.title),
        *(published, ours, difference, said, images, row.source),
    ]


def write_report(rows: Sequence[Row], out: Path, limit: int = 0) -> None:
    """Writes results.md with all finished rows of the table."""
    results = [(row, finished(row, out, limit)) for row in rows]
    table = [cells(row, result, limit) for row, result in results if result is not None]
    lines = ["# Published numbers and ours", "", *markdown_table(TITLES, table), ""]
    part = f" The first {limit} images of each data set only, so there is no verdict." if limit else ""
    lines.append(f"Mean IoU in percent. A figure is reproduced within {CLOSE} points.{part}")
    lines.append("Each row's folder has its full results and settings.")
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def estimated_seconds(row: Row, flops: float, limit: int = 0) -> float:
    """About how long the image tower takes for the row on all devices here, by its FLOPs.

    `flops` are those of one device. Reading and labelling the images come on top.
    """
    options, (height, width) = _options(row), row.data.size
    layout = lay_out(height, width, options.short_side or 224, 16, options)
    share = math.prod(layout.window) / 224**2
    images = min(limit, row.data.images) if limit else row.data.images
    work = images * len(layout) * share * row.weights.gflops * 1e9
    return work / (EFFICIENCY * flops * jax.device_count())


def _options(row: Row) -> Options:
    """The options of inference that the row's vocabulary and its own options give."""
    if not row.vocabulary:
        return Options()
    return vocabulary_options(load_vocabulary(row.vocabulary), row_config(row, Path(), "", ""), Options())
