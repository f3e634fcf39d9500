"""Layer norm and its gradient, against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from zeroseg_jax.ops.layer_norm import layer_norm


def norm_with(scale: np.ndarray, bias: np.ndarray, dtype=None):
    module = layer_norm(len(scale), 1e-5, dtype=dtype, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    return nnx.split(module)


def test_values_and_gradients_are_torchs():
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(3, 2, size=(4, 5, 16)).astype(np.float32) for _ in range(2))
    scale, bias = (rng.normal(1, 0.5, 16).astype(np.float32) for _ in range(2))
    theirs = [torch.from_numpy(y).requires_grad_() for y in (x, scale, bias)]
    values = torch.nn.functional.layer_norm(theirs[0], (16,), *theirs[1:], eps=1e-5)
    (values * torch.from_numpy(weight)).sum().backward()
    graphdef, state = norm_with(scale, bias)
    np.testing.assert_allclose(nnx.merge(graphdef, state)(jnp.asarray(x)), values.detach().numpy(), atol=1e-5)
    of_x, of_state = jax.grad(lambda x, state: (nnx.merge(graphdef, state)(x) * weight).sum(), argnums=(0, 1))(
        jnp.asarray(x), state
    )
    actual = of_x, of_state["scale"][...], of_state["bias"][...]
    for ours, other in zip(actual, theirs, strict=True):
        np.testing.assert_allclose(ours, other.grad.numpy(), atol=1e-5)


def test_result_has_the_dtype_of_the_computation_and_statistics_are_float32():
    x = np.random.default_rng(0).normal(100, 1, (3, 64))  # bfloat16 would lose the spread in its rounding of the mean
    graphdef, state = norm_with(np.ones(64), np.zeros(64), jnp.bfloat16)
    actual = nnx.merge(graphdef, state)(jnp.asarray(x, jnp.float32))
    assert actual.dtype == jnp.bfloat16
    expected = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=2**-8, atol=1e-4)
    graphdef, state = norm_with(np.ones(64), np.zeros(64))
    assert nnx.merge(graphdef, state)(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_one_pass_over_bfloat16_loses_nothing_that_it_had():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (64, 768)), jnp.bfloat16)
    graphdef, state = norm_with(np.ones(768), np.zeros(768))  # float32, so that no rounding of the result hides it
    actual = nnx.merge(graphdef, state)(x)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(axis=-1, keepdims=True)) / np.sqrt(exact.var(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)  # a quarter of what bfloat16 rounds off
    same = nnx.merge(graphdef, state)(jnp.full((2, 768), 100.3, jnp.bfloat16))  # a variance below 0 would be a NaN
    np.testing.assert_allclose(same, 0, atol=1e-2)


def test_its_gradient_keeps_one_array_as_large_as_its_input():
    graphdef, state = norm_with(np.ones(64), np.zeros(64), jnp.bfloat16)
    x = jnp.ones((3, 64), jnp.bfloat16)
    _, backwards = jax.vjp(lambda x: nnx.merge(graphdef, state)(x), x)
    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backwards) if leaf.size >= x.size]
    assert kept == [((3, 64), jnp.bfloat16)]
