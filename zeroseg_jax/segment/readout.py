"""How the segments of a model become the labels of pixels: the options of `Segmenter.segment`."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from zeroseg_jax.errors import InputError

Mix = Literal["scores", "embeddings"]


class Renaming(NamedTuple):
    """How the teacher names segments again: `Readout.rename_weight` and `rename_margin`."""

    weight: float
    margin: float


@dataclass(frozen=True)
class Readout:
    """How segment embeddings become the labels of pixels."""

    mix: Mix = "scores"
    """What a pixel mixes through the assignment map: the scores of its segments, or (at the patches) their
    embeddings."""
    scale: float = 0.0
    """Scores are the softmax over the labels of scale x cosine; 0 takes the cosines themselves."""
    flip: bool = False
    """Averages the scores of the image and of its mirror image, at twice the cost."""
    slide: float = 2.0
    """Images longer than this to 1 are encoded in overlapping square windows, whose scores are averaged; 0 encodes
    every image as a whole. A student has few segment tokens: docs/segmenting.md."""
    guide: float = 2.0
    """Radius, in patches, of a filter that makes the maps follow the edges of the image (`guided`); 0 for none."""
    rename: Literal["", "teacher"] = ""
    """"teacher" shows the box around each segment to the teacher and mixes its embedding into the segment's. Without
    effect on a CLIP and a GroupViT, which have no teacher."""
    rename_weight: float = 0.6
    """Share of the teacher's embedding, in [0, 1]."""
    rename_margin: float = 0.1
    """Margin around the box, on each side, as a share of its longer side."""

    @property
    def renaming(self) -> Renaming | None:
        """What it says of renaming."""
        return Renaming(self.rename_weight, self.rename_margin) if self.rename else None


ENCODING = ("flip", "slide", "rename", "rename_weight", "rename_margin")
"""The options that count when an image is encoded; the others count when it is labelled."""


def change(readout: Readout, options: Mapping[str, Any]) -> Readout:
    """`readout` with other values for some fields; raises InputError for an unknown field or a value it cannot have."""
    return dataclasses.replace(readout, **{name: _checked(name, value) for name, value in options.items()})


def _checked(name: str, value: Any) -> Any:
    """The value of an option, with an int as a float where it is one."""
    names = [field.name for field in dataclasses.fields(Readout)]
    if name not in names:
        raise InputError(f"there is no option {name!r}; the options are {', '.join(names)}")
    if name == "flip":
        good, expected = isinstance(value, bool), "True or False"
    elif name == "mix":
        good, expected = value in ("scores", "embeddings"), "scores or embeddings"
    elif name == "rename":
        good, expected = value in ("", "teacher"), "teacher, or empty for none"
    else:
        most = 1.0 if name == "rename_weight" else math.inf
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good, expected = number and 0 <= value <= most, "a number in [0, 1]" if most == 1 else "a number of at least 0"
        value = float(value) if good else value
    if not good:
        raise InputError(f"{name} is {value!r}; it must be {expected}")
    return value
