"""Masks of COCO-Object from annotations, against pycocotools' own masks of the single objects."""

import errno
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.coco_object import main, write_masks
from zeroseg_jax.evaluate.benchmarks.coco_regions import read_region

SIZE = 20, 30


def annotation(key, category, segmentation, area, crowd=0, image=7):
    fields = {"id": key, "image_id": image, "category_id": category, "segmentation": segmentation}
    return fields | {"area": area, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}


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


def test_annotations_as_users_have_them(coco, capsys):
    """No region: left out and counted. No area, nor ids, nor a mark of crowds: not needed. A byte order mark: none."""
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    before = write_masks(coco)
    mask = (coco / "annotations/val2017/000000000007_instanceTrainIds.png").read_bytes()
    for one in content["annotations"]:
        one |= {"id": 0, "area": None}
        if not one["iscrowd"]:
            del one["iscrowd"]
    for empty in ([], [[]], None, [[1, 1, 9, 9]], [[1, 1, 9, 9], []]):
        content["annotations"].append(annotation(5, 1, empty, 4))
    content["annotations"].append(annotation(6, 1, [[1, 1, 9, 1, 9, 9]], 4, image=99))
    path.write_text("\ufeff" + json.dumps(content))
    written = write_masks(coco)
    assert (written.masks, len(before.left_out), len(written.left_out)) == (2, 0, 6)
    assert written.left_out[0] == "annotation 6 of the image 99, which is unknown"
    assert written.left_out[1] == "annotation 5 of 000000000007.jpg"
    assert (coco / "annotations/val2017/000000000007_instanceTrainIds.png").read_bytes() == mask
    assert main([str(coco)]) == 0
    assert "6 annotations have no region or no image and were left out, the first is" in capsys.readouterr().err


def test_run_length_codes_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.3, 0.9, 1):
        region = rng.random(SIZE) < density
        code = rle.encode(np.asfortranarray(region, np.uint8))
        segmentation = {"size": list(SIZE), "counts": code["counts"].decode()}
        np.testing.assert_array_equal(read_region(segmentation, SIZE, "a"), region)
    runs = {"size": list(SIZE), "counts": [0, 30, 500, 70]}
    np.testing.assert_array_equal(read_region(runs, SIZE, "a"), rle.decode(rle.frPyObjects(runs, *SIZE)) == 1)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [30, 20], "counts": [600]}, r"a is a code for \[30, 20\] pixels .*, but its image has \[20, 30\]"),
        ({"size": [20, 30], "counts": [10, 20]}, "a run-length code that does not fill 30x20 pixels"),
        ({"size": [20, 30], "counts": [10, -5, 595]}, "does not fill"),
        ({"size": [20, 30], "counts": [10.5, 589.5]}, "does not fill"),
        ({"size": [20, 30], "counts": ""}, "does not fill"),
        ({"size": [20, 30], "counts": "11"}, "does not fill"),
        ({"size": [20, 30], "counts": "~" * 100}, "does not fill"),
        ({"size": [20, 30], "counts": "\ud800é"}, "does not fill"),
        ({"size": [20, 30]}, "neither polygons nor a run-length code"),
        ("polygon", "neither polygons nor a run-length code"),
        ([[1, 1, 5, 5, 9]], "a polygon that is not x, y, x, y, ..."),
        ([[[1, 1], [5, 5], [9, 1]]], "a polygon that is not x, y, x, y, ..."),
        ([3], "a polygon that is not x, y, x, y, ..."),
        ([["x", 1, 5, 5, 9, 1]], "a polygon that is no list of numbers"),
        ([[1, 1, 5, 5, 9, float("nan")]], "a corner far outside of its image of 30x20 pixels"),
        ([[1, 1, 5, 5, 9, float("inf")]], "a corner far outside"),
        ([[1, 1, 5, 5, 9, 1e9]], "a corner far outside"),
        ([[1, 1, 5, 5, 9, 10**400]], "a polygon that is no list of numbers"),
    ],
)
def test_damaged_regions(segmentation, words):
    with pytest.raises(InputError, match=words):
        read_region(segmentation, SIZE, "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 0}, "has \\(0, 30\\) pixels; repair its height and width"),
        ({"height": 10**9}, "pixels; repair its height and width"),
        ({"height": None}, "not a file of COCO's annotations"),
        ({"id": [7]}, "not a file of COCO's annotations"),
        ({"id": 8}, "several images with one id"),
        ({"file_name": "x/000000000008.png"}, "several images named 000000000008"),
        ({"file_name": ""}, "an image named '', as no file can be"),
        ({"file_name": "a\0.jpg"}, "as no file can be"),
        ({"file_name": "\ud800.jpg"}, "as no file can be"),
    ],
)
def test_damaged_images(coco, change, words):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        write_masks(coco)


def test_a_full_disk_keeps_what_is_written(coco, monkeypatch, capsys):
    saved = []

    def save(image, path, form):
        saved.append(path)
        if len(saved) == 2:
            path.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"whole")

    monkeypatch.setattr(Image.Image, "save", save)
    assert main([str(coco)]) == 2
    assert "val2017 (No space left on device); make room there, or set --out" in capsys.readouterr().err
    assert [path.name for path in (coco / "annotations/val2017").iterdir()] == ["000000000007_instanceTrainIds.png"]


def test_bad_annotations(coco, tmp_path, capsys):
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        write_masks(coco, "train")
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 92
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="category 92"):
        write_masks(coco)
    for text in ("[]", "3", "null", "{}", "{", "", '{"images": 3, "annotations": []}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="not a file of COCO's annotations"):
            write_masks(coco)
    assert main([str(coco), "--out", str(tmp_path / "out")]) == 2
    assert "not a file of COCO's annotations" in capsys.readouterr().err
