"""The report as one HTML page that needs nothing else: tables, curves, and the worst, median and best images."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from zeroseg_jax import draw
from zeroseg_jax.evaluate.benchmarks import Example
from zeroseg_jax.evaluate.counts import ClassRow
from zeroseg_jax.evaluate.report import tables

EACH = 4
"""Images of each kind."""

SIDE = 400
"""Longer side of the pictures in the page; larger ones are made smaller."""


class Seen(NamedTuple):
    """An image as a model sees it."""

    iou: float
    """Mean IoU over the classes in its truth or prediction."""
    prediction: Int32[np.ndarray, "h w"]
    segments: Int32[np.ndarray, "h w"] | None


class Shown(NamedTuple):
    """An image with its truth, as each model sees it, "model" first."""

    example: Example
    seen: Mapping[str, Seen]


def worst_median_best(iou: Float[np.ndarray, " n"]) -> dict[str, list[int]]:
    """Which images the page shows, by their IoU: a few of each kind, none twice; all of them where there are few."""
    order, each = np.argsort(iou, kind="stable"), EACH
    if len(order) <= 3 * each:
        return {"All images, worst first": order.tolist()}
    middle = (len(order) - each) // 2
    groups = {"Worst images": order[:each], "Median images": order[middle:][:each], "Best images": order[::-1][:each]}
    return {title: group.tolist() for title, group in groups.items()}


def write(
    results: Mapping[str, Any],
    rows: Sequence[ClassRow],
    shown: Mapping[str, Sequence[Shown]],
    classes: Sequence[str],
    workdir: Path,
) -> None:
    """Writes report.html into `workdir`, which may hold the picture of the threshold's sweep."""
    titles, table = tables.table(results)
    sweep = workdir / tables.SWEEP
    page = (
        environment()
        .get_template("report.html")
        .render(
            headline=tables.headline(results),
            results=results,
            titles=titles,
            table=table,
            ours=tables.TITLE,
            rows=rows,
            sweep=data_uri(sweep.read_bytes(), "png") if "threshold_sweep" in results else None,
            groups={title: [_cards(each, classes) for each in group] for title, group in shown.items()},
            settings={
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in results["settings"].items()
            },
            percent=tables.percent,
            span=tables.span,
        )
    )
    (workdir / "report.html").write_text(page, encoding="utf-8")


def environment() -> jinja2.Environment:
    """The templates of the pages; names of classes, images and models are text of users and are escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def photograph(pixels: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> str:
    """An image as the address of a picture in the page; small ones stay as they are."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(buffer, "JPEG", quality=88)
    return data_uri(buffer.getvalue(), "jpeg")


def painted(labels: Int32[np.ndarray, "h w"], count: int) -> str:
    """A map in the colours of `draw.palette`, as the address of a picture in the page."""
    step = -(-max(labels.shape) // SIDE)
    buffer = io.BytesIO()
    Image.fromarray(draw.paint(labels[::step, ::step], count)).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "png")


def _cards(shown: Shown, classes: Sequence[str]) -> dict[str, Any]:
    """One image of the page: its pictures with their captions, and the legend of the classes in them."""
    count = len(classes)
    truth = tables.true_classes(shown.example, count)
    pictures = [("image", photograph(shown.example.image)), ("truth", painted(truth, count))]
    for name, seen in shown.seen.items():
        title = "prediction" if name == "model" else name
        pictures.append((f"{title}, IoU {tables.percent(seen.iou)}", painted(seen.prediction, count)))
        if seen.segments is not None:
            title = "segments" if name == "model" else f"segments of {name}"
            pictures.append((title, painted(seen.segments, int(seen.segments.max()) + 1)))
    maps = [truth, *(seen.prediction for seen in shown.seen.values())]
    used = sorted({int(value) for m in maps for value in np.unique(m)})
    colours = [tuple(colour) for colour in draw.palette(count).tolist()]
    legend = [(classes[i] if i >= 0 else "no class", colours[i] if i >= 0 else draw.NOTHING) for i in used]
    return {
        "name": shown.example.name,
        "iou": shown.seen["model"].iou,
        "pictures": pictures,
        "legend": [(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in legend],
    }
