"""The README's models by their public names, and the paper's recipe, against a small hub that serves tiny ones."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from zeroseg_jax.models.layers import sincos_positions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIP = "openai/clip-vit-base-patch16"


@pytest.fixture(scope="module")
def clip_of_openai(tiny_clip, tmp_path_factory) -> Path:
    """The tiny CLIP as OpenAI's smaller ones are on the hub: a pytorch_model.bin and no safetensors."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path_factory.mktemp("openai") / "clip"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def tiny_mae(tiny_student, tmp_path_factory) -> Path:
    """A ViTMAE of the tiny student's sizes."""
    theirs = {"patch_size": "patch_size", "width": "hidden_size", "depth": "num_hidden_layers"}
    theirs |= {"heads": "num_attention_heads", "decoder_width": "decoder_hidden_size"}
    theirs |= {"decoder_depth": "decoder_num_hidden_layers", "decoder_heads": "decoder_num_attention_heads"}
    sizes = {name: tiny_student[ours] for ours, name in theirs.items()}
    sizes |= {"intermediate_size": 4 * sizes["hidden_size"]}
    sizes |= {"decoder_intermediate_size": 4 * sizes["decoder_hidden_size"], "image_size": 16}
    model = ViTMAEForPreTraining(ViTMAEConfig(**sizes))
    with torch.no_grad():
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            width = table.shape[-1]
            positions = np.concatenate([np.zeros((1, width), np.float32), sincos_positions(4, 4, width)])
            table.copy_(torch.from_numpy(positions)[None])
    folder = tmp_path_factory.mktemp("mae")
    model.save_pretrained(folder)
    return folder


def run(arguments: list[str], hub: FakeHub, cache: Path, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | hub.environment(cache) | {"PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.end_to_end
def test_the_readmes_snippet_and_command(fake_hub, clip_of_openai, tmp_path):
    fake_hub.add(CLIP, clip_of_openai)
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    for name in ("photo.jpg", "photos/a.png"):
        image.save(tmp_path / name)

    snippet = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if f'load("{CLIP}")' in code)
    both = snippet + (
        "\nassert out.label_map.shape == (20, 24)\n"
        f'clip = zeroseg_jax.load_clip("{CLIP}")\nprint(clip.encode_text(["a cat"]).shape)\n'
        'print(zeroseg_jax.load_clip("demo").encode_text(["a star"]).shape)\n'
    )
    done = run(["-c", both], fake_hub, tmp_path / "cache", tmp_path)
    assert done.stdout.split("\n")[-3:-1] == ["(1, 8)", "(1, 64)"]
    assert f"fetching {CLIP}: pytorch_model.bin" in done.stderr

    line = next(
        line for line in README.splitlines() if line.startswith("python -m zeroseg_jax.segment") and CLIP in line
    )
    words = re.findall(r'"([^"]*)"|(\S+)', line.removeprefix("python "))
    arguments = [quoted or plain for quoted, plain in words]
    run(arguments, fake_hub, tmp_path / "cache", tmp_path)
    assert list((tmp_path / "segmented").rglob("*.png"))
    assert fake_hub.fetched().count("pytorch_model.bin") == 1  # the second time from the cache


@pytest.mark.end_to_end
def test_the_papers_recipe_cut_to_two_steps(fake_hub, clip_of_openai, tiny_mae, tiny_student, pictures, tmp_path):
    spec = importlib.util.spec_from_file_location("vitb16", ROOT / "configs/vitb16.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config()
    fake_hub.add(config.teacher.path, clip_of_openai)
    fake_hub.add(config.init.mae, tiny_mae)
    changes = {"steps": 2, "batch_size": 4, "image_size": 16, "checkpoint_every": 2, "log_every": 1}
    changes |= {"data.source": "folder", "data.root": pictures, "data.split": "all", "data.workers": 0}
    changes |= {"views.grids": "1,2", "optimizer.warmup_steps": 1, "dtype": "float32"}
    changes |= {
        f"student.{key}": ",".join(map(str, v)) + "," if isinstance(v, tuple) else v for key, v in tiny_student.items()
    }
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    arguments = [str(ROOT / "main.py"), f"--config={ROOT / 'configs/vitb16.py'}", f"--workdir={tmp_path / 'run'}"]
    done = run([*arguments, *overrides], fake_hub, tmp_path / "cache", tmp_path)
    assert f"from {config.init.mae}" in done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert {"pytorch_model.bin", "model.safetensors"} <= set(fake_hub.fetched())
