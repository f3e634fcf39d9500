"""Every layout, read from a small tree of its own; mask values by hand."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from trees import MASK, opened, options, write_context, write_image, write_mask, write_voc

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks import Benchmark, check
from zeroseg_jax.evaluate.benchmarks.coco import CATEGORIES, THINGS
from zeroseg_jax.evaluate.vocabularies import load_vocabulary


class TestVoc:
    def test_21_and_20_classes(self, tmp_path):
        write_voc(tmp_path / "VOCdevkit/VOC2012", {"a": MASK, "b": MASK})
        for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2012"):
            voc = opened("voc", root)
            assert isinstance(voc, Benchmark) and len(voc) == 2 and len(voc.classes) == 21 and voc.background == 0
            assert voc[1].name == "b" and voc[1].mask.tolist() == MASK
            assert pickle.loads(pickle.dumps(voc))[0].name == "a"  # for worker processes
        voc20 = opened("voc20", tmp_path, limit=1)
        assert len(voc20) == 1 and len(voc20.classes) == 20 and voc20.background is None
        assert voc20[0].mask.tolist() == [[255, 0, 19], [14, 255, 255]]
        assert voc20.classes[14] == "person"

    def test_bad_roots_and_splits(self, tmp_path):
        with pytest.raises(InputError, match="needs a folder"):
            opened("voc", "")
        with pytest.raises(InputError, match=f"no folder {tmp_path}/x;"):
            opened("voc", tmp_path / "x")
        root = write_voc(tmp_path / "VOC2012", {"a": MASK})
        with pytest.raises(InputError, match="one of val, or all"):
            opened("voc", tmp_path, split="test")
        (root / "ImageSets/Segmentation/val.txt").write_text("\n")
        with pytest.raises(InputError, match="has no images"):
            opened("voc", tmp_path)
        shutil.rmtree(root / "SegmentationClass")
        with pytest.raises(InputError, match=r"VOC2012/SegmentationClass; set eval\.root"):
            opened("voc", tmp_path)
        with pytest.raises(InputError, match="did you mean 'context59'"):
            opened("context95", tmp_path)

    def test_bad_masks_are_told_when_opened(self, tmp_path):
        root = write_voc(tmp_path, {name: MASK for name in "abc"})
        write_mask(root / "SegmentationClass/c.png", np.zeros((4, 3)))
        with pytest.raises(InputError, match=r"c\.png has 3x4 pixels, its image 3x2"):
            opened("voc", root)
        write_mask(root / "SegmentationClass/c.png", [[0, 21, 200], [0, 0, 0]])
        with pytest.raises(InputError, match=r"c\.png holds 21, 200, but 21 values from 0 to 20"):
            opened("voc", root)
        Image.new("RGB", (3, 2)).save(root / "SegmentationClass/c.png")
        with pytest.raises(InputError, match="mode RGB"):
            opened("voc", root)
        (root / "SegmentationClass/c.png").write_bytes(b"no image")
        with pytest.raises(InputError, match="cannot be read"):
            opened("voc", root)
        (root / "SegmentationClass/c.png").unlink()
        (root / "JPEGImages/b.jpg").unlink()
        with pytest.raises(InputError, match=r"2 of the 6 files of voc are missing, the first is .*b\.jpg"):
            opened("voc", root)

    def test_check_finds_everything(self, tmp_path, capsys):
        root = write_voc(tmp_path, {name: MASK for name in "abcd"})
        assert check(options("voc", root))["pixels"]["background"] == 8
        write_mask(root / "SegmentationClass/a.png", [[0, 21, 200], [0, 0, 0]])
        write_mask(root / "SegmentationClass/b.png", [[0, 21, 0], [0, 0, 0]])
        (root / "SegmentationClass/c.png").unlink()
        with pytest.raises(InputError, match="3 of 4 images cannot be used"):
            check(options("voc", root))
        said = capsys.readouterr().out
        assert "21 (masks: 2), 200 (masks: 1)" in said and "missing files: 1" in said
        assert "1 of 4 images" in said and "there is no mask" in said


class TestFolder:
    def test_voc_layout_or_images_and_masks(self, tmp_path):
        mask = [[0, 1, 1], [255, 0, 0]]
        root = write_voc(tmp_path / "voc", {"a": mask})
        with pytest.raises(InputError, match=r"classes\.txt; write one class name"):
            opened("folder", root)
        (root / "classes.txt").write_text("cat\ngrass\n")
        write_image(tmp_path / "plain/images/b.png")
        write_mask(tmp_path / "plain/masks/b.png", mask)
        (tmp_path / "plain/classes.txt").write_text("cat\ngrass\n")
        for folder in ("voc", "plain"):
            benchmark = opened("folder", tmp_path / folder)
            assert benchmark.name == "folder" and tuple(benchmark.classes) == ("cat", "grass")
            assert benchmark[0].mask.tolist() == mask
        (root / "classes.txt").write_text("cat\ncat\n")
        with pytest.raises(InputError, match="names cat twice"):
            opened("folder", root)
        (root / "classes.txt").write_text("cat\n")
        with pytest.raises(InputError, match="holds 1, but 1 values from 0 to 0"):
            opened("folder", root)


class TestContext:
    NAMES = load_vocabulary("context_mmseg").classes

    def test_60_and_59_classes(self, tmp_path):
        write_context(tmp_path, self.NAMES)
        context, context59 = opened("context", tmp_path), opened("context59", tmp_path)
        dog, grass = self.NAMES.index("dog"), self.NAMES.index("grass")
        assert len(context.classes) == 60 and context.background == 0
        assert set(np.unique(context[0].mask)) == {dog, grass}
        assert len(context59.classes) == 59 and set(np.unique(context59[0].mask)) == {dog - 1, grass - 1}
        assert context59.classes[dog - 1] == "dog"
        (note,) = check(options("context", tmp_path))["notes"]
        assert note == "the classes are in alphabetical order: 100% of 4 annotated objects hold pixels of their class"

    def test_another_order_is_told_and_then_followed(self, tmp_path):
        from zeroseg_jax.evaluate.benchmarks.context import VOC_FIRST

        assert sorted(VOC_FIRST) == sorted(self.NAMES)
        root = write_context(tmp_path, VOC_FIRST)
        with pytest.raises(InputError, match=r"only 0% of 4 .*; the order of 59_labels\.txt fits \(100%\)"):
            opened("context", tmp_path)
        # as the authors' file has them, without background
        (root / "59_labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(VOC_FIRST) if i))
        context = opened("context59", tmp_path)
        assert set(np.unique(context[0].mask)) == {self.NAMES.index("dog") - 1, self.NAMES.index("grass") - 1}
        shutil.rmtree(root)
        root = write_context(tmp_path, self.NAMES)
        (root / "59_labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(VOC_FIRST) if i))
        with pytest.raises(InputError, match="alphabetical order fits"):  # a list that the masks do not follow
            opened("context", tmp_path)
        (root / "59_labels.txt").write_text("dog\ncat\n")
        with pytest.raises(InputError, match="does not hold the names of the 59 classes"):
            opened("context", tmp_path)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("<object>", ""),
            ("<xmin>3</xmin>", "<xmin>left</xmin>"),
            ("<xmin>3</xmin>", "<xmin>nan</xmin>"),
            ("<xmin>3</xmin>", "<xmin>inf</xmin>"),
            ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>'),
            ("<annotation>", '<?xml version="1.0" encoding="utf-7"?><annotation>'),
            ("<annotation>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;'),
        ],
    )
    def test_damaged_annotations(self, tmp_path, before, after):
        path = write_context(tmp_path, self.NAMES) / "Annotations/dog.xml"
        path.write_text(path.read_text().replace(before, after))
        with pytest.raises(InputError, match=r"dog\.xml is no annotation of VOC \(.*; fetch it again, or remove it"):
            opened("context", tmp_path)

    def test_without_annotations_it_says_so(self, tmp_path):
        shutil.rmtree(write_context(tmp_path, self.NAMES) / "Annotations")
        assert "could not be checked" in opened("context", tmp_path).notes[0]


class TestCoco:
    def test_object(self, tmp_path):
        write_image(tmp_path / "images/val2017/7.jpg")
        with pytest.raises(InputError, match=r"benchmarks\.coco_object`"):
            opened("coco_object", tmp_path)
        # COCO-Stuff's map: person, the category 90 (toothbrush), the first stuff, nothing
        write_mask(tmp_path / "stuffthingmaps/val2017/7.png", [[0, 89, 91], [255, 181, 12]])
        objects = opened("coco_object", tmp_path)
        assert len(objects.classes) == 81 and objects.background == 0 and objects.classes[80] == "toothbrush"
        assert objects[0].mask.tolist() == [[1, 80, 0], [0, 0, 1 + THINGS.index(13)]]
        write_mask(tmp_path / "annotations/val2017/7_instanceTrainIds.png", [[0, 80, 1], [2, 3, 4]])
        assert opened("coco_object", tmp_path)[0].mask.tolist() == [[0, 80, 1], [2, 3, 4]]

    def test_stuff(self, tmp_path):
        write_image(tmp_path / "val2017/7.jpg")
        write_mask(tmp_path / "stuffthingmaps/val2017/7.png", [[0, 89, 91], [255, 181, 12]])
        stuff = opened("coco_stuff", tmp_path)
        assert len(stuff.classes) == 171 == len(CATEGORIES) and stuff.background is None
        assert stuff[0].mask.tolist() == [[0, 79, 80], [255, 170, 11]]
        assert [stuff.classes[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]
        write_mask(tmp_path / "stuffthingmaps/val2017/7.png", [[11, 0, 0], [0, 0, 182]])
        with pytest.raises(InputError, match="holds 11, 182"):  # ids that COCO does not use
            opened("coco_stuff", tmp_path)
        write_mask(tmp_path / "annotations/val2017/7_labelTrainIds.png", [[11, 0, 0], [0, 255, 170]])
        assert opened("coco_stuff", tmp_path)[0].mask.tolist() == [[11, 0, 0], [0, 255, 170]]

    def test_panoptic(self, tmp_path):
        write_image(tmp_path / "val2017/7.jpg")
        ids = np.array([[0, 300, 70000], [70000, 300, 5]])
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        folder = tmp_path / "annotations/panoptic_val2017"
        folder.mkdir(parents=True)
        Image.fromarray(colours).save(folder / "7.png")
        segments = [{"id": 300, "category_id": 1}, {"id": 70000, "category_id": 9}, {"id": 5, "category_id": 1}]
        content = {
            "categories": [{"id": 9, "name": "sky-other-merged"}, {"id": 1, "name": "person"}],
            "annotations": [{"file_name": "7.png", "image_id": 7, "segments_info": segments}],
        }
        with pytest.raises(InputError, match=r"panoptic_val2017\.json; unpack"):
            opened("coco_panoptic", tmp_path)
        path = tmp_path / "annotations/panoptic_val2017.json"
        path.write_text(json.dumps(content))
        panoptic = opened("coco_panoptic", tmp_path)
        assert panoptic.classes == ("person", "sky-other-merged") and panoptic.vocabulary == ""
        assert panoptic[0].mask.tolist() == [[255, 0, 1], [1, 0, 0]]
        del segments[1]
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="holds 70000, but its JSON has no such segments"):
            opened("coco_panoptic", tmp_path)
        path.write_text("{}")
        with pytest.raises(InputError, match="not a file of COCO's panoptic annotations"):
            opened("coco_panoptic", tmp_path)


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, value in (("validation", 150), ("training", 1)):
        write_image(root / f"images/{split}/x.jpg")
        write_mask(root / f"annotations/{split}/x.png", [[0, 1, 150], [2, 3, value]])
    ade = opened("ade20k", tmp_path)
    assert len(ade.classes) == 150 and ade.classes[0] == "wall" and ade.classes[149] == "flag"
    assert ade[0].mask.tolist() == [[255, 0, 149], [1, 2, 149]]
    assert opened("ade20k", root, split="train")[0].mask[1, 2] == 0


def test_cityscapes(tmp_path):
    write_image(tmp_path / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png")
    # road, bicycle, licence plate's neighbour trailer, ego vehicle, car
    write_mask(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png", [[7, 33, 30], [1, 26, 0]])
    city = opened("cityscapes", tmp_path)
    assert len(city.classes) == 19 and city[0].name == "bonn/bonn_1"
    assert city[0].mask.tolist() == [[0, 18, 255], [255, 13, 255]]
    assert city.classes[13] == "car"
    write_mask(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png", [[7, 18, 255], [1, 2, 0]])
    assert opened("cityscapes", tmp_path)[0].mask.tolist() == [[7, 18, 255], [1, 2, 0]]
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(InputError, match="gtFine/val"):
        opened("cityscapes", tmp_path)


class LittleMasks(tfds.core.GeneratorBasedBuilder):
    """Two images with two features that may be masks."""

    VERSION = tfds.core.Version("1.0.0")
    files: Path

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "regions": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "depth": tfds.features.Tensor(shape=(2, 3), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            values = [[0, 1, 1], [255, 0, 0]]
            write_image(self.files / "image.png")
            write_mask(self.files / "mask.png", values, palette=True)
            files = {"image": self.files / "image.png", "regions": self.files / "mask.png"}
            yield i, {name: str(path) for name, path in files.items()} | {"depth": np.array(values, np.int32)}


def test_tfds(tmp_path):
    tfds.disable_progress_bar()
    LittleMasks.files = tmp_path / "files"
    LittleMasks(data_dir=str(tmp_path)).download_and_prepare(file_format="array_record")
    with pytest.raises(InputError, match=r"eval\.mask must say .* depth, regions"):
        opened("tfds:little_masks", tmp_path)
    with pytest.raises(InputError, match=r"no names of classes.*classes\.txt"):
        opened("tfds:little_masks", tmp_path, mask="regions")
    (tmp_path / "classes.txt").write_text("cat\ngrass\n")
    for mask in ("regions", "depth"):
        benchmark = opened("tfds:little_masks", tmp_path, mask=mask)
        assert isinstance(benchmark, Benchmark) and tuple(benchmark.classes) == ("cat", "grass")
        assert len(benchmark) == 2 and benchmark[1].mask.tolist() == [[0, 1, 1], [255, 0, 0]]
    with pytest.raises(InputError, match="no feature of masks 'image'"):
        opened("tfds:little_masks", tmp_path, mask="image")
