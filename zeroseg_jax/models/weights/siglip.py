"""SigLIP's weights: the names in Hugging Face `SiglipModel` files."""

from zeroseg_jax.models.weights.clip import encoder_layer, text_tower
from zeroseg_jax.models.weights.table import PATCHES, SAME, Entry, Layout, Table, affine, norm

_NUMBER = Layout(lambda a: a[0], lambda a: a[None])
"""(1,) <-> ()"""
_PROBE = Layout(lambda a: a[0, 0], lambda a: a[None, None])
"""(1, 1, d) <-> (d,)"""

_HEAD, _OWN_HEAD = "vision_model.head", "vision_tower.head"

SIGLIP_TABLE = Table(
    entries=(
        Entry("logit_scale", "logit_scale", _NUMBER),
        Entry("logit_bias", "logit_bias", _NUMBER),
        Entry("vision_model.embeddings.patch_embedding.weight", "vision_tower.patch_embedding.kernel", PATCHES),
        Entry("vision_model.embeddings.patch_embedding.bias", "vision_tower.patch_embedding.bias", SAME),
        Entry("vision_model.embeddings.position_embedding.weight", "vision_tower.position_embedding", SAME),
        *encoder_layer("vision_model.encoder.layers.{layer}", "vision_tower.transformer.blocks"),
        *norm("vision_model.post_layernorm", "vision_tower.post_norm"),
        Entry(f"{_HEAD}.probe", f"{_OWN_HEAD}.probe", _PROBE),
        *affine(f"{_HEAD}.attention.q_proj", f"{_OWN_HEAD}.attention.query"),
        *affine(f"{_HEAD}.attention.k_proj", f"{_OWN_HEAD}.attention.key"),
        *affine(f"{_HEAD}.attention.v_proj", f"{_OWN_HEAD}.attention.value"),
        *affine(f"{_HEAD}.attention.out_proj", f"{_OWN_HEAD}.attention.out"),
        *norm(f"{_HEAD}.layernorm", f"{_OWN_HEAD}.norm"),
        *affine(f"{_HEAD}.mlp.fc1", f"{_OWN_HEAD}.mlp.fc1"),
        *affine(f"{_HEAD}.mlp.fc2", f"{_OWN_HEAD}.mlp.fc2"),
        *text_tower(),
        *affine("text_model.head", "text_projection"),
    ),
    ignored=("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
    packed=(f"{_HEAD}.attention",),
)
