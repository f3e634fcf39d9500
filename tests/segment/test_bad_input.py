"""Bad input is one sentence that says what is wrong, and `InputError`."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.segment.prompts import check_labels, resolve_templates

LABELS = ["cat", "grass"]
GOOD = np.zeros((16, 16, 3), np.uint8)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 74 bytes that says it has 900 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def assert_one_sentence(error: InputError, words: str) -> None:
    said = str(error)
    assert words in said
    assert "\n" not in said and not said.endswith(".") and len(said) < 300


@pytest.mark.parametrize(
    "labels,words",
    [
        ([], "the list of labels is empty; give at least one"),
        (["cat", ""], "the label '' is empty; every label needs a name"),
        (["cat", " "], "the label ' ' is empty"),
        (["cat", "caf\udce9"], "the label 'caf\\udce9' has bytes that are not UTF-8; type it again"),
        (["cat", "dog", "cat "], "the label 'cat ' is there twice"),
        ("cat", "the labels are 'cat', expected a list of texts"),
        (["cat", "zebra " * 40], "has 202 tokens with those of start and end, but the text encoder takes 40"),
    ],
)
def test_labels(model, labels, words):
    for call in (model.segment, model.segment_fn, model.segment_batch):
        with pytest.raises(InputError) as caught:
            call(16 if call == model.segment_fn else [GOOD] if call == model.segment_batch else GOOD, labels)
        assert_one_sentence(caught.value, words)


@pytest.mark.parametrize("labels,words", [(None, "the labels are None"), ([3], "the label 3 is not a text")])
def test_labels_of_other_types(labels, words):
    with pytest.raises(InputError) as caught:
        check_labels.__wrapped__(labels)  # beneath the type checks that pytest turns on
    assert_one_sentence(caught.value, words)


def test_templates_of_another_type():
    with pytest.raises(InputError) as caught:
        resolve_templates.__wrapped__(5)
    assert_one_sentence(caught.value, "the templates are 5; use name, photo")


@pytest.mark.parametrize(
    "image,words",
    [
        (jpeg()[:900], "the image of 900 bytes cannot be read (image file is truncated"),
        (b"", "the image of 0 bytes cannot be read (the file is empty)"),
        (b"no image", "it is not in an image format that is read here"),
        (bomb(), "Image size (900000000 pixels) exceeds limit"),
        ("gone.png", "the image gone.png cannot be read (No such file or directory); give the path of an image file"),
        ("https://a.b/c.png", "cannot be read (No such file or directory); download it first"),
        (np.full((4, 4, 3), np.nan), "an image array has NaN in it"),
        (np.full((4, 4, 3), 255.0), "float values from 255 to 255, expected [0, 1]; use uint8 for 0 to 255"),
        (np.full((4, 4, 3), -1.0, np.float32), "values from -1 to -1, expected [0, 1]"),
        (np.zeros((4, 4, 3), np.int64), "an image array is of int64, expected uint8, or float in [0, 1]"),
        (np.zeros(4), "the shape (4,), expected (height, width, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "the shape (0, 4, 3), expected"),
        (np.zeros((3, 40, 50), np.uint8), "the shape (3, 40, 50), expected"),
    ],
)
def test_images(model, image, words):
    with pytest.raises(InputError) as caught:
        model.segment(image, LABELS)
    assert_one_sentence(caught.value, words)


@pytest.mark.parametrize("content,words", [(b"", "the file is empty"), (jpeg()[:900], "truncated"), (bomb(), "limit")])
def test_files_are_named(model, tmp_path, content, words):
    (tmp_path / "holiday.jpg").write_bytes(content)
    with pytest.raises(InputError) as caught:
        model.segment_batch([GOOD, tmp_path / "holiday.jpg"], LABELS)
    assert_one_sentence(caught.value, words)
    assert str(tmp_path / "holiday.jpg") in str(caught.value)


def test_a_single_image_for_a_list(model):
    with pytest.raises(InputError, match="expected several images, got a single one; put it in a list"):
        model.segment_batch(GOOD, LABELS)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"templates": "a photo"}, "there are no templates 'a photo'; use name, photo, clip7, imagenet80, or a list"),
        ({"templates": ["a photo"]}, "the template 'a photo' must have one {}"),
        ({"templates": ["{} and {}"]}, "the template '{} and {}' must have one {}"),
        ({"templates": []}, "the list of templates is empty"),
        ({"background": 1.5}, "the background's threshold is 1.5; it must be a number between 0 and 1"),
        ({"background": []}, "the list of background phrases is empty"),
        ({"background": ""}, "the background phrase '' is empty"),
        (
            {"renames": "teacher"},
            "there is no option 'renames'; the options are mix, scale, flip, slide, guide, rename",
        ),
        ({"mix": "votes"}, "mix is 'votes'; it must be scores or embeddings"),
        ({"rename": "me"}, "rename is 'me'; it must be teacher"),
        ({"readout": "dino"}, "readout is 'dino', but this model is a Student, and only a CLIP has readouts"),
        ({"readout": 3}, "readout is 3; it must be maskclip or sclip or clearclip or naclip or pearl or sc_clip"),
        ({"readout": "sclip"}, "readout is 'sclip', but this model is a Student, and only a CLIP has readouts"),
        ({"flip": 1}, "flip is 1; it must be True or False"),
        ({"scale": -1}, "scale is -1; it must be a number of at least 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"rule": "none"}, "rule is 'none'; it must be groupvit or sclip, or empty for none"),
        ({"window": -16}, "window is -16; it must be a whole number of at least 0"),
        ({"short_side": 1.5}, "short_side is 1.5; it must be a whole number"),
        ({"scales": (1.0, 0.0)}, "scales is (1.0, 0.0); it must be 0 to 64 numbers above 0"),
        ({"window": 6}, "window is 6, but the model's patches are 4 pixels wide; 8 would do"),
        ({"rename_weight": "much"}, "rename_weight is 'much'; it must be a number of at least 0 and at most 1"),
    ],
)
def test_options(model, options, words):
    with pytest.raises(InputError) as caught:
        model.segment(GOOD, LABELS, **options)
    assert_one_sentence(caught.value, words)


@pytest.mark.parametrize(
    "config,words",
    [
        (None, "has no config.json; give the workdir of a run, an exported model, a CLIP or a GroupViT"),
        ('{"model_type": "bert"}', "holds a model of the type 'bert'; expected a workdir"),
        ("{}", "holds a model of an unknown type"),
        ("{", "is not valid JSON"),
        ('{"model_type": "zeroseg"}', "does not describe a student"),
        ('{"task": "distill", "checkpoint_every": 50}', "holds no checkpoints yet; let the run reach 50 steps"),
        ('{"task": "teacher"}', "is the workdir of a teacher; give"),
    ],
)
def test_folders_that_hold_no_model(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError) as caught:
        zeroseg_jax.load(tmp_path)
    assert_one_sentence(caught.value, words)


def test_no_folder_at_all():
    with pytest.raises(InputError, match=r"there is no folder nowhere, give a model.s folder, .* hub id"):
        zeroseg_jax.load("nowhere")
