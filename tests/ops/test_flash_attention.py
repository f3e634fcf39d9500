"""cuDNN's attention: on CPUs with JAX's other implementation of the same function in its place.

`JAX_PLATFORMS=cuda pytest -n 0 tests/ops/test_flash_attention.py` tests it itself, on an NVIDIA GPU.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from zeroseg_jax.distill import plan as distill_plan
from zeroseg_jax.distill import teacher as distill_teacher
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.teacher import load_teacher, make_teacher
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.layers import Attention
from zeroseg_jax.ops import flash_attention
from zeroseg_jax.ops.attention import attend
from zeroseg_jax.ops.flash_attention import best_attention, flash_attend
from zeroseg_jax.sharding import make_mesh

on_gpu = pytest.mark.skipif(
    best_attention(jnp.bfloat16) == "plain", reason="needs an NVIDIA GPU and JAX_PLATFORMS=cuda"
)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(flash_attention, "IMPLEMENTATION", "xla")


@pytest.mark.end_to_end
@pytest.mark.parametrize("n, m", [(4, 4), (5, 5), (4, 7), (5, 8)])
def test_values_and_gradients_are_those_of_plain_attention(stand_in, n, m):
    rng = np.random.default_rng(0)
    query, key, value, weight = (jnp.asarray(rng.normal(size=(2, t, 3, 8)), jnp.float32) for t in (n, m, m, n))

    def loss(attention, *inputs):
        return (attention(*inputs) * weight).sum()

    with jax.default_matmul_precision("highest"):  # where a GPU would take fewer bits
        np.testing.assert_allclose(flash_attend(query, key, value), attend(query, key, value), atol=1e-5)
        actual, expected = (
            jax.grad(loss, argnums=(1, 2, 3))(attention, query, key, value) for attention in (flash_attend, attend)
        )
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    mask = jnp.asarray(rng.random((n, m)) < 0.5).at[:, 0].set(True)
    np.testing.assert_array_equal(flash_attend(query, key, value, mask), attend(query, key, value, mask))


@on_gpu
@pytest.mark.parametrize("n, m, width", [(50, 50, 64), (197, 197, 64), (8, 197, 64), (229, 229, 64), (197, 197, 32)])
def test_cudnn_is_as_near_to_float32_as_plain_attention(n, m, width):
    rng = np.random.default_rng(0)
    rounded = [jnp.asarray(rng.normal(size=(4, t, 6, width)), jnp.bfloat16) for t in (n, m, m, n)]

    def values(attention, *inputs):
        value, pullback = jax.vjp(attention, *inputs[:3])
        return [value, *pullback(inputs[3])]

    with jax.default_matmul_precision("highest"):
        truth = values(attend, *(x.astype(jnp.float32) for x in rounded))
    cudnn, plain = (jax.jit(values, static_argnums=0)(attention, *rounded) for attention in (flash_attend, attend))
    for true, ours, theirs in zip(truth, cudnn, plain, strict=True):
        assert ours.dtype == jnp.bfloat16
        ours, theirs = (float(jnp.linalg.norm(x.astype(jnp.float32) - true)) for x in (ours, theirs))
        assert 0 < ours < 1.5 * theirs


@on_gpu
def test_a_step_with_it_is_a_step_with_plain_attention(tiny_config, monkeypatch):
    tiny_config.dtype, tiny_config.student.gumbel = "bfloat16", False
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)), jnp.uint8)}

    def metrics():
        teacher = load_teacher(tiny_config)
        plan = make_plan(tiny_config, teacher, make_mesh(tiny_config.mesh))
        return plan.train_step(jax.jit(plan.initial_state)(), batch, teacher.params)[1]

    result = metrics()
    for module in (distill_plan, distill_teacher):
        monkeypatch.setattr(module, "best_attention", lambda dtype: "plain")
    for name, value in metrics().items():
        np.testing.assert_allclose(result[name], value, rtol=0.02, err_msg=name)


@pytest.mark.parametrize("width", [12, 136])
def test_heads_that_cudnn_does_not_take_attend_as_elsewhere(width):
    query = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, width)), jnp.float32)
    np.testing.assert_array_equal(flash_attend(query, query, query), attend(query, query, query))


def test_where_the_compiler_splits_heads_it_is_plain_attention(monkeypatch):
    calls = []
    monkeypatch.setattr(flash_attention, "_flash_attend", lambda *inputs: (calls.append(1), inputs[0])[1])
    inputs = [jax.ShapeDtypeStruct((2, 4, 3, 8), jnp.float32)] * 3
    for kinds, flash in (((AxisType.Manual, AxisType.Manual), True), ((AxisType.Manual, AxisType.Auto), False)):
        with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2), ("data", "tensor"), axis_types=kinds)):
            jax.eval_shape(flash_attend, *inputs)
        assert bool(calls) == flash
        calls.clear()


def test_only_bfloat16_on_nvidia_gpus_has_it(monkeypatch):
    assert best_attention(jnp.bfloat16) == "plain"  # on this CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    capability = {"compute_capability": "9.0"}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**capability)])
    assert best_attention("bfloat16") == best_attention(jnp.bfloat16) == "cudnn"
    assert best_attention("float32") == best_attention(None) == "plain"
    capability["compute_capability"] = "7.5"
    assert best_attention(jnp.bfloat16) == "plain"
    capability["compute_capability"] = "gfx942"  # AMD
    assert best_attention(jnp.bfloat16) == "plain"
    capability.clear()
    assert best_attention(jnp.bfloat16) == "plain"


@pytest.mark.end_to_end
def test_the_models_of_a_run_have_it_and_the_clip_of_its_teacher_has_not(stand_in, monkeypatch, tiny_config):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    plain = load_teacher(tiny_config)
    clip = load_clip(tiny_config.teacher.path)
    teacher = make_teacher(clip, plain.boxes, attention="cudnn")
    actual, expected = teacher.embed(teacher.params, images), plain.embed(plain.params, images)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert implementations(clip.model) == {"plain"}

    monkeypatch.setattr(distill_plan, "best_attention", lambda dtype: "cudnn")
    plan = make_plan(tiny_config, teacher, make_mesh(tiny_config.mesh))
    assert implementations(nnx.merge(plan.graphdef, plan.state["params"])) == {"cudnn"}


def implementations(model: nnx.Module) -> set[str]:
    return {module.implementation for _, module in nnx.iter_graph(model) if isinstance(module, Attention)}
