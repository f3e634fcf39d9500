"""The teacher's views: their sizes and order."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.distill.views import crop_views, view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.ops.normalise import unit


@pytest.mark.end_to_end
def test_views_of_a_part_may_be_smaller(tiny_config):
    clip = load_clip(tiny_config.teacher.path)
    patch = clip.model.config.vision.patch_size
    tiny_config.views.grids, tiny_config.views.local_size = (2, 1), patch  # the whole image comes last
    teacher = load_teacher(tiny_config)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    actual = jax.jit(teacher.embed)(teacher.params, images)
    boxes, size = view_boxes((2, 1)), clip.model.config.vision.image_size
    for chosen, side in ((slice(4), patch), (slice(4, 5), size)):
        views = crop_views(jnp.asarray(images, jnp.float32) / 255, boxes[chosen], side)
        expected = unit(jax.jit(clip.vision)(clip.normalise(views).reshape(-1, side, side, 3)))
        np.testing.assert_allclose(actual[:, chosen].reshape(expected.shape), expected, atol=1e-5)
    tiny_config.views.local_size = patch + 1
    with pytest.raises(InputError, match=f"not divisible by the teacher's patch {patch}; {patch} is"):
        load_teacher(tiny_config)


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "HIGH")])
def test_views_are_cut_as_precisely_as_the_teacher_sees(tiny_config, dtype, precision):
    tiny_config.dtype = dtype
    teacher = load_teacher(tiny_config)
    jaxpr = str(jax.make_jaxpr(teacher.embed)(teacher.params, jnp.zeros((2, 16, 16, 3), jnp.uint8)))
    result = set(re.findall(r"precision=\(?Precision\.(\w+)", jaxpr))
    assert result == {precision}


def test_frozen_kernels_have_the_dtype_of_the_computation(tiny_config):
    tiny_config.dtype = "bfloat16"
    leaves = jax.tree_util.tree_leaves_with_path(load_teacher(tiny_config).params)
    assert {(path[-1].key == "kernel", str(leaf.dtype)) for path, leaf in leaves} == {
        (True, "bfloat16"),
        (False, "float32"),
    }
