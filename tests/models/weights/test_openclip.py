"""OpenCLIP's form: the same embeddings as the Hugging Face form of the same model, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig as TorchConfig
from transformers import CLIPModel

import zeroseg_jax
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import ClipEncoder, load_clip, read_clip_config
from zeroseg_jax.models.tokenizer import clean, clip_tokenizer
from zeroseg_jax.models.weights.torch_zip import read_torch

SIZES = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 128, "layers": 2},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
TEXTS = ["a cat", "“the sky”", "a photo of grass &amp; sand"]


def torch_model(quick_gelu: bool) -> CLIPModel:
    torch.manual_seed(0)
    activation = "quick_gelu" if quick_gelu else "gelu"
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    text = {"vocab_size": 49408, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    text |= {"max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 49406}
    both = {"num_hidden_layers": 2, "hidden_act": activation}
    model = CLIPModel(TorchConfig(vision_config=vision | both, text_config=text | both, projection_dim=24)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
    return model


def openai_names(model: CLIPModel) -> dict[str, torch.Tensor]:
    """The weights as OpenAI's and OpenCLIP's code names and lays them out, written down tensor by tensor."""
    result = {"logit_scale": model.logit_scale, "text_projection": model.text_projection.weight.T}
    result["visual.proj"] = model.visual_projection.weight.T
    vision, text = model.vision_model, model.text_model
    result["visual.class_embedding"] = vision.embeddings.class_embedding
    result["visual.positional_embedding"] = vision.embeddings.position_embedding.weight
    result["visual.conv1.weight"] = vision.embeddings.patch_embedding.weight
    result["positional_embedding"] = text.embeddings.position_embedding.weight
    result["token_embedding.weight"] = text.embeddings.token_embedding.weight
    norms = {"visual.ln_pre": vision.pre_layrnorm, "visual.ln_post": vision.post_layernorm}
    norms["ln_final"] = text.final_layer_norm
    for tower, prefix in ((vision, "visual."), (text, "")):
        for i, layer in enumerate(tower.encoder.layers):
            block, attention = f"{prefix}transformer.resblocks.{i}", layer.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            result[f"{block}.attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
            result[f"{block}.attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
            norms[f"{block}.attn.out_proj"] = attention.out_proj
            norms |= {f"{block}.ln_1": layer.layer_norm1, f"{block}.ln_2": layer.layer_norm2}
            norms |= {f"{block}.mlp.c_fc": layer.mlp.fc1, f"{block}.mlp.c_proj": layer.mlp.fc2}
    for name, module in norms.items():
        result |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach().contiguous() for name, tensor in result.items()}


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def models(request) -> tuple[CLIPModel, dict[str, torch.Tensor], bool]:
    model = torch_model(request.param)
    return model, openai_names(model), request.param


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict | None = None, name: str = "", **model) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": SIZES | model} if config is None else config
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def assert_same_embeddings(ours: ClipEncoder, theirs: CLIPModel) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    tokens = clip_tokenizer(20)([clean(t) for t in TEXTS], padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        images = theirs.get_image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        texts = theirs.get_text_features(tokens["input_ids"])
    images, texts = (getattr(x, "pooler_output", x).numpy() for x in (images, texts))
    np.testing.assert_allclose(ours.vision(pixels), images, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.encode_text(TEXTS, normalise=False), texts, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder(models, name, tmp_path):
    theirs, tensors, quick_gelu = models
    folder = write(tmp_path / "clip", tensors, name=name, quick_gelu=quick_gelu)
    assert_same_embeddings(load_clip(folder), theirs)
    assert_same_embeddings(load_clip(folder / name), theirs)  # with the configuration beside it
    assert read_clip_config(folder).vision.activation == ("quick_gelu" if quick_gelu else "gelu")


def test_a_text_tower_of_its_own_class_and_the_prefix_of_distributed_training(models, tmp_path):
    theirs, tensors, quick_gelu = models
    mine = ("visual.", "logit_scale")
    renamed = {f"module.{n}" if n.startswith(mine) else f"module.text.{n}": tensor for n, tensor in tensors.items()}
    renamed["module.logit_scale"] = renamed["module.logit_scale"][None]
    renamed["module.text.attn_mask"] = torch.zeros(20, 20)
    config = {"quick_gelu": quick_gelu, "custom_text": True}
    assert_same_embeddings(load_clip(write(tmp_path / "clip", renamed, **config)), theirs)


def test_a_single_file_of_openai_says_enough(models, tmp_path):
    _, tensors, quick_gelu = models
    torch.save(tensors, tmp_path / "LAION.bin")
    with pytest.raises(InputError, match="whether its activation is gelu or quick_gelu"):
        load_clip(tmp_path / "LAION.bin")
    if quick_gelu:
        numbers = {"input_resolution": 16, "context_length": 20, "vocab_size": 49408}
        numbers = {name: torch.tensor(value) for name, value in numbers.items()}
        torch.save({name: tensor.half() for name, tensor in tensors.items()} | numbers, tmp_path / "ViT-B-32.pt")
        encoder = load_clip(tmp_path / "ViT-B-32.pt")
        assert encoder.model.config.vision.heads == 2 and encoder.model.config.vision.image_size == 16
        half = read_torch(tmp_path / "ViT-B-32.pt")["visual.conv1.weight"].astype(np.float32)
        kernel = encoder.model.vision_tower.patch_embedding.kernel[...]
        np.testing.assert_array_equal(kernel, half.transpose(2, 3, 1, 0).reshape(-1, 128))
        assert encoder.encode_text(TEXTS).shape == (3, 24)


def test_images_are_prepared_as_the_file_says(models, tmp_path):
    _, tensors, _ = models
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    folder = write(tmp_path / "clip", tensors, {"model_cfg": SIZES, "preprocess_cfg": preprocess})
    result = load_clip(folder).preprocessing
    assert (result.mean, result.std, result.resample) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 2)
    assert result.resize == (16, 16) and result.crop is None
    assert load_clip(write(tmp_path / "plain", tensors)).preprocessing.resize == 16


@pytest.mark.end_to_end
def test_it_segments_and_is_saved_in_hugging_face_form(models, tmp_path):
    theirs, tensors, quick_gelu = models
    model = zeroseg_jax.load(write(tmp_path / "clip", tensors, quick_gelu=quick_gelu))
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    assert model.segment(image, ["cat", "grass"]).label_map.shape == (16, 24)
    model.save(tmp_path / "saved")
    assert_same_embeddings(load_clip(tmp_path / "saved"), theirs)


def test_hugging_face_form_counts_first_where_its_weights_are_there(models, tmp_path):
    theirs, tensors, quick_gelu = models
    folder = write(tmp_path / "clip", tensors, quick_gelu=quick_gelu)
    (folder / "config.json").write_text(json.dumps(theirs.config.to_dict(), default=str))
    assert_same_embeddings(load_clip(folder), theirs)  # which has no Hugging Face weights
    theirs.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text("broken")
    assert_same_embeddings(ClipEncoder(load_clip(folder).model, clip_tokenizer(20)), theirs)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text tower 'roberta-base' of another library"),
        ({"text_cfg": {"hf_tokenizer_name": "bert-base-uncased"}}, "tokenizer 'bert-base-uncased' of another model"),
        ({"vision_cfg": {"timm_model_name": "eva02_base"}}, "image tower 'eva02_base' of timm"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet"),
        ({"vision_cfg": {"no_ln_pre": True}}, "vision_cfg.no_ln_pre = True, a variant"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type = 'avg', a variant"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask = True, a variant"),
        ({"multimodal_cfg": {"width": 8}}, "model_cfg.multimodal_cfg = .* a variant"),
        ({"vision_cfg": {"width": "wide"}}, "width = 'wide', expected a positive number"),
        ({"vision_cfg": {"width": 100}}, "attention heads do not divide"),
        ({"vision_cfg": {"width": 64}}, "do not fit its config.json"),
        ({"text_cfg": {"vocab_size": 300}}, "do not fit its config.json"),
        ({"vision_cfg": []}, "has no vision_cfg of sizes"),
    ],
)
def test_another_model_is_refused_by_the_setting(change, said, tmp_path, models):
    changed = {key: SIZES.get(key, {}) | value if isinstance(value, dict) else value for key, value in change.items()}
    folder = write(tmp_path / "clip", models[1], {"model_cfg": SIZES | changed})
    with pytest.raises(InputError, match=said) as error:
        load_clip(folder)
    assert "\n" not in str(error.value)
