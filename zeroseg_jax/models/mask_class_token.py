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

from zeroseg_jax.models.clip import TowerOutput, VisionTower
from zeroseg_jax.models.layers import Block

SMALLEST_SHARE = 1e-4
"""Added to the shares, whose logarithm would be minus infinity at 0."""


def mask_class_tokens(tower: VisionTower, output: TowerOutput, shares: Float[Array, "b k s"]) -> Float[Array, "b s d"]:
    """The normed class token of each segment, before CLIP's projection.

    In every block a token attends to itself and to the patches as the image's own pass left them. The logarithm of a
    patch's share in the segment is added to its attention logit. With all shares 1 the result is the class token of
    the image.

    Args:
        tower: the image tower.
        output: what it gave for the images, for a class token and k patches.
        shares: share of each patch in each segment, in [0, 1].
    """
    graphdef, blocks = nnx.split(tower.transformer.blocks)
    inputs = jnp.concatenate([output.embedded[None], output.layers[:-1]])
    logarithms = jnp.log(shares.astype(jnp.float32).swapaxes(1, 2) + SMALLEST_SHARE)
    first = output.embedded[:, :1]
    tokens = jnp.broadcast_to(first, (first.shape[0], shares.shape[2], first.shape[2]))

    def one_block(tokens: Array, block_and_input: tuple[Any, Array]) -> tuple[Array, None]:
        state, x = block_and_input
        return _attend_and_mix(nnx.merge(graphdef, state), tokens, x[:, 1:], logarithms), None

    tokens, _ = jax.lax.scan(one_block, tokens, (blocks, inputs))
    return tower.post_norm(tokens)


def _attend_and_mix(
    block: Block, tokens: Float[Array, "b s d"], patches: Float[Array, "b k d"], logarithms: Float[Array, "b s k"]
) -> Float[Array, "b s d"]:
    """`block` for mask class tokens; the patches are only read."""
    attention = block.attention

    def split(y: Array) -> Array:
        return y.reshape(*y.shape[:2], attention.heads, -1)

    normed, context = block.norm1(tokens), block.norm1(patches)
    query, key, value = (split(layer(normed)) for layer in (attention.query, attention.key, attention.value))
    patch_key, patch_value = split(attention.key(context)), split(attention.value(context))
    scale = query.shape[-1] ** -0.5
    to_itself = jnp.einsum("bshc,bshc->bhs", query, key, preferred_element_type=jnp.float32) * scale
    to_patches = jnp.einsum("bshc,bkhc->bhsk", query, patch_key, preferred_element_type=jnp.float32) * scale
    logits = jnp.concatenate([to_itself[..., None], to_patches + logarithms[:, None]], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    of_itself = weights[..., 0].swapaxes(1, 2)[..., None] * value
    y = of_itself + jnp.einsum("bhsk,bkhc->bshc", weights[..., 1:], patch_value)
    tokens = tokens + attention.out(y.reshape(tokens.shape))
    return tokens + block.mlp(block.norm2(tokens))
