"""Scaled dot-product attention with a gradient of its own, which keeps the shares in the dtype of the computation.

JAX's own gradient also keeps the float32 softmax. Without this one, the gradient of the encoder's 12 blocks takes 8 %
more cycles and 11 % more memory for temporaries (64 images a chip of 79 tokens each, compiled for TPU v5e).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_vjp
def attend(
    query: Float[Array, "b n h c"],
    key: Float[Array, "b m h c"],
    value: Float[Array, "b m h c"],
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "b n h c"]:
    """Each of h heads by itself, with a float32 softmax. `mask` is broadcast to (b, h, n, m); True: "may attend"."""
    return _forwards(query, key, value, mask)[0]


def _forwards(query: Array, key: Array, value: Array, mask: Array | None) -> tuple[Array, tuple[Array, ...]]:
    # heads before tokens, so that all are plain batched matrix products: with `jax.nn.dot_product_attention`, whose
    # heads come after, attention takes 1.5 to 3 times as long on a CPU
    query, key, value = (y.swapaxes(1, 2) for y in (query, key, value))
    logits = jnp.einsum("bhnc,bhmc->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    y = jnp.einsum("bhnm,bhmc->bhnc", shares, value)
    return y.swapaxes(1, 2), (query, key, value, shares, y)


def _backwards(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, shares, y = saved
    gradient = gradient.swapaxes(1, 2)
    of_value = jnp.einsum("bhnm,bhnc->bhmc", shares, gradient)
    of_shares = jnp.einsum("bhnc,bhmc->bhnm", gradient, value, preferred_element_type=jnp.float32)
    # the mean of a row's gradients by its shares, which the result gives with fewer terms (Dao et al. 2022,
    # "FlashAttention", appendix B.2)
    mean = (gradient.astype(jnp.float32) * y.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    of_logits = shares.astype(jnp.float32) * (of_shares - mean) * query.shape[-1] ** -0.5
    of_logits = of_logits.astype(query.dtype)
    of_query = jnp.einsum("bhnm,bhmc->bhnc", of_logits, key)
    of_key = jnp.einsum("bhnm,bhnc->bhmc", of_logits, query)
    of_query, of_key, of_value = (y.swapaxes(1, 2) for y in (of_query, of_key, of_value))
    return of_query, of_key, of_value, None


attend.defvjp(_forwards, _backwards)
