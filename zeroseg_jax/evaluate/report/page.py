"""The report as one self-contained HTML page: tables, curves, and the worst, median and best images."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from zeroseg_jax import draw
from zeroseg_jax.evaluate.benchmarks import Example
from zeroseg_jax.evaluate.counts import ClassRow
from zeroseg_jax.evaluate.report import tables
from zeroseg_jax.log import read_metrics
from zeroseg_jax.storage import AnyPath

GROUP_SIZE = 4
"""Number of worst, of median and of best images."""

PICTURE_SIDE = 400
"""Longer side of the pictures in the page, in pixels. Larger images are made smaller."""


class ImagePrediction(NamedTuple):
    """The prediction of one model for one image."""

    iou: float
    """Mean IoU over the classes in the image's truth or prediction."""
    class_map: Int32[np.ndarray, "h w"]
    segments: Int32[np.ndarray, "h w"] | None


class ReportImage(NamedTuple):
    """One image of the report."""

    example: Example
    predictions: Mapping[str, ImagePrediction]
    """By the names of the models; "model" is the first."""


def worst_median_best(iou: Float[np.ndarray, " n"]) -> dict[str, list[int]]:
    """Indices of the images in the page by their IoU: GROUP_SIZE of each group, or all if there are few."""
    order = np.argsort(iou, kind="stable")
    if len(order) <= 3 * GROUP_SIZE:
        return {"All images, worst first": order.tolist()}
    middle = (len(order) - GROUP_SIZE) // 2
    return {
        "Worst images": order[:GROUP_SIZE].tolist(),
        "Median images": order[middle : middle + GROUP_SIZE].tolist(),
        "Best images": order[::-1][:GROUP_SIZE].tolist(),
    }


def write_page(
    results: Mapping[str, Any],
    rows: Sequence[ClassRow],
    images: Mapping[str, Sequence[ReportImage]],
    classes: Sequence[str],
    workdir: AnyPath,
    descriptions: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes report.html into `workdir`, and reads the picture of the threshold sweep and metrics.jsonl from there.

    Args:
        results: the content of results.json.
        rows: the figures of each class.
        images: the images of each group, by its title.
        classes: the names of the class indices.
        descriptions: a sentence for rows of the table, by their titles.
    """
    titles, table = tables.result_table(results)
    has_sweep = "threshold_sweep" in results
    settings = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in results["settings"].items()
    }
    html = (
        template_environment()
        .get_template("report.html")
        .render(
            headline=tables.headline(results),
            results=results,
            titles=titles,
            table=table,
            teacher_line=tables.teacher_line(results),
            model_title=tables.MODEL_TITLE,
            rows=rows,
            sweep=data_uri((workdir / tables.SWEEP_FILE).read_bytes(), "png") if has_sweep else None,
            groups={title: [_image_card(image, classes) for image in group] for title, group in images.items()},
            settings=settings,
            descriptions={row[0]: descriptions[row[0]] for row in table if row[0] in descriptions},
            curves=training_curves(workdir / "metrics.jsonl"),
            percent=tables.percent,
            percent_interval=tables.percent_interval,
        )
    )
    (workdir / "report.html").write_text(html, encoding="utf-8")


def training_curves(path: AnyPath) -> str | None:
    """The data URI of a picture with the losses over the steps; None where there are no metrics."""
    if not path.is_file():
        return None
    from matplotlib.figure import Figure

    lines = read_metrics(path)
    names = [name for name in ("loss", "global", "match", "ground", "mae") if lines and name in lines[-1]]
    if len(lines) < 2 or not names:
        return None
    figure = Figure(figsize=(2.6 * len(names), 2.2), layout="constrained")
    for i, name in enumerate(names):
        axis = figure.add_subplot(1, len(names), i + 1)
        axis.plot([line["step"] for line in lines], [line[name] for line in lines], color="#0072b2")
        axis.set(title=name, xlabel="step", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return data_uri(buffer.getvalue(), "png")


def template_environment() -> jinja2.Environment:
    """The HTML templates. Autoescaping is on, because names of classes, images and models are users' text."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, image_format: str) -> str:
    """A picture's bytes as an address inside the page."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_uri(pixels: UInt8[np.ndarray, "h w 3"], side: int = PICTURE_SIDE) -> str:
    """The data URI of an image, made smaller if its longer side exceeds `side`."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(buffer, "JPEG", quality=88)
    return data_uri(buffer.getvalue(), "jpeg")


def label_map_uri(labels: Int32[np.ndarray, "h w"], count: int) -> str:
    """The data URI of a label map in the colours of `draw.palette(count)`."""
    step = -(-max(labels.shape) // PICTURE_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(draw.paint(labels[::step, ::step], count)).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "png")


def _image_card(image: ReportImage, classes: Sequence[str]) -> dict[str, Any]:
    """What the template shows of an image: its pictures with captions, and the legend of the classes in them."""
    count = len(classes)
    truth = tables.class_map_of_truth(image.example, count)
    pictures = [("image", jpeg_uri(image.example.image)), ("truth", label_map_uri(truth, count))]
    for name, prediction in image.predictions.items():
        title = "prediction" if name == "model" else name
        caption = f"{title}, IoU {tables.percent(prediction.iou)}"
        pictures.append((caption, label_map_uri(prediction.class_map, count)))
        if prediction.segments is not None:
            title = "segments" if name == "model" else f"segments of {name}"
            painted = draw.paint_segments(image.example.image, prediction.segments)
            pictures.append((title, jpeg_uri(painted)))
    class_maps = [truth, *(prediction.class_map for prediction in image.predictions.values())]
    used = sorted({int(value) for class_map in class_maps for value in np.unique(class_map)})
    palette = [tuple(colour) for colour in draw.palette(count).tolist()]
    legend = [(classes[i], palette[i]) if i >= 0 else ("no class", draw.NO_LABEL) for i in used]
    return {
        "name": image.example.name,
        "iou": image.predictions["model"].iou,
        "pictures": pictures,
        "legend": [(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in legend],
    }
