"""The layers that the other models' tests do not see by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import ndtr

from zeroseg_jax.models.layers import gelu, kept_gelu


@pytest.mark.parametrize("function", [gelu, kept_gelu])
def test_gelu_and_its_gradient_are_torchs(function):
    x = np.linspace(-9, 9, 20001).astype(np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    values = torch.nn.functional.gelu(theirs)
    values.sum().backward()
    np.testing.assert_allclose(function(jnp.asarray(x)), values.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: function(x).sum())(jnp.asarray(x)), theirs.grad.numpy(), atol=1e-6)


def test_gelu_in_bfloat16_rounds_only_its_result():
    x = jnp.linspace(-4, 4, 2001).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64) * ndtr(np.asarray(x, np.float64))
    out = gelu(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8, atol=4e-6)


@pytest.mark.parametrize("function", [gelu, kept_gelu])
def test_gelu_keeps_its_slope_alone_for_its_gradient(function):
    _, backwards = jax.vjp(function, jnp.linspace(-1, 1, 64).astype(jnp.bfloat16))
    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backwards) if leaf.size > 1]
    assert kept == [((64,), jnp.bfloat16)]


def test_kept_gelu_makes_value_and_slope_together():
    """The compiler then has no way to make either again in each product that reads it."""
    steps = jax.make_jaxpr(jax.grad(lambda x: kept_gelu(x).sum()))(jnp.ones(8, jnp.bfloat16)).eqns
    barriers = [step for step in steps if step.primitive.name == "optimization_barrier"]
    assert [len(step.outvars) for step in barriers] == [2]
