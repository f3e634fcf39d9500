"""A student of random weights with its teacher behind a `Segmenter`, for images of 16 pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.methods import StudentMethod


@pytest.fixture(scope="session")
def model(tiny_student, tiny_clip) -> Segmenter:
    clip = load_clip(tiny_clip)
    sizes = StudentConfig(image_size=16, embed_dim=clip.embed_dim, **tiny_student)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Student(sizes, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        """Weights that keep segments and labels apart."""
        constant = {"scale": 1.0, "bias": 0.0}.get(path[-2].key)
        values = rng.normal(size=leaf.shape) if constant is None else np.full(leaf.shape, constant)
        return jnp.asarray(values, leaf.dtype)

    state = jax.tree_util.tree_map_with_path(draw, state)
    return Segmenter(StudentMethod(nnx.merge(graphdef, state), clip), clip, templates="name")


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
