"""Loads MAE's weights into a student's encoder and decoder.

A tensor can have three names: in MAE's released files, in Hugging Face `ViTMAEForPreTraining` files, and in memory of
transformers 5 (some tools save this one). The tables use the last; `to_table_names` converts the others to it.
"""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.layers import sincos_positions
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.models.weights.folder import CONFIG, ModelFolder, open_folder
from zeroseg_jax.models.weights.table import (
    PATCHES,
    SAME,
    Entry,
    Layout,
    Table,
    affine,
    attention,
    load_weights,
    match_weights,
    mlp,
    norm,
    rename,
)

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of MAE's encoders (ViT-B, L, H) by their width. MAE's decoders are 512 wide and have 16 heads."""
TOKEN = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, 1, -1))
"""A token (1, 1, d) <-> (d,)"""

# pattern of a name in a file -> name in the tables, applied one after the other
_PATTERNS = (
    (r"^module\.", ""),  # distributed training adds this prefix
    # names of MAE's released files
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^blocks\.", "vit.layers."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(mask_token$|decoder_)", r"decoder.\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
    # names of Hugging Face files: transformers 5 writes "decoder_encoder", and a `ViTMAEModel` has no prefix "vit."
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"^(embeddings|encoder\.layer|layers|layernorm)\.", r"vit.\1."),
    (r"^vit\.encoder\.layer\.", "vit.layers."),
    (r"\.attention\.attention\.", ".attention."),
    (r"\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def _blocks(layers: str) -> tuple[Entry, ...]:
    tensor, parameter = f"{layers}.{{layer}}", "transformer.blocks"
    return (
        *norm(f"{tensor}.layernorm_before", f"{parameter}.norm1"),
        *attention(f"{tensor}.attention", f"{parameter}.attention", out="o_proj"),
        *norm(f"{tensor}.layernorm_after", f"{parameter}.norm2"),
        *mlp(f"{tensor}.mlp", f"{parameter}.mlp"),
    )


# the position tables are fixed functions, which `_check_positions` compares, so they are not loaded
ENCODER_TABLE = Table(
    entries=(
        Entry("vit.embeddings.cls_token", "class_token", TOKEN),
        Entry("vit.embeddings.patch_embeddings.projection.weight", "patch_embedding.kernel", PATCHES),
        Entry("vit.embeddings.patch_embeddings.projection.bias", "patch_embedding.bias", SAME),
        *_blocks("vit.layers"),
        *norm("vit.layernorm", "norm"),
    ),
    ignored=("vit.embeddings.position_embeddings",),
)
DECODER_TABLE = Table(
    entries=(
        *affine("decoder.decoder_embed", "embedding"),
        Entry("decoder.mask_token", "mask_token", TOKEN),
        *_blocks("decoder.decoder_layers"),
        *norm("decoder.decoder_norm", "norm"),
        *affine("decoder.decoder_pred", "prediction"),
    ),
    ignored=("decoder.decoder_pos_embed",),
)

# field of config.json -> field of the student's configuration
_ENCODER_FIELDS = {
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
}
_DECODER_FIELDS = {
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
}


def load_mae(student: Student, source: str | Path | ModelFolder) -> tuple[str, ...]:
    """Replaces the weights of the student's encoder and reconstruction decoder by MAE's, in place.

    Args:
        student: the model. Its parameters stay on the devices where they are.
        source: a Hugging Face `ViTMAE` folder or hub id, or one of MAE's released .pth files.

    Returns:
        The loaded parts: ("encoder", "decoder"), or ("encoder",) if the file or the student has no decoder.

    Raises:
        InputError: there is no such source, its sizes differ from the student's, its weights do not fit exactly, or the
            student's encoder is a CLIP tower.
    """
    folder = open_folder(source)
    parts = _read_parts(student.config, folder)
    for name, (tensors, table) in parts.items():
        _replace(getattr(student, name), tensors, table, f"{folder.name} ({name})")
    return tuple(parts)


def check_mae(config: StudentConfig, source: str | Path | ModelFolder) -> None:
    """Raises InputError if `load_mae` would raise for a student of this configuration. It loads no weights."""
    folder = open_folder(source)
    student = nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0)))
    for name, (tensors, table) in _read_parts(config, folder).items():
        match_weights(getattr(student, name), tensors, table, f"{folder.name} ({name})")


def _read_parts(student: StudentConfig, folder: ModelFolder) -> dict[str, tuple[dict[str, np.ndarray], Table]]:
    """The tensors and the table of each part: "encoder", and "decoder" if the file and the student have one."""
    if student.tower is not None:
        raise InputError(
            f"the MAE weights {folder.name} do not fit a student whose encoder is a CLIP tower; set only one"
        )
    model_type = folder.json(CONFIG).get("model_type") if folder.find(CONFIG) else None
    released_file = folder.file is not None and model_type != "vit_mae"  # it needs no config.json
    config = {} if released_file else folder.config("vit_mae")
    tensors = to_table_names(folder.tensors())
    if released_file:
        config = config_of_tensors(tensors, folder.name)
    decoder = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    encoder = {name: tensor for name, tensor in tensors.items() if name not in decoder}
    parts = {"encoder": (encoder, ENCODER_TABLE)}
    if decoder and student.decoder_depth:
        parts["decoder"] = decoder, DECODER_TABLE
    _check_sizes(config, student, _ENCODER_FIELDS | (_DECODER_FIELDS if "decoder" in parts else {}), folder.name)
    _check_positions(tensors, folder.name)
    return parts


def to_table_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names that the tables use. Unknown names stay."""
    return {rename(name, _PATTERNS): tensor for name, tensor in tensors.items()}


