"""cuDNN's attention, which needs a GPU, with JAX's other implementation of the same function in its place."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import load_teacher, make_teacher
from zeroseg_jax.models import flash_attention
from zeroseg_jax.models.attend import attend
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.flash_attention import flash_attend, has_flash_attention
from zeroseg_jax.models.layers import Attention
from zeroseg_jax.sharding import make_mesh


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(flash_attention, "IMPLEMENTATION", "xla")


@pytest.mark.parametrize("n, m", [(4, 4), (5, 5), (4, 7), (5, 8)])
def test_values_and_gradients_are_those_of_plain_attention(stand_in, n, m):
    rng = np.random.default_rng(0)
    query, key, value, weight = (jnp.asarray(rng.normal(size=(2, t, 3, 8)), jnp.float32) for t in (n, m, m, n))

    def loss(how, *inputs):
        return (how(*inputs) * weight).sum()

    np.testing.assert_allclose(flash_attend(query, key, value), attend(query, key, value), atol=1e-5)
    found, expected = (jax.grad(loss, argnums=(1, 2, 3))(how, query, key, value) for how in (flash_attend, attend))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    mask = jnp.asarray(rng.random((n, m)) < 0.5).at[:, 0].set(True)
    np.testing.assert_array_equal(flash_attend(query, key, value, mask), attend(query, key, value, mask))


@pytest.mark.parametrize("width", [12, 136])
def test_heads_that_cudnn_does_not_take_attend_as_elsewhere(width):
    query = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, width)), jnp.float32)
    np.testing.assert_array_equal(flash_attend(query, query, query), attend(query, query, query))


def test_only_bfloat16_on_nvidia_gpus_has_it(monkeypatch):
    assert not has_flash_attention(jnp.bfloat16)  # on this CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    capability = {"compute_capability": "9.0"}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**capability)])
    assert has_flash_attention("bfloat16") and has_flash_attention(jnp.bfloat16)
    assert not has_flash_attention("float32") and not has_flash_attention(None)
    capability["compute_capability"] = "7.5"
    assert not has_flash_attention(jnp.bfloat16)
    capability["compute_capability"] = "gfx942"  # AMD
    assert not has_flash_attention(jnp.bfloat16)
    capability.clear()
    assert not has_flash_attention(jnp.bfloat16)


def test_the_models_of_a_run_have_it_and_the_clip_of_its_teacher_has_not(stand_in, monkeypatch, tiny_config):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    plain = load_teacher(tiny_config)
    calls = []
    monkeypatch.setattr(flash_attention, "has_flash_attention", lambda dtype: True)
    monkeypatch.setattr(flash_attention, "flash_attend", lambda *inputs: (calls.append(1), flash_attend(*inputs))[1])
    clip = load_clip(tiny_config.teacher.path)
    teacher = make_teacher(clip, plain.boxes)
    found, expected = teacher.embed(teacher.params, images), plain.embed(plain.params, images)
    assert calls
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plan = make_plan(tiny_config, teacher, make_mesh(tiny_config.mesh))
    modules = [module for _, module in nnx.iter_graph(nnx.merge(plan.graphdef, plan.state["params"]))]
    assert {module.attend is attend for module in modules if isinstance(module, Attention)} == {False}
    calls.clear()
    clip.vision(jnp.zeros((1, 8, 8, 3)))
    assert not calls
