"""Vectors at unit length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`x` at unit length; a zero vector stays zero, with a finite gradient, where `x / (norm + eps)` has none."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)
