"""How the segments of a model become the labels of pixels: the options of `Segmenter.segment`."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from zeroseg_jax.errors import InputError

Mix = Literal["scores", "embeddings"]
Rule = Literal["", "groupvit"]


class Renaming(NamedTuple):
    """How the teacher names segments again: `Options.rename_weight` and `rename_margin`."""

    weight: float
    margin: float


class Labelling(NamedTuple):
    """The fields of `Options` that count when an encoded image is labelled, and are known when that is compiled."""

    mix: Mix = "scores"
    guide: float = 0.0
    top_classes: int = 0
    rule: Rule = ""


@dataclass(frozen=True)
class Options:
    """How segment embeddings become the labels of pixels."""

    mix: Mix = "scores"
    """What a pixel mixes through the assignment map: the scores of its segments, or (at the patches) their
    embeddings."""
    scale: float = 0.0
    """Scores are the softmax over the labels of scale x cosine; 0 takes the cosines themselves."""
    flip: bool = False
    """Averages the scores of the image and of its mirror image (of each window, where there are several), at twice the
    cost."""
    slide: float = 2.0
    """Images longer than this to 1 are encoded in overlapping square windows, whose scores are averaged; 0 encodes
    every image as a whole. A student has few segment tokens: docs/segmenting.md. Without effect with a `window`."""
    guide: float = 2.0
    """Radius, in patches, of the guided filter, which makes the maps follow the edges of the image; 0 for none."""
    rename: Literal["", "teacher"] = ""
    """"teacher" shows the box around each segment to the teacher and mixes its embedding into the segment's. Without
    effect on a CLIP and a GroupViT, which have no teacher."""
    rename_weight: float = 0.6
    """Share of the teacher's embedding, in [0, 1]."""
    rename_margin: float = 0.1
    """Margin around the box, on each side, as a share of its longer side."""
    short_side: int = 0
    """Pixels that the shorter side of the image is resized to; 0: as the model was made for."""
    long_side: int = 0
    """Pixels that the longer side may have then, at most; 0: no limit."""
    window: int = 0
    """Side of the square windows that slide over the image; their scores are averaged pixel by pixel, and the image is
    resized as mmsegmentation does, bilinearly without antialiasing. 0: none."""
    stride: int = 0
    """Pixels from one window to the next; 0: half a window."""
    scales: tuple[float, ...] = ()
    """Factors to `short_side`, at each of which the image is encoded; the scores are averaged. (): at 1 alone."""
    top_classes: int = 0
    """Only so many labels, those that fit the whole image (or window) best, score anything; 0: all. Phrases for
    background always do."""
    rule: Rule = ""
    """"groupvit" scores as GroupViT's authors do in their evaluation (`scoring.score`): each pixel (at the image's
    size in the model) belongs to one segment, and a segment as a whole is background or not. `mix` and `scale` have no
    effect then."""
    normalise_prompts: bool = True
    """Whether each prompt of a label gets unit length before the mean over the templates is taken, as CLIP's authors
    do."""

    @property
    def renaming(self) -> Renaming | None:
        """What it says of renaming."""
        return Renaming(self.rename_weight, self.rename_margin) if self.rename else None

    @property
    def labelling(self) -> Labelling:
        """What it says of labelling."""
        return Labelling(self.mix, self.guide, self.top_classes, self.rule)


ENCODING = (
    *("flip", "slide", "rename", "rename_weight", "rename_margin"),
    *("short_side", "long_side", "window", "stride", "scales"),
)
"""The options that count when an image is encoded; the others count when it is labelled."""

CHOICES = {"mix": get_args(Mix), "rule": get_args(Rule), "rename": ("", "teacher")}


def change(readout: Options, options: Mapping[str, Any]) -> Options:
    """`readout` with other values for some fields; raises InputError for an unknown field or a value it cannot have."""
    return dataclasses.replace(readout, **{name: _checked(name, value) for name, value in options.items()})


def plain(value: Any) -> Any:
    """Numbers, texts and lists of numpy and JAX as those of Python; everything else as it is."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def _checked(name: str, value: Any) -> Any:
    """The value of an option, with an int as a float where it is one."""
    fields = {field.name: field.default for field in dataclasses.fields(Options)}
    if name not in fields:
        raise InputError(f"there is no option {name!r}; the options are {', '.join(fields)}")
    value = plain(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in CHOICES:
        expected = " or ".join(filter(None, CHOICES[name])) + (", or empty for none" if "" in CHOICES[name] else "")
        good = value in CHOICES[name]
    elif isinstance(fields[name], bool):
        good, expected = isinstance(value, bool), "True or False"
    elif isinstance(fields[name], int):
        good, expected = number and isinstance(value, int) and value >= 0, "a whole number of at least 0"
    elif name == "scales":
        value = (value,) if number else value
        good = isinstance(value, tuple | list) and all(type(x) in (int, float) and 0 < x < math.inf for x in value)
        expected = "numbers above 0, such as (0.75, 1.0), or () for the image's own size"
        value = tuple(float(x) for x in value) if good else value
    else:
        most = 1.0 if name == "rename_weight" else math.inf
        good, expected = number and 0 <= value <= most, "a number in [0, 1]" if most == 1 else "a number of at least 0"
        value = float(value) if good else value
    if not good:
        raise InputError(f"{name} is {value!r}; it must be {expected}")
    return value
