"""Gradients of bfloat16 matrix products in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zeroseg_jax import sharding
from zeroseg_jax.distill.plan import make_plan
from zeroseg_jax.distill.reduction import product, sum_in_float32
from zeroseg_jax.distill.teacher import load_teacher
from zeroseg_jax.models.layers import Transformer


def test_the_gradient_of_the_kernel_is_not_rounded():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 50, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    direction = jnp.asarray(rng.normal(size=(4, 50, 6)), jnp.bfloat16)
    value, pull = jax.vjp(product, x, kernel)
    of_x, of_kernel = pull(direction)
    assert (value.dtype, of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(value, x @ kernel.astype(jnp.bfloat16))
    exact = np.einsum("bni,bno->io", np.asarray(x, np.float64), np.asarray(direction, np.float64))
    np.testing.assert_allclose(of_kernel, exact, rtol=1e-5, atol=1e-5)
    plain = jax.grad(lambda k: (x @ k.astype(jnp.bfloat16) * direction).astype(jnp.float32).sum())(kernel)
    assert np.abs(plain - exact).max() > 1e-3


def test_a_scanned_transformer_computes_the_same():
    model = Transformer(2, 16, 2, 32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16), jnp.bfloat16)
    before = model(x)[0]
    sum_in_float32(model)
    np.testing.assert_array_equal(model(x)[0], before)


def test_a_config_asks_for_float32_sums(tiny_config):
    tiny_config.dtype, tiny_config.student.remat = "bfloat16", "dots"
    mesh, products, calculations = sharding.make_mesh(tiny_config.mesh), {}, {}
    teacher = load_teacher(tiny_config)
    batch = {"image": jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8)}
    for reduce_dtype in ("compute", "float32"):
        tiny_config.optimizer.reduce_dtype = reduce_dtype
        plan = make_plan(tiny_config, teacher, mesh)
        program = str(plan.train_step.trace(plan.state, batch, teacher.params).jaxpr)
        products[reduce_dtype] = program.count("preferred_element_type=float32")
        calculations[reduce_dtype] = program.count("dot_general[")
    linear = [path for path in jax.tree.leaves_with_path(plan.state["params"]) if path[0][-1].key == "kernel"]
    assert products["float32"] - products["compute"] >= len(linear) > 20
    of_the_pixels = 1  # a gradient that nothing uses: the compiler leaves it out
    assert calculations["float32"] == calculations["compute"] + of_the_pixels, "remat recomputes other products"
