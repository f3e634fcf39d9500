"""Parity of the grouping stages with transformers' torch GroupViT, and the assignment by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import GroupViTVisionConfig
from transformers.models.groupvit.modeling_groupvit import GroupViTStage

from zeroseg_jax.models.grouping import AssignAttention, AssignmentConfig, GroupingStage, assign
from zeroseg_jax.models.weights.table import Entry, Layout, Table, affine, load_weights, norm

WIDTH, HEADS = 16, 2
TOKENS = Layout(lambda a: a[0], lambda a: a[None])


def table(previous: int) -> Table:
    blocks = "layers.{layer}", "transformer.blocks"
    block_entries = [
        *norm(f"{blocks[0]}.layer_norm1", f"{blocks[1]}.norm1"),
        *norm(f"{blocks[0]}.layer_norm2", f"{blocks[1]}.norm2"),
        *affine(f"{blocks[0]}.mlp.fc1", f"{blocks[1]}.mlp.fc1"),
        *affine(f"{blocks[0]}.mlp.fc2", f"{blocks[1]}.mlp.fc2"),
    ]
    attentions = [
        (f"{blocks[0]}.self_attn.{{}}_proj", f"{blocks[1]}.attention"),
        ("downsample.pre_assign_attn.attn.{}_proj", "grouping.cross.attention"),
    ]
    names = {"q": "query", "k": "key", "v": "value", "out": "out"}
    for theirs, ours in attentions:
        for short, long in names.items():
            block_entries += affine(theirs.replace("{}", short), f"{ours}.{long}")
    for short, long in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "proj": "out"}.items():
        block_entries += affine(f"downsample.assign.{short}", f"grouping.assignment.{long}")
    norms = {
        "norm_tokens": "group_norm",
        "norm_post_tokens": "segment_norm",
        "norm_x": "token_norm",
        "norm_new_x": "output_norm",
        "pre_assign_attn.norm2": "cross.norm2",
        "pre_assign_attn.norm_post": "cross.post_norm",
    }
    mlps = {"mlp_inter": "mixer.mlp", "mlp_channels": "mlp", "pre_assign_attn.mlp": "cross.mlp"}
    for theirs, ours in norms.items():
        block_entries += norm(f"downsample.{theirs}", f"grouping.{ours}")
    for theirs, ours in mlps.items():
        for layer in ("fc1", "fc2"):
            block_entries += affine(f"downsample.{theirs}.{layer}", f"grouping.{ours}.{layer}")
    if previous:
        block_entries += norm("group_projector.0", "projector.norm")
        for layer in ("fc1", "fc2"):
            block_entries += affine(f"group_projector.1.{layer}", f"projector.mixer.mlp.{layer}")
    return Table((Entry("group_token", "group_tokens", TOKENS), *block_entries))


@pytest.mark.parametrize(
    ("depth", "groups", "segments", "previous"), [(2, 6, 6, 0), (1, 3, 2, 6)], ids=["first stage", "second stage"]
)
def test_stage_equals_torch(depth, groups, segments, previous):
    torch.manual_seed(0)
    config = GroupViTVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=HEADS, layer_norm_eps=1e-5
    )
    theirs = GroupViTStage(config, depth, previous, groups, segments).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    ours = load_weights(
        lambda: GroupingStage(
            depth, WIDTH, HEADS, groups, segments, AssignmentConfig(), previous=previous, rngs=nnx.Rngs(0)
        ),
        {name: tensor.numpy() for name, tensor in theirs.state_dict().items()},
        table(previous),
        "the torch stage",
    )
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 10, WIDTH)).astype(np.float32)
    before = rng.normal(size=(2, previous, WIDTH)).astype(np.float32) if previous else None
    with torch.no_grad():
        expected, expected_groups, attention = theirs(
            torch.from_numpy(tokens), None if before is None else torch.from_numpy(before), output_attentions=True
        )
    grouping, group_tokens = nnx.jit(GroupingStage.__call__)(
        ours, jnp.asarray(tokens), None if before is None else jnp.asarray(before)
    )
    chosen = attention.argmax(dim=1)
    assert len(chosen.unique()) > 1  # or the comparison would say little
    for mine, torchs in (
        (grouping.segments, expected),
        (group_tokens, expected_groups),
        (grouping.assignment, attention.swapaxes(1, 2)),
    ):
        np.testing.assert_allclose(mine, torchs.numpy(), rtol=0, atol=1e-5)


LOGITS = jnp.log(jnp.array([[[1.0, 3.0], [4.0, 1.0], [1.0, 1.0]]]))
SHARES = [[0.25, 0.75], [0.8, 0.2], [0.5, 0.5]]


def test_soft_assignment_by_hand():
    merging, clean = assign(LOGITS, AssignmentConfig("soft"))
    np.testing.assert_allclose(merging[0], SHARES, rtol=1e-6)
    np.testing.assert_array_equal(clean, merging)
    sharper, _ = assign(LOGITS, AssignmentConfig("soft", tau=0.5))  # squares the odds
    np.testing.assert_allclose(sharper[0, :2], [[0.1, 0.9], [16 / 17, 1 / 17]], rtol=1e-6)


def test_hard_assignment_chooses_the_largest_and_the_first_of_equals():
    merging, clean = assign(LOGITS, AssignmentConfig("hard"))
    np.testing.assert_allclose(merging[0], [[0, 1], [1, 0], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(clean[0], SHARES, rtol=1e-6)


def test_hard_gradient_is_the_soft_one():
    def gradient(kind):
        return jax.grad(lambda x: (assign(x, AssignmentConfig(kind))[0] * jnp.arange(6.0).reshape(1, 3, 2)).sum())(
            LOGITS
        )

    np.testing.assert_allclose(gradient("hard"), gradient("soft"), rtol=1e-6)
    assert np.abs(gradient("soft")).min() > 0.1


def test_gumbel_noise_chooses_in_proportion_to_the_softmax():
    logits = jnp.broadcast_to(LOGITS[:, :1], (1, 4000, 2))
    merging, clean = assign(logits, AssignmentConfig("hard"), jax.random.key(0))
    assert abs(merging[..., 1].mean() - 0.75) < 0.03
    np.testing.assert_allclose(clean[0, 0], SHARES[0], rtol=1e-6)  # the map has no noise
    quiet, _ = assign(logits, AssignmentConfig("hard", gumbel=False), jax.random.key(0))
    np.testing.assert_allclose(quiet[0, 0], [0, 1], atol=1e-6)


def test_with_a_key_an_image_the_noise_depends_on_nothing_else():
    logits, keys = jnp.zeros((3, 4, 2)), jax.random.split(jax.random.key(0), 3)
    merging, _ = assign(logits, AssignmentConfig("soft"), keys)
    alone, _ = assign(logits[1:2], AssignmentConfig("soft"), keys[1:2])
    np.testing.assert_array_equal(merging[1], alone[0])
    assert np.abs(merging[0] - merging[1]).min() > 1e-3


@pytest.mark.end_to_end
@pytest.mark.parametrize(("total", "expected"), [(False, [3 / 4, 0]), (True, [3, 0])])
def test_segment_is_a_shrunken_mean_or_a_sum_of_its_tokens(total, expected):
    attention = AssignAttention(4, AssignmentConfig("hard", total=total), rngs=nnx.Rngs(0))
    eye = jnp.eye(4)
    for layer in (attention.query, attention.key, attention.value, attention.out):
        layer.kernel[...] = eye
    tokens = jnp.ones((1, 3, 4))
    segments = jnp.stack([jnp.ones(4), -jnp.ones(4)])[None]  # all three tokens choose the first

    def merged(segments):
        return attention(segments, tokens).segments

    np.testing.assert_allclose(merged(segments)[0], np.outer(expected, np.ones(4)), atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda s: merged(s).sum())(segments)).all()
