"""Checks the dtype that users give for a model's computation."""

from typing import Any

import jax.numpy as jnp

from zeroseg_jax.errors import InputError

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}


def check_dtype(dtype: Any) -> Any:
    """The dtype for `dtype`, which is a dtype, a name such as "bfloat16" or "bf16", or None, which stays None.

    Raises InputError unless it is float32, bfloat16 or float16.
    """
    if dtype is None:
        return None
    try:
        resolved = jnp.dtype(_SHORT.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        resolved = None
    if resolved not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise InputError(f"dtype is {dtype!r}; it must be float32, bfloat16 or float16")
    return resolved
