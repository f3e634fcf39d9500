"""Masks of COCO-Object from annotations, against pycocotools' own masks of the single objects."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.coco_object import main, write_masks

SIZE = 20, 30


def annotation(key, category, segmentation, area, crowd=0, image=7):
    given = {"id": key, "image_id": image, "category_id": category, "segmentation": segmentation}
    return given | {"area": area, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}


@pytest.fixture
def coco(tmp_path):
    """An image with a crowd, a large object, a small one on it and one of two polygons, and one without any."""
    region = np.zeros(SIZE, np.uint8, order="F")
    region[2:18, 1:29] = 1
    crowd = rle.encode(region)
    runs = {"size": list(SIZE), "counts": crowd["counts"].decode()}
    annotations = [
        annotation(1, 90, [[5, 5, 8, 5, 8, 9, 5, 9]], 12),
        annotation(2, 1, [[3, 3, 14, 3, 14, 15, 3, 15]], 132),
        annotation(3, 13, [[18, 3, 22, 3, 22, 8, 18, 8], [18, 12, 25, 12, 25, 16, 18, 16]], 48),
        annotation(4, 62, runs, int(region.sum()), crowd=1),
    ]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (7, 8)]
    categories = [{"id": i, "name": str(i)} for i in range(1, 91)]
    path = tmp_path / "annotations/instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return tmp_path


def test_masks_are_those_of_pycocotools(coco, capsys):
    assert main([str(coco)]) == 0
    assert "wrote 2 masks" in capsys.readouterr().out
    folder = coco / "annotations/val2017"
    mask = np.array(Image.open(folder / "000000000007_instanceTrainIds.png"))
    api = COCO(str(coco / "annotations/instances_val2017.json"))
    single = {key: api.annToMask(api.anns[key]) == 1 for key in (1, 2, 3, 4)}
    expected = np.zeros(SIZE, np.uint8)
    # COCO's ids 1, 13, 62 and 90 are the classes 1, 12, 57 and 80: the gaps are closed
    for key, value in ((4, 57), (2, 1), (3, 12), (1, 80)):
        expected[single[key]] = value
    np.testing.assert_array_equal(mask, expected)
    assert set(np.unique(mask)) == {0, 1, 12, 57, 80}
    assert not np.array(Image.open(folder / "000000000008_instanceTrainIds.png")).any()


def test_bad_annotations(coco, tmp_path, capsys):
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        write_masks(coco, "train")
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 92
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="category 92"):
        write_masks(coco)
    path.write_text("[]")
    assert main([str(coco), "--out", str(tmp_path / "out")]) == 2
    assert "no file of COCO's annotations" in capsys.readouterr().err
