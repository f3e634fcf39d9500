"""Reads OpenCLIP's form of a CLIP: open_clip_config.json, and tensors with OpenAI's names.

Sizes and names are converted to the Hugging Face form, so that one table (`clip.CLIP_TABLE`) serves both forms.
OpenCLIP has many variants of the two towers. Only the variants that `CLIP` implements are read, and an error names any
other setting.
"""

import re
from typing import Any

import numpy as np

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.preprocessing import MEAN, STD, Preprocessing
from zeroseg_jax.models.weights.folder import OPENCLIP_CONFIG, ModelFolder
from zeroseg_jax.models.weights.table import rename

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
END_IS_HIGHEST = 2
"""`TextConfig.end_id` of all these models: the end of a text is its highest token id."""
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's state dicts contain. OpenAI's models have the activation quick_gelu."""

# the known settings and the value that each must have; None allows any value
_EXPECTED = {
    "model_cfg": {"custom_text": None, "quick_gelu": None, "embed_dim": None, "vision_cfg": None, "text_cfg": None},
    "vision_cfg": {"pos_embed_type": "learnable", "pool_type": "tok", "attn_pooler_queries": None}
    | {"attn_pooler_heads": None, "patch_dropout": None, "timm_pool": None, "timm_proj": None, "output_tokens": None}
    | dict.fromkeys(("image_size", "patch_size", "width", "head_width", "layers", "mlp_ratio", "norm_kwargs")),
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear", "pad_id": None, "eos_id": None, "output_tokens": None}
    | {"hf_model_pretrained": None, "hf_pooler_type": None, "hf_proj_type": None, "tokenizer_mode": None}
    | dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs")),
}

# pattern of a name in a file -> name in the table, applied one after the other
_PATTERNS = (
    (r"^module\.", ""),  # distributed training adds this prefix
    (r"^text\.", ""),  # OpenCLIP's models with a separate class for the text tower have this prefix
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # [sic]
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.attn\.(out_proj\.|in_proj_)", r".self_attn.\1"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
_IGNORED = ("attn_mask", *OPENAI_NUMBERS)


def to_hf_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under Hugging Face's names and with Hugging Face's shapes. Unknown names stay."""
    renamed = {rename(name, _PATTERNS): tensor for name, tensor in tensors.items()}
    renamed = {name: tensor for name, tensor in renamed.items() if name not in _IGNORED}
    for name in _TRANSPOSED:
        if name in renamed:
            renamed[name] = renamed[name].T
    scale = renamed.get("logit_scale")
    if scale is not None and scale.size == 1:  # some files store it as (1,)
        renamed["logit_scale"] = scale.reshape(())
    return renamed


def read_openclip_config(folder: ModelFolder) -> tuple[CLIPConfig, Preprocessing]:
    """The sizes of the model and the preprocessing of its images, from open_clip_config.json.

    Raises InputError, which names the setting, if `CLIP` does not implement the model.
    """
    raw, where = folder.json(OPENCLIP_CONFIG), str(folder.path / OPENCLIP_CONFIG)
    model = _section(raw, "model_cfg", where)
    vision, text = _section(model, "vision_cfg", where), _section(model, "text_cfg", where)
    if text.get("hf_model_name"):
        raise InputError(
            f"{where} has the text tower {text['hf_model_name']!r} of another library; only CLIP's text tower is read"
        )
    if vision.get("timm_model_name"):
        raise InputError(f"{where} has the image tower {vision['timm_model_name']!r} of timm; only CLIP's ViT is read")
    if text.get("hf_tokenizer_name"):
        raise InputError(
            f"{where} has the tokenizer {text['hf_tokenizer_name']!r} of another model; only CLIP's tokenizer is read"
        )
    if isinstance(vision.get("layers"), list):
        raise InputError(f"{where} has a ResNet as its image tower (vision_cfg.layers is a list); only ViTs are read")
    for name, section in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        _check(name, section, where)
    if str((text.get("tokenizer_kwargs") or {}).get("clean", "lower")) not in ("lower", "whitespace"):
        raise InputError(f"{where} has text_cfg.tokenizer_kwargs {text['tokenizer_kwargs']}; only CLIP's are read")

    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    width, text_width = _number(vision, "width", 768, where), _number(text, "width", 512, where)
    head_width, heads = _number(vision, "head_width", 64, where), _number(text, "heads", 8, where)
    if width % head_width or text_width % heads:
        raise InputError(f"{where} has a width that its attention heads do not divide; fetch it again")
    config = CLIPConfig(
        vision=VisionConfig(
            image_size=_square(vision, "image_size", 224, where),
            patch_size=_square(vision, "patch_size", 16, where),
            width=width,
            depth=_number(vision, "layers", 12, where),
            heads=width // head_width,
            mlp_width=int(width * _number(vision, "mlp_ratio", 4.0, where)),
            activation=activation,
            norm_eps=_number(vision.get("norm_kwargs") or {}, "eps", 1e-5, where),
        ),
        text=TextConfig(
            vocabulary=_number(text, "vocab_size", 49408, where),
            context=_number(text, "context_length", 77, where),
            width=text_width,
            depth=_number(text, "layers", 12, where),
            heads=heads,
            mlp_width=int(text_width * _number(text, "mlp_ratio", 4.0, where)),
            activation=activation,
            norm_eps=_number(text.get("norm_kwargs") or {}, "eps", 1e-5, where),
            end_id=END_IS_HIGHEST,
        ),
        embed_dim=_number(model, "embed_dim", 512, where),
    )
    return config, _preprocessing(raw.get("preprocess_cfg") or {}, config.vision.image_size, where)


