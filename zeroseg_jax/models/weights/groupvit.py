"""GroupViT's weights: the names in Hugging Face `GroupViTModel` files."""

from zeroseg_jax.models.groupvit import GroupViTVisionConfig
from zeroseg_jax.models.weights.clip import encoder_layer, text_tower
from zeroseg_jax.models.weights.table import PATCHES, SAME, Entry, Layout, Table, affine, norm

TABLE_OF_TOKENS = Layout(lambda a: a[0], lambda a: a[None])
"""Tokens or positions (1, n, d) <-> (n, d)"""

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
_PROJECTIONS = "visual_projection", "text_projection"


def groupvit_table(config: GroupViTVisionConfig) -> Table:
    """The table of a GroupViT with the stages of `config`."""
    stages: list[Entry] = []
    for i, groups in enumerate(config.group_tokens):
        theirs, ours = f"vision_model.encoder.stages.{i}", f"vision_tower.stages.{i}"
        if not groups:
            stages += encoder_layer(f"{theirs}.layers.{{layer}}", f"{ours}.blocks")
            continue
        stages += encoder_layer(f"{theirs}.layers.{{layer}}", f"{ours}.transformer.blocks")
        stages += [Entry(f"{theirs}.group_token", f"{ours}.group_tokens", TABLE_OF_TOKENS)]
        stages += _grouping(f"{theirs}.downsample", f"{ours}.grouping")
        if config.previous(i):
            stages += norm(f"{theirs}.group_projector.0", f"{ours}.projector.norm")
            stages += _mlp(f"{theirs}.group_projector.1", f"{ours}.projector.mixer.mlp")
    embeddings = "vision_model.embeddings"
    return Table(
        entries=(
            Entry("logit_scale", "logit_scale", SAME),
            Entry(f"{embeddings}.position_embeddings", "vision_tower.position_embedding", TABLE_OF_TOKENS),
            Entry(f"{embeddings}.patch_embeddings.projection.weight", "vision_tower.patch_embedding.kernel", PATCHES),
            Entry(f"{embeddings}.patch_embeddings.projection.bias", "vision_tower.patch_embedding.bias", SAME),
            *norm(f"{embeddings}.layernorm", "vision_tower.patch_norm"),
            *stages,
            *norm("vision_model.layernorm", "vision_tower.norm"),
            *text_tower(),
            *(entry for name in _PROJECTIONS for entry in _projection(name)),
        ),
        ignored=(
            # the numbers 0, 1, 2, ... that files of transformers before 4.31 hold
            "text_model.embeddings.position_ids",
            # how many batches the running statistics come from, which only training asks
            *(f"{name}.1.num_batches_tracked" for name in _PROJECTIONS),
        ),
    )


def _grouping(theirs: str, ours: str) -> list[Entry]:
    cross = f"{theirs}.pre_assign_attn"
    entries = [
        *norm(f"{theirs}.norm_tokens", f"{ours}.group_norm"),
        *_mlp(f"{theirs}.mlp_inter", f"{ours}.mixer.mlp"),
        *norm(f"{theirs}.norm_post_tokens", f"{ours}.segment_norm"),
        *norm(f"{theirs}.norm_x", f"{ours}.token_norm"),
        *norm(f"{cross}.norm2", f"{ours}.cross.norm2"),
        *_mlp(f"{cross}.mlp", f"{ours}.cross.mlp"),
        *norm(f"{cross}.norm_post", f"{ours}.cross.post_norm"),
        *norm(f"{theirs}.norm_new_x", f"{ours}.output_norm"),
        *_mlp(f"{theirs}.mlp_channels", f"{ours}.mlp"),
    ]
    for name, own in _ATTENTION.items():
        entries += affine(f"{cross}.attn.{name}", f"{ours}.cross.attention.{own}")
        entries += affine(f"{theirs}.assign.{name.removeprefix('out_')}", f"{ours}.assignment.{own}")
    return entries


def _mlp(theirs: str, ours: str) -> tuple[Entry, ...]:
    return *affine(f"{theirs}.fc1", f"{ours}.fc1"), *affine(f"{theirs}.fc2", f"{ours}.fc2")


def _projection(name: str) -> tuple[Entry, ...]:
    """torch's `Sequential`: 0 linear, 1 batch norm, 2 ReLU, 3 linear."""
    return (
        *affine(f"{name}.0", f"{name}.fc1"),
        *norm(f"{name}.1", f"{name}.norm"),
        Entry(f"{name}.1.running_mean", f"{name}.norm.mean", SAME),
        Entry(f"{name}.1.running_var", f"{name}.norm.var", SAME),
        *affine(f"{name}.3", f"{name}.fc2"),
    )
