"""What a source means: the shipped model, the user's own folder of that name, files and odd names."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zeroseg_jax
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip, read_clip_config
from zeroseg_jax.models.tokenizer import clean, clip_tokenizer
from zeroseg_jax.models.weights.folder import ASSETS, open_folder


def test_the_shipped_model_by_its_name(tmp_path, monkeypatch, tiny_clip):
    monkeypatch.chdir(tmp_path)
    assert load_clip("demo").embed_dim == zeroseg_jax.load("demo").clip.embed_dim == 64
    assert open_folder("demo").path == ASSETS / "demo"
    shutil.copytree(tiny_clip, tmp_path / "demo")  # the user's own folder of that name wins, for a teacher too
    assert load_clip("demo").embed_dim == zeroseg_jax.load("demo").clip.embed_dim == read_clip_config("demo").embed_dim
    assert load_clip("demo").embed_dim == 8


@pytest.mark.parametrize(
    "name", ["demo/", "clip_tokenizer", "../assets/demo", "x\0y", "y" * 5000, "~nobody-here/x", ""]
)
def test_other_names_mean_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        open_folder(name)
    assert "\n" not in str(error.value)


def test_a_sharded_bin_file(tiny_clip, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": sorted(tensors)[i::2] for i in range(2)}
    for part, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / part)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, names in parts.items() for name in names}}))
    expected = load_clip(tiny_clip).encode_text(["a cat"])
    np.testing.assert_array_equal(load_clip(folder).encode_text(["a cat"]), expected)
    for outside in ("../pytorch_model-00001-of-00002.bin", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"logit_scale": outside}}))
        with pytest.raises(InputError, match="no weight_map that names files of its folder"):
            load_clip(folder)


def test_a_pointer_of_git_lfs_is_said_to_be_one(tiny_clip, tmp_path):
    shutil.copytree(tiny_clip, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(InputError, match="Git LFS pointer"):
        load_clip(tmp_path / "clip")


def test_clips_own_tokenizer():
    """Ids as in OpenAI's `clip.tokenize`."""
    assert clip_tokenizer()("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(clip_tokenizer()) == 49408


@pytest.mark.parametrize(
    "given, expected",
    [
        ("“curly” it’s", '"curly" it\'s'),
        ("AT&amp;T &lt;b&gt; &amp;amp;", "AT&T <b> &"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("  many \n\t spaces ", "many spaces"),
        ("â€œmojibakeâ€\x9d", '"mojibake"'),
        ("naïve 它是 🦓", "naïve 它是 🦓"),
    ],
)
def test_texts_are_cleaned_as_openclip_does(given, expected, tiny_clip):
    assert clean(given) == expected
    encoder = load_clip(tiny_clip)
    np.testing.assert_array_equal(encoder.tokenize([given]), encoder.tokenize([expected]))
