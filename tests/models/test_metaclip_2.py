"""Parity of MetaCLIP 2 with transformers' torch MetaClip2Model: a CLIP with XLM-V's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import MetaClip2Config, MetaClip2Model

from zeroseg_jax.models.clip_encoder import load_clip

VISION = {"image_size": 28, "patch_size": 14, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
# as the published files: the end token is 2, and other ids are higher
TEXT |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 20}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metaclip_2")
    torch.manual_seed(0)
    config = MetaClip2Config(vision_config=VISION | {"intermediate_size": 32}, text_config=TEXT, projection_dim=12)
    theirs = MetaClip2Model(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name != "logit_scale":
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    theirs.save_pretrained(folder)
    return theirs, load_clip(folder)


def close(ours, theirs: torch.Tensor, tolerance: float) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.05  # or the comparison would mean nothing
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < tolerance


def run(model, apply, inputs):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, x: apply(nnx.merge(graphdef, s), x))(state, jnp.asarray(inputs))


def test_image_tower_every_layer(pair):
    theirs, ours = pair
    pixels = np.random.default_rng(1).normal(size=(2, 28, 28, 3)).astype(np.float32)
    out, embedding = run(ours.model, lambda m, x: (m.vision_tower(x), m.vision(x)), pixels)
    torch_pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = theirs.vision_model(torch_pixels, output_hidden_states=True)
    for layer, hidden in zip((out.embedded, *out.layers), expected.hidden_states, strict=True):
        close(layer, hidden, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, theirs.get_image_features(torch_pixels).pooler_output, 1e-4)


def test_text_tower_is_read_out_at_the_first_end_token(pair):
    theirs, ours = pair
    tokens = np.full((3, 20), 1, np.int32)
    tokens[0, :5] = 0, 57, 8, 33, 2
    tokens[1] = [0, *np.random.default_rng(2).integers(3, 60, 18), 2]  # cut
    tokens[2, :6] = 0, 2, 59, 9, 2, 4
    out, embedding = run(ours.model, lambda m, x: (m.text_tower(x), m.text(x)), tokens)
    torch_tokens = torch.from_numpy(tokens).long()
    expected = theirs.text_model(torch_tokens, output_hidden_states=True)
    for layer, hidden in zip((out.embedded, *out.layers), expected.hidden_states, strict=True):
        close(layer, hidden, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, theirs.get_text_features(torch_tokens).pooler_output, 1e-4)


def test_transformers_reads_what_save_writes(pair, tmp_path):
    theirs, ours = pair
    ours.save(tmp_path)
    again = MetaClip2Model.from_pretrained(tmp_path)
    for (name, a), (other, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    assert load_clip(tmp_path).model.config == ours.model.config
