"""Groups tokens into segments (Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision").

In a stage, image tokens and learnable group tokens first attend to each other. The grouping block then assigns each
image token to one of a few segments, and merges the tokens of each segment. The block follows the released checkpoints.
They have a cross-attention before the assignment, which the paper does not mention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from zeroseg_jax.models.layers import MLP, Attention, Remat, Transformer, linear
from zeroseg_jax.ops.layer_norm import LayerNorm, layer_norm


@dataclass(frozen=True)
class AssignmentConfig:
    """The rule that assigns tokens to segments. The defaults are GroupViT's."""

    kind: str = "hard"
    """"hard": each token belongs to one segment, with straight-through gradients. "soft": it has a share in each."""
    gumbel: bool = True
    """Whether Gumbel noise is added to the logits. This needs a key, which only training gives."""
    tau: float = 1.0
    """Temperature of the softmax."""
    total: bool = False
    """Whether a segment is the sum of its tokens. If not, the sum is divided by (their total weight + 1)."""


Keys = Key[Array, ""] | Key[Array, " b"]
"""Random keys of a batch (`jax.random.key`): one key for all images, or one key for each image."""


class Grouping(NamedTuple):
    """The output of a grouping block."""

    segments: Float[Array, "b s d"]
    assignment: Float[Array, "b n s"]
    """The segmentation map: share of each token in each segment, always soft and without noise; float32."""


def assign(
    logits: Float[Array, "b n s"], config: AssignmentConfig, key: Keys | None = None
) -> tuple[Float[Array, "b n s"], Float[Array, "b n s"]]:
    """The weights that merge the tokens, and the soft assignment without noise. Rows of both sum to 1; float32.

    `key` is for the Gumbel noise. None (inference) adds no noise.
    """
    logits = logits.astype(jnp.float32)
    soft = jax.nn.softmax(logits / config.tau, axis=-1)
    weights = soft
    if config.gumbel and key is not None:
        weights = jax.nn.softmax((logits + _gumbel(key, logits.shape)) / config.tau, axis=-1)
    if config.kind == "hard":
        one_hot = jax.nn.one_hot(jnp.argmax(weights, axis=-1), logits.shape[-1])
        weights = one_hot - jax.lax.stop_gradient(weights) + weights
    return weights, soft


def _gumbel(key: Keys, shape: tuple[int, ...]) -> Float[Array, "b n s"]:
    if key.ndim == 0:
        return jax.random.gumbel(key, shape)
    return jax.vmap(lambda image_key: jax.random.gumbel(image_key, shape[1:]))(key)


def compose_assignments(assignments: Sequence[Float[Array, "b _ _"]]) -> Float[Array, "b n s"]:
    """Share of each token of the first stage in each segment of the last stage: the product of all assignments."""
    product = assignments[0]
    for assignment in assignments[1:]:
        product = jnp.matmul(product, assignment, precision="highest")
    return product


