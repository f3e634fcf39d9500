"""The names of GroupViT's weights in Hugging Face `GroupViTModel` files."""

from zeroseg_jax.models.groupvit import GroupViTVisionConfig
from zeroseg_jax.models.weights.clip import encoder_layer, text_tower
from zeroseg_jax.models.weights.table import PATCHES, SAME, Entry, Layout, Table, affine, attention, mlp, norm

TOKENS = Layout(lambda a: a[0], lambda a: a[None])
"""Tokens or positions (1, n, d) <-> (n, d)"""

_PROJECTIONS = "visual_projection", "text_projection"


def groupvit_table(config: GroupViTVisionConfig) -> Table:
    """The table of a GroupViT with the stages of `config`."""
    stages: list[Entry] = []
    for i, groups in enumerate(config.group_tokens):
        tensor, parameter = f"vision_model.encoder.stages.{i}", f"vision_tower.stages.{i}"
        if not groups:
            stages += encoder_layer(f"{tensor}.layers.{{layer}}", f"{parameter}.blocks")
            continue
        stages += encoder_layer(f"{tensor}.layers.{{layer}}", f"{parameter}.transformer.blocks")
        stages += [Entry(f"{tensor}.group_token", f"{parameter}.group_tokens", TOKENS)]
        stages += _grouping(f"{tensor}.downsample", f"{parameter}.grouping")
        if config.previous(i):
            stages += norm(f"{tensor}.group_projector.0", f"{parameter}.projector.norm")
            stages += mlp(f"{tensor}.group_projector.1", f"{parameter}.projector.mixer.mlp")
    embeddings = "vision_model.embeddings"
    return Table(
        entries=(
            Entry("logit_scale", "logit_scale", SAME),
            Entry(f"{embeddings}.position_embeddings", "vision_tower.position_embedding", TOKENS),
            Entry(f"{embeddings}.patch_embeddings.projection.weight", "vision_tower.patch_embedding.kernel", PATCHES),
            Entry(f"{embeddings}.patch_embeddings.projection.bias", "vision_tower.patch_embedding.bias", SAME),
            *norm(f"{embeddings}.layernorm", "vision_tower.patch_norm"),
            *stages,
            *norm("vision_model.layernorm", "vision_tower.norm"),
            *text_tower(),
            *(entry for name in _PROJECTIONS for entry in _projection(name)),
        ),
        ignored=(
            # the numbers 0, 1, 2, ..., which files of transformers before 4.31 contain
            "text_model.embeddings.position_ids",
            # the number of training batches behind the running statistics
            *(f"{name}.1.num_batches_tracked" for name in _PROJECTIONS),
        ),
    )


def _grouping(tensor: str, parameter: str) -> tuple[Entry, ...]:
    cross = f"{tensor}.pre_assign_attn"
    return (
        *norm(f"{tensor}.norm_tokens", f"{parameter}.group_norm"),
        *mlp(f"{tensor}.mlp_inter", f"{parameter}.mixer.mlp"),
        *norm(f"{tensor}.norm_post_tokens", f"{parameter}.segment_norm"),
        *norm(f"{tensor}.norm_x", f"{parameter}.token_norm"),
        *attention(f"{cross}.attn", f"{parameter}.cross.attention"),
        *norm(f"{cross}.norm2", f"{parameter}.cross.norm2"),
        *mlp(f"{cross}.mlp", f"{parameter}.cross.mlp"),
        *norm(f"{cross}.norm_post", f"{parameter}.cross.post_norm"),
        *attention(f"{tensor}.assign", f"{parameter}.assignment", out="proj"),
        *norm(f"{tensor}.norm_new_x", f"{parameter}.output_norm"),
        *mlp(f"{tensor}.mlp_channels", f"{parameter}.mlp"),
    )


def _projection(name: str) -> tuple[Entry, ...]:
    """torch's `Sequential`: 0 linear, 1 batch norm, 2 ReLU, 3 linear."""
    return (
        *affine(f"{name}.0", f"{name}.fc1"),
        *norm(f"{name}.1", f"{name}.norm"),
        Entry(f"{name}.1.running_mean", f"{name}.norm.mean", SAME),
        Entry(f"{name}.1.running_var", f"{name}.norm.var", SAME),
        *affine(f"{name}.3", f"{name}.fc2"),
    )
