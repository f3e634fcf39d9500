"""A tiny teacher, a folder of pictures, and a config that distils from them in a second a run."""

import getpass
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bucket import emulated_bucket
from fake_hub import FakeHub
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from zeroseg_jax.config import default_config
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.siglip import Siglip, SiglipConfig
from zeroseg_jax.models.tokenizer import build_word_tokenizer
from zeroseg_jax.models.tokenizer_files import load_siglip_tokenizer

# Compiling takes most of the time of these tests, and many of them, and their subprocesses, compile the same program.
# Without most optimisations it takes half as long; what is compiled here is too small to run long.
COMPILED = Path(tempfile.gettempdir()) / f"zeroseg_jax_tests_{getpass.getuser()}"
os.environ |= {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs would ask Google about the buckets of an emulator
    "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # one process at a time may load the TPU's compiler: those of launch/fit.py, which the tests start
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
}
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
jax.config.update("jax_disable_most_optimizations", True)


def random_module(make: Callable[[], nnx.Module]) -> nnx.Module:
    """The module of `make` with normal weights, without the seconds that its own initialisation takes."""
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, state))


@pytest.fixture(scope="session")
def tiny_student() -> dict[str, Any]:
    """The group `student` of a config, for images of 16 pixels. More stages and layers take long to compile."""
    return {
        "patch_size": 4,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mask_ratio": 0.5,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "segment_tokens": (4,),
        "segment_depths": (1,),
        "pool_depth": 0,
        "segment_heads": 2,
        "projection_width": 32,
    }


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """The Hugging Face folder of a CLIP with random weights, for images of 8 pixels."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_word_tokenizer(["a photo of a cat on the grass"], vocabulary=530, context=40)
    text = TextConfig(
        vocabulary=len(tokenizer),
        context=40,
        width=8,
        depth=1,
        heads=2,
        mlp_width=16,
        start_id=tokenizer.bos_token_id,
        end_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    vision = VisionConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=32)
    config = CLIPConfig(vision, text, embed_dim=8)
    ClipEncoder(random_module(lambda: CLIP(config, rngs=nnx.Rngs(0))), tokenizer).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory) -> Path:
    """The Hugging Face folder of a SigLIP with random weights, for images of 8 pixels; its tokens are letters."""
    folder = tmp_path_factory.mktemp("siglip")
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.save(str(folder / "tokenizer.json"))
    tower = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    vision = tower | {"image_size": 8, "patch_size": 4}
    text = tower | {"vocab_size": len(pieces), "max_position_embeddings": 24, "eos_token_id": 1}
    config = SiglipConfig.from_hf({"vision_config": vision, "text_config": text})
    model = random_module(lambda: Siglip(config, rngs=nnx.Rngs(0)))
    ClipEncoder(model, load_siglip_tokenizer(folder)).save(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Twenty pictures of 20 x 24 pixels with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = [{"file_name": f"{i:02d}.png", "text": f"a photo of thing number {i}"} for i in range(20)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """A hub on loopback without models."""
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture
def tiny_config(make_tiny_config) -> ConfigDict:
    """All four losses, hard assignment with Gumbel noise, random crops; no evaluation at the end."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def make_tiny_config(tiny_student, tiny_clip, pictures) -> Callable[[], ConfigDict]:
    return lambda: _tiny_config(tiny_student, tiny_clip, pictures)


def _tiny_config(tiny_student: dict[str, Any], tiny_clip: Path, pictures: Path) -> ConfigDict:
    config = default_config()
    config.steps = 17
    config.batch_size = 4
    config.image_size = 16
    config.checkpoint_every = 5
    config.log_every = 1
    config.data.source = "folder"
    config.data.workers = 0
    config.data.root = str(pictures)
    config.data.augment = "crop"
    config.data.flip = True
    config.views.grids = (1, 2)
    config.teacher.path = str(tiny_clip)
    config.student.update(tiny_student)
    config.loss.ground = 1.0
    config.optimizer.lr = 5e-3
    config.optimizer.warmup_steps = 2
    config.eval.dataset = ""
    return config


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an emulated bucket."""
    with emulated_bucket() as address:
        yield address
