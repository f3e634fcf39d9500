"""Parity of GroupViT with transformers' torch GroupViTModel on random tiny models; loading that is all or nothing."""

import copy
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import GroupViTConfig as TorchConfig
from transformers import GroupViTModel

import zeroseg_jax
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.dual_encoder import load_preprocessing
from zeroseg_jax.models.groupvit import GroupViT, GroupViTConfig
from zeroseg_jax.models.groupvit_encoder import GroupViTEncoder, load_groupvit
from zeroseg_jax.models.preprocessing import MEAN
from zeroseg_jax.ops.resize import resize_matrix

VISION = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2}
VISION |= {"depths": [2, 1, 1], "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3, 3]}
TEXT = {"vocab_size": 60, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT |= {"max_position_embeddings": 9, "bos_token_id": 57, "eos_token_id": 58, "pad_token_id": 59}

CONFIGURATIONS = {
    # three stages, the last of which groups nothing; the end of a text is its highest id, as in the published files
    "published": {"vision": {}, "text": {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}},
    # one grouping stage behind one that groups nothing; MLPs of an odd width; 3 patches a side and a border
    "other": {
        "vision": {"depths": [1, 2], "num_group_tokens": [0, 5], "num_output_groups": [0, 2], "image_size": 14}
        | {"intermediate_size": 37, "hidden_size": 18, "num_attention_heads": 3, "layer_norm_eps": 1e-3},
        "text": {"hidden_act": "gelu"},
        "projection_dim": 7,
    },
}


def torch_model(spec: dict) -> GroupViTModel:
    """A random model in which no term vanishes: transformers starts tokens, positions and biases at zero."""
    torch.manual_seed(0)
    config = TorchConfig(
        vision_config={**VISION, **spec["vision"]},
        text_config={**TEXT, **spec["text"]},
        projection_dim=spec.get("projection_dim", 10),
        projection_intermediate_dim=24,
    )
    model = GroupViTModel(config).eval()
    scales = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm1d)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.normal_(1.0 if id(parameter) in scales else 0.0, 0.3)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
    return model


@pytest.fixture(params=CONFIGURATIONS, scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = torch_model(CONFIGURATIONS[request.param])
    theirs.save_pretrained(folder)
    return theirs, load_groupvit(folder).model


def random_pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)


def as_torch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def random_texts(config) -> np.ndarray:
    """Token ids: a short text, and one that fills the context."""
    end, pad = (58, 1) if config.end_id == 2 else (config.end_id, config.pad_id)
    tokens = np.full((2, config.context), pad, np.int32)
    tokens[0, :4] = config.start_id, 20, 31, end
    tokens[1] = [config.start_id, *np.random.default_rng(2).integers(3, 50, config.context - 2), end]
    return tokens


def close(ours, theirs: torch.Tensor, tolerance: float) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.05  # or the comparison would mean nothing
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < tolerance


def run(model: GroupViT, apply, inputs: np.ndarray):
    """`apply(model, inputs)`, compiled: eager scans are slow."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, x: apply(nnx.merge(graphdef, s), x))(state, jnp.asarray(inputs))


@pytest.fixture(scope="module")
def seen(pair):
    """Pixels of the model's own size, and all that it makes of them."""
    ours = pair[1]
    pixels = random_pixels(ours.config.vision.image_size, ours.config.vision.image_size)
    return pixels, run(ours, GroupViT.segments, pixels)


@pytest.fixture(scope="module")
def read(pair):
    """Token ids, what the text tower makes of them, and their embeddings."""
    ours = pair[1]
    tokens = random_texts(ours.config.text)
    return tokens, *run(ours, lambda m, x: (m.text_tower(x), m.text(x)), tokens)


@torch.no_grad()
def test_every_stage_and_the_image_embedding(pair, seen):
    """Against torch in float64: its float32 is itself up to 5e-6 off after three stages, on some processors more."""
    theirs, (pixels, out) = copy.deepcopy(pair[0]).double(), seen
    exact = as_torch(pixels).double()
    x, groups, maps = theirs.vision_model.embeddings(exact), None, []
    close(out.tower.embedded, x, 1e-5)
    for stage, tokens in zip(theirs.vision_model.encoder.stages, out.tower.stages, strict=True):
        x, groups, attention = stage(x, groups, output_attentions=True)
        close(tokens, x, 1e-5)
        if attention is not None:
            close(out.tower.groups[len(maps)], groups, 1e-5)
            close(out.tower.assignments[len(maps)], attention.swapaxes(1, 2), 1e-5)
            assert len(attention.argmax(dim=1).unique()) > 1  # or the comparison would say little
            maps.append(attention)
    assert len(out.tower.assignments) == len(maps)
    close(out.tower.segments, theirs.vision_model.layernorm(x), 1e-5)
    close(out.image, theirs.get_image_features(exact).pooler_output, 1e-4)


@pytest.mark.parametrize("shape", [(24, 16), (10, 31)])
@torch.no_grad()
def test_other_sizes_interpolate_the_positions_along_each_axis(pair, shape):
    theirs, ours = pair
    pixels = random_pixels(*shape)
    expected = theirs.vision_model.embeddings(as_torch(pixels), interpolate_pos_encoding=True)
    close(run(ours, lambda m, x: m.vision_tower.embed(x), pixels), expected, 1e-5)


@torch.no_grad()
def test_text_tower_and_embedding(pair, read):
    theirs, (tokens, out, embedding) = pair[0], read
    expected = theirs.text_model(torch.from_numpy(tokens).long())
    close(out.tokens, expected.last_hidden_state, 1e-5)
    close(out.pooled, expected.pooler_output, 1e-5)
    close(embedding, theirs.text_projection(expected.pooler_output), 1e-4)


def unit(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@torch.no_grad()
def test_segmentation_logits(pair, seen, read):
    (theirs, ours), (pixels, out), (tokens, _, text) = pair, seen, read
    # in float64, because the logits are a hundred times what the towers compute, and torch's rounding with them
    exact = copy.deepcopy(theirs).double()
    expected = exact(torch.from_numpy(tokens).long(), as_torch(pixels).double(), output_segmentation=True)
    np.testing.assert_allclose(out.assignment.sum(-1), 1, atol=1e-5)
    close(unit(out.image), expected.image_embeds, 1e-4)
    close(unit(text), expected.text_embeds, 1e-4)
    # transformers multiplies by the scale twice, once for the scores of the segments and once for those of the pixels
    size, grid, scale = ours.config.vision.image_size, ours.config.vision.grid, np.exp(float(ours.logit_scale[...]))
    scores = scale * np.einsum("bsd,cd->bsc", unit(out.segments), unit(text))
    maps = np.asarray(out.assignment, np.float64).reshape(2, grid, grid, -1)
    enlarge = resize_matrix(grid, size).astype(np.float64)
    logits = scale * np.einsum("yh,xw,bhws,bsc->bcyx", enlarge, enlarge, maps, scores, optimize=True)
    close(logits, expected.segmentation_logits, 1e-4)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, GroupViTEncoder]:
    folder = tmp_path_factory.mktemp("published")
    torch_model(CONFIGURATIONS["published"]).save_pretrained(folder)
    return folder, load_groupvit(folder)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    return Path(shutil.copytree(published[0], tmp_path / "groupvit"))


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def leaves(model: GroupViT) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def same(a: GroupViT, b: GroupViT) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_transformers_reads_what_save_writes(published, tmp_path):
    folder, encoder = published
    encoder.save(tmp_path)
    again = load_groupvit(tmp_path)
    assert again.model.config == encoder.model.config and again.preprocessing == encoder.preprocessing
    assert same(again.model, encoder.model)
    theirs, once = GroupViTModel.from_pretrained(tmp_path), GroupViTModel.from_pretrained(folder)
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in once.state_dict().items())


