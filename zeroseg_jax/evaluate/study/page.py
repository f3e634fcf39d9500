"""The rating page of a study, and the key that says which model is on which side."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroseg_jax.data.image_like import to_pixels
from zeroseg_jax.draw import overlay
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.report.page import jpeg_uri, template_environment
from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.segment.input_files import find_images
from zeroseg_jax.segment.io import load
from zeroseg_jax.segment.prompts import Background
from zeroseg_jax.segment.segmenter import Segmenter

SIDE = 720
"""Longer side of the pictures, in pixels."""
MOST_LISTED = 24
"""The most labels that the page lists and that `draw.palette` can tell apart. Of a longer list, the page has the labels
that one of the models used."""


def make_study(
    models: Mapping[str, str],
    images: str | Path,
    labels: Sequence[str] | Path,
    out: Path,
    *,
    background: Background = None,
    limit: int = 0,
    seed: int = 0,
    raters: int = 5,
) -> int:
    """Writes study.html and key.json into `out`, and returns the number of pairs.

    Args:
        models: the sources of the models "a" and "b", as `zeroseg_jax.load` takes them.
        images: a folder, or one image.
        labels: the labels of all images, or a folder that holds NAME.txt for each image NAME, one label on each line.
        out: the folder, which is made if it does not exist.
        background: the rule for pixels without a label; see `segment.prompts.Background`.
        limit: the number of images, drawn at random; 0 for all.
        seed: for the drawn images, their order and the sides. Each model is on the left in half of the pairs.
        raters: the number of people who will answer; `score` counts their votes out of `raters` x images.

    Raises:
        InputError: a model, an image or a list of labels cannot be used. Labels are checked before images are read.
    """
    if raters < 1:
        raise InputError(f"a study has at least one rater, not {raters}; set --raters")
    rng = np.random.default_rng(seed)
    files, _ = find_images([str(images)])
    if not files:
        raise InputError(f"there are no images in {images}; give a folder that holds some")
    order = rng.permutation(len(files))[: limit or None]
    files = [files[i] for i in order]
    image_labels = [read_labels(labels, name) if isinstance(labels, Path) else list(labels) for _, name in files]
    loaded = {name: load(source) for name, source in models.items()}
    for words in image_labels if isinstance(labels, Path) else image_labels[:1]:
        for model in loaded.values():
            model.check(words, background=background)

    # Balanced; if the number of pairs is odd, the last one falls to either side.
    left = rng.permutation(np.resize(rng.permutation(["a", "b"]), len(files))).tolist()
    trials, bar = list[dict[str, Any]](), ProgressBar("segment", len(files))
    for i, ((path, _), words) in enumerate(zip(files, image_labels, strict=True)):
        trials.append(draw_pair(path, words, loaded, left[i], background))
        bar.update(i + 1)
    bar.close()

    key: dict[str, Any] = {**models, "seed": seed, "background": background, "raters": raters}
    if isinstance(labels, Path):
        pairs = [{"image": name, "labels": words} for (_, name), words in zip(files, image_labels, strict=True)]
    else:
        key["labels"] = list(labels)
        pairs = [{"image": name} for _, name in files]
    key["trials"] = [trial | {"left": side} for trial, side in zip(pairs, left, strict=True)]
    # The id depends on the pictures too, because answers belong to the pictures that were seen.
    study = hashlib.sha256(json.dumps([key, trials]).encode()).hexdigest()[:16]
    page = (
        template_environment()
        .get_template("study.html")
        .render(study=study, trials=trials, many=any(trial["of"] > MOST_LISTED for trial in trials))
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "study.html").write_text(page, encoding="utf-8")
        (out / "key.json").write_text(json.dumps({"study": study} | key, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the study cannot be written to {out} ({error.strerror}); give another --out") from error
    return len(trials)


def draw_pair(
    path: Path, labels: Sequence[str], models: Mapping[str, Segmenter], left: str, background: Background
) -> dict[str, Any]:
    """What the page shows of one image. Only the predictions tell the models apart."""
    pixels, names = to_pixels(path), list(labels)
    maps = {name: model.segment(pixels, labels, background=background).label_map for name, model in models.items()}
    if len(labels) > MOST_LISTED:
        used = np.unique(np.concatenate([label_map.ravel() for label_map in maps.values()]))
        used = used[used >= 0]
        names = [labels[i] for i in used]
        # The indices are into `names` for both models, so a label has the same colour on both sides.
        maps = {name: np.where(m < 0, -1, np.searchsorted(used, m)) for name, m in maps.items()}
    drawn = {name: np.asarray(overlay(pixels, m, names).convert("RGB")) for name, m in maps.items()}
    pictures = {"image": pixels, "left": drawn.pop(left), "right": drawn.popitem()[1]}
    trial = {"labels": names, "of": len(labels)}
    return trial | {name: jpeg_uri(picture, SIDE) for name, picture in pictures.items()}


def read_labels(folder: Path, name: str) -> list[str]:
    """The labels of an image, one on each line of a text file of its name."""
    path = folder / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the labels of {name} cannot be read from {path} ({error}); write one on each line"
        ) from error
    words = [line.strip() for line in text.splitlines() if line.strip()]
    if not words:
        raise InputError(f"{path} holds no labels; write one on each line")
    return words
