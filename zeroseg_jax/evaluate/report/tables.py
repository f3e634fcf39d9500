"""Tables and pictures of results: on the terminal, in Markdown, in CSV, and a gallery of images."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from PIL import Image
from rich.console import Console
from rich.table import Table

from zeroseg_jax import draw
from zeroseg_jax.evaluate.benchmarks import Example
from zeroseg_jax.evaluate.counts import ClassRow
from zeroseg_jax.storage import AnyPath

MODEL_TITLE = "this model"
SWEEP_FILE = "threshold_sweep.png"

METRICS = {"pixel_accuracy": "pixel accuracy", "frequency_weighted_iou": "fwIoU", "boundary_iou": "boundary IoU"}
"""Titles of the columns by the keys of results.json."""
FILES_ONLY = ("fwIoU", "boundary IoU", "variant")
"""Columns for which a terminal is too narrow."""
TEXT_COLUMNS = ("", "variant", "truth", "taken for")


def result_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the main table: the model, the compared models and the baselines, best mIoU first.

    Figures are percent. Intervals follow the mIoU and its difference to the model's, in brackets.
    """
    groups = list(results["groups"])
    titles = ["", "mIoU", "difference", *groups, *METRICS.values(), "variant"]
    model = {**results, **results["groups"]}
    methods = {MODEL_TITLE: model, **results["compare"], **results["baselines"]}
    rows = []
    for name, figures in sorted(methods.items(), key=lambda item: -item[1]["miou"]):
        miou = f"{percent(figures['miou'])} {percent_interval(figures['interval'])}"
        difference = ""
        if "difference" in figures:
            value, interval = figures["difference"]["miou"], figures["difference"]["interval"]
            difference = f"{percent(value, '+')} {percent_interval(interval, '+')}"
        others = [percent(figures[key]) for key in (*groups, *METRICS)]
        rows.append([name, miou, difference, *others, figures.get("variant", "")])
    return titles, rows


def percent(x: float | None, sign: str = "") -> str:
    """A share as percent with one decimal; "-" for None. The sign "+" marks positive values."""
    return "-" if x is None else f"{100 * x:{sign}.1f}"


def percent_interval(interval: Sequence[float], sign: str = "") -> str:
    """An interval as percent, such as "[40.1, 41.9]"."""
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]"


def headline(results: Mapping[str, Any]) -> str:
    return f"{results['images']} images of {results['dataset']}, {results['split']}"


def teacher_line(results: Mapping[str, Any]) -> str:
    """A sentence with the teacher's best baseline and its best training-free readout, in percent.

    It is empty for an evaluation without baselines of the teacher.
    """

    def figures(title: str) -> str:
        row = results["baselines"][title]
        return f"{title}, {percent(row['miou'])} {percent_interval(row['interval'])}"

    best, readout = (results["teacher"].get(key) for key in ("best", "best_readout"))
    if best is None:
        return ""
    line = f"Best mIoU of the teacher without a student: {figures(best)}"
    if readout is not None and readout != best:
        line += f"; best of its training-free readouts: {figures(readout)}"
    return f"{line}."


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the main table without the columns of FILES_ONLY, the IoU of each class, and the teacher's best mIoU."""
    titles, rows = result_table(results)
    columns = [i for i, title in enumerate(titles) if title not in FILES_ONLY]
    table = Table(title=f"{headline(results)}; percent")
    for title in (titles[i] for i in columns):
        table.add_column(title, justify="right" if title else "left", no_wrap=title == "difference")
    for row in rows:
        cells = [row[0], row[1].partition(" ")[0], *row[2:]]  # The interval of the mIoU is in the files only.
        # Square brackets in a name would be a style of rich.
        escaped = (cells[i].replace("[", r"\[") for i in columns)
        table.add_row(*escaped, style="bold" if row[0] == MODEL_TITLE else "")
    console = Console()
    console.print(table)
    iou = ", ".join(f"{name} {'-' if x is None else f'{100 * x:.0f}'}" for name, x in results["iou"].items())
    console.print(f"IoU: {iou}", highlight=False, markup=False)
    if results["teacher"]:
        console.print(teacher_line(results), highlight=False, markup=False)


def results_markdown(results: Mapping[str, Any]) -> str:
    """The content of results.md: the main table, the most confused classes and the settings."""
    titles, rows = result_table(results)
    level = results["settings"]["interval"]["level"]
    confused = [
        [pair["truth"], pair["prediction"] or "no class", percent(pair["share"]), percent(pair["share_of_all"])]
        for pair in results["confused"]
    ]
    lines = [
        f"# {escape_markdown(headline(results))}",
        "",
        *markdown_table(titles, rows),
        "",
        f"All in percent. In brackets: {level:.0%} intervals of the mIoU, and of its difference to that of"
        f" {MODEL_TITLE}, by bootstrap over the images, which is paired for the differences.",
        "",
        *([escape_markdown(teacher_line(results)), ""] if results["teacher"] else []),
        "## Mistaken most",
        "",
        *markdown_table(["truth", "taken for", "of its pixels", "of all pixels"], confused),
        "",
        "## Settings",
        "",
        *(f"- {escape_markdown(name)}: {escape_markdown(str(value))}" for name, value in results["settings"].items()),
    ]
    return "\n".join(lines) + "\n"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table. Columns of TEXT_COLUMNS are aligned to the left, all others to the right."""
    align = ["---" if title in TEXT_COLUMNS else "---:" for title in titles]
    cells = [titles, align, *([escape_markdown(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def escape_markdown(text: str) -> str:
    """A user's text so that Markdown shows it unchanged, on one line."""
    for character in "\\`*_<>|[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def write_class_csv(rows: Sequence[ClassRow], path: AnyPath) -> None:
    """Writes one line for each class. Shares are in [0, 1], and None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(ClassRow._fields)
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def draw_gallery(
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Int32[np.ndarray, "_ _"]]],
    segments: Sequence[Int32[np.ndarray, "_ _"]] | None,
    classes: Sequence[str],
) -> Image.Image:
    """A picture with one row for each example: image, truth, class maps and segments; below them a legend.

    The segments have the mean colour of the image in them, with white lines between.

    Args:
        predictions: the class maps of each method. The first method is the model.
        segments: the model's segment maps; None if its segments are its patches.
        classes: the names of the class indices. The legend has those that occur.
    """
    titles = ["image", "truth", "prediction", *(["segments"] if segments else []), *list(predictions)[1:]]
    rows, used = [], set[int]()
    for i, example in enumerate(examples):
        class_maps = [maps[i] for maps in predictions.values()]
        truth = class_map_of_truth(example, len(classes))
        used |= {int(value) for class_map in (truth, *class_maps) for value in np.unique(class_map) if value >= 0}
        prediction, *others = [draw.paint(class_map, len(classes)) for class_map in class_maps]
        pictures = [draw.paint(truth, len(classes)), prediction]
        if segments:
            pictures.append(draw.paint_segments(example.image, segments[i]))
        rows.append([example.image, *pictures, *others])
    colours = draw.palette(len(classes))
    legend: list[tuple[str, tuple[int, ...]]] = [(classes[c], tuple(colours[c].tolist())) for c in sorted(used)]
    if any((example.mask >= len(classes)).any() for example in examples):
        legend.append(("does not count", draw.NO_LABEL))
    return draw.gallery(titles, rows, legend)


def class_map_of_truth(example: Example, classes: int) -> Int32[np.ndarray, "h w"]:
    """The mask as a class map, with -1 for pixels that do not count."""
    return np.where(example.mask < classes, example.mask.astype(np.int32), -1)
