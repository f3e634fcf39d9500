"""CLIP's weights: the names in Hugging Face `CLIPModel` files."""

from zeroseg_jax.models.weights.table import LINEAR, PATCHES, SAME, Entry, Table, affine, norm


def encoder_layer(theirs: str, ours: str) -> tuple[Entry, ...]:
    """The lines of a pre-norm block as CLIP and GroupViT name its parts."""
    return (
        *norm(f"{theirs}.layer_norm1", f"{ours}.norm1"),
        *affine(f"{theirs}.self_attn.q_proj", f"{ours}.attention.query"),
        *affine(f"{theirs}.self_attn.k_proj", f"{ours}.attention.key"),
        *affine(f"{theirs}.self_attn.v_proj", f"{ours}.attention.value"),
        *affine(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out"),
        *norm(f"{theirs}.layer_norm2", f"{ours}.norm2"),
        *affine(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1"),
        *affine(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2"),
    )


def text_tower() -> tuple[Entry, ...]:
    """The lines of CLIP's text tower."""
    return (
        Entry("text_model.embeddings.token_embedding.weight", "text_tower.token_embedding", SAME),
        Entry("text_model.embeddings.position_embedding.weight", "text_tower.position_embedding", SAME),
        *encoder_layer("text_model.encoder.layers.{layer}", "text_tower.transformer.blocks"),
        *norm("text_model.final_layer_norm", "text_tower.final_norm"),
    )


CLIP_TABLE = Table(
    entries=(
        Entry("logit_scale", "logit_scale", SAME),
        Entry("vision_model.embeddings.class_embedding", "vision_tower.class_embedding", SAME),
        Entry("vision_model.embeddings.patch_embedding.weight", "vision_tower.patch_embedding.kernel", PATCHES),
        Entry("vision_model.embeddings.position_embedding.weight", "vision_tower.position_embedding", SAME),
        *norm("vision_model.pre_layrnorm", "vision_tower.pre_norm"),  # [sic]
        *encoder_layer("vision_model.encoder.layers.{layer}", "vision_tower.transformer.blocks"),
        *norm("vision_model.post_layernorm", "vision_tower.post_norm"),
        Entry("visual_projection.weight", "visual_projection.kernel", LINEAR),
        *text_tower(),
        Entry("text_projection.weight", "text_projection.kernel", LINEAR),
    ),
    # the numbers 0, 1, 2, ... that files of transformers before 4.31 hold
    ignored=("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
)
