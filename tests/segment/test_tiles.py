"""Padding, turning and tiles change nothing: the label maps are those of the image as a whole."""

import jax
import numpy as np
import pytest
from PIL import Image

from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment import Segmenter, tiles
from zeroseg_jax.segment.decode import ROWS, Guide, View, label_pixels
from zeroseg_jax.segment.methods import DenseClipMethod
from zeroseg_jax.segment.options import change, encodes
from zeroseg_jax.segment.windows import how_inside, resize, spread

LABELS = ["cat", "grass", "sky", "photo", "on"]
whole = jax.jit(label_pixels, static_argnums=(3, 4))


def as_a_whole(model, encoded, background, options):
    """One call of `label_pixels` for the image as it stands."""
    chosen = change(model.options, options)
    texts, threshold = model._texts_of(LABELS, None, background, chosen)
    (height, width), cells = encoded.pixels.shape[:2], encoded.views[0].layout.cells
    padded, views, guide = -(-height // ROWS) * ROWS, [], None
    for view in encoded.views:
        inside = how_inside(chosen, view.encoding.assignment is None)
        rows = spread(view.layout, 0, *((cells[0], None) if chosen.guide else (height, padded)), inside)
        columns = spread(view.layout, 1, cells[1] if chosen.guide else width, None, inside)
        columns = columns[..., ::-1] if view.mirrored else columns
        views.append(View(jax.tree.map(lambda x: x[None], view.encoding), rows[None], columns[None]))
    if chosen.guide:
        pixels = np.pad(encoded.pixels, ((0, padded - height), (0, 0), (0, 0)))
        maps = np.pad(resize_matrix(cells[0], height), ((0, padded - height), (0, 0))), resize_matrix(cells[1], width)
        guide = Guide(
            pixels[None], resize(encoded.pixels, cells, Image.Resampling.BILINEAR)[None], *(m[None] for m in maps)
        )
    found = jax.device_get(whole(tuple(views), texts, guide, chosen.labelling, threshold))
    return [None if x is None else x[0] for x in found], height


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
        (label_map, segments_map, scores, probability), height = as_a_whole(model, encoded, background, options)
        found = model.label([encoded], LABELS, background=background, **options)[0]
        assert len(np.unique(found.segments)) > 2
        assert np.mean(found.label_map == label_map[:height]) > 0.999  # rounding decides between equal scores
        assert np.mean(found.segments == segments_map[:height]) > 0.999
        np.testing.assert_allclose(found.scores, scores[:, : len(LABELS)], atol=1e-5)
        assert (found.probability is None) == (probability is None)
        if probability is not None:
            assert np.mean(np.abs(found.probability - probability[:height]) < 1e-3) > 0.995
