"""Parity of the CLIP towers with transformers' torch CLIPModel, on random tiny models of several configurations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPConfig as TorchConfig
from transformers import CLIPModel

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig, VisionTower
from zeroseg_jax.models.clip_encoder import load_clip

VISION = {"image_size": 24, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"bos_token_id": 57, "eos_token_id": 58, "pad_token_id": 58, "max_position_embeddings": 77}

CONFIGURATIONS = {
    # OpenAI's files: quick_gelu, the end of a text is its highest id
    "openai": {"vision": {}, "text": {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}},
    # OpenCLIP conversions: exact gelu
    "laion": {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu"}, "projection_dim": 40},
    # a padding token above the end token, so that the two conventions differ
    "metaclip": {"vision": {"patch_size": 6}, "text": {"pad_token_id": 59}, "projection_dim": 12},
    "wide_vision": {
        "vision": {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 100, "num_hidden_layers": 4},
        "text": {"hidden_size": 8, "num_attention_heads": 1, "max_position_embeddings": 20},
    },
    "wide_text": {
        "vision": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
        "text": {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 5, "eos_token_id": 2},
    },
    # as ViT-L/14 at 336 pixels: many patches; an image size that the patch does not divide
    "large_grid": {"vision": {"image_size": 33, "patch_size": 4}, "text": {"layer_norm_eps": 1e-3}},
    "loose_norm": {"vision": {"layer_norm_eps": 1e-2, "hidden_act": "gelu"}, "text": {}, "projection_dim": 7},
}


def torch_model(spec: dict, seed: int = 0) -> CLIPModel:
    """A random model whose weights are large enough for every term to matter."""
    torch.manual_seed(seed)
    config = TorchConfig(
        vision_config={**VISION, "intermediate_size": 32, **spec["vision"]},
        text_config={**TEXT, "intermediate_size": 24, **spec["text"]},
        projection_dim=spec.get("projection_dim", 16),
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model


@pytest.fixture(params=CONFIGURATIONS, scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = torch_model(CONFIGURATIONS[request.param])
    theirs.save_pretrained(folder)
    return theirs, load_clip(folder).model


def close(ours, theirs: torch.Tensor, tolerance: float) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.05  # or the comparison would mean nothing
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < tolerance


def random_pixels(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, height, width, 3)).astype(np.float32)


def run(model: CLIP, apply, inputs):
    """`apply(model, inputs)`, compiled: eager scans are slow."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, x: apply(nnx.merge(graphdef, s), x))(state, jnp.asarray(inputs))


def test_image_tower_every_layer(pair):
    theirs, ours = pair
    size = ours.config.vision.image_size
    pixels = random_pixels(size, size)
    out, embedding = run(ours, lambda m, x: (m.vision_tower(x), m.vision(x)), pixels)
    torch_pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = theirs.vision_model(torch_pixels, output_hidden_states=True)
    close(out.embedded, expected.hidden_states[0], 1e-5)
    assert len(out.layers) == len(expected.hidden_states) - 1
    for layer, hidden in zip(out.layers, expected.hidden_states[1:], strict=True):
        close(layer, hidden, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, theirs.get_image_features(torch_pixels).pooler_output, 1e-4)


def texts_of(config: TextConfig) -> np.ndarray:
    """Token ids: a short text, one that fills the context (as truncated ones do), and one of the end token alone."""
    rng = np.random.default_rng(2)
    highest = config.vocabulary - 2
    end, pad = (highest, 1) if config.end_id == 2 else (config.end_id, config.pad_id)
    tokens = np.full((3, config.context), pad, np.int32)
    tokens[:, 0] = config.start_id
    tokens[0, 1:6], tokens[0, 6] = rng.integers(3, 50, 5), end
    tokens[1, 1:-1], tokens[1, -1] = rng.integers(3, 50, config.context - 2), end
    tokens[2, 1] = end
    return tokens


def test_text_tower_every_layer(pair):
    theirs, ours = pair
    tokens = texts_of(ours.config.text)
    out, embedding = run(ours, lambda m, x: (m.text_tower(x), m.text(x)), tokens)
    torch_tokens = torch.from_numpy(tokens).long()
    expected = theirs.text_model(torch_tokens, output_hidden_states=True)
    close(out.embedded, expected.hidden_states[0], 1e-5)
    for layer, hidden in zip(out.layers, expected.hidden_states[1:], strict=True):
        close(layer, hidden, 1e-5)
    close(out.tokens, expected.last_hidden_state, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, theirs.get_text_features(torch_tokens).pooler_output, 1e-4)
    # a padding mask, as CLIPProcessor makes one, changes nothing at the end token
    end = 58
    mask = torch.from_numpy(np.cumsum(np.cumsum(tokens == end, axis=1), axis=1) <= 1).long()
    close(embedding, theirs.get_text_features(torch_tokens, attention_mask=mask).pooler_output, 1e-4)


@pytest.mark.parametrize("shape", [(48, 40), (16, 31)])
def test_other_sizes_interpolate_the_positions(tmp_path, shape):
    theirs = torch_model(CONFIGURATIONS["wide_text"])
    theirs.save_pretrained(tmp_path)
    ours = load_clip(tmp_path).model
    pixels = random_pixels(*shape)
    torch_pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = theirs.vision_model(torch_pixels, interpolate_pos_encoding=True)
    out = run(ours, lambda m, x: m.vision_tower(x), pixels)
    close(out.tokens, expected.last_hidden_state, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)


