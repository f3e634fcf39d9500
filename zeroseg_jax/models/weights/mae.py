"""MAE's weights: the names in its files, and the start of a student's encoder and decoder from them.

A tensor has three names: that of MAE's own release, that of Hugging Face `ViTMAEForPreTraining` files, and the one that
transformers 5 gives it in memory (and in what some tools save). All are brought to the last, which the tables use.
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
    load_weights,
    match_weights,
    norm,
)

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of MAE's encoders (ViT-B, L, H) by their width; its decoders are 512 wide and have 16."""
TOKEN = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(1, 1, -1))
"""A token (1, 1, d) <-> (d,)"""

# pattern of a name in a file -> name in the tables; applied one after the other
SPELLINGS = (
    (r"^module\.", ""),  # of distributed training
    # MAE's own
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
    # Hugging Face's files; transformers 5 writes "decoder_encoder", the encoder alone (`ViTMAEModel`) has no "vit."
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


def _blocks(theirs: str) -> tuple[Entry, ...]:
    theirs, ours = f"{theirs}.{{layer}}", "transformer.blocks"
    return (
        *norm(f"{theirs}.layernorm_before", f"{ours}.norm1"),
        *affine(f"{theirs}.attention.q_proj", f"{ours}.attention.query"),
        *affine(f"{theirs}.attention.k_proj", f"{ours}.attention.key"),
        *affine(f"{theirs}.attention.v_proj", f"{ours}.attention.value"),
        *affine(f"{theirs}.attention.o_proj", f"{ours}.attention.out"),
        *norm(f"{theirs}.layernorm_after", f"{ours}.norm2"),
        *affine(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1"),
        *affine(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2"),
    )


# the position tables are functions, not weights: `_check_positions` compares them
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

# config.json's field of each part -> the student's
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
    """Starts the student's encoder, and its reconstruction decoder, from MAE weights, in place.

    Args:
        student: its parameters keep their placement on the devices.
        source: a Hugging Face `ViTMAE` folder or hub id, or one of MAE's own .pth files.

    Returns:
        The parts that were loaded: ("encoder", "decoder"), or ("encoder",) where the file or the student has no
        decoder at all.

    Raises:
        InputError: no such folder, sizes other than the student's, weights that do not fit exactly, or a student whose
            encoder is a CLIP tower.
    """
    folder = open_folder(source)
    parts = _read_parts(student.config, folder)
    for name, (tensors, table) in parts.items():
        _replace(getattr(student, name), tensors, table, f"{folder.name} ({name})")
    return tuple(parts)


def check_mae(config: StudentConfig, source: str | Path | ModelFolder) -> None:
    """Raises InputError where `load_mae` would, for a student that `config` describes; nothing is loaded."""
    folder = open_folder(source)
    student = nnx.eval_shape(lambda: Student(config, rngs=nnx.Rngs(0)))
    for name, (tensors, table) in _read_parts(config, folder).items():
        match_weights(getattr(student, name), tensors, table, f"{folder.name} ({name})")


def _read_parts(student: StudentConfig, folder: ModelFolder) -> dict[str, tuple[dict[str, np.ndarray], Table]]:
    """The tensors of the encoder and, where the file and the student have one, of the decoder, and their tables."""
    if student.tower is not None:
        raise InputError(
            f"the MAE weights {folder.name} do not fit a student whose encoder is a CLIP tower; set only one"
        )
    beside = folder.json(CONFIG).get("model_type") if folder.find(CONFIG) else None
    by_itself = folder.given is not None and beside != "vit_mae"  # MAE's own file, whatever lies beside it
    config = {} if by_itself else folder.config("vit_mae")
    tensors = canonical(folder.tensors())
    if by_itself:
        config = config_of_tensors(tensors, folder.name)
    decoder = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    encoder = {name: tensor for name, tensor in tensors.items() if name not in decoder}
    parts = {"encoder": (encoder, ENCODER_TABLE)}
    if decoder and student.decoder_depth:
        parts["decoder"] = decoder, DECODER_TABLE
    _check_sizes(config, student, _ENCODER_FIELDS | (_DECODER_FIELDS if "decoder" in parts else {}), folder.name)
    _check_positions(tensors, folder.name)
    return parts


def canonical(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file in any of the three spellings under the names of the tables; unknown names are kept."""
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in SPELLINGS:
            name = re.sub(pattern, replacement, name)
        fused = re.fullmatch(r"(.*\.attention\.)qkv(\.weight|\.bias)", name)
        if fused and tensor.ndim and len(tensor) % 3 == 0:  # MAE's own files stack queries, keys and values
            for which, part in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[f"{fused[1]}{which}_proj{fused[2]}"] = part
        else:
            renamed[name] = tensor
    return renamed


def config_of_tensors(tensors: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """What config.json would say of one of MAE's own files, from the shapes of its tensors (in `canonical` names).

    Heads cannot be told from shapes; they are those of MAE's models, by their width. Raises InputError where the
    tensors are those of another model.
    """
    try:
        width = tensors["vit.embeddings.cls_token"].shape[-1]
        kernel = tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
        found = {"patch_size": kernel[-1], "hidden_size": width, "num_hidden_layers": _depth(tensors, "vit.layers")}
        if width in HEADS:
            found["num_attention_heads"] = HEADS[width]
        if "decoder.mask_token" in tensors:
            width = tensors["decoder.mask_token"].shape[-1]
            found |= {"decoder_hidden_size": width}
            found |= {"decoder_num_hidden_layers": _depth(tensors, "decoder.decoder_layers")}
            if width == 512:
                found["decoder_num_attention_heads"] = 16
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{where} has no {error}, so it is no MAE file; give MAE's own .pth or a ViTMAE folder"
        ) from error
    return found


def _depth(tensors: dict[str, np.ndarray], layers: str) -> int:
    return sum(
        re.fullmatch(rf"{re.escape(layers)}\.\d+\.layernorm_before\.weight", name) is not None for name in tensors
    )


def _replace(module: nnx.Module, tensors: dict[str, np.ndarray], table: Table, source: str) -> None:
    graphdef, old = nnx.split(module)
    new = nnx.state(load_weights(lambda: nnx.merge(graphdef, old), tensors, table, source))
    nnx.update(module, jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), new, old))


def _check_sizes(config: dict[str, Any], student: StudentConfig, fields: dict[str, str], folder: str) -> None:
    """Heads cannot be told from shapes, and for the others a sentence with the config key says more than a shape."""
    for theirs, ours in fields.items():
        if theirs.endswith("heads") and theirs not in config:  # a file without config.json, of an uncommon width
            continue
        if config.get(theirs) != getattr(student, ours):
            raise InputError(
                f"the MAE weights in {folder} have {theirs}={config.get(theirs)}, but the student has"
                f" {ours}={getattr(student, ours)}; set student.{ours} to the same"
            )
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(
            f"the MAE weights in {folder} have hidden_act={config['hidden_act']!r}, only gelu is supported"
        )


def _check_positions(tensors: dict[str, np.ndarray], folder: str) -> None:
    """A file whose positions are not the fixed function would run, and be wrong."""
    for name in (*ENCODER_TABLE.ignored, *DECODER_TABLE.ignored):
        if name not in tensors:
            continue
        table = np.asarray(tensors[name], np.float32)
        side = round((table.shape[1] - 1) ** 0.5) if table.ndim == 3 else 0
        fits = table.ndim == 3 and side * side + 1 == table.shape[1] and table.shape[2] % 4 == 0
        # files in half precision are off by 5e-4, other families' sin-cos tables by more than 2e-2
        if not fits or not np.allclose(table[0, 1:], sincos_positions(side, side, table.shape[2]), atol=2e-3):
            raise InputError(f"{name} in {folder} is not MAE's table of sin-cos positions, so it is not an MAE file")
