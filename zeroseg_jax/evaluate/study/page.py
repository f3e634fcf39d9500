"""The rating page of a study, and the key that it must not hold."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.report_page import environment, photograph
from zeroseg_jax.log import ProgressBar
from zeroseg_jax.segment.__main__ import find_images
from zeroseg_jax.segment.images import to_pixels
from zeroseg_jax.segment.loading import load
from zeroseg_jax.segment.prompts import Background
from zeroseg_jax.segment.segmenter import Segmenter

SIDE = 720
"""Longer side of the pictures, in pixels."""


def make(
    models: Mapping[str, str],
    images: str | Path,
    labels: Sequence[str] | Path,
    out: Path,
    *,
    background: Background = None,
    limit: int = 0,
    seed: int = 0,
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

    Raises:
        InputError: a model, image or list of labels that cannot be used; words are checked before any image is read.
    """
    rng = np.random.default_rng(seed)
    files = find_images([str(images)])
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

    names = [name for _, name in files]
    key = {
        **models,
        "seed": seed,
        "background": background,
        "trials": [{"image": n, "labels": w, "left": s} for n, w, s in zip(names, asked, left, strict=True)],
    }
    # of the pictures too: answers belong to what was seen
    study = hashlib.sha256(json.dumps([key, trials]).encode()).hexdigest()[:16]
    page = environment().get_template("study.html").render(study=study, trials=trials)
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
    found = {
        side: np.asarray(model.segment(pixels, labels, background=background).overlay().convert("RGB"))
        for side, model in models.items()
    }
    pictures = {"image": pixels, "left": found.pop(left), "right": found.popitem()[1]}
    return {"labels": list(labels)} | {name: photograph(picture, SIDE) for name, picture in pictures.items()}


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
