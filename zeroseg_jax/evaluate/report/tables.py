"""What an evaluation shows: a table on the terminal and in Markdown, classes in CSV, and a gallery of images."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from zeroseg_jax import draw
from zeroseg_jax.evaluate.benchmarks import Example
from zeroseg_jax.evaluate.counts import ClassRow

TITLE = "this model"
SWEEP = "threshold_sweep.png"


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and the rows of the model, those it is compared with and the baselines, best first.

    Figures are percent; the interval of a row's mIoU follows it in brackets, as does that of the difference to the
    model's.
    """
    groups = list(results["groups"])
    keys = ["pixel_accuracy", "frequency_weighted_iou", "boundary_iou"]
    titles = ["", "mIoU", "difference", *groups, "pixel accuracy", "fwIoU", "boundary IoU", "variant"]
    ours = {**results, **results["groups"]}
    every = {TITLE: ours, **results["compare"], **results["baselines"]}
    rows = []
    for name, row in sorted(every.items(), key=lambda item: -item[1]["miou"]):
        gap = row.get("difference")
        rows.append(
            [
                name,
                f"{percent(row['miou'])} {span(row['interval'])}",
                f"{percent(gap['miou'], '+')} {span(gap['interval'], '+')}" if gap else "",
                *(percent(row[key]) for key in (*groups, *keys)),
                row.get("variant", ""),
            ]
        )
    return titles, rows


def percent(x: float | None, sign: str = "") -> str:
    """One decimal; "-" where there is none."""
    return "-" if x is None else f"{100 * x:{sign}.1f}"


def span(interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]"


def headline(results: Mapping[str, Any]) -> str:
    return f"{results['images']} images of {results['dataset']}, {results['split']}"


def print_table(results: Mapping[str, Any]) -> None:
    """The table on the terminal, which has no room for all columns, and the IoU of each class."""
    titles, rows = table(results)
    kept = [i for i, title in enumerate(titles) if title not in ("fwIoU", "boundary IoU", "variant")]
    printed = Table(title=f"{headline(results)}; percent")
    for title in (titles[i] for i in kept):
        printed.add_column(title, justify="right" if title else "left", no_wrap=title == "difference")
    for row in rows:
        cells = [row[0], row[1].partition(" ")[0], *row[2:]]  # the interval of the mIoU is in the files
        # a name may hold square brackets, which rich would take for a style
        printed.add_row(*(cells[i].replace("[", r"\[") for i in kept), style="bold" if row[0] == TITLE else "")
    console = Console()
    console.print(printed)
    iou = ", ".join(f"{name} {'-' if x is None else f'{100 * x:.0f}'}" for name, x in results["iou"].items())
    console.print(f"IoU: {iou}", highlight=False, markup=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The table, the classes that are mistaken most, and what the figures depend on."""
    titles, rows = table(results)
    level = results["settings"]["interval"]["level"]
    lines = [f"# {escape(headline(results))}", "", *_markdown_table(titles, rows), ""]
    lines += [
        f"All in percent. In brackets: {level:.0%} intervals of the mIoU, and of its difference to that of {TITLE}, by"
        " bootstrap over the images, which is paired for the differences.",
        "",
        "## Mistaken most",
        "",
        *_markdown_table(
            ["truth", "taken for", "of its pixels", "of all pixels"],
            [
                [p["truth"], p["prediction"] or "no class", percent(p["share"]), percent(p["share_of_all"])]
                for p in results["confused"]
            ],
        ),
        "",
        "## Settings",
        "",
    ]
    lines += [f"- {escape(name)}: {escape(str(value))}" for name, value in results["settings"].items()]
    return "\n".join(lines) + "\n"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---" if title in ("", "variant", "truth", "taken for") else "---:" for title in titles]
    cells = [titles, align, *([escape(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def escape(text: str) -> str:
    """Text of users, which Markdown is to show as it is."""
    for character in "\\`*_<>|[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def write_classes(rows: Sequence[ClassRow], path: Path) -> None:
    """One line a class, shares in [0, 1]; what is not known is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(ClassRow._fields)
        writer.writerows(rows)


def gallery(
    shown: Sequence[Example],
    predictions: Mapping[str, Sequence[np.ndarray]],
    segments: Sequence[np.ndarray] | None,
    classes: Sequence[str],
) -> Image.Image:
    """One image a row: image, truth, the model's prediction and segments, if it has any, and the others'; a legend.

    `predictions` begins with the model's, under "model". The legend has the classes that occur.
    """
    titles = ["image", "truth", "prediction", *(["segments"] if segments else []), *list(predictions)[1:]]
    rows, used = [], set[int]()
    for i, example in enumerate(shown):
        maps = [maps[i] for maps in predictions.values()]
        truth = true_classes(example, len(classes))
        used |= {int(value) for m in (truth, *maps) for value in np.unique(m) if value >= 0}
        prediction, *others = [draw.paint(m, len(classes)) for m in maps]
        pictures = [draw.paint(truth, len(classes)), prediction]
        if segments:
            pictures.append(draw.paint(segments[i], int(segments[i].max()) + 1))
        rows.append([example.image, *pictures, *others])
    colours = draw.palette(len(classes))
    entries: list[tuple[str, tuple[int, ...]]] = [(classes[c], tuple(colours[c].tolist())) for c in sorted(used)]
    if any((example.mask >= len(classes)).any() for example in shown):
        entries.append(("does not count", draw.NOTHING))
    return draw.gallery(titles, rows, entries)


def true_classes(example: Example, classes: int) -> np.ndarray:
    """The mask, with -1 for what does not count."""
    return np.where(example.mask < classes, example.mask.astype(np.int32), -1)