def test_sharded_files_with_the_position_ids_of_old_ones(published, tmp_path):
    model = torch_model(CONFIGURATIONS["published"])
    model.text_model.embeddings.register_buffer("position_ids", torch.arange(9)[None])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert "position_ids" in (tmp_path / "model.safetensors.index.json").read_text()
    assert same(load_groupvit(tmp_path).model, published[1].model)


def test_all_that_does_not_fit_is_listed(folder):
    stage = "vision_model.encoder.stages"

    def spoil(tensors):
        tensors["vision_model.surprise"] = np.zeros(3, np.float32)
        del tensors[f"{stage}.0.group_token"]
        del tensors["visual_projection.1.running_var"]
        tensors[f"{stage}.1.group_projector.1.fc1.weight"] = np.zeros((8, 5), np.float32)

    edit(folder, spoil)
    with pytest.raises(InputError) as error:
        load_groupvit(folder)
    missing, left_over, wrong = str(error.value).split(";")
    assert f"{stage}.0.group_token" in missing and "visual_projection.1.running_var" in missing
    assert "left over: vision_model.surprise" in left_over
    assert f"{stage}.1.group_projector.1.fc1.weight (8, 5) instead of (8, 6)" in wrong


def test_weights_as_torch_saves_them(published, folder):
    torch.save(torch_model(CONFIGURATIONS["published"]).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(load_groupvit(folder).model, published[1].model)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no weights, expected model\.safetensors or pytorch_model\.bin"):
        zeroseg_jax.load(folder)


def test_a_clip_is_no_groupvit(folder):
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="expected 'groupvit'"):
        load_groupvit(folder)


