"""Zero-shot classification of crops of the scenes by a CLIP, beside rules that know colours only."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from zeroseg_jax.data.scenes.categories import COLOURS
from zeroseg_jax.data.scenes.pairs import Pair
from zeroseg_jax.data.scenes.render import MATERIALS, OBJECTS, article
from zeroseg_jax.data.sources.captions import draw_pairs, image_array
from zeroseg_jax.models.clip_encoder import ClipEncoder

TEST_SCENES = 1500
LABELS = [article(name) for name in OBJECTS] + list(MATERIALS)
SMALL, LARGE = 0.15, 0.2
"""Smallest radius of a small and of a large object, as a share of the crop's width."""
CUT, WHOLE = 0.5, 0.9
"""Smallest share inside the crop of a cut and of a whole object."""


def classify_crops(clip: ClipEncoder, config: ConfigDict) -> dict[str, Any]:
    """Accuracies in [0, 1] of zero-shot classification on crops of held-out scenes.

    Objects are classified among all 18 names and among the 12 objects, in groups: `large` objects are whole with a
    radius of at least 0.2 of the crop; `small` objects have a radius of 0.15 to 0.2; of `cut` objects half to nine
    tenths are inside; `unseen` objects are large, in a colour that training did not show them in.
    `colour_and_object` is the accuracy for colour and category together, among 72 pairs. `materials` are classified
    among 18 names. `colour_rules` are the accuracies of `colour_rules`.

    Returns {} for a CLIP that is trained on anything but the scenes.
    """
    if config.data.source != "scenes":
        return {}
    seen, unseen = (draw_pairs(range(TEST_SCENES), s, config.image_size) for s in ("pairs_test", "pairs_composition"))
    whole = [p for p in seen if p.target and p.visible >= WHOLE]
    large = [p for p in whole if p.radius >= LARGE]
    objects = {
        "large": large,
        "small": [p for p in whole if SMALL <= p.radius < LARGE],
        "cut": [p for p in seen if p.target and CUT <= p.visible < WHOLE and p.radius >= LARGE],
        "unseen": [p for p in unseen if p.target and p.visible >= WHOLE and p.radius >= LARGE],
    }
    report: dict[str, Any] = {}
    for name, crops in objects.items():
        truth = [OBJECTS.index(p.target.name) for p in crops if p.target]
        scores = _scores(clip, crops, LABELS)
        report[name] = {
            "of_18": float(np.mean(scores.argmax(1) == truth)),
            "of_12": float(np.mean(scores[:, : len(OBJECTS)].argmax(1) == truth)),
            "crops": len(crops),
        }
        if name in ("large", "unseen"):
            report[name]["colour_and_object"] = _colour_accuracy(clip, crops)
    materials = [p for p in seen if p.target is None and p.name]
    predicted = _scores(clip, materials, LABELS).argmax(1)
    report["materials"] = {
        "of_18": float(np.mean([LABELS[i] == p.name for i, p in zip(predicted, materials, strict=True)]))
    }
    report["colour_rules"] = colour_rules(large, draw_pairs(range(TEST_SCENES), "pairs", config.image_size))
    return report


def _scores(clip: ClipEncoder, crops: list[Pair], labels: list[str]) -> np.ndarray:
    return clip.encode_image(image_array(crops)) @ clip.encode_text(labels).T


def _colour_accuracy(clip: ClipEncoder, crops: list[Pair]) -> float:
    """Share of crops whose colour and category are both right, among all pairs."""
    pairs = [(colour, name) for colour in COLOURS for name in OBJECTS]
    predicted = _scores(clip, crops, [article(f"{colour} {name}") for colour, name in pairs]).argmax(1)
    correct = [pairs[i] == (p.target.colour, p.target.name) for i, p in zip(predicted, crops, strict=True) if p.target]
    return float(np.mean(correct))


def colour_rules(test: list[Pair], train: list[Pair]) -> dict[str, float]:
    """Accuracy among 12 objects of rules that see colours only, fitted to labelled training crops.

    `nearest_mean`: the category with the nearest mean colour. `histogram`: a vote of the 15 training crops with the
    largest histogram intersection. `privileged`: the category most often drawn in the object's true colour.
    """
    train = [p for p in train if p.target and p.name]
    truth = np.array([OBJECTS.index(p.target.name) for p in test if p.target])
    labels = np.array([OBJECTS.index(p.target.name) for p in train if p.target])
    means, test_means = (image_array(x).mean((1, 2)) for x in (train, test))
    centres = np.stack([means[labels == i].mean(0) for i in range(len(OBJECTS))])
    nearest = np.linalg.norm(test_means[:, None] - centres, axis=-1).argmin(1)
    histograms, test_histograms = (np.stack([_histogram(p.image) for p in x]) for x in (train, test))
    votes = np.zeros((len(test), len(OBJECTS)))
    for i, histogram in enumerate(test_histograms):
        close = np.argpartition(-np.minimum(histogram, histograms).sum(1), 15)[:15]
        votes[i] = np.bincount(labels[close], minlength=len(OBJECTS))
    colours = list(COLOURS)
    counts = np.zeros((len(colours), len(OBJECTS)))
    for p in train:
        if p.target:
            counts[colours.index(p.target.colour), OBJECTS.index(p.target.name)] += 1
    privileged = np.array([counts[colours.index(p.target.colour)].argmax() for p in test if p.target])
    predictions = {"nearest_mean": nearest, "histogram": votes.argmax(1), "privileged": privileged}
    return {name: float(np.mean(predicted == truth)) for name, predicted in predictions.items()}


def _histogram(image: np.ndarray) -> np.ndarray:
    """Shares of 4 x 4 x 4 RGB bins, float32 (64,)."""
    levels = image.reshape(-1, 3).astype(np.int64) // 64
    counts = np.bincount(levels @ np.array([16, 4, 1]), minlength=64)
    return (counts / counts.sum()).astype(np.float32)
