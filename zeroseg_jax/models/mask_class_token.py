"""Mask class tokens: copies of CLIP's class token, each of which attends to the patches of one segment.

They embed a segment as CLIP embeds an image, with CLIP's own weights. MaskCLIP of Ding et al. 2023 ("Open-Vocabulary
Universal Image Segmentation with MaskCLIP") and SAN (Xu et al. 2023, "Side Adapter Network for Open-Vocabulary Semantic
Segmentation") have such tokens for masks that are learnt from labels. Here the masks are the student's soft shares.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zeroseg_jax.models.clip import PatchContext, VisionTower
from zeroseg_jax.models.layers import Block

SMALLEST_SHARE = 1e-4
"""Added to the shares, whose logarithm would be minus infinity at 0."""


def mask_class_tokens(
    tower: VisionTower, context: PatchContext, shares: Float[Array, "b k s"]
) -> Float[Array, "b s d"]:
    """The normed class token of each segment, before CLIP's projection.

    In every block a token attends to itself and to the patches as the image's own pass left them. The logarithm of a
    patch's share in the segment is added to its attention logit. With all shares 1 the result is the class token of
    the image.

    Args:
        tower: the image tower.
        context: what its `with_keys_and_values` gave for the images.
        shares: share of each patch in each segment, in [0, 1].
    """
    graphdef, blocks = nnx.split(tower.transformer.blocks)
    logarithms = jnp.log(shares.astype(jnp.float32).swapaxes(1, 2) + SMALLEST_SHARE)
    (b, d), s = context.class_token.shape, shares.shape[2]
    tokens = jnp.broadcast_to(context.class_token[:, None], (b, s, d))

    def apply(tokens: Array, block: Any) -> tuple[Array, None]:
        state, keys, values = block
        return _block(nnx.merge(graphdef, state), tokens, keys, values, logarithms), None

    tokens, _ = jax.lax.scan(apply, tokens, (blocks, context.keys, context.values))
    return tower.post_norm(tokens)


def _block(
    block: Block,
    tokens: Float[Array, "b s d"],
    patch_keys: Float[Array, "b k d"],
    patch_values: Float[Array, "b k d"],
    logarithms: Float[Array, "b s k"],
) -> Float[Array, "b s d"]:
    """One block of the tower for mask class tokens."""
    attention = block.attention
    normed = block.norm1(tokens)
    query, key, value, patch_key, patch_value = (
        attention.split(y)
        for y in (attention.query(normed), attention.key(normed), attention.value(normed), patch_keys, patch_values)
    )
    scale = query.shape[-1] ** -0.5
    to_itself = jnp.einsum("bshc,bshc->bhs", query, key, preferred_element_type=jnp.float32) * scale
    to_patches = jnp.einsum("bshc,bkhc->bhsk", query, patch_key, preferred_element_type=jnp.float32) * scale
    logits = jnp.concatenate([to_itself[..., None], to_patches + logarithms[:, None]], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    of_itself = weights[..., 0].swapaxes(1, 2)[..., None] * value
    y = of_itself + jnp.einsum("bhsk,bkhc->bshc", weights[..., 1:], patch_value)
    tokens = tokens + attention.out(y.reshape(tokens.shape))
    return tokens + block.mlp(block.norm2(tokens))
