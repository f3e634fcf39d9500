"""Padding, turning and tiles change nothing: the label maps are those of the image as a whole."""

import jax
import numpy as np
import pytest

from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.labelling import tiles
from zeroseg_jax.segment.labelling.decode import Guide, View, label_pixels
from zeroseg_jax.segment.methods import DenseClipMethod
from zeroseg_jax.segment.options import change, encodes
from zeroseg_jax.segment.windows import shrink_to_cells, upsampling_matrices

LABELS = ["cat", "grass", "sky", "photo", "on"]
whole = jax.jit(label_pixels, static_argnums=(3, 4))


def as_a_whole(model, encoded, background, options):
    """One call of `label_pixels` for the image as it stands."""
    chosen = change(model.options, options)
    texts, threshold = model.texts_of(LABELS, None, background, chosen)
    sizes, cells, views, guide = encoded.pixels.shape[:2], encoded.views[0].layout.cells, [], None
    for view in encoded.views:
        encoding = view.encoding
        dense = encoding.assignment is None
        outputs = cells if chosen.guide else sizes
        rows, columns = upsampling_matrices(view.layout, outputs, chosen, dense, view.mirrored)
        views.append(View(jax.tree.map(lambda x: x[None], encoding), rows[None], columns[None]))
    if chosen.guide:
        maps = [resize_matrix(n, m)[None] for n, m in zip(cells, sizes, strict=True)]
        small = np.asarray(shrink_to_cells(encoded.pixels, cells), np.float32)
        guide = Guide(encoded.pixels[None], small[None], *maps)
    actual = jax.device_get(whole(tuple(views), texts, guide, chosen.labelling, threshold))
    return [None if x is None else x[0] for x in actual]


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "segments,options",
    [
        (True, {"flip": True, "scales": (1.0, 1.5), "background": ["hat"]}),
        (False, {"top_classes": 3}),
        (True, {"guide": 0.0, "slide": 1.25, "scale": 20.0, "background": 0.3}),
        (True, {"rule": "groupvit", "top_classes": 2, "background": 0.5, "guide": 0.0}),
        (False, {"window": 16, "stride": 8, "short_side": 20, "guide": 0.0}),
    ],
)
def test_tiles_give_what_the_whole_image_does(model, monkeypatch, segments, options):
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "TILES", 4)
    # one of its own, since what is jitted does not look at TILE again
    model = Segmenter(model.method if segments else DenseClipMethod(model.clip, 16), model.clip, templates="name")
    background = options.pop("background", None)
    for shape in ((37, 30), (21, 50)):
        image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
        encoded = model.encode(image, **{name: value for name, value in options.items() if encodes(name)})
        label_map, segments_map, scores, probability = as_a_whole(model, encoded, background, options)
        result = model.label([encoded], LABELS, background=background, **options)[0]
        assert len(np.unique(result.segments)) > 2
        assert np.mean(result.label_map == label_map) > 0.999  # rounding decides between equal scores
        assert np.mean(result.segments == segments_map) > 0.999
        np.testing.assert_allclose(result.scores, scores[:, : len(LABELS)], atol=1e-5)
        assert (result.probability is None) == (probability is None)
        if probability is not None:
            assert np.mean(np.abs(result.probability - probability) < 1e-3) > 0.995


@pytest.mark.end_to_end
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 24)])
def test_the_jitted_function_gives_the_same_pixels(model, segments, size):
    """Where nothing is resized, `segment` and `segment_fn` differ nowhere."""
    model = model if segments else Segmenter(DenseClipMethod(model.clip, 16), model.clip, templates="name")
    image = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    for options in ({}, {"guide": 0.0}, {"flip": True, "background": ["hat"], "scale": 20.0}):
        expected = model.segment(image, LABELS, **options).label_map
        actual = np.asarray(model.segment_fn(size, LABELS, **options)(image[None])[0])
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.end_to_end
def test_photographs_of_all_shapes_share_twelve_compilations(tiny_clip):
    compiled: list[str] = []

    def count(event: str, duration: float, **rest: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    model = Segmenter(DenseClipMethod(load_clip(tiny_clip), 16), load_clip(tiny_clip), templates="name")
    model.check(LABELS)  # which embeds the words
    jax.monitoring.register_event_duration_secs_listener(count)
    rng = np.random.default_rng(5)
    for _ in range(3):
        aspects = np.exp(rng.uniform(-0.79, 0.79, 16))
        sizes = [(round(40 * aspect**0.5), round(40 / aspect**0.5)) for aspect in aspects]
        model.segment_batch([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], LABELS)
    assert 0 < len(compiled) <= 12
