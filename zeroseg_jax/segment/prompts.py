"""From labels to text embeddings: prompt templates, and the checks of what users write."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.dual_encoder import DualEncoder
from zeroseg_jax.segment.imagenet_templates import IMAGENET80

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    # the seven that OpenAI found to do about as well as its eighty ("Prompt_Engineering_for_ImageNet.ipynb")
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
"""Sets of templates by name; "photo" is what GroupViT and SegCLIP segment with."""

Templates = str | Sequence[str]
"""A name in `TEMPLATES`, or templates with a `{}` where the label goes."""


def resolve_templates(templates: Templates) -> tuple[str, ...]:
    """The templates themselves; raises InputError for an unknown name and for a template without its `{}`."""
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            raise InputError(f"there are no templates {templates!r}; use {', '.join(TEMPLATES)}, or a list of your own")
        templates = (templates,)
    found = tuple(templates)
    if not found:
        raise InputError('the list of templates is empty; ("{}",) uses the labels as they are')
    for template in found:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"the template {template!r} must have one {{}}, where the label goes, as 'a photo of a {{}}.'"
            )
    return found


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple; raises InputError unless they are a list of different, non-empty texts."""
    if isinstance(labels, str):
        raise InputError(f"labels are a list of texts, got the single text {labels!r}; put it in a list")
    found = tuple(labels)
    if not found:
        raise InputError("the list of labels is empty; give at least one")
    seen: set[str] = set()
    for label in found:
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"the label {label!r} is empty or no text; every label needs a name")
        if label.strip() in seen:
            raise InputError(f"the label {label!r} is there twice; give each label once")
        seen.add(label.strip())
    return found


def embed_labels(clip: DualEncoder, labels: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "c d"]:
    """CLIP's ensemble of prompts: each at unit length, their mean over the templates, at unit length again; float32.

    Raises InputError for a prompt that is longer than the text encoder reads.
    """
    prompts = [template.replace("{}", label.strip()) for label in labels for template in templates]
    embeddings = clip.encode_text(prompts, truncate=False).reshape(len(labels), len(templates), -1)
    mean = embeddings.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
