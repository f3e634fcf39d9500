"""Layer norm with a gradient of its own, in one pass over what it keeps: its input, and each token's mean and scale.

JAX's own gradient keeps several float32 arrays of the size of the input, and takes two passes. Without this one, the
gradient of the encoder's 12 blocks takes 9 % more cycles and 45 % more memory for temporaries (64 images a chip,
compiled for TPU v5e).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.LayerNorm):
    """flax's layer norm over the last axis, with scale and bias; statistics are float32 (Ba et al. 2016)."""

    def __call__(self, x: Float[Array, "... d"], **_: Any) -> Float[Array, "... d"]:
        assert self.scale is not None and self.bias is not None
        scale, bias = self.scale[...], self.bias[...]
        return _layer_norm(x, scale, bias, self.epsilon, self.dtype or jnp.result_type(x, scale))


def layer_norm(width: int, epsilon: float, *, dtype: Any = None, rngs: nnx.Rngs) -> LayerNorm:
    """A layer norm of `width` numbers; `dtype` is that of its result, by default the wider of input's and weights'."""
    return LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any) -> Array:
    return _forwards(x, scale, bias, epsilon, dtype)[0]


def _forwards(x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any) -> tuple[Array, tuple[Array, ...]]:
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    if x.dtype == jnp.float32:
        variance = jnp.square(y - mean).mean(axis=-1, keepdims=True)
    else:  # E[x^2] - E[x]^2 takes one pass instead of two, and loses digits that bfloat16 never had
        variance = jnp.maximum(jnp.square(y).mean(axis=-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return ((y - mean) * (inverse * scale) + bias).astype(dtype), (x, scale, mean, inverse)


def _backwards(epsilon: float, dtype: Any, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    tokens = tuple(range(x.ndim - 1))
    of_scale, of_bias = (gradient * normed).sum(tokens), gradient.sum(tokens)
    gradient = gradient * scale
    along = (gradient * normed).mean(axis=-1, keepdims=True)
    of_x = inverse * (gradient - gradient.mean(axis=-1, keepdims=True) - normed * along)
    return of_x.astype(x.dtype), of_scale, of_bias


_layer_norm.defvjp(_forwards, _backwards)