def config_of_tensors(tensors: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """The fields of config.json for a released file, from the shapes of its tensors (named by `to_table_names`).

    Shapes do not say the number of heads. It is the one of the published model of that width, or left out. Raises
    InputError if the tensors belong to another model.
    """
    try:
        width = tensors["vit.embeddings.cls_token"].shape[-1]
        kernel = tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
        config = {"patch_size": kernel[-1], "hidden_size": width, "num_hidden_layers": _depth(tensors, "vit.layers")}
        if width in HEADS:
            config["num_attention_heads"] = HEADS[width]
        if "decoder.mask_token" in tensors:
            width = tensors["decoder.mask_token"].shape[-1]
            config["decoder_hidden_size"] = width
            config["decoder_num_hidden_layers"] = _depth(tensors, "decoder.decoder_layers")
            if width == 512:
                config["decoder_num_attention_heads"] = 16
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{where} has no {error}, so it is not an MAE file; give MAE's released .pth or a ViTMAE folder"
        ) from error
    return config


def _depth(tensors: dict[str, np.ndarray], layers: str) -> int:
    return sum(
        re.fullmatch(rf"{re.escape(layers)}\.\d+\.layernorm_before\.weight", name) is not None for name in tensors
    )


def _replace(module: nnx.Module, tensors: dict[str, np.ndarray], table: Table, source: str) -> None:
    graphdef, old = nnx.split(module)
    new = nnx.state(load_weights(lambda: nnx.merge(graphdef, old), tensors, table, source))
    nnx.update(module, jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), new, old))


def _check_sizes(config: dict[str, Any], student: StudentConfig, fields: dict[str, str], folder: str) -> None:
    """Raises InputError, which names the config key, if a size of the file differs from the student's."""
    for hf_name, name in fields.items():
        if hf_name.endswith("heads") and hf_name not in config:  # a released file of an uncommon width
            continue
        if config.get(hf_name) != getattr(student, name):
            raise InputError(
                f"the MAE weights in {folder} have {hf_name}={config.get(hf_name)}, but the student has"
                f" {name}={getattr(student, name)}; set student.{name} to the same"
            )
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(
            f"the MAE weights in {folder} have hidden_act={config['hidden_act']!r}, only gelu is supported"
        )


def _check_positions(tensors: dict[str, np.ndarray], folder: str) -> None:
    """Raises InputError if a position table of the file is not MAE's fixed function."""
    for name in (*ENCODER_TABLE.ignored, *DECODER_TABLE.ignored):
        if name not in tensors:
            continue
        table = np.asarray(tensors[name], np.float32)
        side = round((table.shape[1] - 1) ** 0.5) if table.ndim == 3 else 0
        fits = table.ndim == 3 and side * side + 1 == table.shape[1] and table.shape[2] % 4 == 0
        # half precision changes the values by 5e-4; the sin-cos tables of other families differ by more than 2e-2
        if not fits or not np.allclose(table[0, 1:], sincos_positions(side, side, table.shape[2]), atol=2e-3):
            raise InputError(f"{name} in {folder} is not MAE's table of sin-cos positions, so it is not an MAE file")
