"""Areas, COCO annotations, masks and pictures of a result."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from zeroseg_jax import InputError, draw
from zeroseg_jax.segment import SegmentResult
from zeroseg_jax.segment.result import check_count, is_output

MAP = np.array([[0, 0, 1], [-1, 1, 1]], np.int32)


def result(labels=("cat", "grass")) -> SegmentResult:
    nothing = np.zeros((2, 3), np.int32), np.zeros((1, len(labels)), np.float32)
    return SegmentResult(np.zeros((2, 3, 3), np.uint8), MAP, *nothing, list(labels))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_annotations_decode_to_the_label_map():
    annotations = json.loads(json.dumps(result().to_coco(image_id=7)))
    assert [a["category"] for a in annotations] == ["cat", "grass"]
    for annotation in annotations:
        mask = coco_mask.decode(annotation["segmentation"])
        np.testing.assert_array_equal(mask, annotation["category_id"] - 1 == MAP)  # COCO counts from 1
        assert annotation["area"] == mask.sum() and annotation["image_id"] == 7
    assert annotations[0]["bbox"] == [0, 0, 2, 1]
    assert [a["category_id"] for a in result().to_coco(category_ids=[17, 5])] == [17, 5]


def test_areas_and_the_text_that_shows_them():
    assert result().areas() == pytest.approx({"cat": 2 / 6, "grass": 3 / 6})
    assert repr(result()) == "SegmentResult(3x2: cat 33%, grass 50%)"


def test_pictures(tmp_path):
    out = result()
    out.save(tmp_path / "new/x.png")
    assert Image.open(tmp_path / "new/x.png").size == out.overlay().size
    assert Image.open(io.BytesIO(out._repr_png_())).width > 3  # what a notebook shows


def test_masks_have_the_colours_of_the_overlay(tmp_path):
    result().save_mask(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), np.where(MAP < 0, 255, MAP))
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), draw.paint(MAP, 2))


def test_masks_of_many_labels_have_sixteen_bits(tmp_path):
    for count, expected in ((255, np.where(MAP < 0, 255, MAP)), (300, np.where(MAP < 0, 65535, 299 * MAP))):
        out = result([str(i) for i in range(count)])
        out = dataclasses.replace(out, label_map=np.where(MAP > 0, 299, MAP)) if count == 300 else out
        out.save_mask(tmp_path / "mask.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)
    check_count(65535)
    with pytest.raises(InputError, match="tells 65535 labels apart, not 65536"):
        check_count(65536)


def test_home_folders_and_whose_pictures_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result().save("~/new/x.png")
    result().save_mask("~/new/y.png")
    result().save("~/new/x.jpg")
    Image.new("RGB", (2, 2)).save(tmp_path / "new/other.png")
    written = {path.name for path in (tmp_path / "new").iterdir() if is_output(path)}
    assert written == {"x.png", "y.png"}


def test_a_file_that_cannot_be_written(tmp_path):
    for path in (tmp_path / "x.picture", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            result().save(path)
