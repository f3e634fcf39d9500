"""The layers that the other models' tests do not see by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from scipy.special import ndtr

from zeroseg_jax.models.layers import Block, gelu


def test_gelu_and_its_gradient_are_torchs():
    x = np.linspace(-9, 9, 20001).astype(np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    values = torch.nn.functional.gelu(theirs)
    values.sum().backward()
    np.testing.assert_allclose(gelu(jnp.asarray(x)), values.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: gelu(x).sum())(jnp.asarray(x)), theirs.grad.numpy(), atol=1e-6)


def test_gelu_in_bfloat16_rounds_only_its_result():
    x = jnp.linspace(-4, 4, 2001).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64) * ndtr(np.asarray(x, np.float64))
    out = gelu(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8, atol=4e-6)


def test_gelu_keeps_its_slope_alone_for_its_gradient():
    _, backwards = jax.vjp(gelu, jnp.linspace(-1, 1, 64).astype(jnp.bfloat16))
    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backwards) if leaf.size > 1]
    assert kept == [((64,), jnp.bfloat16)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("causal", [False, True])
def test_a_block_for_one_token_gives_what_the_whole_block_gives(causal):
    """So do its gradients, with which a teacher learns."""
    graphdef, state = nnx.split(Block(24, 3, 48, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), nnx.to_pure_dict(state))
    x, token = jnp.asarray(rng.normal(0, 1, (4, 9, 24)), jnp.float32), jnp.asarray([0, 8, 3, 5])
    mask = jnp.tril(jnp.ones((9, 9), bool)) if causal else None

    def one(state, x):
        return nnx.merge(graphdef, state).at(x, token, mask)

    def whole(state, x):
        return nnx.merge(graphdef, state)(x, mask)[jnp.arange(4), token]

    np.testing.assert_allclose(one(state, x), whole(state, x), atol=1e-5)
    slopes = [jax.grad(lambda state, x, f=f: jnp.sin(f(state, x)).sum(), (0, 1))(state, x) for f in (one, whole)]
    jax.tree.map(lambda ours, expected: np.testing.assert_allclose(ours, expected, atol=1e-5), *slopes)