@pytest.fixture(scope="module")
def small_model(filled) -> CLIP:
    text = TextConfig(60, 12, 8, 1, 2, 8, start_id=57, end_id=58, pad_id=58)
    config = CLIPConfig(VisionConfig(32, 8, 16, 1, 2, 16), text, 8)

    return filled(lambda: CLIP(config, rngs=nnx.Rngs(0)))


def test_shorter_texts_need_no_padding(small_model):
    tokens = texts_of(small_model.config.text)[[0, 2]]
    short = run(small_model, CLIP.text, tokens[:, :7])
    assert np.abs(run(small_model, CLIP.text, tokens) - short).max() < 1e-5


def test_dense_is_the_value_path_of_the_last_block(tmp_path):
    theirs = torch_model(CONFIGURATIONS["wide_vision"])
    theirs.save_pretrained(tmp_path)
    ours = load_clip(tmp_path).model
    pixels = random_pixels(16, 32)
    hidden = theirs.vision_model(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states[-2]
    last = theirs.vision_model.encoder.layers[-1]
    values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden[:, 1:])))
    expected = theirs.visual_projection(theirs.vision_model.post_layernorm(values)).reshape(2, 2, 4, -1)
    close(run(ours, CLIP.dense, pixels), expected, 1e-4)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(tmp_path):
    torch_model(CONFIGURATIONS["laion"]).save_pretrained(tmp_path)
    exact, rough = load_clip(tmp_path).model, load_clip(tmp_path, dtype=jnp.bfloat16).model
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {jnp.dtype("float32")}
    pixels = random_pixels(24, 24)
    a = run(exact, CLIP.vision, pixels)
    b, tokens = run(rough, lambda m, x: (m.vision(x), m.vision_tower(x).tokens), pixels)
    assert b.dtype == jnp.float32
    assert 1e-5 < np.abs(a - b).max() < 0.05 * np.abs(a).max()
    assert tokens.dtype == jnp.bfloat16


def test_logit_scale_is_read(tmp_path):
    theirs = torch_model(CONFIGURATIONS["openai"])
    with torch.no_grad():
        theirs.logit_scale.fill_(4.5)
    theirs.save_pretrained(tmp_path)
    assert float(load_clip(tmp_path).model.logit_scale[...]) == 4.5


def test_sincos_start_of_a_new_model():
    config = VisionConfig(32, 8, 16, 1, 2, 16)
    table = VisionTower(config, rngs=nnx.Rngs(0), positions="sincos").position_embedding[...]
    assert table.shape == (17, 16)
    assert not table[0].any()
    assert np.allclose((table[1:] ** 2).sum(1), 8)  # sine and cosine of the same angles
    assert len(np.unique(np.round(table, 4), axis=0)) == 17


def test_a_text_beyond_the_context_and_an_image_below_the_patch_are_refused(small_model):
    with pytest.raises(InputError, match="positions"):
        small_model.text(jnp.zeros((1, small_model.config.text.context + 1), jnp.int32))
    with pytest.raises(InputError, match="smaller than the model's patch"):
        small_model.vision(jnp.zeros((1, 2, 64, 3)))


@pytest.mark.parametrize("spec", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_config_round_trip(spec):
    config = torch_model(spec).config.to_dict()
    ours = CLIPConfig.from_hf(config)
    assert CLIPConfig.from_hf(ours.to_hf()) == ours
    again = TorchConfig.from_dict(ours.to_hf()).to_dict()
    for name in ("vision_config", "text_config"):
        assert again[name] == config[name] | {"projection_dim": ours.embed_dim}


def test_config_defaults_and_old_forms():
    assert CLIPConfig.from_hf({"model_type": "clip"}) == CLIPConfig.from_hf(TorchConfig().to_dict()) == CLIPConfig()
    # openai/clip-vit-large-patch14-336 and others repeat a tower in `*_config_dict`; null means that it is not there
    raw = {"vision_config": {"hidden_size": 64}, "vision_config_dict": {"hidden_size": 96}, "text_config_dict": None}
    assert CLIPConfig.from_hf(raw).vision.width == TorchConfig(**raw).vision_config.hidden_size == 96
    assert CLIPConfig.from_hf({"vision_config": {"image_size": [32, 32]}}).vision.image_size == 32


@pytest.mark.parametrize(
    "raw, said",
    [
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {"num_channels": 4}}, "num_channels"),
        ({"vision_config": {"image_size": [32, 48]}}, "squares"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id"),
        ({"text_config": {"hidden_size": 30, "num_attention_heads": 4}}, "divisible"),
        ({"text_config": "large"}, "text_config"),
        ({"projection_dim": "wide"}, "projection_dim"),
    ],
)
def test_config_that_cannot_be_built(raw, said):
    with pytest.raises(InputError, match=said):
        CLIPConfig.from_hf(raw)


def test_folder_may_be_a_path_or_a_string(tmp_path: Path):
    torch_model(CONFIGURATIONS["openai"]).save_pretrained(tmp_path)
    assert load_clip(str(tmp_path)).embed_dim == load_clip(tmp_path).embed_dim == 16
