"""The linear map of a one-dimensional resize. An image needs one such matrix for its rows and one for its columns."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Literal["bilinear", "bicubic"]

BORDER = 2
"""Samples that a bicubic kernel reaches to each side."""


@overload
def resize_matrix(
    inputs: int, outputs: int, start: float = 0.0, end: float = 1.0, *, kernel: Kernel = ..., antialias: bool = ...
) -> np.ndarray: ...
@overload
def resize_matrix(
    inputs: int, outputs: int, start: Array, end: Array, *, kernel: Kernel = ..., antialias: bool = ...
) -> Array: ...
def resize_matrix(
    inputs: int,
    outputs: int,
    start: float | Float[Array, "*b"] = 0.0,
    end: float | Float[Array, "*b"] = 1.0,
    *,
    kernel: Kernel = "bilinear",
    antialias: bool = False,
) -> Float[np.ndarray | Array, "*b outputs inputs"]:
    """Resizes the part [start, end] of a line of `inputs` samples to `outputs` samples. Every row sums to 1.

    `start` and `end` are fractions of the line, in [0, 1]. With numbers the matrix is a float32 array of numpy, a
    constant of the compiled program. With arrays of JAX there is one matrix for each element, made at run time.

    With `antialias` the kernel is widened where the line shrinks and is cut off at the border, as Pillow does.
    Without, the kernel keeps its width and the border is repeated, as `torch.nn.functional.interpolate` and OpenCV do.
    The bicubic kernel is that of Keys (1981), whose parameter is -0.5 in Pillow and -0.75 in torch and OpenCV.
    """
    xp: Any = jnp if isinstance(start, jax.Array) else np
    first, last = xp.asarray(start)[..., None, None], xp.asarray(end)[..., None, None]
    scale = (last - first) * inputs / outputs  # input samples for each output sample
    centres = first * inputs + (np.arange(outputs)[:, None] + 0.5) * scale
    border = 0 if antialias else BORDER
    distance = xp.abs(np.arange(-border, inputs + border) + 0.5 - centres)
    if antialias:
        weights = _weights(distance / xp.maximum(scale, 1.0), kernel, -0.5)
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    weights = _weights(distance, kernel, -0.75)
    inside = weights[..., border:-border]
    before, after = weights[..., :border].sum(axis=-1), weights[..., -border:].sum(axis=-1)
    edges = before[..., None] * (np.arange(inputs) == 0) + after[..., None] * (np.arange(inputs) == inputs - 1)
    return (inside + edges).astype(np.float32)


def _weights(t: Any, kernel: Kernel, a: float) -> Any:
    """The kernel at a distance of `t` samples; `a` is the parameter of the bicubic one."""
    xp: Any = jnp if isinstance(t, jax.Array) else np
    if kernel == "bilinear":
        return xp.maximum(1 - t, 0)
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return xp.where(t < 1, near, xp.where(t < 2, far, 0))
