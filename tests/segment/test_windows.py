"""Layouts of images of any aspect, windows as the papers slide them, mirror images and several scales."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from zeroseg_jax import InputError
from zeroseg_jax.ops.resize import resize_matrix
from zeroseg_jax.segment import Options, Segmenter
from zeroseg_jax.segment.methods import DenseClipMethod
from zeroseg_jax.segment.options import ModelOptions
from zeroseg_jax.segment.windows import lay_out, resize, resize_plainly, resize_traced, upsampling_matrix

LABELS = ["cat", "grass", "sky", "photo", "on"]


@pytest.mark.parametrize("height,width", [(96, 96), (213, 320), (375, 500), (3, 1000), (1, 1), (4000, 3000)])
@pytest.mark.parametrize("slide", [0.0, 1.25])
def test_layouts_are_whole_patches_of_about_the_same_aspect(height, width, slide):
    for size, patch in ((96, 8), (224, 16), (224, 32), (32, 4)):
        layout = lay_out(height, width, size, patch, Options(slide=slide))
        assert min(layout.shape) == size and not any(n % patch for n in layout.shape)
        assert layout.shape[0] / layout.shape[1] == pytest.approx(np.clip(height / width, 1 / 16, 16), rel=0.1)
        assert lay_out(width, height, size, patch, Options(slide=slide)).shape == layout.shape[::-1]
        slides = slide and max(height, width) > 1.25 * min(height, width)
        assert layout.window == ((size, size) if slides else layout.shape)
        for axis, outputs in enumerate((height, width)):
            np.testing.assert_allclose(upsampling_matrix(layout, axis, outputs).sum(axis=(1, 2)), 1, atol=1e-5)
        views = layout.cut(np.zeros((1, *layout.shape, 3), np.uint8))
        assert len(views) == len(layout) and {view.shape for view in views} == {(1, *layout.window, 3)}
        assert not any(start % patch for axis in layout.starts for start in axis)


def test_photographs_of_all_shapes_are_encoded_at_seven_sizes():
    actual = set()
    for aspect in np.geomspace(1, 2, 200):
        for height, width in ((1000, round(1000 * aspect)), (round(1000 * aspect), 1000)):
            shape = lay_out(height, width, 224, 16).shape
            actual.add(shape)
            assert abs(np.log(shape[1] / shape[0] / (width / height))) < np.log(1.18)
    assert len(actual) == 7
    for width, expected in ((400, 304), (450, 336), (533, 400)):  # 4:3, 3:2 and 16:9
        assert lay_out(300, width, 224, 16).shape == (224, expected)


@pytest.mark.parametrize("shape", [(45, 60), (20, 13), (30, 70)])
def test_images_are_resized_for_windows_as_mmcv_does(shape):
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, shape, mode="bilinear")[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_plainly(image, shape) - expected).max() <= 0.51  # rounded


@pytest.mark.parametrize("shape", [(44, 61), (20, 13), (37, 70)])
def test_images_are_resized_under_jit_as_by_pillow(shape):
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    for fit, plainly in ((resize, False), (resize_plainly, True)):
        result = np.asarray(resize_traced(jax.numpy.asarray(image)[None], shape, plainly)[0])
        expected = fit(image, shape).astype(int)
        assert np.mean(result == expected) > 0.999 and np.abs(result - expected).max() <= 1


def test_layouts_of_the_papers():
    """mmsegmentation's slide mode, windows of 448 at a stride of 224, by hand."""
    paper = Options(short_side=448, long_side=2048, window=448, stride=224)
    voc = lay_out(375, 500, 224, 16, paper)
    assert voc.shape == (448, 597) and voc.window == (448, 448) and voc.starts == ((0,), (0, 149))
    assert lay_out(500, 375, 224, 16, paper).starts == ((0, 149), (0,))
    assert lay_out(448, 896, 224, 16, paper).starts == ((0,), (0, 224, 448))
    # the longer side would be 2240: it is 2048, and the shorter one 410, which is less than a window
    long = lay_out(100, 500, 224, 16, paper)
    assert long.shape == (416, 2048) and long.window == (416, 448) and long.starts[1][-3:] == (1344, 1568, 1600)
    # twice as large there are windows in both directions
    twice = lay_out(375, 500, 224, 16, paper, 2.0)
    assert twice.shape == (896, 1195) and twice.counts == (3, 5)
    assert lay_out(375, 500, 224, 16, Options(short_side=448, slide=0.0)).shape == (448, 592)  # 597, in whole patches
    with pytest.raises(InputError, match="window is 450, but the model's patches are 16 pixels wide; 448 would do"):
        lay_out(375, 500, 224, 16, Options(window=450))
    with pytest.raises(InputError, match="stride is 449, which leaves gaps between windows of 448; set at most 448"):
        lay_out(375, 500, 224, 16, Options(window=448, stride=449))


