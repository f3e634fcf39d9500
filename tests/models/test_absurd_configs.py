"""A config.json with sizes that no model has, or that its weights have not: one sentence, at once."""

import json
import shutil
import time

import pytest

from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vision_config.num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, expected a number from 1 to 4096"),
        ("vision_config.num_hidden_layers", 4096, "has 4096 layers, its weights only [0-9]+ tensors"),
        ("text_config.num_hidden_layers", -1, "expected a number from 1"),
        ("vision_config.hidden_size", 10**18, "hidden_size is 10+, expected a number from 1"),
        ("vision_config.hidden_size", 0, "expected a number from 1"),
        ("vision_config.num_attention_heads", 0, "expected a number from 1"),
        ("vision_config.num_attention_heads", None, "width 16 is not divisible by 12 heads"),
        ("vision_config.patch_size", 0, "expected a number from 1"),
        ("vision_config.image_size", 10**30, "expected a number from 1"),
        ("vision_config.image_size", [[8], [8]], "expected a number"),
        ("vision_config.image_size", [], "only squares are supported"),
        ("vision_config.layer_norm_eps", float("nan"), "layer_norm_eps is nan, expected a number from 0 to 1"),
        ("vision_config.hidden_act", ["gelu"], "hidden_act is"),
        ("text_config.vocab_size", 10**30, "expected a number from 1"),
        ("text_config.max_position_embeddings", "77", "expected a number"),
        ("projection_dim", -5, "expected a number from 1"),
        ("logit_scale_init_value", 1e300, "expected a number from -100 to 100"),
        ("vision_config", [3], "vision_config is"),
    ],
)
def test_absurd_sizes_are_told_at_once(tiny_clip, tmp_path, key, value, told):
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    config = json.loads((folder / "config.json").read_text())
    *groups, last = key.split(".")
    group = config
    for name in groups:
        group = group[name]
    group[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    since = time.process_time()
    with pytest.raises(InputError, match=told):
        load_clip(folder)
    assert time.process_time() - since < 5
