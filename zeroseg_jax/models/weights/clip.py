"""The names of CLIP's weights in Hugging Face `CLIPModel` files."""

from zeroseg_jax.models.weights.table import LINEAR, PATCHES, SAME, Entry, Table, attention, mlp, norm


def encoder_layer(tensor: str, parameter: str) -> tuple[Entry, ...]:
    """The entries of a pre-norm block with the names of CLIP, SigLIP and GroupViT."""
    return (
        *norm(f"{tensor}.layer_norm1", f"{parameter}.norm1"),
        *attention(f"{tensor}.self_attn", f"{parameter}.attention"),
        *norm(f"{tensor}.layer_norm2", f"{parameter}.norm2"),
        *mlp(f"{tensor}.mlp", f"{parameter}.mlp"),
    )


def text_tower() -> tuple[Entry, ...]:
    """The entries of CLIP's text tower."""
    return (
        Entry("text_model.embeddings.token_embedding.weight", "text_tower.token_embedding", SAME),
        Entry("text_model.embeddings.position_embedding.weight", "text_tower.position_embedding", SAME),
        *encoder_layer("text_model.encoder.layers.{layer}", "text_tower.transformer.blocks"),
        *norm("text_model.final_layer_norm", "text_tower.final_norm"),
    )


def image_tower() -> tuple[Entry, ...]:
    """The entries that the image towers of CLIP and SigLIP share."""
    return (
        Entry("vision_model.embeddings.patch_embedding.weight", "vision_tower.patch_embedding.kernel", PATCHES),
        Entry("vision_model.embeddings.position_embedding.weight", "vision_tower.position_embedding", SAME),
        *encoder_layer("vision_model.encoder.layers.{layer}", "vision_tower.transformer.blocks"),
        *norm("vision_model.post_layernorm", "vision_tower.post_norm"),
    )


POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
"""The numbers 0, 1, 2, ..., which files of transformers before 4.31 contain."""

CLIP_TABLE = Table(
    entries=(
        Entry("logit_scale", "logit_scale", SAME),
        Entry("vision_model.embeddings.class_embedding", "vision_tower.class_embedding", SAME),
        *norm("vision_model.pre_layrnorm", "vision_tower.pre_norm"),  # [sic]
        *image_tower(),
        Entry("visual_projection.weight", "visual_projection.kernel", LINEAR),
        *text_tower(),
        Entry("text_projection.weight", "text_projection.kernel", LINEAR),
    ),
    ignored=POSITION_IDS,
)