@pytest.mark.parametrize("spec", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_config_round_trip(spec):
    raw = json.loads(torch_model(spec).config.to_json_string(use_diff=False))
    ours = GroupViTConfig.from_hf(raw)
    assert GroupViTConfig.from_hf(ours.to_hf()) == ours
    again = TorchConfig.from_dict(ours.to_hf()).to_dict()
    for tower in ("vision_config", "text_config"):
        for name in (VISION if tower == "vision_config" else TEXT) | {"hidden_act": ""}:
            assert again[tower][name] == raw[tower][name], name


def test_defaults_are_the_published_sizes():
    assert GroupViTConfig.from_hf({}) == GroupViTConfig.from_hf(TorchConfig().to_dict()) == GroupViTConfig()


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"assign_eps": 0.5}, "assign_eps is 0.5"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"depths": [1, 1]}, "one number for each stage"),
        ({"depths": "6, 3, 3"}, "depths is '6, 3, 3', expected a list"),
        ({"num_group_tokens": [0, 0, 0]}, "group tokens in one"),
        ({"num_group_tokens": [64, 8, 8], "num_output_groups": [64, 8, 0]}, "makes no segments"),
        ({"num_group_tokens": [32, 8, 0]}, "expects 64 group tokens"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"num_channels": 1}, "num_channels"),
    ],
)
def test_config_that_cannot_be_built(vision, said):
    with pytest.raises(InputError, match=said):
        GroupViTConfig.from_hf({"vision_config": vision})


def test_bfloat16_computes_between_float32_weights_and_results():
    rough = nnx.eval_shape(lambda: GroupViT(GroupViTConfig(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {jnp.dtype("float32")}
    out = nnx.eval_shape(GroupViT.segments, rough, jnp.zeros((2, 224, 224, 3)))
    assert out.segments.shape == (2, 8, 256) and out.assignment.shape == (2, 196, 8)
    assert out.segments.dtype == out.image.dtype == out.assignment.dtype == jnp.float32
    assert out.tower.segments.dtype == jnp.bfloat16
    assert nnx.eval_shape(GroupViT.text, rough, jnp.zeros((2, 77), jnp.int32)).dtype == jnp.float32


def test_the_folders_preprocessing_is_used(published, folder):
    assert published[1].preprocessing.mean == MEAN  # CLIP's, where the folder says nothing
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    assert load_preprocessing(folder, 16).mean == (0.1, 0.2, 0.3)
