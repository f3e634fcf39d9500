"""Models with random weights, without the time that compiling their initialisation takes."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx


def fill(make: Callable[[], nnx.Module], scale: float = 0.3) -> nnx.Module:
    """The module of `make` with normal weights of that standard deviation (norms: around 1)."""
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(nnx.eval_shape(make))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jax.numpy.asarray(rng.normal(mean, scale, leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))


@pytest.fixture(scope="session")
def filled() -> Callable[..., nnx.Module]:
    """`fill`, for tests to call."""
    return fill