def test_windows_are_averaged_by_hand():
    """Windows of two patches, of two pixels each, over six pixels; the middle two are in both."""
    layout = lay_out(4, 6, 4, 2, Options(window=4, stride=2))
    assert layout.shape == (4, 6) and layout.starts == ((0,), (0, 2))
    actual = upsampling_matrix(layout, 1, 6).reshape(6, 4)
    inside = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = np.zeros((6, 4))
    expected[:4, :2] += inside
    expected[2:, 2:] += inside
    np.testing.assert_allclose(actual, expected / np.array([1, 1, 2, 2, 1, 1])[:, None], atol=1e-6)
    nearest = upsampling_matrix(layout, 1, 6, inside="nearest").reshape(6, 4) * np.array([1, 1, 2, 2, 1, 1])[:, None]
    np.testing.assert_array_equal(nearest, np.eye(4)[[0, 0, 1, 1, 3, 3]] + np.eye(5, 4)[[4, 4, 2, 2, 4, 4]])


def encode(model):
    return jax.jit(model.method.encode, static_argnums=2)


def as_papers_do(model, image, options, factor=1.0, mirror=False):
    """Probabilities of all pixels by mmsegmentation's procedure, in loops: crop, encode, enlarge, add, resize."""
    layout = lay_out(*image.shape[:2], model.method.image_size, model.method.patch_size, options, factor)
    pixels, texts = resize_plainly(image, layout.shape), model.embed_labels(LABELS)
    total, count = np.zeros((*layout.shape, len(LABELS))), np.zeros((*layout.shape, 1))
    for y in layout.starts[0]:
        for x in layout.starts[1]:
            place = np.s_[y : y + layout.window[0], x : x + layout.window[1]]
            crop = pixels[place][:, ::-1] if mirror else pixels[place]
            result = encode(model)(model.method.params, crop[None], ModelOptions())
            logits = np.exp(model.logit_scale * (np.asarray(result.embeddings[0]) @ texts.T))
            scores = logits / logits.sum(axis=-1, keepdims=True)
            scores = scores if result.assignment is None else np.asarray(result.assignment[0]) @ scores
            scores = scores.reshape(*layout.grid, -1)
            scores = scores[:, ::-1] if mirror else scores
            columns = np.einsum("xw,hwc->hxc", resize_matrix(layout.grid[1], layout.window[1]), scores)
            total[place] += np.einsum("yh,hxc->yxc", resize_matrix(layout.grid[0], layout.window[0]), columns)
            count[place] += 1
    down, across = (resize_matrix(n, m) for n, m in zip(layout.shape, image.shape, strict=False))
    return np.einsum("yh,xw,hwc->yxc", down, across, total / count, optimize=True)


