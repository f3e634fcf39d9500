"""Parity of the SigLIP towers with transformers' torch SiglipModel, on random tiny models of several configurations."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import SiglipConfig as TorchConfig
from transformers import SiglipModel

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import ClipEncoder, load_clip
from zeroseg_jax.models.siglip import Siglip, SiglipConfig

VISION = {"image_size": 32, "patch_size": 16, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "eos_token_id": 1}
TEXT |= {"max_position_embeddings": 64, "bos_token_id": 2}

CONFIGURATIONS = {
    "base": {"vision": {}, "text": {}},
    # as so400m: patches of 14 pixels, an MLP whose width is no multiple of the model's, heads of an odd width
    "so400m": {
        "vision": {"image_size": 42, "patch_size": 14, "hidden_size": 27, "intermediate_size": 43},
        "text": {"hidden_size": 27, "num_attention_heads": 3, "intermediate_size": 43},
    },
    # as SigLIP 2's largest: a narrower text tower, whose head leads to the image tower's width
    "giant": {
        "vision": {"hidden_size": 30, "num_attention_heads": 5, "num_hidden_layers": 3, "hidden_act": "gelu"},
        "text": {"hidden_size": 20, "projection_size": 30, "max_position_embeddings": 16, "layer_norm_eps": 1e-3},
    },
}


def torch_model(spec: dict) -> SiglipModel:
    """A random model whose weights are large enough for every term to matter."""
    torch.manual_seed(0)
    config = TorchConfig(
        vision_config={**VISION, "intermediate_size": 32, **spec["vision"]},
        text_config={**TEXT, "intermediate_size": 28, **spec["text"]},
    )
    model = SiglipModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model


@pytest.fixture(params=CONFIGURATIONS, scope="module")
def pair(request, tmp_path_factory) -> SimpleNamespace:
    """A torch model, ours with its weights, and all that ours says of some pixels and tokens, compiled once."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = torch_model(CONFIGURATIONS[request.param])
    theirs.save_pretrained(folder)
    clip = load_clip(folder)
    size, text = clip.model.config.vision.image_size, clip.model.config.text
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, text.vocabulary, (3, text.context)).astype(np.int32)
    tokens[0, 5:], tokens[1, 1:] = 1, 1  # padded
    graphdef, state = nnx.split(clip.model)

    @jax.jit
    def run(state, pixels, tokens):
        model = nnx.merge(graphdef, state)
        image, words = model.vision_tower(pixels), model.text_tower(tokens)
        return image, model.vision(pixels), model.dense(pixels), words, model.text(tokens)

    return SimpleNamespace(
        folder=folder, theirs=theirs, clip=clip, pixels=pixels, tokens=tokens, ours=run(state, pixels, tokens)
    )


def as_torch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def close(ours, theirs: torch.Tensor, tolerance: float) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.05  # or the comparison would mean nothing
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < tolerance


def test_image_tower_every_layer(pair):
    out, embedding, *_ = pair.ours
    expected = pair.theirs.vision_model(as_torch(pair.pixels), output_hidden_states=True)
    close(out.embedded, expected.hidden_states[0], 1e-5)
    assert len(out.layers) == len(expected.hidden_states) - 1
    for layer, hidden in zip(out.layers, expected.hidden_states[1:], strict=True):
        close(layer, hidden, 1e-5)
    close(out.tokens, expected.last_hidden_state, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, pair.theirs.get_image_features(as_torch(pair.pixels)).pooler_output, 1e-4)


def test_text_tower_every_layer(pair):
    *_, out, embedding = pair.ours
    tokens = torch.from_numpy(pair.tokens).long()
    expected = pair.theirs.text_model(tokens, output_hidden_states=True)
    close(out.embedded, expected.hidden_states[0], 1e-5)
    assert len(out.layers) == len(expected.hidden_states) - 1
    for layer, hidden in zip(out.layers, expected.hidden_states[1:], strict=True):
        close(layer, hidden, 1e-5)
    close(out.tokens, expected.last_hidden_state, 1e-5)
    close(out.pooled, expected.last_hidden_state[:, -1], 1e-5)
    close(embedding, pair.theirs.get_text_features(tokens).pooler_output, 1e-4)


