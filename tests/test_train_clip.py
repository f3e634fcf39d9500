"""The teacher's loss by hand, its pairs, and the weights that are shipped."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from zeroseg_jax.config import load_config
from zeroseg_jax.data.scenes.pairs import pairs
from zeroseg_jax.data.scenes.render import HELD_OUT, MATERIALS, NAMES, OBJECTS, article, scene
from zeroseg_jax.data.sources.captions import PairSource, open_pairs
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.crop_classification import LABELS, colour_rules
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.weights.folder import ASSETS
from zeroseg_jax.train_clip import clip_config, contrastive_loss


def test_contrastive_loss_by_hand():
    images = texts = jnp.eye(2)
    different, equal = jnp.array([[1, 2], [1, 3]]), jnp.array([[1, 2], [1, 2]])
    scale = jnp.float32(2.0)
    np.testing.assert_allclose(contrastive_loss(images, texts, different, scale), np.log(1 + np.exp(-2)), rtol=1e-6)
    # equal captions do not repel each other: each pair is alone in its sum
    np.testing.assert_allclose(contrastive_loss(images, texts, equal, scale), 0, atol=1e-7)


def test_pairs_are_reproducible_and_say_what_they_show():
    drawn = [pair for seed in range(12) for pair in pairs(seed, "pairs_test")]
    again = pairs(3, "pairs_test")
    assert all(np.array_equal(a.image, b.image) and a.text == b.text for a, b in zip(again, drawn[24:32], strict=True))
    for pair in drawn:
        assert pair.image.shape == (32, 32, 3)
        assert any(name in pair.text.split() for name in NAMES)
        if pair.name:  # bare names of a single thing
            assert pair.name in LABELS
        if pair.name and pair.target:
            assert pair.name == article(pair.target.name)
            assert pair.visible > 0.8


@pytest.mark.parametrize("split", ["train", "test", "pairs", "composition", "pairs_composition"])
def test_held_out_colours_appear_in_composition_splits_only(split):
    drawn = {(o.colour, o.name) for seed in range(40) for o in scene(seed, split).objects}
    assert drawn <= HELD_OUT if split.endswith("composition") else not drawn & HELD_OUT


def test_named_pairs_are_a_subset():
    source = PairSource([np.full((2, 2, 3), i, np.uint8) for i in range(3)], ["a", "b", "c"], ["", "b!", ""])
    named = source.named()
    assert len(named) == 1
    assert named.texts == ["b!"]
    assert named[0]["image"][0, 0, 0] == 1


def test_other_sources_hold_no_captions(tmp_path):
    with pytest.raises(InputError, match="has no captions"):
        open_pairs(ConfigDict({"source": "arrayrecord"}), 32)


def test_sizes_that_do_not_fit():
    config = load_config("configs/teacher_demo.py", [("image_size", "30")])
    with pytest.raises(InputError, match="image_size 30 is not divisible"):
        clip_config(config, 640, None)


@pytest.mark.end_to_end
def test_the_shipped_teacher_names_objects_and_colour_does_not():
    clip = load_clip(ASSETS / "demo")
    assert sum(file.stat().st_size for file in (ASSETS / "demo").iterdir()) < 6e6
    drawn = [pair for seed in range(60) for pair in pairs(seed, "pairs_test")]
    large = [pair for pair in drawn if pair.target and pair.visible > 0.9 and pair.radius >= 0.2]
    scores = clip.encode_image(np.stack([p.image for p in large])) @ clip.encode_text(LABELS).T
    truth = [OBJECTS.index(p.target.name) for p in large]
    assert len(large) > 100
    assert np.mean(scores.argmax(1) == truth) > 0.93
    train = [pair for seed in range(60) for pair in pairs(seed, "pairs")]
    assert max(colour_rules(large, train).values()) < 0.45
    assert len(MATERIALS) == 6
