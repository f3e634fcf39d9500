"""A readout that a model does not have is one sentence with those that it has, wherever it is named."""

import re

import numpy as np
import pytest
from PIL import Image

import zeroseg_jax
from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.zero_shot import evaluate
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.__main__ import main
from zeroseg_jax.segment.options import Options
from zeroseg_jax.train import train

LABELS = ["cat", "grass"]
IMAGE = np.zeros((8, 8, 3), np.uint8)
ONE_BLOCK = "maskclip, sclip, clearclip, naclip, pearl"  # sc_clip needs two
CASES = [("tiny_clip", "sc_clip", ONE_BLOCK), ("tiny_clip", "dino", ONE_BLOCK)]
CASES += [("tiny_siglip", "naclip", "maskclip"), ("tiny_siglip", "dino", "maskclip")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case[:2]))
def case(request):
    """The folder of a model, the name of a readout that it does not have, and the sentence that says so."""
    fixture, readout, names = request.param
    sentence = f"there is no readout {readout!r} of this model; it has {names}"
    return request.getfixturevalue(fixture), readout, sentence


@pytest.fixture
def masks(tmp_path):
    """A photograph with a mask of two classes, in VOC's layout."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    Image.fromarray(IMAGE).save(tmp_path / "voc/JPEGImages/a.jpg")
    Image.fromarray(IMAGE[..., 0]).save(tmp_path / "voc/SegmentationClass/a.png")
    (tmp_path / "voc/ImageSets/Segmentation/val.txt").write_text("a\n")
    (tmp_path / "voc/classes.txt").write_text("cat\ngrass\n")
    return {"dataset": "folder", "root": str(tmp_path / "voc"), "split": "val", "baselines": ()}


def test_functions_of_a_model(case, tmp_path):
    folder, readout, sentence = case
    model = zeroseg_jax.load(folder)
    calls = {
        "load": lambda: zeroseg_jax.load(folder, readout=readout),
        "segment": lambda: model.segment(IMAGE, LABELS, readout=readout),
        "segment_batch": lambda: model.segment_batch([IMAGE], LABELS, readout=readout),
        "encode": lambda: model.encode(IMAGE, readout=readout),
        "segment_fn": lambda: model.segment_fn(8, LABELS, readout=readout),
        "export": lambda: model.export(tmp_path / "x.jax", LABELS, readout=readout),
        "Segmenter": lambda: Segmenter(model.method, model.clip, options=Options(readout=readout)),
        "dense": lambda: model.clip.dense(np.zeros((1, 8, 8, 3), np.float32), readout),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=re.escape(sentence) + "$"):
            call()
            pytest.fail(f"{name} takes the readout {readout}")
    assert not list(tmp_path.iterdir())


def test_the_command_line(case, tmp_path, capsys):
    folder, readout, sentence = case
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    command = [str(tmp_path / "photo.png"), "--model", str(folder), "--out", str(tmp_path / "out"), "--labels", "cat"]
    assert main([*command, f"--readout={readout}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def test_an_evaluation(case, masks, tmp_path):
    folder, readout, sentence = case
    config = default_config()
    config.eval.update(masks, readout=readout)
    with pytest.raises(InputError, match=re.escape(sentence) + "$"):
        evaluate(zeroseg_jax.load(folder), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("readout", ["sclip", "dino"])
def test_a_run_that_trains_a_student(tiny_config, masks, tmp_path, readout):
    """It is said before the training, and nothing is written."""
    tiny_config.eval.update(masks, readout=readout)
    with pytest.raises(InputError, match=f"eval.readout is '{readout}', but a run evaluates its student, and only a"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
