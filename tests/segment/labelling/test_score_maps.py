"""Scores of pixels, and the labels that follow from them."""

import numpy as np
import pytest

from zeroseg_jax import InputError
from zeroseg_jax.segment import load
from zeroseg_jax.segment.labelling.score_maps import embed_words, label_scores, score_image

LABELS = ["cat", "grass", "sky"]


@pytest.mark.parametrize("background", [None, 0.4, ["a photo", "on"]], ids=str)
@pytest.mark.parametrize("options", [{}, {"guide": 0.0}, {"flip": True, "mix": "embeddings"}], ids=str)
@pytest.mark.parametrize("shape", [(21, 34), (40, 12)], ids=str)
def test_the_labels_are_those_of_segment(model, background, options, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    words = embed_words(model, LABELS, None, background, options)
    encoded = model.encode(image, **{name: value for name, value in options.items() if name == "flip"})
    scored = score_image(model, encoded, words)
    expected = model.segment(image, LABELS, background=background, **options)
    np.testing.assert_array_equal(label_scores(scored.pixels, words), expected.label_map)
    np.testing.assert_array_equal(scored.segments, expected.segments)
    np.testing.assert_array_equal(scored.scores, expected.scores)


def test_a_clip(tiny_clip):
    model = load(tiny_clip)
    image = np.random.default_rng(0).integers(0, 256, (50, 34, 3), dtype=np.uint8)
    words = embed_words(model, LABELS, "name", None, {})
    scored = score_image(model, model.encode(image), words)
    assert scored.pixels.shape == (50, 34, 3)
    expected = model.segment(image, LABELS, templates="name")
    np.testing.assert_array_equal(label_scores(scored.pixels, words), expected.label_map)
    np.testing.assert_array_equal(scored.segments, expected.segments)


@pytest.mark.parametrize("option", [{"rule": "groupvit"}, {"area": 0.1}, {"pamr": 3}], ids=str)
def test_options_without_scores_of_pixels(model, option):
    with pytest.raises(InputError, match=f"{next(iter(option))} cannot be used where scores are averaged"):
        embed_words(model, LABELS, None, None, option)
