"""The exported function, in a process that does not know this package, and in onnxruntime."""

import json
import subprocess
import sys

import numpy as np
import pytest

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.models.readouts import READOUTS
from zeroseg_jax.segment import export

LABELS = ["cat", "grass", "sky", "on"]

STRANGER = """
import sys
import jax, numpy as np
from jax import export
arrays = np.load("arrays.npz")
closed = export.deserialize(bytearray(open("closed.jax", "rb").read()))
opened = export.deserialize(bytearray(open("opened.jax", "rb").read()))
found = {"platforms": np.array(closed.platforms)}
for batch, count in ((1, 4), (3, 2)):
    found[f"closed{batch}"] = closed.call(arrays["square"][:batch])
    found[f"opened{batch}"] = opened.call(arrays["wide"][:batch], arrays["embeddings"][:count])
assert not any(name.split(".")[0] in ("zeroseg_jax", "flax") for name in sys.modules)
np.savez("found.npz", **found)
"""


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A function with its labels inside, renamed by the teacher, and one for long images that takes embeddings."""
    folder = tmp_path_factory.mktemp("export")
    model.export(folder / "closed.jax", LABELS, background=0.28, rename="teacher")
    model.export(folder / "opened.jax", image_size=(12, 40), background="a photo")
    return folder


@pytest.mark.end_to_end
def test_a_process_without_this_package(model, files):
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    wide = rng.integers(0, 256, (3, 12, 40, 3), dtype=np.uint8)
    np.savez(files / "arrays.npz", square=square, wide=wide, embeddings=model.embed_labels(LABELS))
    (files / "stranger.py").write_text(STRANGER)
    subprocess.run([sys.executable, "stranger.py"], cwd=files, check=True)
    actual = np.load(files / "found.npz")
    assert actual["platforms"].tolist() == ["cpu", "cuda", "tpu"]
    expected = np.asarray(model.segment_fn(16, LABELS, background=0.28, rename="teacher")(square))
    assert len(np.unique(expected)) > 1  # or the comparison would say little
    for batch, count in ((1, 4), (3, 2)):
        np.testing.assert_array_equal(actual[f"closed{batch}"], expected[:batch])
        assert actual[f"closed{batch}"].dtype == np.int32
        maps = model.segment_fn((12, 40), LABELS[:count], background="a photo")(wide[:batch])
        np.testing.assert_array_equal(actual[f"opened{batch}"], maps)


def test_the_description_beside_the_file(files):
    closed, opened = (json.loads((files / f"{name}.jax.json").read_text()) for name in ("closed", "opened"))
    assert closed["inputs"] == {"images": "uint8 (b, 16, 16, 3)"} and closed["output"] == "int32 (b, 16, 16)"
    assert closed["labels"] == LABELS and closed["options"]["rename"] == "teacher" and closed["background"] == 0.28
    assert opened["inputs"] == {"images": "uint8 (b, 12, 40, 3)", "embeddings": "float32 (c, 8)"}
    assert opened["labels"] is None and opened["background"] == "a photo"


def test_without_flatbuffers(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="exporting needs the package flatbuffers; pip install"):
        model.export(tmp_path / "x.jax")


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"labels": []}, "the list of labels is empty"),
        ({"background": 3.0}, "threshold is 3.0"),
        ({"image_size": 0}, "image_size is"),
        ({"rename": "you"}, "rename is 'you'"),
    ],
)
def test_bad_arguments(model, tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        model.export(tmp_path / "x.jax", **arguments)


def test_a_place_that_cannot_be_written(model, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        model.export(tmp_path / "none/x.jax", LABELS)
    with pytest.raises(InputError, match=r"x.onx cannot be exported; give a name that ends in .jax or .onnx"):
        model.export(tmp_path / "x.onx", LABELS)


@pytest.mark.parametrize("options", [{}, {"guide": 0.0}, {"flip": True}], ids=str)
@pytest.mark.parametrize("size", [16, (12, 20)])
def test_onnx(model, tmp_path, options, size):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model.export(tmp_path / "segment.onnx", LABELS, image_size=size, background=0.28, **options)
    session = onnxruntime.InferenceSession(tmp_path / "segment.onnx")
    height, width = (size, size) if isinstance(size, int) else size
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    parts = images[:1], images[1:]
    actual = np.concatenate([session.run(["label_map"], {"images": part})[0] for part in parts])
    expected = np.asarray(model.segment_fn(size, LABELS, background=0.28, **options)(images))
    assert actual.dtype == np.int32 and actual.shape == expected.shape
    assert (actual == expected).mean() >= 0.995
    assert len(np.unique(expected)) > 1
    about = json.loads((tmp_path / "segment.onnx.json").read_text())
    assert about["inputs"] == {"images": f"uint8 (b, {height}, {width}, 3)"}


def test_onnx_asks_for_labels_and_its_package(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package jax2onnx; pip install jax2onnx, or zeroseg_jax\[onnx\]"):
        model.export(tmp_path / "x.onnx", LABELS)
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    with pytest.raises(InputError, match=r"x\.onnx needs labels"):
        model.export(tmp_path / "x.onnx")


@pytest.mark.end_to_end
@pytest.mark.parametrize("readout", READOUTS)
def test_readouts_in_onnx(tmp_path, readout):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = zeroseg_jax.load("demo", readout=readout)
    model.export(tmp_path / "segment.onnx", LABELS, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    actual = onnxruntime.InferenceSession(tmp_path / "segment.onnx").run(["label_map"], {"images": images})[0]
    expected = np.asarray(model.segment_fn(32, LABELS)(images))
    assert len(np.unique(expected)) > 1
    assert (actual == expected).mean() >= 0.995
