"""The options of inference: how an image goes into the model, and how pixels get their labels.

`Options` is the only list of them. The checks of `change`, the keys `eval.*` of a config, the flags of
`python -m zeroseg_jax.segment` and docs/config.md are made from its fields.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from ml_collections import ConfigDict

from zeroseg_jax.config_ranges import Number, from_zero, whole
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.readouts import READOUTS

Mix = Literal["scores", "embeddings"]
Rule = Literal["", "groupvit", "sclip"]


@dataclass(frozen=True)
class Choice:
    """One of several texts. `empty` says what the empty text means, if it is one of them."""

    names: tuple[str, ...]
    empty: str = "none"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return " or ".join(filter(None, self.names)) + (f", or empty for {self.empty}" if "" in self.names else "")


class Flag:
    """True or False."""

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


Check = Number | Choice | Flag


def _option(default: Any, check: Check, text: str, encodes: bool = False) -> Any:
    """A field of `Options`: its default, the values that it may have, and its description.

    `encodes` marks what counts when an image is encoded. The other options count when it is labelled.
    """
    return dataclasses.field(default=default, metadata={"check": check, "text": text, "encodes": encodes})


class ModelOptions(NamedTuple):
    """The options that the model needs. They are known when it is compiled."""

    readout: str = ""
    """`Options.readout`."""
    rename: bool = False
    """Whether the teacher embeds the segments again."""
    rename_weight: float = 0.0
    rename_margin: float = 0.0


class Labelling(NamedTuple):
    """The options that labelling needs and that are known when it is compiled."""

    mix: Mix = "scores"
    guide: float = 0.0
    top_classes: int = 0
    rule: Rule = ""
    pamr: int = 0


@dataclass(frozen=True)
class Options:
    """How an image goes into the model, and how its segments become the labels of pixels."""

    mix: Mix = _option(  # noqa: RUF009 (it makes a field)
        "scores",
        Choice(get_args(Mix)),
        "What the assignment map mixes for a pixel: the scores of its segments, or (for each patch) their embeddings.",
    )
    scale: float = _option(
        0.0, from_zero(), "Scores are the softmax over the labels of scale x cosine; 0 takes the cosines themselves."
    )
    flip: bool = _option(
        False,
        Flag(),
        "Averages the scores of the image and of its mirror image, at twice the cost. Each window is mirrored by"
        " itself.",
        encodes=True,
    )
    slide: float = _option(
        2.0,
        from_zero(),
        "An image longer than this to 1 is encoded in overlapping square windows, whose scores are averaged. 0: every"
        " image is encoded as a whole. With a `window` it has no effect.",
        encodes=True,
    )
    guide: float = _option(
        2.0,
        from_zero(),
        "Radius, in patches, of the guided filter, which makes the maps follow the edges of the image. 0: no filter.",
    )
    rename: Literal["", "teacher"] = _option(
        "",
        Choice(("", "teacher")),
        '"teacher": the teacher sees the box around each segment, and its embedding is mixed into the segment\'s.'
        " It has no effect on a CLIP or a GroupViT, which have no teacher.",
        encodes=True,
    )
    rename_weight: float = _option(0.6, from_zero(1), "Share of the teacher's embedding.", encodes=True)
    rename_margin: float = _option(
        0.1, from_zero(), "Margin around the box, on each side, as a share of its longer side.", encodes=True
    )
    readout: str = _option(
        "",
        Choice(("", *READOUTS), "the model's default"),
        "How a CLIP gives an embedding for every patch (docs/segmenting.md). Other models have none.",
        encodes=True,
    )
    short_side: int = _option(
        0,
        whole(0),
        "Pixels that the shorter side of the image is resized to. 0: the size that the model was made for.",
        encodes=True,
    )
    long_side: int = _option(
        0, whole(0), "Largest number of pixels of the longer side after that. 0: no limit.", encodes=True
    )
    window: int = _option(
        0,
        whole(0),
        "Side of square windows that slide over the image; their scores are averaged pixel by pixel, and the image is"
        " resized as mmsegmentation does, bilinearly without antialiasing. 0: none.",
        encodes=True,
    )
    stride: int = _option(0, whole(0), "Pixels from one window to the next. 0: half a window.", encodes=True)
    scales: tuple[float, ...] = _option(
        (),
        Number(0, math.inf, above=True, count=(0, 64)),
        "Factors of `short_side`, such as (0.75, 1.0). The image is encoded at each of them, and the scores are"
        " averaged. (): only at 1.",
        encodes=True,
    )
    top_classes: int = _option(
        0,
        whole(0),
        "Number of labels that may win pixels: those that fit the whole image (or window) best. 0: all. Phrases for"
        " background always may.",
    )
    rule: Rule = _option(  # noqa: RUF009
        "",
        Choice(get_args(Rule)),
        '"groupvit" scores as GroupViT\'s authors do in their evaluation (`labelling.groupvit_background`): each'
        " pixel (at the image's size in the model) belongs to one segment, and a segment as a whole is background or"
        ' not. `mix` and `scale` have no effect then. "sclip" enlarges the cosines to the image\'s size before it takes'
        " the softmax of `scale` x cosine over all prompts. A threshold for background needs this softmax. If `scale`"
        " is 0, CLIP's own is taken.",
    )
    area: float = _option(
        0.0,
        from_zero(1),
        "A label needs more than this share of the pixels. Other labels are left out. Pixels that phrases for"
        " background win do not count. SCLIP and SC-CLIP take 0.1 on VOC. 0: all labels stay.",
    )
    pamr: int = _option(
        0,
        whole(0),
        "Rounds of pixel-adaptive mask refinement (PAMR) at the image's size, which make the scores follow the colours"
        " of the image; NACLIP takes 10. Slow, and needs memory for a map of each label. 0: none.",
    )
    normalise_prompts: bool = _option(
        True,
        Flag(),
        "Whether each prompt of a label gets unit length before the mean over the templates is taken, as CLIP's"
        " authors do.",
    )

    @property
    def of_model(self) -> ModelOptions:
        """The options that the model needs."""
        if not self.rename:
            return ModelOptions(self.readout)
        return ModelOptions(self.readout, True, self.rename_weight, self.rename_margin)

    @property
    def labelling(self) -> Labelling:
        """The options that labelling needs."""
        return Labelling(self.mix, self.guide, self.top_classes, self.rule, self.pamr)


FIELDS = {field.name: field for field in dataclasses.fields(Options)}
"""The fields of `Options` by name."""


def encodes(name: str) -> bool:
    """Whether `name` is an option that counts when an image is encoded."""
    return name in FIELDS and FIELDS[name].metadata["encodes"]


def description(name: str) -> str:
    """What an option does, in a sentence or two."""
    return FIELDS[name].metadata["text"]


def change(options: Options, changes: Mapping[str, Any]) -> Options:
    """`options` with other values for some fields.

    Values of numpy and JAX become those of Python, an int becomes a float where the field is one, and a single number
    a tuple where the field is one. Raises InputError for an unknown field or a value that it cannot have.
    """
    return dataclasses.replace(options, **{name: _checked(name, value) for name, value in changes.items()})


def from_config(group: ConfigDict, default: Options = Options()) -> Options:
    """The options in the group `eval` of a config. A value of None there means the value of `default`."""
    return change(default, {name: group[name] for name in FIELDS if group.get(name) is not None})


def from_text(name: str, text: str) -> Any:
    """Reads the value of an option from the command line, for `change`. "none" is the empty choice."""
    check = FIELDS[name].metadata["check"]
    if isinstance(check, Choice):
        return "" if text == "none" and "" in check.names else text
    if isinstance(check, Number) and check.count:
        return tuple(_number(part) for part in text.split(",") if part.strip())
    return _number(text)


def _number(text: str) -> Any:
    """An int or a float. If the text is neither, the text itself, which `change` then refuses."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(name: str, value: Any) -> Any:
    if name not in FIELDS:
        raise InputError(f"there is no option {name!r}; the options are {', '.join(FIELDS)}")
    check = FIELDS[name].metadata["check"]
    kind: Any = type(FIELDS[name].default)
    value = plain(value)
    if kind is tuple and isinstance(value, int | float | list):
        value = tuple(value) if isinstance(value, list) else (value,)
    if not check.allows(value):
        raise InputError(f"{name} is {value!r}; it must be {check}")
    return tuple(map(float, value)) if kind is tuple else kind(value)


def plain(value: Any) -> Any:
    """Changes numbers, texts and lists of numpy and JAX to those of Python. Other values are not changed."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
