"""Scales vectors to unit length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`x` scaled to unit length, float32. A zero vector stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)
