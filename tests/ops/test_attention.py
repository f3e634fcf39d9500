"""Attention and its gradient, against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from zeroseg_jax.ops.attention import attend


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_torchs(masked):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (5, 7, 7)]
    weight = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    mask = rng.random((5, 7)) < 0.5 if masked else None
    if mask is not None:
        mask[:, 0] = True
    theirs = [torch.from_numpy(x).swapaxes(1, 2).requires_grad_() for x in inputs]
    allowed = None if mask is None else torch.from_numpy(mask)
    values = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=allowed).swapaxes(1, 2)
    (values * torch.from_numpy(weight)).sum().backward()
    allowed = None if mask is None else jnp.asarray(mask)
    inputs = [jnp.asarray(x) for x in inputs]
    np.testing.assert_allclose(attend(*inputs, allowed), values.detach().numpy(), atol=1e-5)
    gradients = jax.grad(lambda *x: (attend(*x, allowed) * weight).sum(), argnums=(0, 1, 2))(*inputs)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other.grad.swapaxes(1, 2).numpy(), atol=1e-5)


def test_bfloat16_keeps_nothing_of_the_logits_in_float32():
    inputs = [jnp.ones((2, n, 3, 8), jnp.bfloat16) for n in (5, 7, 7)]
    values, backwards = jax.vjp(attend, *inputs)
    assert values.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(backwards) if leaf.size > 1} == {jnp.dtype(jnp.bfloat16)}
    assert {gradient.dtype for gradient in backwards(values)} == {jnp.dtype(jnp.bfloat16)}
