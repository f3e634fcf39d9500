"""Vocabularies: the class names, prompts and inference settings of a benchmark under a protocol. One TOML file each.

# comments about the protocol
dataset = "voc"                # the benchmark; left out, any benchmark with as many classes
source = "where the protocol is from"
classes = ["background", ...]  # in the order of the masks' values, all different
templates = "photo"            # a name in `prompts.TEMPLATES` or a list; left out, the model's own
background = 0.95              # a threshold, phrases of the class "background", or a list of both; else no such class
combine = "max"                # or "mean": how the scores of several phrases become the score of their class
short_side = 448               # this and every other option of inference: the fields of `segment.options.Options`
window = 448

[aliases]                      # phrases used instead of a class's name
person = ["person", "people"]
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from zeroseg_jax.config import nearest
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment.options import FIELDS, Options, change
from zeroseg_jax.segment.prompts import check_background, check_labels, resolve_templates

Combine = Literal["max", "mean"]

TYPE_NAMES: dict[type, str] = {
    **{str: "a text", int: "a whole number", float: "a number", bool: "true or false"},
    **{list: "a list", dict: "a table"},
}
"""The types of TOML in messages."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The class names, prompts and inference settings of a benchmark under a protocol."""

    name: str
    classes: tuple[str, ...]
    """In the order of the masks' values."""
    phrases: tuple[tuple[str, ...], ...]
    """The phrases of each class: its aliases, or else its name."""
    combine: Combine = "max"
    """How the phrases of one class are combined. "max": each phrase competes, and the best one decides the class.
    "mean": the class has one embedding, the unit mean over the phrases, as if they were templates. With a threshold,
    phrases that mean the same share a probability under "max", so fewer pixels reach the threshold."""
    templates: tuple[str, ...] | None = None
    """None: the model's own."""
    background: float | tuple[str | float, ...] | None = None
    """How pixels become the class "background": a threshold, phrases or both (`prompts.Background`); None: never."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The options of inference that the protocol sets, by the names of `segment.options.Options`."""
    dataset: str = ""
    """Name of the benchmark; "" fits any with as many classes."""
    source: str = ""

    def __post_init__(self) -> None:
        check_labels(self.classes, "class name")
        check_labels([phrase for phrases in self.phrases for phrase in phrases], "phrase")


def vocabulary_names() -> list[str]:
    """Names of the shipped vocabularies, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in _shipped().iterdir() if path.name.endswith(".toml"))


def load_vocabulary(name: str) -> Vocabulary:
    """A shipped vocabulary by its name, or one from a file whose name ends in .toml.

    Raises:
        InputError: there is no such vocabulary, or the file is not as this module says.
    """
    if name.endswith(".toml"):
        path: Any = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(vocabulary_names())
            raise InputError(f"there is no vocabulary file {path}; give a path that exists, or one of {known}")
    elif name in vocabulary_names():
        path = _shipped() / f"{name}.toml"
    else:
        raise InputError(
            f"there is no vocabulary {name!r}; did you mean {nearest(name, vocabulary_names())!r}?"
            " The name of your own file ends in .toml"
        )
    try:
        return _from_toml(name, tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        raise InputError(f"the vocabulary {path} cannot be used: {error}") from error


def choose_vocabulary(name: str, dataset: str, classes: Sequence[str], default: str = "") -> Vocabulary:
    """The vocabulary `name`, or `default` if that is "", for masks of the benchmark `dataset` with these classes.

    If both are "", the labels are the names of the classes.

    Raises:
        InputError: there is no such vocabulary, or it is for other masks.
    """
    name = name or default
    if not name:
        return Vocabulary("", tuple(classes), tuple((c,) for c in classes))
    vocabulary = load_vocabulary(name)
    any_masks = dataset == "folder" or dataset.startswith("tfds:")
    other_dataset = vocabulary.dataset and vocabulary.dataset != dataset and not any_masks
    if other_dataset or len(vocabulary.classes) != len(classes):
        good = [other for other in vocabulary_names() if load_vocabulary(other).dataset == dataset]
        made = f" and is made for {vocabulary.dataset}" if other_dataset else ""
        raise InputError(
            f"the vocabulary {name} has {len(vocabulary.classes)} classes{made}, but the masks of {dataset} have"
            f" {len(classes)}; set eval.vocabulary to {', '.join(good) or 'a file with as many, or leave it empty'}"
        )
    return vocabulary


def _shipped() -> Any:
    return resources.files(__name__)


def _from_toml(name: str, values: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a file's values. Raises InputError for the first wrong value."""
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("dataset", "source", "combine"), (str,)),
        "classes": (list,),
        "aliases": (dict,),
        "templates": (str, list),
        "background": (float, str, list),
    }
    options = {key: value for key, value in values.items() if key in FIELDS}
    change(Options(), options)  # which checks them
    for key, value in values.items():
        if key in FIELDS:
            continue
        if key not in kinds:
            raise InputError(f"it holds {key!r}; did you mean {nearest(key, [*kinds, *FIELDS])!r}?")
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and bool not in kinds[key]):
            expected = " or ".join(TYPE_NAMES[kind] for kind in kinds[key])
            raise InputError(f"{key} is {value!r}; it must be {expected}")
    if values.get("combine", "max") not in get_args(Combine):
        raise InputError(f"combine is {values['combine']!r}; it must be one of {', '.join(get_args(Combine))}")
    classes, aliases = check_labels(values.get("classes", ()), "class name"), values.get("aliases", {})
    for key in aliases:
        if key not in classes:
            raise InputError(f"the aliases of {key!r} belong to no class; did you mean {nearest(key, classes)!r}?")
    phrases = tuple(check_labels(aliases.get(name, (name,)), "alias") for name in classes)
    background = values.get("background")
    if background is not None:
        words, threshold = check_background(background)
        background = (*words, threshold) if words and threshold else threshold or words
        if "background" not in classes:
            raise InputError("it has a rule for the background, but no class of that name")
    templates = resolve_templates(values["templates"]) if "templates" in values else None
    rest = {key: values[key] for key in ("dataset", "source", "combine") if key in values}
    return Vocabulary(name, classes, phrases, templates=templates, background=background, options=options, **rest)