def test_probabilities_of_pairs(pair):
    expected = pair.theirs(input_ids=torch.from_numpy(pair.tokens).long(), pixel_values=as_torch(pair.pixels))
    _, image, _, _, text = pair.ours
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    model = pair.clip.model
    logits = np.exp(model.logit_scale[...]) * (image @ text.T) + model.logit_bias[...]
    close(logits, expected.logits_per_image, 1e-4)


def test_dense_is_the_head_with_one_patch_alone(pair):
    """The head's attention over a single token gives that token's value, whatever the probe."""
    hidden = pair.theirs.vision_model(as_torch(pair.pixels)).last_hidden_state
    b, n, d = hidden.shape
    expected = pair.theirs.vision_model.head(hidden.reshape(b * n, 1, d)).reshape(b, -1, d)
    dense = pair.ours[2]
    side = int(n**0.5)
    assert dense.shape == (b, side, side, d)
    close(dense.reshape(b, n, d), expected, 1e-5)


def test_an_image_of_one_patch_is_its_own_embedding(pair):
    p = pair.clip.model.config.vision.patch_size
    pixels = pair.pixels[:, :p, :p]
    assert np.abs(pair.clip.dense(pixels)[:, 0, 0] - pair.clip.vision(pixels)).max() < 1e-5


def test_other_sizes_interpolate_the_positions(tmp_path):
    theirs = torch_model(CONFIGURATIONS["so400m"])
    theirs.save_pretrained(tmp_path)
    ours = load_clip(tmp_path)
    pixels = np.random.default_rng(1).normal(size=(2, 28, 59, 3)).astype(np.float32)  # a border of 3 is left out
    out = theirs.vision_model(as_torch(pixels), interpolate_pos_encoding=True)
    close(ours.vision(pixels), out.pooler_output, 1e-5)
    assert ours.dense(pixels).shape == (2, 2, 4, 27)


def test_transformers_reads_what_save_writes(pair, tmp_path):
    pair.clip.save(tmp_path)
    again = SiglipModel.from_pretrained(tmp_path)
    for (name, a), (other, b) in zip(pair.theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    config = json.loads((tmp_path / "config.json").read_text())
    assert SiglipConfig.from_hf(config) == pair.clip.model.config


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(pair):
    rough = load_clip(pair.folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough.model))} == {jnp.dtype("float32")}
    embedding, exact = rough.vision(pair.pixels), pair.ours[1]
    assert embedding.dtype == jnp.float32
    assert 1e-5 < np.abs(embedding - exact).max() < 0.05 * np.abs(exact).max()


def test_files_leave_defaults_out_and_name_the_packed_tensor(tmp_path):
    assert SiglipConfig.from_hf({"model_type": "siglip"}) == SiglipConfig.from_hf(TorchConfig().to_dict())
    theirs = torch_model(CONFIGURATIONS["base"])
    with torch.no_grad():
        theirs.vision_model.head.attention.in_proj_weight = torch.nn.Parameter(torch.zeros(70, 24))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"in_proj_weight"):
        load_clip(tmp_path)


def write_config(folder: Path, **content) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "content, said",
    [
        ({"model_type": "siglip2"}, "NaFlex.*google/siglip2-base-patch16-224"),
        ({"model_type": "siglip_vision_model"}, "model_type 'siglip_vision_model', expected one of"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head"),
        ({"model_type": "siglip", "text_config": {"projection_size": 512}}, "512 numbers and images of 768"),
        ({"model_type": "siglip", "vision_config": {"hidden_size": 100}}, "not divisible by its 12|100 numbers|of 100"),
        ({"model_type": "siglip", "vision_config": {"hidden_act": "relu"}}, "hidden_act"),
    ],
)
def test_what_is_no_siglip_is_refused(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as error:
        load_clip(write_config(tmp_path, **content))
    assert "\n" not in str(error.value)


def test_weights_of_another_size_are_refused(pair, tmp_path):
    for file in pair.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    write_config(tmp_path, **config)
    with pytest.raises(InputError, match="do not fit its config"):
        load_clip(tmp_path)


@pytest.mark.end_to_end
def test_a_new_model_is_a_siglip(tmp_path):
    config = SiglipConfig.from_hf(torch_model(CONFIGURATIONS["base"]).config.to_dict())
    model = Siglip(config, rngs=nnx.Rngs(0))
    assert ClipEncoder(model).preprocessing.crop is None
    assert model.vision(jnp.zeros((1, 32, 32, 3))).shape == (1, 24)