class TokenMixer(nnx.Module):
    """An MLP over the token axis, from n tokens to m."""

    def __init__(self, tokens: int, hidden: int, out: int, *, dtype: Any = None, rngs: nnx.Rngs):
        self.mlp = MLP(tokens, hidden, out=out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        return self.mlp(x.swapaxes(1, 2)).swapaxes(1, 2)


class CrossAttention(nnx.Module):
    """Post-norm cross-attention from the segments to the image tokens, before the assignment."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, norm_eps: float, dtype: Any = None, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, dtype=dtype, rngs=rngs)
        self.post_norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"], context: Float[Array, "b n d"]) -> Float[Array, "b s d"]:
        x = x + self.attention(x, context)
        return self.post_norm(x + self.mlp(self.norm2(x)))


class AssignAttention(nnx.Module):
    """Single-head attention with a softmax over the segments, so that each token chooses a segment."""

    def __init__(self, width: int, config: AssignmentConfig, *, dtype: Any = None, rngs: nnx.Rngs):
        self.config = config
        self.query = linear(width, width, dtype=dtype, rngs=rngs)
        self.key = linear(width, width, dtype=dtype, rngs=rngs)
        self.value = linear(width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, segments: Float[Array, "b s d"], tokens: Float[Array, "b n d"], key: Keys | None = None
    ) -> Grouping:
        # float32 from here: bfloat16 is too coarse for the straight-through difference and small shares
        query, keys, values = (
            y.astype(jnp.float32) for y in (self.query(segments), self.key(tokens), self.value(tokens))
        )
        logits = jnp.einsum("bnd,bsd->bns", keys, query) * query.shape[-1] ** -0.5
        weights, soft = assign(logits, self.config, key)
        if not self.config.total:  # the 1 avoids a division by 0 for an empty segment
            weights = weights / (weights.sum(axis=1, keepdims=True) + 1)
        merged = jnp.einsum("bns,bnd->bsd", weights, values)
        return Grouping(self.out(merged.astype(segments.dtype)), soft)


class GroupingBlock(nnx.Module):
    """Groups n tokens into `segments` segments. The group tokens have attended to these tokens before.

    `mlp_width` is the hidden width of the cross-attention's MLP; None means 4 width. The MLP of the merged segments
    always has 4 width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        group_tokens: int,
        segments: int,
        config: AssignmentConfig,
        *,
        mlp_width: int | None = None,
        norm_eps: float = 1e-5,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        def norm() -> LayerNorm:
            return layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)

        self.group_norm, self.segment_norm, self.token_norm, self.output_norm = norm(), norm(), norm(), norm()
        self.mixer = TokenMixer(group_tokens, width // 2, segments, dtype=dtype, rngs=rngs)
        self.cross = CrossAttention(width, heads, mlp_width or 4 * width, norm_eps=norm_eps, dtype=dtype, rngs=rngs)
        self.assignment = AssignAttention(width, config, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, 4 * width, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b n d"], groups: Float[Array, "b g d"], key: Keys | None = None
    ) -> Grouping:
        tokens, groups = self.token_norm(tokens), self.group_norm(groups)
        segments = self.segment_norm(self.mixer(groups))
        segments = self.cross(segments, tokens)
        merged, assignment = self.assignment(segments, tokens, key)
        merged = merged + segments  # without this residual all segments stay alike
        return Grouping(merged + self.mlp(self.output_norm(merged)), assignment)


class GroupProjector(nnx.Module):
    """Projects the group tokens of one stage to the number of group tokens of the next."""

    def __init__(self, width: int, tokens: int, out: int, *, norm_eps: float, dtype: Any = None, rngs: nnx.Rngs):
        self.norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mixer = TokenMixer(tokens, width // 2, out, dtype=dtype, rngs=rngs)

    def __call__(self, groups: Float[Array, "b g d"]) -> Float[Array, "b h d"]:
        return self.mixer(self.norm(groups))


class GroupingStage(nnx.Module):
    """Group tokens, transformer blocks over image and group tokens together, and a grouping block.

    `previous` is the number of group tokens of the stage before it; 0 for the first stage. In a later stage, the group
    tokens are offsets to the projected group tokens of the stage before, and start at zero. `mlp_width` None means
    4 width.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        group_tokens: int,
        segments: int,
        config: AssignmentConfig,
        *,
        previous: int = 0,
        mlp_width: int | None = None,
        norm_eps: float = 1e-5,
        dtype: Any = None,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        start = 0.0 if previous else 0.02
        self.group_tokens = nnx.Param(start * jax.random.normal(rngs.params(), (group_tokens, width)))
        options: dict[str, Any] = {"norm_eps": norm_eps, "dtype": dtype, "rngs": rngs}
        self.projector = GroupProjector(width, previous, group_tokens, **options) if previous else None
        self.transformer = Transformer(depth, width, heads, mlp_width or 4 * width, remat=remat, **options)
        self.grouping = GroupingBlock(width, heads, group_tokens, segments, config, mlp_width=mlp_width, **options)

    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        previous: Float[Array, "b h d"] | None = None,
        key: Keys | None = None,
    ) -> tuple[Grouping, Float[Array, "b g d"]]:
        """The segments with their assignment, and the group tokens after the transformer, for the next stage."""
        groups = self.group_tokens[...].astype(tokens.dtype)
        groups = jnp.broadcast_to(groups, (tokens.shape[0], *groups.shape))
        if self.projector is not None:
            assert previous is not None, "a stage with a projector needs the group tokens of the stage before"
            groups = groups + self.projector(previous)
        n = tokens.shape[1]
        x, _ = self.transformer(jnp.concatenate([tokens, groups], axis=1))
        return self.grouping(x[:, :n], x[:, n:], key), x[:, n:]
