"""The evaluation of a run that has no masks: a picture of photographs that it did not train on."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from zeroseg_jax import draw
from zeroseg_jax.data.decode import BrokenImage
from zeroseg_jax.data.sources.open import ImageSource
from zeroseg_jax.data.text import numbered_lines, read_text
from zeroseg_jax.segment.prompts import check_labels
from zeroseg_jax.segment.segmenter import Segmenter
from zeroseg_jax.storage import AnyPath, save_picture

LABELS_FILE = "labels.txt"


def read_gallery_labels(config: ConfigDict) -> tuple[str, ...]:
    """The words for the photographs: `config.eval.labels`, with commas between, or the lines of ROOT/labels.txt.

    Returns () where there are neither. Raises InputError for words that cannot be labels.
    """
    if config.eval.labels:
        return check_labels([label.strip() for label in config.eval.labels.split(",")])
    path = Path(config.data.root).expanduser() / LABELS_FILE
    if not path.is_file():
        return ()
    return check_labels([label for _, label in numbered_lines(read_text(path))])


def draw_photo_gallery(model: Segmenter, photographs: ImageSource, labels: tuple[str, ...], path: AnyPath) -> None:
    """Writes a picture with one column for each photograph: the photograph, its segments, and its labels.

    Without labels there is no third row. Photographs that cannot be read are left out.
    """
    images, names = [], []
    for i in range(len(photographs)):
        try:
            images.append(photographs[i]["image"])
        except BrokenImage:
            continue
        names.append(Path(photographs.key(i)).name)
    # without words, any one will do: the segments do not depend on it
    results = model.segment_batch(images, labels or ("anything",))
    rows = [images, [draw.paint_segments(result.image, result.segments) for result in results]]
    legend: list[tuple[str, tuple[int, ...]]] = []
    if labels:
        rows.append([draw.paint(result.label_map, len(labels)) for result in results])
        used = sorted({int(index) for result in results for index in np.unique(result.label_map) if index >= 0})
        legend = [(labels[index], tuple(draw.palette(len(labels))[index].tolist())) for index in used]
    save_picture(draw.gallery(names, rows, legend, cell=192), path)
