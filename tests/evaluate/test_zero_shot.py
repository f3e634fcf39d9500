"""Readers of masks, and the whole evaluation of a tiny student on tiny data."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.baselines import ColourRules
from zeroseg_jax.evaluate.benchmarks import check, open_benchmark
from zeroseg_jax.evaluate.zero_shot import evaluate
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.inference import StudentMethod


@pytest.fixture
def voc(tmp_path):
    """Three photographs of two classes in VOC's layout, with palette masks."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(root / f"JPEGImages/{i}.jpg")
        values = rng.integers(0, 2, (24, 20)).astype(np.uint8)
        values[0] = 255
        mask = Image.fromarray(values, mode="P")
        mask.putpalette(list(range(256)) * 3)
        mask.save(root / f"SegmentationClass/{i}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    (root / "classes.txt").write_text("cat\ngrass\n")
    return root


@pytest.fixture
def options(voc):
    config = default_config()
    config.eval.update(dataset="folder", root=str(voc), split="val", baselines=("cells", "untrained"))
    return config


def test_palette_masks_are_read_as_indices(options):
    benchmark = open_benchmark(options.eval)
    assert tuple(benchmark.classes) == ("cat", "grass")
    assert len(benchmark) == 3
    assert set(np.unique(benchmark[1].mask)) == {0, 1, 255}
    assert benchmark[1].image.shape == (24, 20, 3)


def test_bad_datasets(options, voc):
    options.eval.root = str(voc / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        open_benchmark(options.eval)
    options.eval.root = str(voc)
    (voc / "classes.txt").write_text("cat\n")  # the masks hold 1 as well
    with pytest.raises(InputError):
        open_benchmark(options.eval)[0]
    (voc / "SegmentationClass/2.png").unlink()
    with pytest.raises(InputError):
        open_benchmark(options.eval)[2]


def test_check_reports_problems(options, voc):
    assert check(options)["pairs"] == 3
    (voc / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match="3 of 3 images"):
        check(options)


def test_evaluate_a_tiny_student(options, tiny_student, tiny_clip, tmp_path):
    clip = load_clip(tiny_clip)
    sizes = StudentConfig(image_size=16, embed_dim=clip.embed_dim, **tiny_student)
    model = Segmenter(StudentMethod(Student(sizes, rngs=nnx.Rngs(0)), clip), clip, templates="name")
    results = evaluate(model, options, tmp_path / "out")
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert Image.open(tmp_path / "out/gallery.png").width > 100
    assert results["images"] == 3
    assert set(results["iou"]) == {"cat", "grass"}
    assert set(results["baselines"]) == {"painted 3x3 cells", "untrained student"}
    assert 0 <= results["miou"] <= 1
    options.eval.baselines = ("cellz",)
    with pytest.raises(InputError, match="cellz"):
        evaluate(model, options, tmp_path / "out")


def test_colour_rules_by_hand():
    red, blue = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)
    image = np.stack([[red, blue, blue]])
    rules = ColourRules(3).fit([(image, np.array([[2, 0, 1]], np.uint8)), (image, np.array([[2, 0, 255]], np.uint8))])
    np.testing.assert_array_equal(rules.likeliest(image), [[2, 0, 0]])
    np.testing.assert_array_equal(rules.nearest(image), [[2, 0, 0]])
