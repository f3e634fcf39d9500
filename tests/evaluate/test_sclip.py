"""The protocol of SCLIP and its followers against a plain numpy implementation of its rules."""

import jax.numpy as jnp
import numpy as np
import pytest

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.protocol import DEFAULT, EvaluationProtocol, inference_options, make_protocol
from zeroseg_jax.evaluate.vocabularies import load_vocabulary
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.ops.pamr import pamr
from zeroseg_jax.segment import Options, Segmenter
from zeroseg_jax.segment.methods import DenseClipMethod, Encoding
from zeroseg_jax.segment.windows import resize_plainly

WINDOW, STRIDE, SIDE, PATCH = 8, 4, 12, 4
SCALE = 40.0
NAMES = {"cat": ["cat", "kitten"], "dog": ["dog"], "bed": ["bed"], "tree": ["tree"]}
WORDS = ["sky", "wall", "bed"]
"""Of the background. "bed" is a class too."""


RNG = np.random.default_rng(0)
PROJECTION = RNG.normal(0, 1, (3, 16)).astype(np.float32)
TEXTS = {name: RNG.normal(0, 1, 16) for name in (*WORDS, "cat", "kitten", "dog", "tree")}


class Colours:
    """A method whose patches are embedded by their mean colour, so that many classes win somewhere."""

    image_size, patch_size, params, readouts = 8, PATCH, PROJECTION, ()

    def encode(self, params, images, options):
        b, y, x, _ = images.shape
        patches = images.reshape(b, y // PATCH, PATCH, x // PATCH, PATCH, 3).mean(axis=(2, 4)) / 255 - 0.5
        embeddings = patches.reshape(b, -1, 3) @ params
        return Encoding(embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True), None)


class Words(Segmenter):
    """A segmenter with random text embeddings."""

    def embed_labels(self, labels, templates=None, normalise=None):
        return text_embeddings(labels).astype(np.float32)


def text_embeddings(names):
    return np.stack([TEXTS[name] / np.linalg.norm(TEXTS[name]) for name in names])


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return load_clip(tiny_clip)


