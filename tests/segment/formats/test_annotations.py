"""Results as other tools read them, with the tools themselves where they are installed."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from scipy import ndimage

from zeroseg_jax import InputError
from zeroseg_jax.segment import SegmentResult
from zeroseg_jax.segment.__main__ import main
from zeroseg_jax.segment.formats import annotations
from zeroseg_jax.segment.formats.polygons import join_holes, trace


def make_result(label_map: np.ndarray, labels: list[str]) -> SegmentResult:
    """One segment for each label, with the scores 0.1, 0.2, ..."""
    scores = np.full((len(labels), len(labels)), 0.1, np.float32) * np.arange(1, len(labels) + 1, dtype=np.float32)
    pixels = np.zeros((*label_map.shape, 3), np.uint8)
    return SegmentResult(pixels, label_map, np.maximum(label_map, 0), scores, labels)


@pytest.fixture
def result() -> SegmentResult:
    """A ring of label 0 with an island of label 2 in it, two parts of label 1, and background."""
    label_map = np.full((30, 40), -1, np.int32)
    label_map[4:20, 5:25], label_map[8:16, 10:20], label_map[10:13, 12:15] = 0, -1, 2
    label_map[22:28, 2:12] = label_map[2:9, 30:38] = 1
    return make_result(label_map, ["cat", 'a "quoted" & <b>', "天空"])


def fill(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is inside an odd number of the polygons' sides."""
    y, x = np.indices(shape) + 0.5
    inside = np.zeros(shape, bool)
    for polygon in polygons:
        ends = np.roll(polygon, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(polygon, ends, strict=True):
            crossed = (y0 > y) != (y1 > y)
            slope = (x1 - x0) / (y1 - y0) if y1 != y0 else 0.0
            inside ^= crossed & (x < x0 + (y - y0) * slope)
    return inside


@pytest.mark.parametrize("seed", range(12))
def test_polygons_fill_to_the_mask_again(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 24, 2)) < rng.random()
    mask = ndimage.binary_dilation(mask) if seed % 2 else mask
    parts = trace(mask)
    np.testing.assert_array_equal(fill([outline for part in parts for outline in part], mask.shape), mask)
    np.testing.assert_array_equal(fill([join_holes(part) for part in parts], mask.shape), mask)
    assert len(parts) == ndimage.label(mask)[1]


def test_yolo_lines(result):
    lines = result.to_yolo().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "1", "2"]
    drawn = np.full(result.label_map.shape, -1)
    for line in lines:
        values = np.array(line.split()[1:], float)
        assert values.min() >= 0 and values.max() <= 1
        drawn[fill([values.reshape(-1, 2) * (40, 30)], (30, 40))] = int(line.split()[0])
    np.testing.assert_array_equal(drawn, result.label_map)


def test_yolo_as_supervision_reads_it(result, tmp_path):
    supervision = pytest.importorskip("supervision")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(result.image).save(tmp_path / "images/a.png")
    (tmp_path / "labels/a.txt").write_text(result.to_yolo())
    annotations.write_json(tmp_path / "data.yaml", {"names": dict(enumerate(result.labels))})
    read = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert read.classes == result.labels
    (_, _, detections), *_ = read
    for i in range(3):
        actual, expected = detections.mask[detections.class_id == i].any(axis=0), result.label_map == i
        grown = ndimage.binary_dilation(expected, np.ones((3, 3)))
        assert (actual >= expected).all() and (
            actual <= grown
        ).all()  # its polygons have the pixels that they run through


def test_voc_masks(result, tmp_path):
    result.save_voc(tmp_path / "a.png")
    mask = Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(mask), result.label_map + 1)
    # the colours of VOC's development kit: background, aeroplane, bicycle, ..., tvmonitor, void
    colours = np.array(mask.getpalette()).reshape(-1, 3)
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(colours[i]) for i in expected} == expected
    with pytest.raises(InputError, match="room for 254 labels, got 255"):
        make_result(np.zeros((2, 2), np.int32), [str(i) for i in range(255)]).save_voc(tmp_path / "b.png")


