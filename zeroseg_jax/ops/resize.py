"""A matrix that resizes a line of samples. An image needs one matrix for its rows and one for its columns."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Literal["bilinear", "bicubic"]


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
    """The matrix that resizes the part [start, end] of `inputs` samples to `outputs` samples. Each row sums to 1.

    Args:
        inputs: number of samples of the line.
        outputs: number of samples of the result.
        start: begin of the part, as a fraction of the line in [0, 1]. Numbers give a float32 numpy matrix, a constant
            of the compiled program. JAX arrays give one matrix for each element, computed at run time.
        end: end of the part, in the same form. JAX arrays need `antialias`.
        kernel: the bicubic kernel is by Keys (1981). Its parameter is -0.5 with `antialias`, otherwise -0.75.
        antialias: True works as in Pillow: the kernel is wider if the line becomes shorter, and it is cut off at the
            border. False works as in `torch.nn.functional.interpolate` and OpenCV: the width of the kernel is fixed,
            and the border is repeated.
    """
    xp: Any = jnp if isinstance(start, jax.Array) else np
    first, last = xp.asarray(start)[..., None, None], xp.asarray(end)[..., None, None]
    scale = (last - first) * inputs / outputs  # input samples per output sample
    centres = first * inputs + (np.arange(outputs)[:, None] + 0.5) * scale
    if not antialias:
        return _repeated_border(centres[:, 0], inputs, kernel)
    weights = _weights(xp.abs(np.arange(inputs) + 0.5 - centres) / xp.maximum(scale, 1.0), kernel, -0.5)
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _repeated_border(centres: Float[np.ndarray, " outputs"], inputs: int, kernel: Kernel) -> Float[np.ndarray, "y x"]:
    """The matrix without antialiasing. Only the four samples near each centre count, so a large matrix is filled in."""
    matrix = np.zeros((len(centres), inputs), np.float32)
    left = np.floor(centres - 0.5).astype(int)
    for sample in (left - 1, left, left + 1, left + 2):
        weights = _weights(np.abs(sample + 0.5 - centres), kernel, -0.75)
        np.add.at(matrix, (np.arange(len(centres)), np.clip(sample, 0, inputs - 1)), weights)
    return matrix


def _weights(t: Any, kernel: Kernel, a: float) -> Any:
    """The values of a kernel at distances of `t` samples. `a` is the parameter of the bicubic kernel."""
    xp: Any = jnp if isinstance(t, jax.Array) else np
    if kernel == "bilinear":
        return xp.maximum(1 - t, 0)
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return xp.where(t < 1, near, xp.where(t < 2, far, 0))
