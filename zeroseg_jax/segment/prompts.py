"""From labels to text embeddings: templates, checks and the ensemble of prompts."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
from jaxtyping import Float

from zeroseg_jax.data.text import is_text
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.segment.options import plain

IMAGENET80: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""The eighty prompts that OpenAI evaluated CLIP on ImageNet with.

From `notebooks/Prompt_Engineering_for_ImageNet.ipynb` of https://github.com/openai/CLIP (MIT licence, copyright (c)
2021 OpenAI)."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    # These seven are about as good as the eighty, as the same notebook of OpenAI says.
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "imagenet80": IMAGENET80,
}
"""Sets of templates by name. GroupViT and SegCLIP use "photo"."""

Templates = str | Iterable[str]
"""A name in `TEMPLATES`, or templates with `{}` in the place of the label."""

Background = None | float | np.number | str | Iterable[str | float]
"""None: every pixel gets a label. A float: pixels whose best label is less probable than that are background (softmax
of CLIP's logit scale x cosine over the labels). Text: phrases that compete with the labels for the background's
pixels. Both together: a list of phrases and one number."""


def resolve_templates(templates: Templates) -> tuple[str, ...]:
    """The templates. Raises InputError for an unknown name and for a template without `{}`."""
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            raise InputError(f"there are no templates {templates!r}; use {', '.join(TEMPLATES)}, or a list of your own")
        templates = (templates,)
    if not isinstance(templates, Iterable):
        raise InputError(f"the templates are {templates!r}; use {', '.join(TEMPLATES)}, or a list of your own")
    chosen = tuple(templates)
    if not chosen:
        raise InputError('the list of templates is empty; ("{}",) uses the labels as they are')
    for template in chosen:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"the template {template!r} must have one {{}}, where the label goes, as 'a photo of a {{}}.'"
            )
    return chosen


def reusable(words: Any) -> Any:
    """A list in place of an iterator, which can be read only once. Everything else is returned unchanged."""
    return list(words) if isinstance(words, Iterator) else words


def check_labels(labels: Iterable[str], what: str = "label") -> tuple[str, ...]:
    """The labels as a tuple. Raises InputError unless they are different texts, and none is empty."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise InputError(f"the {what}s are {labels!r}, expected a list of texts; put a single one in a list")
    names = tuple(labels)
    if not names:
        raise InputError(f"the list of {what}s is empty; give at least one")
    earlier: set[str] = set()
    for label in names:
        if not isinstance(label, str):
            raise InputError(f"the {what} {label!r} is not a text; every {what} is a text")
        if not label.strip():
            raise InputError(f"the {what} {label!r} is empty; every {what} needs a name")
        if not is_text(label):
            raise InputError(f"the {what} {label!r} has bytes that are not UTF-8; type it again")
        if label.strip() in earlier:
            raise InputError(f"the {what} {label!r} is there twice; give each {what} once")
        earlier.add(label.strip())
    return names


def parse_background(text: str | None) -> float | list[str] | None:
    """A background as a command line gives it. A number is a threshold, everything else are phrases."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return [phrase.strip() for phrase in text.split(",")]


def check_background(background: Any) -> tuple[tuple[str, ...], float]:
    """The phrases for background, and the threshold (0: none). Raises InputError for anything else."""
    background = plain(background)
    if isinstance(background, Iterable) and not isinstance(background, str | bytes):
        background = [plain(part) for part in background]
        numbers = [part for part in background if isinstance(part, float | int)]
        phrases = [part for part in background if not isinstance(part, float | int)]
        if numbers and (len(numbers) > 1 or not phrases):
            raise InputError(f"the background is {background!r}; a list has phrases and at most one threshold")
        threshold = check_background(numbers[0])[1] if numbers else 0.0
        return check_labels(phrases, "background phrase"), threshold
    if background is None:
        return (), 0.0
    if isinstance(background, float | int):
        if isinstance(background, bool) or not 0 < background < 1:
            said = "it must be a number between 0 and 1, or text"
            raise InputError(f"the background's threshold is {background!r}; {said}")
        return (), float(background)
    return check_labels((background,) if isinstance(background, str) else background, "background phrase"), 0.0


def embed_prompts(
    clip: DualEncoder, labels: Sequence[str], templates: Sequence[str], normalise: bool = True
) -> Float[np.ndarray, "c d"]:
    """The embeddings of labels by CLIP's ensemble of prompts, float32 and of unit length.

    Each prompt has unit length. The mean over the templates is brought to unit length again.

    Without `normalise` the mean is that of the embeddings as they come, as in GroupViT's evaluation.

    Raises InputError for a label that is longer than the text encoder reads.
    """
    context = clip.model.config.text.context
    pairs = [(label, template) for label in labels for template in templates]
    prompts = [template.replace("{}", label.strip()) for label, template in pairs]
    for (label, template), tokens in zip(pairs, clip.token_counts(prompts), strict=True):
        if tokens > context:
            bare = "" if template == "{}" else ", or take templates='name', which adds no words"
            raise InputError(
                f"the label {shorten(label, 60, placeholder=' ...')!r} in the template {template!r} has {tokens} tokens"
                f" with those of start and end, but the text encoder takes {context}; shorten it{bare}"
            )
    embeddings = clip.encode_text(prompts, normalise=normalise).reshape(len(labels), len(templates), -1)
    mean = embeddings.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
