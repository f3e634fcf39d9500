"""Padding, turning and tiles change nothing: the label maps are those of the image as a whole."""

import jax
import numpy as np
import pytest

from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.labelling import tiles
from zeroseg_jax.segment.labelling.decode import Guide, label_pixels
from zeroseg_jax.segment.labelling.scoring import View
from zeroseg_jax.segment.methods import DenseClipMethod
from zeroseg_jax.segment.options import change, encodes
from zeroseg_jax.segment.windows import shrink_to_cells, upsampling_matrices

LABELS = ["cat", "grass", "sky", "photo", "on"]
whole = jax.jit(label_pixels, static_argnums=(3, 4))


def as_a_whole(model, encoded, background, options):
    """The maps of one call of `label_pixels` for the image as it is, and the scores of its segments."""
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
    maps = jax.device_get(whole(tuple(views), texts, guide, chosen.labelling, threshold))
    embeddings = np.concatenate([np.asarray(view.encoding.embeddings)[0] for view in views], axis=None)
    return [x[0] for x in maps], embeddings.reshape(-1, texts.embeddings.shape[1]) @ texts.embeddings.T


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
    # a new one, since a jitted function does not look at TILE again
    model = Segmenter(model.method if segments else DenseClipMethod(model.clip, 16), model.clip, templates="name")
    background = options.pop("background", None)
    for shape in ((37, 30), (21, 50)):
        image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
        encoded = model.encode(image, **{name: value for name, value in options.items() if encodes(name)})
        (label_map, *maps), scores = as_a_whole(model, encoded, background, options)
        result = model.label([encoded], LABELS, background=background, **options)[0]
        assert len(np.unique(result.segments)) > 2
        assert np.mean(result.label_map == label_map) > 0.999  # rounding decides between equal scores
        if segments:
            assert np.mean(result.segments == maps.pop(0)) > 0.999
        np.testing.assert_allclose(result.scores, scores[:, : len(LABELS)], atol=1e-5)
        assert (result.probability is None) == (not maps)
        if maps:
            assert np.mean(np.abs(result.probability - maps[0]) < 1e-3) > 0.995


OPTIONS = [
    {},
    {"guide": 0.0},
    {"flip": True, "background": ["hat"], "scale": 20.0},
    {"pamr": 2},
    {"background": 0.14, "guide": 0.0, "scale": 20.0},
    {"mix": "embeddings", "area": 0.3},
    {"rule": "groupvit", "background": 0.5, "guide": 0.0, "top_classes": 3},
    {"window": 16, "stride": 8, "flip": True},
]


@pytest.mark.end_to_end
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize(("size", "tile"), [((32, 16), 128), ((16, 24), 8)])
def test_the_jitted_function_gives_the_same_pixels(model, monkeypatch, segments, size, tile):
    """Where nothing is resized, `segment` and `segment_fn` differ nowhere."""
    monkeypatch.setattr(tiles, "TILE", tile)
    model = Segmenter(model.method if segments else DenseClipMethod(model.clip, 16), model.clip, templates="name")
    image = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    # Texts along the differences of the segments, so that more than one label wins.
    embeddings = np.asarray(model.encode(image).views[0].encoding.embeddings).reshape(-1, model.clip.embed_dim)
    texts = (embeddings - embeddings.mean(axis=0))[np.linspace(0, len(embeddings) - 1, len(LABELS)).astype(int)]
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    monkeypatch.setattr(model, "embed_labels", lambda labels, *_: texts[: len(labels)])
    varied = 0
    for options in OPTIONS:
        expected = model.segment(image, LABELS, **options).label_map
        actual = np.asarray(model.segment_fn(size, LABELS, **options)(image[None])[0])
        np.testing.assert_array_equal(actual, expected)
        varied += len(np.unique(expected)) > 1
    assert varied >= 6


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
