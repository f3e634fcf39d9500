"""What users hand over to the Python API, in all the types that it comes in; and what its objects say of themselves."""

import copy
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.models.precision import check_dtype
from zeroseg_jax.models.weights.folder import open_folder
from zeroseg_jax.segment import segmenter
from zeroseg_jax.segment.options import Options, change

LABELS = ["cat", "grass"]


def test_words_from_generators(model, image):
    expected = model.segment(image, LABELS, templates=["a {}"], background=["hat"])
    words = lambda: {"labels": (x for x in LABELS), "templates": (x for x in ["a {}"]), "background": iter(["hat"])}  # noqa: E731
    for actual in (
        model.segment(image, **words()),
        model.segment_batch([image], **words())[0],
        model.encode(image).segment(**words()),
    ):
        assert actual.labels == LABELS
        np.testing.assert_array_equal(actual.label_map, expected.label_map)
    assert model.segment_fn(16, **words()).labels == tuple(LABELS)
    for labels in (np.array(LABELS), dict.fromkeys(LABELS), tuple(LABELS)):
        np.testing.assert_array_equal(model.embed_labels(labels), model.embed_labels(LABELS))


def test_numbers_of_numpy_and_jax():
    values = {"guide": np.int64(1), "flip": np.bool_(True), "scale": np.float32(2), "window": np.int32(16)}
    values |= {"scales": np.array([1.0, 1.5]), "top_classes": jnp.asarray(3), "mix": np.str_("embeddings")}
    expected = Options(guide=1.0, flip=True, scale=2.0, window=16, scales=(1.0, 1.5), top_classes=3, mix="embeddings")
    actual = change(Options(), values)
    assert actual == expected
    assert [type(getattr(actual, name)) for name in values] == [float, bool, float, int, tuple, int, str]
    with pytest.raises(InputError, match=r"guide is \[1, 2\]; it must be a number"):
        change(Options(), {"guide": np.array([1, 2])})


def test_the_jitted_function_takes_uint8_of_its_size_only(model):
    function = model.segment_fn((np.int64(16), np.int64(24)), LABELS, background=np.float32(0.5))
    images = np.zeros((1, 16, 24, 3), np.uint8)
    expected = r"expected uint8 \(B, 16, 24, 3\)"
    for bad, words in (
        (images / 255, r"the images are float64 \(1, 16, 24, 3\)"),
        (jnp.asarray(images, jnp.float32), r"the images are float32"),
        (images.astype(np.int32), r"the images are int32"),
        (images[0], r"the images are uint8 \(16, 24, 3\)"),
        (images[:0], r"the images are uint8 \(0, 16, 24, 3\)"),
        (images[:, :, :16], r"the images are uint8 \(1, 16, 16, 3\)"),
    ):
        with pytest.raises(InputError, match=f"{words}.*, {expected}"):
            type(function).__call__.__wrapped__(function, bad)  # beneath the type checks that pytest turns on
    assert repr(function) == "SegmentFunction(2 labels: uint8 (B, 16, 24, 3) -> int32 (B, 16, 24))"
    with pytest.raises(InputError, match="image_size is 'large'; give a number of pixels"):
        segmenter.read_size.__wrapped__("large")


def test_short_names(model, image):
    assert repr(model) == "Segmenter(StudentMethod: images of 16 pixels, patches of 4, embeddings of 8)"
    assert repr(model.clip) == "ClipEncoder(images of 8 pixels, embeddings of 8)"
    assert repr(model.encode(image)) == "EncodedImage(34x21: 4 segments)"


def test_copies_segment_and_pickles_say_what_to_do(model, image):
    expected = model.segment(image, LABELS).label_map
    for other in (copy.copy(model), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.segment(image, LABELS).label_map, expected)
    other = copy.deepcopy(model)
    other.define("cat", ["photo"])
    assert not np.allclose(other.embed_labels(LABELS), model.embed_labels(LABELS))
    with pytest.raises(InputError, match="the label '' is empty"):
        other.define("", ["photo"])
    assert copy.deepcopy(model.clip).model is not model.clip.model
    for value in (model, model.clip, model.encode(image)):
        with pytest.raises(InputError, match="a model cannot be pickled; save it with model"):
            pickle.dumps(value)


def test_label_embeddings_are_kept_for_the_last_lists(model, monkeypatch):
    monkeypatch.setattr(segmenter, "REMEMBERED", 3)
    model = copy.deepcopy(model)
    model._texts.clear()
    first = model.embed_labels(["cat"])
    for label in ("grass", "sky"):
        model.embed_labels([label])
    assert model.embed_labels(["cat"]) is first  # and is now the last one
    for label in ("photo", "on"):
        model.embed_labels([label])
    assert len(model._texts) == 3 and model.embed_labels(["cat"]) is first
    model.embed_labels(["sky"])
    assert [key[0] for key in model._texts] == [("on",), ("cat",), ("sky",)]


@pytest.mark.parametrize("source", [None, "", 3])
def test_what_is_no_model(source):
    with pytest.raises(InputError, match=f"the model is {source!r}; give its folder"):
        open_folder.__wrapped__(source)  # beneath the type checks that pytest turns on


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)])
def test_dtypes_by_name(dtype):
    assert check_dtype(dtype) == jnp.bfloat16 and check_dtype(None) is None
    for bad in ("bf8", "int8", np.int32, object()):
        with pytest.raises(InputError, match="it must be float32, bfloat16 or float16"):
            check_dtype(bad)


def test_a_model_in_bfloat16(tiny_clip, image):
    model = zeroseg_jax.load(tiny_clip, dtype="bf16")
    assert model.clip.model.vision_tower.dtype == jnp.bfloat16
    assert model.segment(image, LABELS).scores.dtype == np.float32


def test_models_are_saved_at_home(tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    zeroseg_jax.load(tiny_clip).save("~/saved")
    zeroseg_jax.load(tiny_clip).clip.save("~/clip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "saved"]
    assert repr(zeroseg_jax.load("~/saved")).startswith("Segmenter(DenseClipMethod")


@pytest.mark.end_to_end
def test_a_readout_is_chosen_by_its_name_everywhere(tiny_clip, image, tmp_path):
    """`load`, `segment`, `encode`, `segment_fn` and a saved folder agree; another readout gives other maps."""
    model = zeroseg_jax.load(tiny_clip, readout="naclip")
    expected = model.segment(image, LABELS)
    plain = zeroseg_jax.load(tiny_clip)
    for actual in (
        plain.segment(image, LABELS, readout="naclip"),
        plain.encode(image, readout="naclip").segment(LABELS),
        plain.segment_batch([image], LABELS, readout="naclip")[0],
    ):
        np.testing.assert_array_equal(actual.scores, expected.scores)
        np.testing.assert_array_equal(actual.label_map, expected.label_map)
    square = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    maps = plain.segment_fn(8, LABELS, readout="naclip", guide=0)(square[None])[0]
    np.testing.assert_array_equal(maps, model.segment(square, LABELS, guide=0).label_map)
    model.save(tmp_path / "saved")
    again = zeroseg_jax.load(tmp_path / "saved")
    assert again.options.readout == "naclip"
    np.testing.assert_array_equal(again.segment(image, LABELS).scores, expected.scores)
    scores = {name: plain.segment(image, LABELS, readout=name).scores for name in plain.method.readouts}
    assert len({x.tobytes() for x in scores.values()}) == len(plain.method.readouts) == 5
