"""The names of SigLIP's weights in Hugging Face `SiglipModel` files."""

from zeroseg_jax.models.weights.clip import POSITION_IDS, image_tower, text_tower
from zeroseg_jax.models.weights.table import SAME, Entry, Layout, Table, affine, attention, mlp, norm

_NUMBER = Layout(lambda a: a[0], lambda a: a[None])
"""(1,) <-> ()"""
_PROBE = Layout(lambda a: a[0, 0], lambda a: a[None, None])
"""(1, 1, d) <-> (d,)"""

SIGLIP_TABLE = Table(
    entries=(
        Entry("logit_scale", "logit_scale", _NUMBER),
        Entry("logit_bias", "logit_bias", _NUMBER),
        Entry("vision_model.embeddings.patch_embedding.bias", "vision_tower.patch_embedding.bias", SAME),
        *image_tower(),
        Entry("vision_model.head.probe", "vision_tower.head.probe", _PROBE),
        *attention("vision_model.head.attention", "vision_tower.head.attention"),
        *norm("vision_model.head.layernorm", "vision_tower.head.norm"),
        *mlp("vision_model.head.mlp", "vision_tower.head.mlp"),
        *text_tower(),
        *affine("text_model.head", "text_projection"),
    ),
    ignored=POSITION_IDS,
    fused=("vision_model.head.attention",),
)