def config_of_tensors(tensors: dict[str, np.ndarray], where: str) -> CLIPConfig:
    """The sizes of one of OpenAI's CLIPs, from the shapes of its state dict. All of its heads are 64 numbers wide.

    Raises InputError if the state dict belongs to another model. Also raises if it may be a CLIP that is not OpenAI's,
    because the tensors do not say which activation the model has.
    """
    try:
        _, _, patch, _ = tensors["visual.conv1.weight"].shape
        positions, width = tensors["visual.positional_embedding"].shape
        context, text_width = tensors["positional_embedding"].shape
        vocabulary, _ = tensors["token_embedding.weight"].shape
        mlp, text_mlp = (len(tensors[f"{t}transformer.resblocks.0.mlp.c_fc.bias"]) for t in ("visual.", ""))
        embed_dim = tensors["text_projection"].shape[1]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{where} does not say which model it is; give a folder that also has its config.json or {OPENCLIP_CONFIG}"
        ) from error
    if not all(name in tensors for name in OPENAI_NUMBERS):
        raise InputError(
            f"{where} is a CLIP in OpenCLIP's form and does not say whether its activation is gelu or quick_gelu; put"
            f" its {OPENCLIP_CONFIG} into the same folder"
        )
    if width % 64 or text_width % 64 or not patch:
        raise InputError(
            f"{where} has towers of the widths {width} and {text_width}, not divisible by a head's width of 64"
        )
    vision_depth, text_depth = (
        sum(re.fullmatch(rf"{tower}transformer\.resblocks\.\d+\.ln_1\.weight", name) is not None for name in tensors)
        for tower in ("visual\\.", "")
    )
    side = round(max(positions - 1, 0) ** 0.5) * patch
    return CLIPConfig(
        VisionConfig(side, patch, width, vision_depth, width // 64, mlp),
        TextConfig(vocabulary, context, text_width, text_depth, text_width // 64, text_mlp, end_id=END_IS_HIGHEST),
        embed_dim,
    )


def _section(raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    section = raw.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{where} has no {name} of sizes, fetch it again")
    return section


def _check(name: str, section: dict[str, Any], where: str) -> None:
    """Raises InputError for a setting that is unknown and not off. Ignoring it would change the model silently."""
    expected = _EXPECTED[name]
    for key, value in section.items():
        known = key in expected and (expected[key] is None or value == expected[key])
        if not known and value and key not in ("tokenizer_kwargs", "timm_model_pretrained"):
            raise InputError(f"{where} has {name}.{key} = {value!r}, a variant of CLIP that is not read here")


def _number(section: dict[str, Any], key: str, default: Any, where: str) -> Any:
    value = default if section.get(key) is None else section[key]
    kinds = int | float if isinstance(default, float) else int
    if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{where} has {key} = {value!r}, expected a positive number")
    return value


def _square(section: dict[str, Any], key: str, default: int, where: str) -> int:
    value = section.get(key)
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        section = {key: value[0]}
    return _number(section, key, default, where)


def _preprocessing(raw: dict[str, Any], image_size: int, where: str) -> Preprocessing:
    """OpenCLIP's preprocessing for evaluation, from `preprocess_cfg`."""
    # Pillow's numbers of the filters; "random" mixes filters in training, and evaluation is bicubic
    resamples = {"bicubic": 3, "bilinear": 2, "random": 3}
    mode, resample = raw.get("resize_mode") or "shortest", resamples.get(raw.get("interpolation") or "bicubic")
    mean, std = raw.get("mean") or MEAN, raw.get("std") or STD
    if mode not in ("shortest", "squash") or resample is None:
        raise InputError(
            f"{where} has preprocess_cfg with resize_mode {mode!r} and interpolation {raw.get('interpolation')!r};"
            " shortest and squash, bicubic and bilinear are known"
        )
    for numbers in (mean, std):
        if not isinstance(numbers, list | tuple) or len(numbers) != 3 or not all(_is_real(n) for n in numbers):
            raise InputError(f"{where} has preprocess_cfg with the mean or std {numbers!r}, expected three numbers")
    square = (image_size, image_size)
    resize: int | tuple[int, int] = square if mode == "squash" else image_size
    return Preprocessing(resize, None if mode == "squash" else square, resample, mean=tuple(mean), std=tuple(std))


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
