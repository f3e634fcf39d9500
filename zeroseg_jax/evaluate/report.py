"""What an evaluation shows: a table on the terminal and a gallery of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from zeroseg_jax import draw
from zeroseg_jax.evaluate.benchmarks import Example


def print_table(results: Mapping[str, Any]) -> None:
    """The model and its baselines, best first, and the IoU of each class."""
    groups = list(results["groups"])
    ours = {"miou": results["miou"], "pixel_accuracy": results["pixel_accuracy"], **results["groups"]}
    rows = {"this model": ours, **results["baselines"]}
    table = Table(title=f"{results['images']} images of {results['dataset']}, {results['split']}; percent")
    for name in ("", "mIoU", *groups, "pixel accuracy", "variant"):
        table.add_column(name, justify="left" if name in ("", "variant") else "right")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["miou"]):
        figures = [f"{100 * row[key]:.1f}" for key in ("miou", *groups, "pixel_accuracy")]
        table.add_row(name, *figures, row.get("variant", ""), style="bold" if row is ours else "")
    console = Console()
    console.print(table)
    iou = {name: "-" if x is None else f"{100 * x:.0f}" for name, x in results["iou"].items()}
    console.print("IoU: " + ", ".join(f"{name} {x}" for name, x in iou.items()), highlight=False)


def gallery(
    shown: Sequence[Example],
    predictions: Mapping[str, Sequence[np.ndarray]],
    segments: Sequence[np.ndarray],
    classes: Sequence[str],
) -> Image.Image:
    """One image a row: image, truth, the model's prediction and segments, and the baselines'; with a legend.

    `predictions` begins with the model's, under "model". The legend has the classes that occur.
    """
    titles = ["image", "truth", "prediction", "segments", *list(predictions)[1:]]
    rows, used = [], set[int]()
    for i, example in enumerate(shown):
        maps = [maps[i] for maps in predictions.values()]
        truth = np.where(example.mask < len(classes), example.mask.astype(np.int32), -1)
        used |= {int(value) for m in (truth, *maps) for value in np.unique(m) if value >= 0}
        prediction, *others = [draw.paint(m, len(classes)) for m in maps]
        pictures = [draw.paint(truth, len(classes)), prediction]
        pictures.append(draw.paint(segments[i], int(segments[i].max()) + 1))
        rows.append([example.image, *pictures, *others])
    colours = draw.palette(len(classes))
    entries: list[tuple[str, tuple[int, ...]]] = [(classes[c], tuple(colours[c].tolist())) for c in sorted(used)]
    if any((example.mask >= len(classes)).any() for example in shown):
        entries.append(("does not count", draw.NOTHING))
    return draw.gallery(titles, rows, entries)
