"""SigLIP (Zhai et al. 2023) and SigLIP 2 with a fixed resolution (Tschannen et al. 2025).

They differ from CLIP. The image tower has no class token and no norm before its first block, and an attention head
pools its patches. In the text tower each token attends to all 64 tokens, padding too, and the last one represents the
text.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import (
    VISION_FIELDS,
    TextConfig,
    TextTower,
    TowerOutput,
    VisionConfig,
    cut_patches,
    tower_norm,
    tower_transformer,
)
from zeroseg_jax.models.hf_config import TEXT_FIELDS, read_fields, read_section
from zeroseg_jax.models.layers import ACTIVATIONS, MLP, Attention, linear
from zeroseg_jax.models.positions import resize_positions
from zeroseg_jax.models.readouts import check_readout

_TOWER: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "activation": "gelu_pytorch_tanh"}
_VISION = _TOWER | {"norm_eps": 1e-6, "image_size": 224, "patch_size": 16}
_TEXT = _TOWER | {"norm_eps": 1e-6, "vocabulary": 32000, "context": 64}


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of both towers. The shared embedding space has the width of the image tower."""

    vision: VisionConfig
    text: TextConfig

    @property
    def embed_dim(self) -> int:
        """Width of the embedding space that images and texts share."""
        return self.vision.width

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "SiglipConfig":
        """Reads the content of config.json of a Hugging Face `SiglipModel`. Raises InputError if it is not valid."""
        vision, text = read_section(raw, "vision_config"), read_section(raw, "text_config")
        if vision.get("vision_use_head") is False:
            raise InputError(
                "the configuration's vision_config has vision_use_head=false, so the model has no image embedding;"
                " use one of the published models, such as google/siglip-base-patch16-224"
            )
        config = cls(
            vision=VisionConfig(**_VISION | read_fields(vision, VISION_FIELDS, "vision_config")),
            text=TextConfig(**_TEXT | read_fields(text, TEXT_FIELDS, "text_config"), pooled="last", causal=False),
        )
        size = read_fields(text, {"projection_size": "size"}, "text_config").get("size", config.text.width)
        if size != config.embed_dim:
            raise InputError(
                f"the configuration gives texts embeddings of {size} numbers and images of {config.embed_dim}; the"
                " text_config's projection_size must be the vision_config's hidden_size"
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json in the form that `transformers.SiglipModel` reads."""
        vision = {hf_name: getattr(self.vision, name) for hf_name, name in VISION_FIELDS.items()}
        text = {hf_name: getattr(self.text, name) for hf_name, name in TEXT_FIELDS.items()}
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "vision_config": {"model_type": "siglip_vision_model"} | vision,
            "text_config": {"model_type": "siglip_text_model", "projection_size": self.embed_dim} | text,
        }


class AttentionPool(nnx.Module):
    """SigLIP's pooling head: one learned query attends to all patches. A norm and an MLP with a residual follow."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any = None):
        width = config.width
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, width))[0])
        self.attention = Attention(width, config.heads, dtype=dtype, rngs=rngs)
        self.norm = tower_norm(config, dtype, rngs)
        self.mlp = MLP(width, config.mlp_width, activation=ACTIVATIONS[config.activation], dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2]))
        return self._finish(self.attention(probe, tokens)[:, 0])

    def pool_single_tokens(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The head's output for each token, as if the query attended to that token alone."""
        return self._finish(self.attention.out(self.attention.value(tokens)))

    def _finish(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x + self.mlp(self.norm(x))


class SiglipVisionTower(nnx.Module):
    """SigLIP's image transformer with its pooling head."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Any = None):
        width = config.width
        self.config, self.dtype = config, dtype
        self.patch_embedding = linear(config.patch_size**2 * 3, width, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (config.grid**2, width)))
        self.transformer = tower_transformer(config, dtype, "none", rngs)
        self.post_norm = tower_norm(config, dtype, rngs)
        self.head = AttentionPool(config, rngs=rngs, dtype=dtype)

    def embed(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b n d"]:
        """The input of the first block: patches with their positions, row-major."""
        patches, shape = cut_patches(pixels, self.config.patch_size)
        positions = resize_positions(self.position_embedding[...], (self.config.grid, self.config.grid), shape)
        x = self.patch_embedding(patches)
        return x + positions.astype(x.dtype)

    def __call__(self, pixels: Float[Array, "b y x 3"]) -> TowerOutput:
        """`tokens` of the result are normed."""
        embedded = self.embed(pixels)
        x, layers = self.transformer(embedded)
        tokens = self.post_norm(x)
        return TowerOutput(self.head(tokens), tokens, embedded, layers)

    def values(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b h w d"]:
        """The output of the pooling head for each patch alone (`AttentionPool.pool_single_tokens`).

        The head averages the values of the patches. So the value of one patch is in the space of image embeddings, as
        in MaskCLIP's readout of CLIP's last block (Zhou et al. 2022). This readout is ours and not published. It keeps
        the residual of the head's MLP, because without it the output is in another space.
        """
        pooled = self.head.pool_single_tokens(self(pixels).tokens)
        p = self.config.patch_size
        return pooled.reshape(pixels.shape[0], pixels.shape[1] // p, pixels.shape[2] // p, -1)


class Siglip(nnx.Module):
    """Both towers. `dtype` is the dtype of the computation. Parameters are float32.

    The probability that an image and a text match is sigmoid(exp(`logit_scale`) cosine + `logit_bias`).
    """

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: Any = None):
        self.config = config
        self.vision_tower = SiglipVisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.text_tower = TextTower(config.text, rngs=rngs, dtype=dtype)
        self.text_projection = linear(config.text.width, config.embed_dim, dtype=dtype, rngs=rngs)
        # initial values of the published models' training: t = 10, b = -10 (Zhai et al. 2023, section 3)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(10)))
        self.logit_bias = nnx.Param(jnp.float32(-10))

    def vision(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """Image embeddings, float32, not unit length. `pixels` are normalised with the checkpoint's mean and std.

        Images may have any size of at least one patch. The position table is interpolated to their size.
        """
        return self.vision_tower(pixels).pooled.astype(jnp.float32)

    def text(self, tokens: Int[Array, "c t"]) -> Float[Array, "c d"]:
        """Text embeddings, float32, not unit length. `tokens` are padded to the whole `context`."""
        return self.text_projection(self.text_tower.pool(tokens)).astype(jnp.float32)

    @property
    def readouts(self) -> tuple[str, ...]:
        """The readouts that `dense` has: `maskclip`, read from the pooling head. The others need a class token."""
        return ("maskclip",)

    def dense(self, pixels: Float[Array, "b y x 3"], readout: str = "maskclip") -> Float[Array, "b h w d"]:
        """The embedding of every patch, float32, not unit length (`SiglipVisionTower.values`).

        Raises InputError for another readout than `maskclip`.
        """
        check_readout(readout, self.readouts)
        return self.vision_tower.values(pixels).astype(jnp.float32)
