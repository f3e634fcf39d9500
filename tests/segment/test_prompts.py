"""Templates, and the ensemble of prompts."""

import numpy as np
import pytest

from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.segment.prompts import TEMPLATES, embed_prompts, resolve_templates


def test_sets_of_templates():
    assert {name: len(templates) for name, templates in TEMPLATES.items()} == {
        "name": 1,
        "photo": 1,
        "clip7": 7,
        "imagenet80": 80,
    }
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 for template in templates)
    assert set(TEMPLATES["clip7"]) < set(TEMPLATES["imagenet80"])


def test_templates_of_ones_own():
    assert resolve_templates("a drawing of a {}") == ("a drawing of a {}",)
    assert resolve_templates(["{}", "two {}s"]) == ("{}", "two {}s")


@pytest.mark.parametrize("templates", ["name", "imagenet80"])
def test_the_mean_of_unit_prompts_at_unit_length(tiny_clip, templates):
    clip = load_clip(tiny_clip)
    result = embed_prompts(clip, ["cat", " on "], resolve_templates(templates))
    for row, label in zip(result, ["cat", "on"], strict=True):
        prompts = [template.replace("{}", label) for template in TEMPLATES[templates]]
        mean = clip.encode_text(prompts).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_prompts_of_any_length(tiny_clip):
    clip = load_clip(tiny_clip)
    templates = resolve_templates("clip7")
    raw = clip.encode_text([t.replace("{}", "cat") for t in templates], normalise=False)
    assert np.ptp(np.linalg.norm(raw, axis=-1)) > 0.01  # or the comparison would say little
    mean = raw.mean(axis=0)
    result = embed_prompts(clip, ["cat"], templates, normalise=False)
    np.testing.assert_allclose(result[0], mean / np.linalg.norm(mean), atol=1e-6)
