"""Grouping tokens into segments (Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision").

A stage lets learnable group tokens attend to the image tokens together with them, then its grouping block assigns
every image token to one of a few segments and merges what is assigned to the same one. The block follows the released
checkpoints, including the cross-attention before the assignment that the paper does not mention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import optimization_barrier
from jaxtyping import Array, Float, Key

from zeroseg_jax.models.layers import MLP, Attention, Remat, Transformer, kept_gelu, linear
from zeroseg_jax.ops.layer_norm import LayerNorm, layer_norm


@dataclass(frozen=True)
class Assigning:
    """How tokens are assigned to segments; the defaults are GroupViT's."""

    kind: str = "hard"
    """"hard": one segment a token, gradients straight through the softmax. "soft": shares of all segments."""
    gumbel: bool = True
    """Whether training adds Gumbel noise to the logits: whenever a key is given."""
    tau: float = 1.0
    """Temperature of the softmax."""
    total: bool = False
    """Whether a segment's value is the sum over its tokens; otherwise it is the sum over (their weight + 1)."""


Keys = Key[Array, ""] | Key[Array, " b"]
"""Random keys of a batch (`jax.random.key`): one for all, or one an image, whose noise then depends on it alone."""


class Grouping(NamedTuple):
    """What a grouping block returns."""

    segments: Float[Array, "b s d"]
    assignment: Float[Array, "b n s"]
    """Share of each token in each segment, float32, without noise and always soft: the segmentation map."""


def assign(
    logits: Float[Array, "b n s"], how: Assigning, key: Keys | None = None
) -> tuple[Float[Array, "b n s"], Float[Array, "b n s"]]:
    """The map that merges the features, and the soft map without noise. Rows of both sum to 1; float32.

    `key` draws the Gumbel noise where `how` has it; None (inference) adds none.
    """
    logits = logits.astype(jnp.float32)
    clean = jax.nn.softmax(logits / how.tau, axis=-1)
    merging = clean
    if how.gumbel and key is not None:
        merging = jax.nn.softmax((logits + _gumbel(key, logits.shape)) / how.tau, axis=-1)
    if how.kind == "hard":
        chosen = jax.nn.one_hot(jnp.argmax(merging, axis=-1), logits.shape[-1])
        merging = chosen - jax.lax.stop_gradient(merging) + merging
    return merging, clean


def _gumbel(key: Keys, shape: tuple[int, ...]) -> Float[Array, "b n s"]:
    if key.ndim == 0:
        return jax.random.gumbel(key, shape)
    return jax.vmap(lambda one: jax.random.gumbel(one, shape[1:]))(key)


def compose(maps: Sequence[Float[Array, "b _ _"]]) -> Float[Array, "b n s"]:
    """Share of each token of the first stage in each segment of the last, from the map of every stage."""
    whole = maps[0]
    for stage_map in maps[1:]:
        whole = jnp.matmul(whole, stage_map, precision="highest")
    return whole


class TokenMixer(nnx.Module):
    """An MLP over the token axis: turns n tokens into m."""

    def __init__(self, tokens: int, hidden: int, out: int, *, dtype: Any = None, rngs: nnx.Rngs):
        self.mlp = MLP(tokens, hidden, out=out, activation=kept_gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        return self.mlp(x.swapaxes(1, 2)).swapaxes(1, 2)


class CrossAttention(nnx.Module):
    """Post-norm cross-attention of the segments to the image tokens, before the assignment."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, norm_eps: float, dtype: Any = None, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, activation=kept_gelu, dtype=dtype, rngs=rngs)
        self.post_norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"], context: Float[Array, "b n d"]) -> Float[Array, "b s d"]:
        x = x + self.attention(x, context)
        return self.post_norm(x + self.mlp(self.norm2(x)))


class AssignAttention(nnx.Module):
    """Single-head attention whose softmax runs over the segments: each token chooses a segment, not the reverse."""

    def __init__(self, width: int, how: Assigning, *, dtype: Any = None, rngs: nnx.Rngs):
        self.how = how
        self.query = linear(width, width, dtype=dtype, rngs=rngs)
        self.key = linear(width, width, dtype=dtype, rngs=rngs)
        self.value = linear(width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, segments: Float[Array, "b s d"], tokens: Float[Array, "b n d"], key: Keys | None = None
    ) -> Grouping:
        # float32 from here: the straight-through difference and small shares do not survive bfloat16
        query, keys, values = (
            y.astype(jnp.float32) for y in (self.query(segments), self.key(tokens), self.value(tokens))
        )
        logits = jnp.einsum("bnd,bsd->bns", keys, query) * query.shape[-1] ** -0.5
        merging, clean = assign(logits, self.how, key)
        if not self.how.total:  # with the 1, an empty segment gets 0 and not 0/0
            merging = merging / (merging.sum(axis=1, keepdims=True) + 1)
        merged = jnp.einsum("bns,bnd->bsd", merging, values)
        return Grouping(self.out(merged.astype(segments.dtype)), clean)


class GroupingBlock(nnx.Module):
    """Groups n tokens into `segments` segments, given group tokens that have attended to them.

    `mlp_width` is that of the cross-attention, 4 width if None; that of the merged segments is always 4 width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        group_tokens: int,
        segments: int,
        how: Assigning,
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
        self.assignment = AssignAttention(width, how, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=kept_gelu, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b n d"], groups: Float[Array, "b g d"], key: Keys | None = None
    ) -> Grouping:
        # kept apart: each is read by several products, which would all norm it again, in programs of their own
        tokens, groups = optimization_barrier((self.token_norm(tokens), self.group_norm(groups)))
        segments = optimization_barrier(self.segment_norm(self.mixer(groups)))
        segments = optimization_barrier(self.cross(segments, tokens))
        merged, assignment = self.assignment(segments, tokens, key)
        merged = merged + segments  # without this residual the segments do not learn to differ
        return Grouping(merged + self.mlp(self.output_norm(merged)), assignment)


class GroupProjector(nnx.Module):
    """Hands the group tokens of one stage to the next, which has another number of them."""

    def __init__(self, width: int, tokens: int, out: int, *, norm_eps: float, dtype: Any = None, rngs: nnx.Rngs):
        self.norm = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mixer = TokenMixer(tokens, width // 2, out, dtype=dtype, rngs=rngs)

    def __call__(self, groups: Float[Array, "b g d"]) -> Float[Array, "b h d"]:
        return self.mixer(self.norm(groups))


class GroupingStage(nnx.Module):
    """Group tokens, transformer blocks over image and group tokens together, and a grouping block.

    `previous` is the number of group tokens of the stage before, 0 for the first stage. A later stage's own tokens
    start at zero: they are offsets to the projected ones of the stage before. `mlp_width` is 4 width if None.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        group_tokens: int,
        segments: int,
        how: Assigning,
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
        self.grouping = GroupingBlock(width, heads, group_tokens, segments, how, mlp_width=mlp_width, **options)

    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        previous: Float[Array, "b h d"] | None = None,
        key: Keys | None = None,
    ) -> tuple[Grouping, Float[Array, "b g d"]]:
        """The segments and their map, and the group tokens after the transformer, for the next stage."""
        groups = self.group_tokens[...].astype(tokens.dtype)
        groups = jnp.broadcast_to(groups, (tokens.shape[0], *groups.shape))
        if self.projector is not None:
            assert previous is not None, "a stage with a projector needs the group tokens of the stage before"
            groups = groups + self.projector(previous)
        n = tokens.shape[1]
        x, _ = self.transformer(jnp.concatenate([tokens, groups], axis=1))
        return self.grouping(x[:, :n], x[:, n:], key), x[:, n:]