@pytest.mark.parametrize("side", [1, 7, 90])
def test_label_studio_masks(side):
    mask = np.random.default_rng(side).random((side, side + 3)) < 0.5
    mask[side // 2 :] = True  # long runs too
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    decoded = brush.decode_rle(annotations.label_studio_rle(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(decoded, np.repeat(255 * mask[..., None], 4, axis=-1))


def test_label_studio_code_by_hand():
    """Eight values: the header, then a run of 4 zeros and a run of 4 of 255, whose lengths take 3 bits."""
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"1{0:02b}{3:03b}{0:08b}" + f"1{0:02b}{3:03b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert annotations.label_studio_rle(np.array([[False, True]])) == expected


def test_label_studio_tasks_fit_their_interface(result):
    from xml.etree import ElementTree

    task = json.loads(json.dumps(result.to_label_studio("a.jpg")))
    interface = ElementTree.fromstring(annotations.label_studio_config(result.labels))
    brushes, image = interface.find("BrushLabels"), interface.find("Image")
    assert [label.get("value") for label in brushes] == result.labels
    (prediction,) = task["predictions"]
    for region in prediction["result"]:
        assert (region["from_name"], region["to_name"]) == (brushes.get("name"), image.get("name"))
        assert set(region["value"]["brushlabels"]) <= set(result.labels)
    assert list(task["data"]) == [image.get("value").lstrip("$")]
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.label_interface import LabelInterface

    checked = LabelInterface(annotations.label_studio_config(result.labels))
    assert checked.validate_prediction({"model_version": "x", "score": 0.5, "result": prediction["result"]})


def test_supervision(result, monkeypatch):
    supervision = pytest.importorskip("supervision")
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 3
    assert detections.class_id.tolist() == [0, 1, 2] and detections["class_name"].tolist() == result.labels
    np.testing.assert_allclose(detections.confidence, [0.1, 0.2, 0.3], rtol=1e-6)
    assert detections.xyxy.tolist() == [[5, 4, 25, 20], [2, 2, 38, 28], [12, 10, 15, 13]]
    assert detections.area.tolist() == [(result.label_map == i).sum() for i in range(3)]
    drawn = supervision.MaskAnnotator().annotate(result.image.copy(), detections)
    assert (drawn != result.image).any()
    nothing = make_result(np.full((4, 4), -1, np.int32), ["cat"]).to_supervision()
    assert len(nothing) == 0


def test_without_supervision(result, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        result.to_supervision()


def test_the_command_line_writes_every_format(tiny_clip, tmp_path, capsys):
    image = Image.new("RGB", (34, 21), "blue")
    ImageDraw.Draw(image).rectangle((5, 5, 20, 15), fill="yellow")
    (tmp_path / "in/below").mkdir(parents=True)
    image.save(tmp_path / "in/a.png")
    image.save(tmp_path / "in/below/b.png")
    out = tmp_path / "out"
    command = [str(tmp_path / "in"), "--model", str(tiny_clip), "--labels", "cat,grass", "--out", str(out)]
    assert main([*command, "--format", "yolo,voc, coco,labelstudio", "--templates", "name"]) == 0
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    pairs = {"labels/a.txt", "labels/below/b.txt", "SegmentationClass/a.png", "SegmentationClass/below/b.png"}
    assert files == pairs | {"segments.json", "data.yaml", "labels.txt", "coco.json"} | {
        f"labelstudio.{ending}" for ending in ("json", "xml")
    }
    assert (out / "labels.txt").read_text().split() == ["background", "cat", "grass"]
    coco = COCO(str(out / "coco.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "grass"]
    mask = np.asarray(Image.open(out / "SegmentationClass/below/b.png"))
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=1)):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask == annotation["category_id"])
    assert len(json.loads((out / "labelstudio.json").read_text())) == 2
    capsys.readouterr()
    for text, said in (("jpeg", "there is no format 'jpeg'"), (",", "--format is empty")):
        assert main([*command, "--format", text]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
