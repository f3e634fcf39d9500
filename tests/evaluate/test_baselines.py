"""The readouts of the teacher alone: which boxes they see, and what they paint."""

import jax
import numpy as np
import pytest

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.baselines import (
    BASELINES,
    DESCRIPTIONS,
    TITLES,
    PaintedViews,
    TiledDenseClip,
    cells,
    check_baselines,
    readout_baseline,
    windows,
)
from zeroseg_jax.evaluate.protocol import EvaluationProtocol
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.readouts import READOUTS
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.methods import DenseClipMethod
from zeroseg_jax.segment.options import ModelOptions, Options

LABELS = ["cat", "grass"]


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return load_clip(tiny_clip)


def test_windows_are_square_and_reach_every_border():
    for height, width, count in ((96, 96, 9 * 9), (48, 96, 9 * 21)):
        boxes = windows([(1 / 3, 1 / 12)])(height, width) * (height, width, height, width)
        assert len(boxes) == count
        np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], min(height, width) / 3)
        np.testing.assert_allclose([boxes.min(), boxes[:, 2].max(), boxes[:, 3].max()], [0, height, width], atol=1e-9)


def test_cells_are_painted_with_their_own_embedding(clip):
    method = PaintedViews(clip, 24, cells(3))
    image = np.zeros((24, 24, 3), np.uint8)
    image[8:16, 8:16] = 255
    encoding = jax.jit(method.encode, static_argnums=2)(method.params, image[None], ModelOptions())
    patches = (encoding.assignment[0] @ encoding.embeddings[0]).reshape(24, 24, -1)
    seen = clip.encode_image(image[None, 8:16, 8:16])[0]  # the teacher's input size is 8: nothing is resized
    np.testing.assert_allclose(patches[8:16, 8:16], np.broadcast_to(seen, (8, 8, len(seen))), atol=1e-4)
    np.testing.assert_allclose(patches[0, 0], patches[23, 23], atol=1e-6)
    assert not np.allclose(patches[0, 0], seen, atol=1e-2)


def test_overlapping_windows_are_averaged_with_weights_that_sum_to_one(clip):
    method = PaintedViews(clip, 24, windows([(1 / 2, 1 / 4)]))
    encoding = jax.jit(method.encode, static_argnums=2)(
        method.params, np.zeros((2, 24, 36, 3), np.uint8), ModelOptions()
    )
    np.testing.assert_allclose(encoding.assignment.sum(axis=2), 1, atol=1e-5)
    assert encoding.embeddings.shape[:2] == (2, 3 * 5)


def test_tiles_hold_what_the_dense_readout_gives_for_each(clip):
    method = TiledDenseClip(clip, 2)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    encoding = jax.jit(method.encode, static_argnums=2)(method.params, image[None], ModelOptions())
    part = clip.dense(clip.normalise(image[None, :8, 8:] / np.float32(255)))[0]
    part = part / np.linalg.norm(part, axis=-1, keepdims=True)
    np.testing.assert_allclose(encoding.embeddings.reshape(4, 4, -1)[:2, 2:], part, atol=1e-4)


def test_a_baseline_answers_like_any_model(clip):
    model = Segmenter(TiledDenseClip(clip, 2), clip, templates="name")
    assert model.segment(np.zeros((21, 34, 3), np.uint8), LABELS).label_map.shape == (21, 34)


def test_a_baseline_that_does_not_exist_is_told(tiny_config):
    tiny_config.eval.baselines = ("cells", "windowz")
    with pytest.raises(InputError, match=r"eval\.baselines holds 'windowz'; it may hold maskclip, sclip, clearclip"):
        check_baselines(tiny_config.eval)


def test_readouts_have_variants_with_and_without_the_filter(clip):
    labels = ("cat", "grass")
    protocol = EvaluationProtocol(labels, None, ("a {}",), np.array([0, 1, -1]))
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    model = Segmenter(DenseClipMethod(clip), clip, templates=("a {}",))
    names = ["2x windows, mean cosine", "2x windows, mean probability"]
    for name in ("naclip", "pearl"):
        maps = readout_baseline(name, model, clip, protocol)([image], None)
        assert list(maps) == [*names, *(f"{name}, no filter" for name in names)]
        options = {"short_side": 16, "window": 8, "stride": 4, "readout": name, "scale": 0.0}
        for variant, guide in ((names[0], 4.0), (f"{names[0]}, no filter", 0.0)):
            expected = model.segment(image, labels, guide=guide, **options).label_map
            np.testing.assert_array_equal(next(maps[variant]).classes, expected)
    plain = Segmenter(DenseClipMethod(clip), clip, templates=("a {}",), options=Options(guide=0.0))
    assert list(readout_baseline("naclip", plain, clip, protocol)([image], None)) == names


def test_every_readout_may_be_a_baseline_and_has_a_title(clip):
    assert set(READOUTS) == set(TITLES) < set(BASELINES)
    assert len(set(TITLES.values())) == len(READOUTS) and set(TITLES.values()) < set(DESCRIPTIONS)
    assert {"naclip", "sc_clip", "pearl"} < set(default_config().eval.baselines) <= set(BASELINES)