def assert_same(model, image, expected, **options):
    actual = model.segment(image, LABELS, background=1e-6, scale=model.logit_scale, **options)
    np.testing.assert_allclose(actual.probability, expected.max(axis=-1), atol=1e-4)
    first, second = np.sort(expected, axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
    clear = first - second > 1e-3
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(actual.label_map[clear], expected.argmax(axis=-1)[clear])
    return actual


PAPER = {"short_side": 20, "long_side": 80, "window": 16, "stride": 8, "guide": 0.0}


@pytest.mark.parametrize("size,segments", [((21, 34), True), ((40, 40), False)])
def test_windows_as_the_papers_slide_them(model, size, segments):
    if not segments:
        model = Segmenter(DenseClipMethod(model.clip, 16), model.clip, templates="name")
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = assert_same(model, image, as_papers_do(model, image, Options(**PAPER)), **PAPER)
    if not segments:
        return
    jitted = model.segment_fn(size, LABELS, background=1e-6, scale=model.logit_scale, **PAPER)(image[None])[0]
    assert np.mean(result.label_map == jitted) > 0.99


@pytest.mark.end_to_end
def test_mirror_images_and_scales_are_averaged(model, image):
    options = PAPER | {"flip": True, "scales": (1.0, 1.5)}
    passes = [(factor, mirror) for factor in (1.0, 1.5) for mirror in (False, True)]
    expected = [as_papers_do(model, image, Options(**PAPER), *one) for one in passes]
    actual = assert_same(model, image, np.mean(expected, axis=0), **options)
    assert actual.scores.shape == (2 * (2 * 3 + 3 * 6) * 4, 5) and actual.segments.max() < len(actual.scores)


def softmax(x):
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("threshold", [0.3, 0.95])
def test_groupvits_rule_in_windows(model, image, threshold):
    """The whole procedure in loops, window by window, each with likeliest labels and a background of its own."""
    options = PAPER | {"rule": "groupvit", "top_classes": 2}
    layout = lay_out(*image.shape[:2], 16, 4, Options(**options))
    pixels, texts = resize_plainly(image, layout.shape), model.embed_labels(LABELS)
    total, count = np.zeros((*layout.shape, 1 + len(LABELS))), np.zeros((*layout.shape, 1))
    for y in layout.starts[0]:
        for x in layout.starts[1]:
            place = np.s_[y : y + 16, x : x + 16]
            actual = jax.device_get(encode(model)(model.method.params, pixels[place][None], ModelOptions()))
            maps = jax.image.resize(actual.assignment[0].reshape(4, 4, -1), (16, 16, 4), "linear")
            logits = model.logit_scale * actual.embeddings[0] @ texts.T
            likely = np.argsort(-(actual.image[0] @ texts.T))[:2]
            few = np.full_like(logits, -np.inf)
            few[:, likely] = logits[:, likely]
            scores = softmax(logits) * softmax(few)
            hidden = scores.max(axis=1) < min(threshold, scores.max())
            table = np.concatenate([hidden[:, None], scores], axis=1)
            total[place] += table[np.asarray(maps).argmax(axis=-1)]
            count[place] += 1
    size = (*image.shape[:2], 1 + len(LABELS))
    expected = np.asarray(jax.image.resize(total / count, size, "linear", antialias=False))
    actual = model.segment(image, LABELS, background=threshold, **options).label_map
    first, second = np.sort(expected, axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
    clear = first - second > 1e-4
    assert clear.mean() > 0.9 and len(np.unique(actual)) > 1
    np.testing.assert_array_equal(actual[clear], expected.argmax(axis=-1)[clear] - 1)
    # a pass at any threshold tells of this one
    last = model.segment(image, LABELS, background=1e-6, **options).probability
    assert np.mean((last < np.float32(threshold)) == (actual < 0)) > 0.999


def test_batches_of_windows_give_what_single_images_do(model):
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((21, 34), (23, 34))]
    options = PAPER | {"rule": "groupvit", "top_classes": 2, "background": 0.3}
    for image, result in zip(images, model.segment_batch(images, LABELS, **options), strict=True):
        np.testing.assert_array_equal(result.label_map, model.segment(image, LABELS, **options).label_map)


def test_a_long_panorama_is_labelled_as_its_parts_are(model):
    scene = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    labels = LABELS
    panorama = np.concatenate([scene] * 6, axis=1)
    alone, long = model.segment(scene, labels), model.segment(panorama, labels)
    assert long.label_map.shape == (16, 96)
    assert long.scores.shape == (11 * 4, 5)
    # both ends lie in one window each, which sees the scene as it is
    np.testing.assert_array_equal(long.label_map[:, :6], alone.label_map[:, :6])
    np.testing.assert_array_equal(long.label_map[:, -6:], alone.label_map[:, -6:])
    np.testing.assert_allclose(long.scores[:4], alone.scores, atol=1e-5)
    np.testing.assert_allclose(long.scores[-4:], alone.scores, atol=1e-5)
    # in between it repeats with the scene
    np.testing.assert_array_equal(long.label_map[:, 32:48], long.label_map[:, 48:64])
    assert model.segment(panorama, labels, slide=0).scores.shape == (4, 5)


def test_long_images_in_a_batch_and_in_the_jitted_function(model):
    images = [np.random.default_rng(i).integers(0, 256, (16, 40, 3), dtype=np.uint8) for i in range(3)]
    labels = ["cat", "grass"]
    results = model.segment_batch([*images, images[0][:, :20]], labels, flip=True)
    for image, result in zip(images, results, strict=False):
        np.testing.assert_array_equal(result.label_map, model.segment(image, labels, flip=True).label_map)
    maps = jax.device_get(model.segment_fn((16, 40), labels, flip=True)(np.stack(images)))
    assert np.mean(maps == np.stack([r.label_map for r in results[:3]])) > 0.99


@pytest.mark.end_to_end
def test_a_long_narrow_image_takes_little_memory(tmp_path):
    """60 x 24,000 pixels, in a process of its own: the peak is measured over all of its life."""
    code = """
import resource, numpy as np, zeroseg_jax
model = zeroseg_jax.load("demo")
model.segment(np.zeros((96, 96, 3), np.uint8), ["grass", "snow"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = model.segment(np.zeros((60, 24000, 3), np.uint8), ["grass", "snow"])
assert result.label_map.shape == (60, 24000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 800e6
