"""Attention by cuDNN, for training in bfloat16 on NVIDIA GPUs. It does not write its logits to memory.

On an H200 the step of `configs/vitb16_online.py` took 417 ms with it and 518 ms without, and 20.5 instead of 28.5 GiB.
Models that are exported or run elsewhere keep `attention.attend`.
"""

import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zeroseg_jax.ops.attention import attend

IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"
"""Its name in `jax.nn.dot_product_attention`."""
OLDEST = 8.0
"""Compute capability of the oldest GPUs that can run it: A100 and RTX 30."""
WIDEST = 128
"""Largest width of a head that all these GPUs can take. Widths are multiples of 8."""


def best_attention(dtype: Any) -> Literal["plain", "cudnn"]:
    """The attention with which the devices of this process train fastest in `dtype`, as `layers.Attention` names it."""
    if dtype is None or jnp.dtype(dtype) != jnp.bfloat16 or jax.default_backend() != "gpu":
        return "plain"
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    has_it = re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= OLDEST  # AMD's is a name: gfx942
    return "cudnn" if has_it else "plain"


def flash_attend(
    query: Float[Array, "b n h c"],
    key: Float[Array, "b m h c"],
    value: Float[Array, "b m h c"],
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "b n h c"]:
    """As `attention.attend`, up to rounding.

    It is `attention.attend` itself with a mask, for a single query, for heads that cuDNN does not take, and in a
    `jax.shard_map` that leaves an axis of the mesh to the compiler, as the step does with "tensor".
    """
    width = query.shape[-1]
    if mask is not None or query.shape[1] == 1 or width % 8 or width > WIDEST or _is_split_by_the_compiler():
        return attend(query, key, value, mask)
    return _flash_attend(query, key, value)


def _is_split_by_the_compiler() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes and mesh.auto_axes)


@jax.custom_vjp
def _flash_attend(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation=IMPLEMENTATION)


def _even(query: Array, key: Array, value: Array) -> Array:
    """The same for gradients. JAX has them only for an even number of tokens, so one masked token may be added."""
    (batch, n), m = query.shape[:2], key.shape[1]
    lengths: dict[str, Any] = {}
    if n % 2 or m % 2:
        lengths = {"query_seq_lengths": jnp.full(batch, n), "key_value_seq_lengths": jnp.full(batch, m)}
        query, key, value = (jnp.pad(y, ((0, 0), (0, y.shape[1] % 2), (0, 0), (0, 0))) for y in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, implementation=IMPLEMENTATION, **lengths)[:, :n]


def _forwards(*inputs: Array) -> tuple[Array, Any]:
    return jax.vjp(_even, *inputs)


def _backwards(pullback: Any, gradient: Array) -> Any:
    return pullback(gradient)


_flash_attend.defvjp(_forwards, _backwards)