def enlarge(x, height, width):
    """Bilinear without antialiasing, as OpenCV and torch do: (h, w, c) -> (height, width, c)."""
    for axis, size in enumerate((height, width)):
        count = x.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, count - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def reference(image, prompts, class_of_prompt, *, area=0.0, threshold=0.0, rounds=0):
    """The class of each pixel, and the largest probability."""
    height, width = image.shape[:2]
    scale = min(2048 / max(height, width), SIDE / min(height, width))
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    exact, small = enlarge(image.astype(np.float64), h, w), resize_plainly(image, (h, w))
    assert np.abs(small - exact).max() < 0.5 + 1e-4  # rounded, and ties may go either way
    text = text_embeddings(prompts)
    total, count = np.zeros((h, w, len(prompts))), np.zeros((h, w, 1))
    rows, columns = (range(max(n - WINDOW + STRIDE - 1, 0) // STRIDE + 1) for n in (h, w))
    for i in rows:
        for j in columns:
            y, x = min(i * STRIDE, h - WINDOW), min(j * STRIDE, w - WINDOW)
            window = small[y : y + WINDOW, x : x + WINDOW].astype(np.float64) / 255 - 0.5
            grid = WINDOW // PATCH
            dense = window.reshape(grid, PATCH, grid, PATCH, 3).mean(axis=(1, 3)) @ PROJECTION
            dense /= np.linalg.norm(dense, axis=-1, keepdims=True)
            total[y : y + WINDOW, x : x + WINDOW] += enlarge(dense @ text.T, WINDOW, WINDOW)
            count[y : y + WINDOW, x : x + WINDOW] += 1
    cosines = enlarge(total / count, height, width)
    if rounds:
        cosines = np.asarray(pamr(cosines[None].astype(np.float32), image[None], rounds)[0], np.float64)
    logits = SCALE * cosines
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probability = e / e.sum(axis=-1, keepdims=True)
    # of several names of a class the likeliest one counts
    scores = np.stack([probability[..., class_of_prompt == c].max(axis=-1) for c in sorted(set(class_of_prompt))], -1)
    if area:
        wins = np.bincount(scores.argmax(axis=-1).ravel(), minlength=scores.shape[-1])[1:]
        scores[..., 1:] *= wins > area * wins.sum()
    classes = scores.argmax(axis=-1)
    classes[scores.max(axis=-1) < threshold] = 0
    return classes, scores.max(axis=-1)


def predict(clip, image, background, **options):
    options = {"rule": "sclip", "scale": SCALE} | options
    size = {"short_side": SIDE, "long_side": 2048, "window": WINDOW, "stride": STRIDE, "guide": 0.0, "slide": 0.0}
    model = Words(Colours(), clip, templates="photo", options=Options(**size, **options))
    labels = [(name, c) for c, names in enumerate(NAMES.values(), 1) for name in names]
    values = np.array([*(c for _, c in labels), 0], np.int32)
    protocol = EvaluationProtocol(tuple(n for n, _ in labels), background, model.templates, values)
    return next(protocol.predictor(model)([image], None)[DEFAULT])


PROMPTS = [*WORDS, *(name for names in NAMES.values() for name in names)]
CLASSES = np.array([0] * len(WORDS) + [c for c, names in enumerate(NAMES.values(), 1) for _ in names])
IMAGE = np.random.default_rng(3).integers(0, 256, (31, 22, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(31, 22), (17, 26), (12, 13)])
def test_several_names_and_windows(clip, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected, _ = reference(image, PROMPTS, CLASSES)
    np.testing.assert_array_equal(predict(clip, image, WORDS).classes, expected)
    assert len(np.unique(expected)) > 2


def test_of_equal_prompts_the_background_wins(clip):
    prompts, classes = ["bed", "bed"], np.array([0, 1])
    expected, _ = reference(IMAGE, prompts, classes)
    assert not expected.any()
    model = Words(Colours(), clip, options=Options(rule="sclip"))
    assert (model.segment(IMAGE, ["bed"], background=["bed", "wall"]).label_map == -1).all()


@pytest.mark.parametrize(("area", "share"), [(0.0, 0.5), (0.2, 0.3), (0.35, 0.6)])
def test_threshold_and_area(clip, area, share):
    """A threshold that some pixels pass, and classes that are too small."""
    _, probability = reference(IMAGE, PROMPTS, CLASSES, area=area)
    threshold = float(np.quantile(probability, share))
    expected, probability = reference(IMAGE, PROMPTS, CLASSES, area=area, threshold=threshold)
    prediction = predict(clip, IMAGE, [*WORDS, threshold], area=area)
    clear = np.abs(probability - threshold) > 1e-5
    np.testing.assert_array_equal(prediction.classes[clear], expected[clear])
    np.testing.assert_allclose(prediction.probability, probability, atol=1e-5)
    without, _ = reference(IMAGE, PROMPTS, CLASSES)
    assert (expected != without).any() and len(np.unique(expected)) > 1


@pytest.mark.end_to_end
@pytest.mark.parametrize("shape", [(31, 22), (17, 70)])
def test_pamr_refines_the_cosines(clip, shape):
    """Of an upright and of a lying image, of which one is wider than what sizes are padded to."""
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected, probability = reference(image, PROMPTS, CLASSES, rounds=3)
    threshold = float(np.quantile(probability, 0.3))
    expected, _ = reference(image, PROMPTS, CLASSES, rounds=3, threshold=threshold)
    prediction = predict(clip, image, [*WORDS, threshold], pamr=3)
    np.testing.assert_allclose(prediction.probability, probability, atol=1e-5)
    clear = np.abs(probability - threshold) > 1e-5
    np.testing.assert_array_equal(prediction.classes[clear], expected[clear])
    assert (expected != reference(image, PROMPTS, CLASSES, threshold=threshold)[0]).any()


@pytest.mark.end_to_end
def test_without_phrases_for_background(clip):
    """The threshold alone, and a class that would be left with nothing else to win."""
    prompts, classes = PROMPTS[len(WORDS) :], CLASSES[len(WORDS) :]
    _, probability = reference(IMAGE, prompts, classes - 1)
    threshold = float(np.quantile(probability, 0.4))
    expected, probability = reference(IMAGE, prompts, classes - 1)
    expected = np.where(probability < threshold, 0, expected + 1)
    clear = np.abs(probability - threshold) > 1e-5
    np.testing.assert_array_equal(predict(clip, IMAGE, threshold).classes[clear], expected[clear])
    nothing_large = predict(clip, IMAGE, None, area=0.99)
    np.testing.assert_array_equal(nothing_large.classes, predict(clip, IMAGE, None).classes)


@pytest.mark.end_to_end
def test_the_jitted_function_agrees(clip):
    """On an image of the model's own size, where both resize alike."""
    image = np.random.default_rng(5).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    size = {"short_side": SIDE, "window": WINDOW, "stride": STRIDE, "guide": 0.0, "slide": 0.0}
    model = Words(Colours(), clip, options=Options(rule="sclip", scale=SCALE, area=0.2, **size))
    labels = [name for names in NAMES.values() for name in names]
    for background in (WORDS, [*WORDS, 0.2], 0.2):
        for rounds in (0, 2):
            expected = model.segment(image, labels, background=background, pamr=rounds).label_map
            actual = model.segment_fn(12, labels, background=background, pamr=rounds)(image[None])[0]
            np.testing.assert_array_equal(actual, expected)


class Masks:
    """VOC without images."""

    name, groups, vocabulary, background = "voc", {}, "voc_groupvit", 0
    classes = tuple(str(i) for i in range(21))

    def __len__(self):
        return 0

    def __getitem__(self, i):
        raise IndexError(i)


def test_the_shipped_vocabulary(clip):
    config = default_config()
    config.eval.vocabulary = "voc21_sclip"
    model = Segmenter(DenseClipMethod(clip, 8), clip)
    options = inference_options(Masks(), config, model.options)
    assert (options.rule, options.scale, options.area, options.guide) == ("sclip", 65.0, 0.1, 0.0)
    assert (options.short_side, options.long_side, options.window, options.stride) == (336, 2048, 224, 112)
    protocol = make_protocol(Masks(), model, config.eval)
    assert protocol.threshold == 0.1 and len(protocol.background) == 27 and len(protocol.templates) == 80
    # 20 classes, of which a person has seven names and a monitor five
    assert len(protocol.labels) == 18 + 7 + 5 and (protocol.class_of_label == 15).sum() == 7
    config.eval.update(background="sky, wall, 0.15", area=0.0, scale=50.0)
    assert make_protocol(Masks(), model, config.eval).background == ["sky", "wall", 0.15]
    assert inference_options(Masks(), config, model.options).scale == 50.0


def test_facts_of_the_class_files():
    sizes = {"voc21": 336, "voc20": 336, "context60": 336, "context59": 336, "coco_object": 336}
    sizes |= {"coco_stuff": 448, "cityscapes": 560, "ade20k": 336}
    for name, side in sizes.items():
        vocabulary = load_vocabulary(f"{name}_sclip")
        assert vocabulary.options["short_side"] == side and vocabulary.options["window"] == 224
        assert vocabulary.options["rule"] == "sclip" and len(vocabulary.templates) == 80
    ade, stuff = load_vocabulary("ade20k_sclip").classes, load_vocabulary("coco_stuff_sclip").classes
    assert (ade[8], ade[44], ade[136], stuff[9], stuff[78]) == (
        *("windowpane", "chestofdrawers", "trafficlight"),
        *("trafficlight", "hairdrier"),
    )
    people = load_vocabulary("coco_object_sclip").phrases[1]
    assert len(people) == 8 and people[-1] == "body"


def test_wrong_backgrounds(clip):
    model = Segmenter(DenseClipMethod(clip, 8), clip)
    for background in ([0.1, 0.2, "sky"], ["sky", 1.5], [0.1]):
        with pytest.raises(InputError, match=r"background"):
            model.check(["cat"], background=background)
