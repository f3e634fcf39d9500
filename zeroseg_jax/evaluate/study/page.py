"""The rating page of a study, and the key that it must not hold."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroseg_jax.data.image_like import to_pixels
from zeroseg_jax.draw import overlay
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.report.page import environment, photograph
from zeroseg_jax.progress import ProgressBar
from zeroseg_jax.segment.__main__ import find_images
from zeroseg_jax.segment.loading import load
from zeroseg_jax.segment.prompts import Background
from zeroseg_jax.segment.segmenter import Segmenter

SIDE = 720
"""Longer side of the pictures, in pixels."""
FEW = 24
"""Labels that a page lists, and that `draw.palette` tells apart. Of more, it lists those that either model used."""


def make(
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
        labels: of all images, or a folder with NAME.txt for each image NAME, with one label on each line.
        out: is made where it does not exist.
        background: what gets no label; see `segment.prompts.Background`.
        limit: so many images, drawn at random; 0 for all.
        seed: of the images drawn, their order, and the sides: each model is on the left half of the time.
        raters: how many people shall answer; `score` counts their votes out of `raters` x images.

    Raises:
        InputError: a model, image or list of labels that cannot be used; words are checked before any image is read.
    """
    if raters < 1:
        raise InputError(f"a study has at least one rater, not {raters}; set --raters")
    rng = np.random.default_rng(seed)
    files, _ = find_images([str(images)])
    if not files:
        raise InputError(f"there are no images in {images}; give a folder that holds some")
    order = rng.permutation(len(files))[: limit or None]
    files = [files[i] for i in order]
    asked = [read_labels(labels, name) if isinstance(labels, Path) else list(labels) for _, name in files]
    loaded = {side: load(source) for side, source in models.items()}
    for words in asked if isinstance(labels, Path) else asked[:1]:
        for model in loaded.values():
            model.check(words, background=background)

    # balanced: an odd pair falls to either side
    left = rng.permutation(np.resize(rng.permutation(["a", "b"]), len(files))).tolist()
    trials, bar = list[dict[str, Any]](), ProgressBar("segment", len(files))
    for i, ((path, _), words) in enumerate(zip(files, asked, strict=True)):
        trials.append(draw_pair(path, words, loaded, left[i], background))
        bar.update(i + 1)
    bar.close()

    key: dict[str, Any] = {**models, "seed": seed, "background": background, "raters": raters}
    if isinstance(labels, Path):
        shown = [{"image": name, "labels": words} for (_, name), words in zip(files, asked, strict=True)]
    else:
        key["labels"] = list(labels)
        shown = [{"image": name} for _, name in files]
    key["trials"] = [trial | {"left": side} for trial, side in zip(shown, left, strict=True)]
    # of the pictures too: answers belong to what was seen
    study = hashlib.sha256(json.dumps([key, trials]).encode()).hexdigest()[:16]
    page = (
        environment()
        .get_template("study.html")
        .render(study=study, trials=trials, many=any(trial["of"] > FEW for trial in trials))
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
    """What the page shows of one image; nothing in it tells the models apart but their predictions."""
    pixels = to_pixels(path)
    found = {side: model.segment(pixels, labels, background=background) for side, model in models.items()}
    maps, names = {side: result.label_map for side, result in found.items()}, list(labels)
    if len(labels) > FEW:
        used = np.unique(np.concatenate([found.ravel() for found in maps.values()]))
        used = used[used >= 0]
        names = [labels[i] for i in used]
        # the same name has the same colour on both sides
        maps = {side: np.where(found < 0, -1, np.searchsorted(used, found)) for side, found in maps.items()}
    drawn = {side: np.asarray(overlay(pixels, found, names).convert("RGB")) for side, found in maps.items()}
    pictures = {"image": pixels, "left": drawn.pop(left), "right": drawn.popitem()[1]}
    trial = {"labels": names, "of": len(labels)}
    return trial | {name: photograph(picture, SIDE) for name, picture in pictures.items()}


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
