"""Loading a CLIP folder is all or nothing: every way in which it can be wrong gives one sentence."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.weights.clip import CLIP_TABLE
from zeroseg_jax.models.weights.folder import write_folder
from zeroseg_jax.models.weights.table import dump_weights

CONFIG = CLIPConfig(VisionConfig(16, 8, 8, 2, 2, 12), TextConfig(20, 6, 4, 1, 2, 8, start_id=18, end_id=19), 6)
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"


def leaves(model: CLIP) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@pytest.fixture(scope="module")
def model(filled) -> CLIP:
    return filled(lambda: CLIP(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    write_folder(tmp_path / "clip", CONFIG.to_hf(), dump_weights(model, CLIP_TABLE))
    return tmp_path / "clip"


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def same(a: CLIP, b: CLIP) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_every_weight_is_read_from_its_own_tensor(model, folder):
    assert same(load_clip(folder).model, model)
    tensors = load_file(folder / "model.safetensors")
    assert tensors[FC1].shape == (12, 8)
    assert np.array_equal(tensors[FC1].T, model.vision_tower.transformer.blocks.mlp.fc1.kernel[...][1])
    assert tensors["vision_model.embeddings.patch_embedding.weight"].shape == (8, 3, 8, 8)


def test_loading_compiles_nothing(folder, caplog):
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        load_clip(folder)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]


def test_sharded_files(model, folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_clip(folder).model, model)

    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors is missing"):
        load_clip(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="weight_map"):
        load_clip(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32_weights(model, folder, dtype):
    edit(folder, lambda tensors: tensors.update({name: a.astype(dtype) for name, a in tensors.items()}))
    for a, b in zip(leaves(load_clip(folder).model), leaves(model), strict=True):
        assert a.dtype == np.float32
        assert np.array_equal(a, b.astype(dtype).astype(np.float32))


def test_position_ids_of_old_files_are_known_and_ignored(model, folder):
    ids = {f"{tower}.embeddings.position_ids": np.arange(5)[None] for tower in ("vision_model", "text_model")}
    edit(folder, lambda tensors: tensors.update(ids))
    assert same(load_clip(folder).model, model)


def test_all_that_does_not_fit_is_listed(folder):
    def spoil(tensors):
        tensors["vision_model.surprise"] = np.zeros(3, np.float32)
        tensors["text_model.position_ids"] = np.zeros(3, np.float32)
        del tensors["logit_scale"]
        del tensors[FC1]
        tensors["text_projection.weight"] = tensors["text_projection.weight"].T.copy()

    edit(folder, spoil)
    with pytest.raises(InputError) as error:
        load_clip(folder)
    missing, left_over, wrong = str(error.value).split(";")
    assert "missing: logit_scale, " + FC1 in missing
    assert "left over: text_model.position_ids, vision_model.surprise" in left_over
    assert "text_projection.weight (4, 6) instead of (6, 4)" in wrong
    assert str(folder) in missing


@pytest.mark.parametrize(
    "section, field, value, said",
    [
        ("vision_config", "num_hidden_layers", 3, "missing: vision_model.encoder.layers.2"),
        ("vision_config", "num_hidden_layers", 1, "left over: vision_model.encoder.layers.1"),
        ("vision_config", "image_size", 32, r"position_embedding.weight \(5, 8\) instead of \(17, 8\)"),
        ("text_config", "vocab_size", 30, r"token_embedding.weight \(20, 4\) instead of \(30, 4\)"),
    ],
)
def test_a_config_of_another_model(folder, section, field, value, said):
    config = json.loads((folder / "config.json").read_text())
    config[section][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        load_clip(folder)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def of_type(model_type: str | None):
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type} if model_type else {}))

    return change


@pytest.mark.parametrize(
    "spoil, said",
    [
        (cut_short, "model.safetensors is broken or cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is broken or cut short"),
        (only_a_pickle, "pytorch_model.bin is broken or not a weight file of torch"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "has no weights, expected model.safetensors",
        ),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (of_type("blip"), "model_type 'blip', expected one of 'clip', 'metaclip_2', 'siglip'"),
        (of_type("clip_vision_model"), "expected one of 'clip'"),
        (of_type(None), "model_type None"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_a_folder_that_is_no_clip(folder, spoil, said):
    spoil(folder)
    with pytest.raises(InputError, match=said) as error:
        load_clip(folder)
    assert "\n" not in str(error.value)


def test_a_single_file_is_read_with_the_configuration_beside_it(model, folder, tmp_path):
    assert same(load_clip(folder / "model.safetensors").model, model)
    with pytest.raises(InputError, match="expected a model's folder or its weights"):
        load_clip(folder / "config.json")
    (folder / "model.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match="does not say which model it is"):
        load_clip(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("source", ["no-such-folder", "./no/such", "a/b/c", "owner/"])
def test_what_is_neither_a_folder_nor_a_hub_id(source):
    with pytest.raises(InputError, match="there is no folder"):
        load_clip(source)


def test_an_ill_formed_hub_id_is_one_sentence():
    with pytest.raises(InputError, match="neither a folder here nor a well-formed"):
        load_clip("own er/cl ip")
