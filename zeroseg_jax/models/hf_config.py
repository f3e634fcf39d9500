"""Reads config.json of Hugging Face models that have an image and a text tower: CLIP, SigLIP and GroupViT."""

from typing import Any

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.layers import ACTIVATIONS

# name of a field in Hugging Face's files -> our name
TOWER_FIELDS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
}
TEXT_FIELDS = TOWER_FIELDS | {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
    "bos_token_id": "start_id",
    "eos_token_id": "end_id",
    "pad_token_id": "pad_id",
}
_FRACTIONS = ("norm_eps", "logit_scale")
_RANGES = {
    "norm_eps": (0, 1),
    **{name: (-1, 2**31 - 1) for name in ("start_id", "end_id", "pad_id")},
    "logit_scale": (-100, 100),
    "image_size": (1, 16384),
    "depth": (1, 4096),
}
"""Least and greatest value of a field. All other sizes are whole numbers from 1 to 2**20."""


def read_section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The section of one tower. Old files repeat it under `*_config_dict`, which then counts, as in transformers.

    Raises InputError if the section is not a dictionary, or images have another number of channels than 3.
    """
    old_section = raw.get(f"{name}_dict")
    section = raw.get(name) if old_section is None else old_section
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise InputError(f"the configuration's {name} is {section!r}, expected a dictionary of sizes")
    if section.get("num_channels", 3) != 3:
        raise InputError(f"the configuration's {name} has num_channels={section['num_channels']}, only 3 is supported")
    return section


def read_fields(section: dict[str, Any], names: dict[str, str], where: str = "") -> dict[str, Any]:
    """The fields of a section that the file contains, under our names.

    Args:
        section: the section of config.json.
        names: Hugging Face's name -> our name.
        where: the name of the section, for errors.

    Raises:
        InputError: a field is not a number in its range, the activation is unknown, images or patches are not square,
            or the width is not divisible by the number of heads.
    """
    prefix = f"the configuration's {where}." if where else "the configuration's "
    fields = {name: section[hf_name] for hf_name, name in names.items() if section.get(hf_name) is not None}
    for name in ("image_size", "patch_size"):  # newer files may contain a pair, but position tables are always square
        if isinstance(fields.get(name), list | tuple):
            if len(fields[name]) == 0 or any(side != fields[name][0] for side in fields[name]):
                raise InputError(f"{prefix}{name} is {fields[name]}, only squares are supported")
            fields[name] = fields[name][0]
    if str(fields.get("activation", "gelu")) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"{prefix}hidden_act is {fields['activation']!r}, known are {known}")
    for name, value in fields.items():
        expected = str if name == "activation" else float | int if name in _FRACTIONS else int
        hf_name = next(key for key, our_name in names.items() if our_name == name)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InputError(f"{prefix}{hf_name} is {value!r}, expected a number")
        least, most = _RANGES.get(name, (1, 2**20))
        if isinstance(value, int | float) and not least <= value <= most:
            raise InputError(f"{prefix}{hf_name} is {value!r}, expected a number from {least:g} to {most:g}")
    heads, width = fields.get("heads"), fields.get("width")
    if heads and width and width % heads:
        raise InputError(f"{prefix}hidden_size is {width}, not divisible by its {heads} attention heads")
    return fields
