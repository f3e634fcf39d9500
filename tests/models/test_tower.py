"""CLIP's image tower as the student's encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import VisionConfig
from zeroseg_jax.models.preprocessing import MEAN, STD
from zeroseg_jax.models.student import Student, StudentConfig, TowerEncoder

TOWER = VisionConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=32)
SIZES = StudentConfig(
    image_size=16,
    patch_size=8,
    width=16,
    depth=2,
    heads=2,
    mask_ratio=0.5,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    segment_tokens=(3,),
    segment_depths=(1,),
    segment_heads=2,
    projection_width=16,
    embed_dim=8,
    assignment="soft",
    tower=TOWER,
)


@pytest.mark.end_to_end
def test_the_encoder_is_the_teachers_tower_on_the_smaller_image():
    encoder = TowerEncoder(TOWER, 8, rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    half = np.asarray(images).reshape(2, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    tokens = encoder.tower(jnp.asarray((half - np.float32(MEAN)) / np.float32(STD))).tokens
    np.testing.assert_allclose(encoder(images), encoder.tower.post_norm(tokens), atol=1e-5)


def test_visible_patches_keep_their_positions():
    tower = TowerEncoder(TOWER, 4, rngs=nnx.Rngs(0)).tower
    pixels = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    visible = jnp.array([[3, 1], [0, 2]])
    everything = tower.embed(pixels)
    chosen = jnp.concatenate([everything[:, :1], jnp.take_along_axis(everything[:, 1:], visible[..., None], 1)], axis=1)
    np.testing.assert_allclose(tower.embed(pixels, visible), chosen, atol=1e-6)


@pytest.mark.end_to_end
def test_a_student_with_a_tower_segments_and_reconstructs():
    student = Student(SIZES, rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    output = student(images, noise=jax.random.uniform(jax.random.key(1), (2, 4)))
    assert output.segments.shape == (2, 3, 8)
    assert output.reconstruction is not None
    assert output.reconstruction.shape == (2, 4, 8 * 8 * 3)
    np.testing.assert_allclose(output.assignment.sum(-1), 1, atol=1e-5)
    assert student(images).assignment.shape == (2, 4, 3)


@pytest.mark.parametrize("change", [{"patch_size": 2}, {"width": 32}])
def test_a_tower_that_does_not_fit(change):
    with pytest.raises(InputError, match="cannot be the"):
        dataclasses.replace(SIZES, **change)
