"""Mask class tokens against a plain numpy implementation, and what they see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_tower
from flax import nnx
from scipy.special import softmax

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import VisionConfig, VisionTower
from zeroseg_jax.models.mask_class_token import SMALLEST_SHARE, mask_class_tokens
from zeroseg_jax.models.student import Student

TOWER = VisionConfig(image_size=12, patch_size=4, width=16, depth=3, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def tower(filled) -> VisionTower:
    return filled(lambda: VisionTower(TOWER, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(1), (2, 12, 12, 3))


@pytest.fixture(scope="module")
def output(tower, pixels):
    return nnx.jit(lambda tower, x: tower(x))(tower, pixels)


@pytest.fixture(scope="module")
def context(tower, pixels):
    return nnx.jit(lambda tower, x: tower.with_keys_and_values(x))(tower, pixels)[1]


look = nnx.jit(mask_class_tokens)


def reference(tower: VisionTower, inputs: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """One segment of one image: `inputs` (tokens, d) of each block, `shares` (patches,). float64."""

    def read(array) -> np.ndarray:
        return np.asarray(array, np.float64)

    def norm(layer, x, index=...):
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + TOWER.norm_eps)
        return y * read(layer.scale[...])[index] + read(layer.bias[...])[index]

    token = read(inputs[0][0])
    for i, x in enumerate(inputs):
        blocks = tower.transformer.blocks

        def apply(layer, y, i=i):
            return y @ read(layer.kernel[...])[i] + read(layer.bias[...])[i]

        context = norm(blocks.norm1, np.concatenate([token[None], read(x)[1:]]), i)
        attention, heads = blocks.attention, []
        for head in np.split(np.arange(TOWER.width), TOWER.heads):
            query = apply(attention.query, context[0])[head]
            logits = apply(attention.key, context)[:, head] @ query / np.sqrt(len(head))
            logits[1:] += np.log(shares + SMALLEST_SHARE)
            heads.append(softmax(logits) @ apply(attention.value, context)[:, head])
        token = token + apply(attention.out, np.concatenate(heads))
        hidden = apply(blocks.mlp.fc1, norm(blocks.norm2, token, i))
        token = token + apply(blocks.mlp.fc2, hidden / (1 + np.exp(-1.702 * hidden)))
    return norm(tower.post_norm, token)


def test_equal_to_a_plain_implementation(tower, output, context):
    shares = jax.nn.softmax(3 * jax.random.normal(jax.random.key(2), (2, 9, 4)), axis=-1)
    actual = look(tower, context, shares)
    for image in range(2):
        inputs = [np.asarray(output.embedded[image]), *np.asarray(output.layers[:-1, image])]
        for segment in range(4):
            expected = reference(tower, inputs, np.asarray(shares[image, :, segment], np.float64))
            np.testing.assert_allclose(actual[image, segment], expected, atol=1e-5)


def test_a_segment_of_all_patches_is_the_image(tower, output, context):
    """The class token reads the same patches and itself, so the result is the pooled class token."""
    actual = look(tower, context, jnp.ones((2, 9, 1)) - SMALLEST_SHARE)
    np.testing.assert_allclose(actual[:, 0], output.pooled, atol=1e-5)


def test_patches_without_a_share_hardly_count(tower, context):
    values = context.values.at[:, :, 4:].add(1.0)

    def change(shares):
        return np.abs(look(tower, context, shares) - look(tower, context._replace(values=values), shares)).max()

    first_four = jnp.zeros((2, 9, 1)).at[:, :4].set(1.0)
    assert change(first_four) < 0.02 * change(jnp.ones((2, 9, 1)))


SIZES = dataclasses.replace(test_tower.SIZES, segment_feature="mask_class_token")


def test_the_student_embeds_its_segments_in_this_way():
    student = Student(SIZES, rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    output = student(images, noise=jax.random.uniform(jax.random.key(1), (2, 4)))
    _, context = student.encoder.with_patch_context(images, output.visible)
    tokens = mask_class_tokens(student.encoder.tower, context, output.assignment)
    np.testing.assert_allclose(output.segments, student.visual_projection(tokens), atol=1e-5)
    assert output.image.shape == (2, 8)


def test_only_a_tower_has_a_class_token():
    with pytest.raises(InputError, match=r"set student\.encoder='clip', or student\.segment_feature='mlp'"):
        dataclasses.replace(SIZES, tower=None)
