"""Every layout is read with the files and spellings that systems and editors add."""

import json

import numpy as np
import pytest
from trees import MASK, opened, write_context, write_image, write_mask, write_voc

from zeroseg_jax.evaluate.vocabularies import load_vocabulary


def make_voc(root):
    write_voc(root / "VOC2012", {"a": MASK, "b c": MASK})


def make_folder(root):
    write_voc(root, {"a": MASK})
    (root / "classes.txt").write_text("".join(f"class {i}\n" for i in range(21)))


def make_context(root):
    names = load_vocabulary("context_mmseg").classes
    write_context(root, names)
    (root / "VOC2010/classes.txt").write_text("\n".join(names))


def make_object(root):
    write_image(root / "val2017/7.jpg")
    write_mask(root / "annotations/val2017/7_instanceTrainIds.png", MASK)


def make_stuff(root):
    write_image(root / "val2017/7.jpg")
    write_mask(root / "stuffthingmaps/val2017/7.png", MASK)


def make_panoptic(root):
    write_image(root / "val2017/7.jpg")
    write_image(root / "annotations/panoptic_val2017/7.png")
    segments = [{"id": 90 + 256 * 90 + 65536 * 90, "category_id": 1}]
    content = {"categories": [{"id": 1, "name": "person"}], "annotations": []}
    content["annotations"].append({"file_name": "7.png", "image_id": 7, "segments_info": segments})
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))


def make_ade20k(root):
    write_image(root / "images/validation/x.jpg")
    write_mask(root / "annotations/validation/x.png", MASK)


def make_cityscapes(root):
    write_image(root / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png")
    write_mask(root / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png", MASK)


LAYOUTS = {
    **{"voc": make_voc, "voc20": make_voc, "folder": make_folder, "context": make_context, "ade20k": make_ade20k},
    **{"coco_object": make_object, "coco_stuff": make_stuff, "coco_panoptic": make_panoptic},
    "cityscapes": make_cityscapes,
}


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_every_layout_with_capitals_byte_order_marks_and_what_systems_add(tmp_path, dataset):
    LAYOUTS[dataset](tmp_path)
    before = [opened(dataset, tmp_path)[i] for i in range(len(opened(dataset, tmp_path)))]
    assert before
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        if path.suffix in (".txt", ".json"):
            path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n"))
        elif path.suffix in (".png", ".jpg"):
            path.rename(path.with_suffix(path.suffix.upper()))
        (path.parent / f"._{path.name}").write_bytes(b"?")
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        (folder / ".DS_Store").write_bytes(b"?")
        (folder / "Thumbs.db").write_bytes(b"?")
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX/more.png").write_bytes(b"?")
    benchmark = opened(dataset, tmp_path)
    assert [example.name for example in before] == [benchmark[i].name for i in range(len(benchmark))]
    for i, example in enumerate(before):
        assert np.array_equal(benchmark[i].mask, example.mask) and np.array_equal(benchmark[i].image, example.image)
