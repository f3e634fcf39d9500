"""CLIP (Radford et al. 2021) in the form of OpenAI's, OpenCLIP's (LAION) and MetaCLIP 1 and 2's checkpoints.

All of them have one architecture. The image tower is a pre-norm ViT with a class token and an extra norm before its
first block. The text tower is a causal transformer, and its output at the end-of-text token represents the text. The
checkpoints differ in sizes, activation and the id of the end token. SigLIP (`siglip`) has the same text transformer
without the causal mask.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.hf_config import TEXT_FIELDS, TOWER_FIELDS, read_fields, read_section
from zeroseg_jax.models.layers import ACTIVATIONS, Remat, Transformer, linear, sincos_positions
from zeroseg_jax.models.positions import resize_positions
from zeroseg_jax.models.readouts import LAST_BLOCK, check_readout, readouts_of_depth, sc_clip
from zeroseg_jax.ops.layer_norm import LayerNorm, layer_norm

VISION_FIELDS = TOWER_FIELDS | {"image_size": "image_size", "patch_size": "patch_size"}
_FIELDS = {"projection_dim": "embed_dim", "logit_scale_init_value": "logit_scale"}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the image tower. The defaults are ViT-B/32's, which files of Hugging Face leave out."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    @property
    def grid(self) -> int:
        """Patches along one side of the position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower and ids of its special tokens. The defaults are Hugging Face's."""

    vocabulary: int = 49408
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    start_id: int | None = 49406
    end_id: int = 49407
    pad_id: int | None = 1
    pooled: Literal["clip", "end", "last"] = "clip"
    """The position whose token represents the text.

    "end" (MetaCLIP 2): the first `end_id`. "last" (SigLIP): the last position, which is padding in most texts. "clip":
    the first `end_id`, but the highest id of the text if `end_id` is 2. OpenAI's converted files have this wrong value,
    and their real end token is the highest id of the vocabulary.
    """
    causal: bool = True
    """Whether a token attends only to itself and earlier tokens. In SigLIP it attends to all tokens, padding too."""

    def end(self, tokens: Int[Array | np.ndarray, "c t"]) -> Int[Array | np.ndarray, " c"]:
        """The position of the token that represents each text. In a causal tower, later tokens have no influence."""
        xp: Any = np if isinstance(tokens, np.ndarray) else jnp
        if self.pooled == "last":
            return xp.full(tokens.shape[0], tokens.shape[1] - 1)
        highest = self.pooled == "clip" and self.end_id == 2
        return xp.argmax(tokens if highest else tokens == self.end_id, axis=1)


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers, width of the shared embedding space, and initial log of the inverse temperature.

    A CLIP whose texts are `pooled` at their "end" is a MetaCLIP 2.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = 512
    logit_scale: float = 2.6592

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "CLIPConfig":
        """Reads the content of config.json of a Hugging Face `CLIPModel` or `MetaClip2Model`.

        Raises InputError if it is not valid.
        """
        vision, text = read_section(raw, "vision_config"), read_section(raw, "text_config")
        pooled: Literal["clip", "end"] = "end" if raw.get("model_type") == "metaclip_2" else "clip"
        return cls(
            vision=VisionConfig(**read_fields(vision, VISION_FIELDS, "vision_config")),
            text=TextConfig(**read_fields(text, TEXT_FIELDS, "text_config"), pooled=pooled),
            **read_fields(raw, _FIELDS),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json in the form that `transformers` reads."""
        model_class, kind = ("MetaClip2Model", "metaclip_2") if self.text.pooled == "end" else ("CLIPModel", "clip")

        def section(config: VisionConfig | TextConfig, names: dict[str, str], tower: str) -> dict[str, Any]:
            fields = {hf_name: getattr(config, name) for hf_name, name in names.items()}
            return {"model_type": f"{kind}_{tower}_model", "projection_dim": self.embed_dim} | fields

        return {
            "architectures": [model_class],
            "model_type": kind,
            "projection_dim": self.embed_dim,
            "logit_scale_init_value": self.logit_scale,
            "vision_config": section(self.vision, VISION_FIELDS, "vision"),
            "text_config": section(self.text, TEXT_FIELDS, "text"),
        }


class TowerOutput(NamedTuple):
    """The output of a tower. Under `jit`, parts that are not used are not computed."""

    pooled: Float[Array, "b d"]
    """The normed class token (image) or end-of-text token (text), before the projection."""
    tokens: Float[Array, "b n d"]
    """Output of the last block. The image tower's class token is first. Tokens of a text are normed."""
    embedded: Float[Array, "b n d"]
    """Input of the first block."""
    layers: Float[Array, "l b n d"]
    """Output of every block."""


class PatchContext(NamedTuple):
    """What mask class tokens attend to (`mask_class_token`), from the pass of an image through the tower."""

    class_token: Float[Array, "b d"]
    """The input of the first block for the class token."""
    keys: Float[Array, "l b k d"]
    """The keys of the patches in the attention of every block."""
    values: Float[Array, "l b k d"]
    """Their values."""


class VisionTower(nnx.Module):
    """CLIP's image transformer.

    `positions="sincos"` initialises the position table with MAE's fixed function. This helps small models that are
    trained from scratch.
    """

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = None,
        positions: Literal["normal", "sincos"] = "normal",
        remat: Remat = "none",
    ):
        width, grid = config.width, config.grid
        self.config, self.dtype = config, dtype
        # a matrix product of patches equals the checkpoints' strided convolution, and is faster
        self.patch_embedding = linear(config.patch_size**2 * 3, width, bias=False, dtype=dtype, rngs=rngs)
        self.class_embedding = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,)))
        if positions == "sincos":
            table = jnp.concatenate([jnp.zeros((1, width)), jnp.asarray(sincos_positions(grid, grid, width))])
        else:
            table = width**-0.5 * jax.random.normal(rngs.params(), (grid * grid + 1, width))
        self.position_embedding = nnx.Param(table)
        self.pre_norm = tower_norm(config, dtype, rngs)
        self.transformer = tower_transformer(config, dtype, remat, rngs)
        self.post_norm = tower_norm(config, dtype, rngs)

    def embed(self, pixels: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None) -> Float[Array, "b n d"]:
        """The input of the first block: class token and patches with their positions, normed.

        `visible` are the row-major indices of the patches to use. None means all.
        """
        patches, shape = cut_patches(pixels, self.config.patch_size)
        table = self.position_embedding[...]
        positions = resize_positions(table[1:], (self.config.grid, self.config.grid), shape)
        if visible is not None:  # before the embedding, so that hidden patches cost nothing
            patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
            positions = positions[visible]
        x = self.patch_embedding(patches)
        x = x + positions.astype(x.dtype)
        first = (self.class_embedding[...] + table[0]).astype(x.dtype)
        return self.pre_norm(jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1])), x], axis=1))

    def __call__(self, pixels: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None) -> TowerOutput:
        embedded = self.embed(pixels, visible)
        tokens, layers = self.transformer(embedded)
        return TowerOutput(self.post_norm(tokens[:, 0]), tokens, embedded, layers)

    def with_keys_and_values(
        self, pixels: Float[Array, "b y x 3"], visible: Int[Array, "b k"] | None = None
    ) -> tuple[Float[Array, "b n d"], PatchContext]:
        """`TowerOutput.tokens`, and what mask class tokens need."""
        embedded = self.embed(pixels, visible)
        tokens, (keys, values) = self.transformer.with_keys_and_values(embedded)
        return tokens, PatchContext(embedded[:, 0], keys[:, :, 1:], values[:, :, 1:])

    def pool(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """Only `pooled`. The last block is computed for the class token alone, which saves most of its work."""
        x, _, block = self.transformer.before_last(self.embed(pixels))
        return self.post_norm(block.at(x, jnp.zeros(x.shape[0], jnp.int32)))

    def dense(self, pixels: Float[Array, "b y x 3"], readout: str = "maskclip") -> Float[Array, "b h w d"]:
        """A token for every patch by one of `readouts.READOUTS`, through the final norm.

        Raises InputError for another readout, or for `sc_clip` where the tower has one block.
        """
        check_readout(readout, readouts_of_depth(self.config.depth))
        p = self.config.patch_size
        grid = pixels.shape[1] // p, pixels.shape[2] // p
        x, layers, block = self.transformer.before_last(self.embed(pixels))
        tokens = sc_clip(block, x, grid, layers) if readout == "sc_clip" else LAST_BLOCK[readout](block, x, grid)
        return self.post_norm(tokens).reshape(pixels.shape[0], *grid, -1)


class TextTower(nnx.Module):
    """CLIP's and SigLIP's text transformer."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Any = None, remat: Remat = "none"):
        self.config, self.dtype = config, dtype
        self.token_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.vocabulary, config.width)))
        self.position_embedding = nnx.Param(0.01 * jax.random.normal(rngs.params(), (config.context, config.width)))
        self.transformer = tower_transformer(config, dtype, remat, rngs)
        self.final_norm = tower_norm(config, dtype, rngs)

    def embed(self, tokens: Int[Array, "c t"]) -> Float[Array, "c t d"]:
        """The input of the first block: tokens with their positions. Raises InputError if the text is too long."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise InputError(f"a text of {length} tokens is longer than the model's {self.config.context} positions")
        dtype = self.dtype or jnp.float32
        return (self.token_embedding[...][tokens] + self.position_embedding[...][:length]).astype(dtype)

    def __call__(self, tokens: Int[Array, "c t"]) -> TowerOutput:
        embedded = self.embed(tokens)
        x, layers = self.transformer(embedded, self._mask(tokens))
        x = self.final_norm(x)
        return TowerOutput(x[jnp.arange(len(x)), self.config.end(tokens)], x, embedded, layers)

    def pool(self, tokens: Int[Array, "c t"]) -> Float[Array, "c d"]:
        """Only `pooled`. The last block is computed for the token that represents the text alone."""
        mask = self._mask(tokens)
        x, _, block = self.transformer.before_last(self.embed(tokens), mask)
        return self.final_norm(block.at(x, jnp.asarray(self.config.end(tokens)), mask))

    def _mask(self, tokens: Int[Array, "c t"]) -> Bool[Array, "t t"] | None:
        """The causal mask, or None. Padding needs no mask.

        In a causal tower padding comes after the end token and cannot influence it. SigLIP is trained to attend to it.
        """
        length = tokens.shape[1]
        return jnp.tril(jnp.ones((length, length), bool)) if self.config.causal else None


class CLIP(nnx.Module):
    """Both towers and their projections. `dtype` is the dtype of the computation. Parameters are float32."""

    def __init__(
        self,
        config: CLIPConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = None,
        positions: Literal["normal", "sincos"] = "normal",
        remat: Remat = "none",
    ):
        self.config = config
        self.vision_tower = VisionTower(config.vision, rngs=rngs, dtype=dtype, positions=positions, remat=remat)
        self.text_tower = TextTower(config.text, rngs=rngs, dtype=dtype, remat=remat)
        self.visual_projection = _projection(config.vision.width, config.embed_dim, dtype, rngs)
        self.text_projection = _projection(config.text.width, config.embed_dim, dtype, rngs)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale, jnp.float32))

    def vision(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """Image embeddings, float32, not unit length. `pixels` are normalised with the checkpoint's mean and std.

        Images may have any size of at least one patch. The position table is interpolated to their size.
        """
        return self.visual_projection(self.vision_tower.pool(pixels)).astype(jnp.float32)

    def text(self, tokens: Int[Array, "c t"]) -> Float[Array, "c d"]:
        """Text embeddings, float32, not unit length. `tokens` have start and end tokens; t is at most `context`."""
        return self.text_projection(self.text_tower.pool(tokens)).astype(jnp.float32)

    @property
    def readouts(self) -> tuple[str, ...]:
        """The readouts that `dense` has for this model."""
        return readouts_of_depth(self.config.vision.depth)

    def dense(self, pixels: Float[Array, "b y x 3"], readout: str = "maskclip") -> Float[Array, "b h w d"]:
        """The embedding of every patch by a training-free readout (`models.readouts`), float32, not unit length.

        Raises InputError for a readout that is not one of `readouts`.
        """
        return self.visual_projection(self.vision_tower.dense(pixels, readout)).astype(jnp.float32)


def cut_patches(pixels: Float[Array, "b y x 3"], size: int) -> tuple[Float[Array, "b n c"], tuple[int, int]]:
    """Cuts images into flattened square patches of `size` pixels. Returns them row-major, and the grid (rows, columns).

    A border narrower than a patch is left out, as in the strided convolution of the checkpoints. Raises InputError for
    an image smaller than a patch.
    """
    b, height, width, _ = pixels.shape
    h, w = height // size, width // size
    if not h or not w:
        raise InputError(
            f"an image of {height}x{width} pixels is smaller than the model's patch of {size}x{size} pixels"
        )
    cut = pixels[:, : h * size, : w * size].reshape(b, h, size, w, size, 3)
    return cut.swapaxes(2, 3).reshape(b, h * w, -1), (h, w)


def tower_norm(config: VisionConfig | TextConfig, dtype: Any, rngs: nnx.Rngs) -> LayerNorm:
    """A layer norm with the width and epsilon of a tower."""
    return layer_norm(config.width, config.norm_eps, dtype=dtype, rngs=rngs)


def tower_transformer(config: VisionConfig | TextConfig, dtype: Any, remat: Remat, rngs: nnx.Rngs) -> Transformer:
    """The blocks of a tower."""
    activation = ACTIVATIONS[config.activation]
    sizes = config.depth, config.width, config.heads, config.mlp_width
    return Transformer(*sizes, activation=activation, norm_eps=config.norm_eps, dtype=dtype, remat=remat, rngs=rngs)


def _projection(inputs: int, outputs: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(inputs**-0.5)
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
