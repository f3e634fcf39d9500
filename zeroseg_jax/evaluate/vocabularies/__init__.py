"""What a benchmark's classes are called and how its protocol asks for them: one TOML file for each of both beside this.

# whatever is worth telling about the protocol
dataset = "voc"                # the benchmark; left out, the file fits any with as many classes
source = "where it is from"
classes = ["background", ...]  # in the order of the masks' values; no two may be equal
templates = "photo"            # a name in `prompts.TEMPLATES` or a list; left out, the model's own
normalise_prompts = true       # every prompt's embedding gets unit length before the mean over the templates
background = 0.95              # a threshold, or the phrases of the class "background"; left out, no such class
combine = "max"                # or "mean": how the scores of a class with several phrases become one
short_side = 448               # the image's size at inference; long_side is its limit; 0: the model's own
long_side = 2048
window = 448                   # sides and distances of the sliding windows; 0: the whole image
stride = 224
top_classes = 5                # the likeliest classes of the image, which alone count; 0: all do
rule = "groupvit"              # how classes score and where the background is; left out, as usual (`Options.rule`)

[aliases]                      # what is asked instead of a class's name
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
from zeroseg_jax.segment.options import Rule
from zeroseg_jax.segment.prompts import check_background, check_labels, resolve_templates

Combine = Literal["max", "mean"]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The classes of a benchmark and how a protocol asks for them."""

    name: str
    classes: tuple[str, ...]
    """In the order of the masks' values."""
    phrases: tuple[tuple[str, ...], ...]
    """What is asked for each class: its aliases, or else its name."""
    combine: Combine = "max"
    """How several phrases of one class compete: "max": each by itself, and the best one speaks for its class; "mean":
    as the (unit) mean of their embeddings, as if the phrases were further templates. Where probabilities count, "max"
    has a drawback: phrases that mean the same share a probability, so that fewer pixels reach a threshold."""
    templates: tuple[str, ...] | None = None
    """None: the model's own."""
    normalise_prompts: bool = True
    """Whether every prompt's embedding gets unit length before the mean over the templates, as CLIP's authors do."""
    background: float | tuple[str, ...] | None = None
    """How pixels become the class "background": a threshold or phrases, as in `prompts.Background`."""
    short_side: int = 0
    """Pixels of the image's shorter side at inference; 0: the model's own."""
    long_side: int = 0
    """Pixels that the longer side may have at most; 0: no limit."""
    window: int = 0
    """Side of the sliding windows; 0: the whole image at once."""
    stride: int = 0
    top_classes: int = 0
    """Only so many classes, the image's likeliest, score anything; 0: all."""
    rule: Rule = ""
    """Of whom the scores and the background are: `Options.rule`."""
    dataset: str = ""
    """The benchmark that it was made for; "" fits any with as many classes."""
    source: str = ""

    def __post_init__(self) -> None:
        check_labels(self.classes, "class")
        check_labels([phrase for phrases in self.phrases for phrase in phrases], "phrase")


def names() -> list[str]:
    """The vocabularies that are shipped."""
    return sorted(path.name.removesuffix(".toml") for path in _shipped().iterdir() if path.name.endswith(".toml"))


def load_vocabulary(name: str) -> Vocabulary:
    """A shipped vocabulary by its name, or that of any other file that ends in .toml.

    Raises:
        InputError: there is none of that name, or it is not written as this module says.
    """
    if name.endswith(".toml"):
        path: Any = Path(name).expanduser()
        if not path.is_file():
            raise InputError(
                f"there is no vocabulary file {path}; give a path that exists, or one of {', '.join(names())}"
            )
    elif name in names():
        path = _shipped() / f"{name}.toml"
    else:
        raise InputError(
            f"there is no vocabulary {name!r}; did you mean {nearest(name, names())!r}? Your own file ends in .toml"
        )
    try:
        return _from_toml(name, tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        raise InputError(f"the vocabulary {path} cannot be used: {error}") from error


def fitting(chosen: str, dataset: str, classes: Sequence[str], default: str = "") -> Vocabulary:
    """The vocabulary `chosen` ("" is the `default`) for masks of the benchmark `dataset` with these classes.

    Without any name it asks for the classes by their own names.

    Raises:
        InputError: there is no such vocabulary, or it is made for other masks.
    """
    name = chosen or default
    if not name:
        return Vocabulary("", tuple(classes), tuple((c,) for c in classes))
    found = load_vocabulary(name)
    any_masks = dataset == "folder" or dataset.startswith("tfds:")
    other = found.dataset and found.dataset != dataset and not any_masks
    if other or len(found.classes) != len(classes):
        good = [n for n in names() if load_vocabulary(n).dataset == dataset]
        made = f" and is made for {found.dataset}" if other else ""
        raise InputError(
            f"the vocabulary {name} has {len(found.classes)} classes{made}, but the masks of {dataset} have"
            f" {len(classes)}; set eval.vocabulary to {', '.join(good) or 'a file with as many, or leave it empty'}"
        )
    return found


def _shipped() -> Any:
    return resources.files(__name__)


def _from_toml(name: str, values: Mapping[str, Any]) -> Vocabulary:
    """Checks the values of a file; raises InputError for the first that is wrong."""
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("dataset", "source", "combine", "rule"), (str,)),
        **dict.fromkeys(("short_side", "long_side", "window", "stride", "top_classes"), (int,)),
        "classes": (list,),
        "aliases": (dict,),
        "templates": (str, list),
        "normalise_prompts": (bool,),
        "background": (float, str, list),
    }
    for key, value in values.items():
        if key not in kinds:
            raise InputError(f"it holds {key!r}; did you mean {nearest(key, kinds)!r}?")
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and bool not in kinds[key]):
            raise InputError(f"{key} is {value!r}, which is no {' or '.join(kind.__name__ for kind in kinds[key])}")
        if isinstance(value, int) and value < 0:
            raise InputError(f"{key} is {value}; it must be at least 0")
    for key, choices in {"combine": get_args(Combine), "rule": get_args(Rule)}.items():
        if values.get(key, choices[0]) not in choices:
            raise InputError(f"{key} is {values[key]!r}; it must be one of {', '.join(filter(None, choices))}")
    classes, aliases = check_labels(values.get("classes", ()), "class"), values.get("aliases", {})
    for key in aliases:
        if key not in classes:
            raise InputError(f"the aliases of {key!r} belong to no class; did you mean {nearest(key, classes)!r}?")
    phrases = tuple(check_labels(aliases.get(name, (name,)), "alias") for name in classes)
    background = values.get("background")
    if background is not None:
        words, threshold = check_background(background)
        background = threshold or words
        if "background" not in classes:
            raise InputError("it has a rule for the background, but no class of that name")
    templates = resolve_templates(values["templates"]) if "templates" in values else None
    plain = {key: values[key] for key in values if key not in ("classes", "aliases", "templates", "background")}
    return Vocabulary(name, classes, phrases, templates=templates, background=background, **plain)
