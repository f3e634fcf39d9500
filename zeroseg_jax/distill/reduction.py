"""The dtype in which gradients are summed over devices: the computation's own, or float32.

In a bfloat16 computation the compiler sums the gradient of a matrix over the devices in the dtype of the product that
makes it, which is bfloat16: half the bytes, and each addition rounded to 8 bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zeroseg_jax.models.layers import PRODUCT


@jax.custom_vjp
def product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ kernel` in the dtype of `x`; the gradient of the (float32) kernel is made, and so summed, in float32."""
    return x @ kernel.astype(x.dtype)


def _forwards(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _backwards(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_kernel = jnp.einsum("...i,...o->io", x, gradient, preferred_element_type=kernel.dtype)
    return gradient @ kernel.astype(gradient.dtype).T, of_kernel


product.defvjp(_forwards, _backwards)


def sum_in_float32(model: nnx.Module) -> None:
    """Makes all linear layers of `model` give their kernels float32 gradients, whatever dtype they compute in."""

    def promote(arrays: Any, *, dtype: Any) -> Any:
        x, kernel, bias = arrays
        return x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)

    def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return checkpoint_name(product(x, kernel), PRODUCT)

    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Linear) and module.dtype is not None:
            module.promote_dtype, module.dot_general = promote, dot_general  # type: ignore[assignment]
