"""Readers of masks, and the whole evaluation of a tiny student on tiny data."""

import json

import numpy as np
import pytest
from flax import nnx
from numpy_counts import confusion_matrix
from PIL import Image

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import check, open_benchmark
from zeroseg_jax.evaluate.colour_rules import ColourRules
from zeroseg_jax.evaluate.metrics import areas, mean_iou
from zeroseg_jax.evaluate.zero_shot import evaluate, load_compared
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment import Segmenter
from zeroseg_jax.segment.methods import StudentMethod


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


@pytest.fixture(scope="module")
def model(tiny_student, tiny_clip):
    clip = load_clip(tiny_clip)
    sizes = StudentConfig(image_size=16, embed_dim=clip.embed_dim, **tiny_student)
    return Segmenter(StudentMethod(Student(sizes, rngs=nnx.Rngs(0)), clip), clip, templates="name")


@pytest.mark.end_to_end
def test_evaluate_a_tiny_student(options, model, tmp_path):
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


@pytest.mark.end_to_end
def test_compare_two_models_with_a_threshold(options, model, tiny_clip, tmp_path):
    options.eval.update(dataset="voc", vocabulary="voc_groupvit", compare=str(tiny_clip), baselines=())
    # of the protocol the background alone: windows of 448 pixels are large for this student
    of_model = {"short_side": 0, "window": 0, "slide": 2.0, "guide": 2.0, "top_classes": 0, "rule": ""}
    options.eval.update(of_model | {"normalise_prompts": True})
    benchmark = open_benchmark(options.eval)
    # a threshold that half of the pixels pass, between those that are swept anyway
    examples = [benchmark[i] for i in range(3)]
    images, labels = [example.image for example in examples], benchmark.classes[1:]
    seen = model.segment_batch(images, labels, templates="photo", background=0.01)
    used = round(float(np.median([result.probability for result in seen])), 6)
    options.eval.background = str(used)
    results = evaluate(model, options, tmp_path / "out", load_compared(options))
    other = results["compare"][str(tiny_clip)]
    assert other["difference"]["miou"] == pytest.approx(other["miou"] - results["miou"])
    assert other["settings"]["model"] == str(tiny_clip)
    for row in (results, other):
        sweep = row["threshold_sweep"]
        assert sweep["miou"][sweep["thresholds"].index(used)] == pytest.approx(row["miou"])
    assert len(set(results["threshold_sweep"]["miou"])) > 3  # the threshold matters
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        *("results.json", "results.md", "per_class.csv", "gallery.png", "report.html", "threshold_sweep.png")
    }
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.count("segments</figcaption>") == 3  # the student has some, the CLIP has none
    assert "segments of" not in page

    # the threshold that is applied to the probabilities here is the one that `segment` applies
    answers = model.segment_batch(images, labels, templates="photo", background=used)
    total = sum(confusion_matrix(e.mask, r.label_map + 1, 21) for e, r in zip(examples, answers, strict=True))
    assert mean_iou(areas(total)) == pytest.approx(results["miou"])


def test_models_that_cannot_be_compared(options, tiny_clip):
    for sources, said in (
        ("nowhere", "eval.compare=nowhere: there is no folder nowhere"),
        (f"{tiny_clip},{tiny_clip}", "is there twice"),
        ("model", "is the name of the model itself"),
    ):
        options.eval.compare = sources
        with pytest.raises(InputError, match=said):
            load_compared(options)


def test_colour_rules_by_hand():
    red, blue = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)
    image = np.stack([[red, blue, blue]])
    rules = ColourRules(3).fit([(image, np.array([[2, 0, 1]], np.uint8)), (image, np.array([[2, 0, 255]], np.uint8))])
    np.testing.assert_array_equal(rules.likeliest(image), [[2, 0, 0]])
    np.testing.assert_array_equal(rules.nearest(image), [[2, 0, 0]])
