"""Nothing that a data set holds starts a program or chooses what is imported."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from zeroseg_jax.data.decode import FORMATS, BrokenImage, decode_image, read_image
from zeroseg_jax.data.sources.tfds import PreparedSource
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.benchmarks.masks import decode_mask
from zeroseg_jax.models.preprocessing import Preprocessing

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) show\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A program `gs`; the file that it makes when it is started."""
    started = tmp_path / "started"
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return started


class TestImages:
    def test_the_attack_works(self, ghostscript):
        with pytest.raises(Exception), Image.open(io.BytesIO(EPS)) as image:  # noqa: B017 (whatever gs makes of it)
            image.load()
        assert ghostscript.exists()

    def test_no_way_of_reading_an_image_starts_it(self, ghostscript, tmp_path):
        path = tmp_path / "holiday.jpg"
        path.write_bytes(EPS)
        for read in (lambda: decode_image(EPS, "a"), lambda: read_image(path), lambda: decode_mask(EPS, "a")):
            with pytest.raises(InputError, match=r"not in an image format that is read here: .*JPEG|it is no PNG"):
                read()
        with pytest.raises(InputError, match=r"cannot be read \(it is not in an image format"):
            Preprocessing()([path])
        assert not ghostscript.exists()

    def test_no_other_format_is_opened(self):
        Image.init()
        tried = 0
        for form in set(Image.SAVE) - {*FORMATS, "MPO", "PDF", "JPEG2000"}:
            buffer = io.BytesIO()
            try:
                Image.new("RGB" if form != "PALM" else "P", (4, 4)).save(buffer, form)
            except (OSError, ValueError, KeyError):
                continue
            tried += 1
            with pytest.raises(BrokenImage, match="not in an image format"):
                decode_image(buffer.getvalue(), "a")
        assert tried > 5

    @pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
    def test_formats_of_pictures_are(self, form):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), (90, 90, 90)).save(buffer, form)
        assert decode_image(buffer.getvalue(), "a").shape == (30, 20, 3)


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Two images: one beside others in a sequence, which TFDS would decode by itself."""

    VERSION = tfds.core.Version("1.0.0")
    file: Path

    def _info(self):
        features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        features |= {"more": tfds.features.Sequence(tfds.features.Image(encoding_format="png"))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield i, {"image": str(self.file), "caption": "a cat", "more": [io.BytesIO(EPS)]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    Pictures.file = root / "a.png"
    Image.new("RGB", (4, 3), (90, 90, 90)).save(Pictures.file)
    Pictures(data_dir=str(root)).download_and_prepare(file_format="array_record")
    return root / "pictures/1.0.0"


@pytest.fixture
def prepared(made):
    """The dataset's folder, and how its features.json can be replaced for a while."""
    path = made / "features.json"
    before = path.read_text()
    yield made, json.loads(before), lambda value: path.write_text(json.dumps(value))
    path.write_text(before)


class TestFeatures:
    CLASS = "evil_features.Image"

    @pytest.fixture
    def imported(self, tmp_path, monkeypatch) -> Path:
        """The file that the module `evil_features` makes when it is imported."""
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
        yield tmp_path / "imported"
        sys.modules.pop("evil_features", None)

    def variants(self, good: dict) -> list[dict]:
        """Every place in which a name of a class may stand."""
        legacy = {"type": self.CLASS, "content": {"shape": [None, None, 3]}}
        whole = {"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "content": {"image": legacy}}
        allowed = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
        variants = [good | {"pythonClassName": self.CLASS}, legacy, whole]
        for key in ("pythonClassName", "python_class_name"):
            features = dict(good["featuresDict"]["features"])
            features["image"] = {key: self.CLASS, "image": {}}
            variants.append(good | {"featuresDict": {"features": features}})
        variants.append({"pythonClassName": allowed, "jsonFeature": {"json": json.dumps({"image": legacy})}})
        variants.append({"python_class_name": allowed, "json_feature": {"json": json.dumps({"image": legacy})}})
        return variants

    def test_the_attack_works(self, prepared, imported):
        folder, good, replace = prepared
        for value in self.variants(good):
            replace(value)
            with pytest.raises(ValueError, match=r"Unrecognized FeatureConnector type|Error in"):
                tfds.builder_from_directory(folder)
            assert imported.exists()
            imported.unlink()
            sys.modules.pop("evil_features")

    def test_no_class_but_tfds_own_is_imported(self, prepared, imported):
        folder, good, replace = prepared
        for value in self.variants(good):
            replace(value)
            with pytest.raises(InputError, match=r"features\.json names the class 'evil_features\.Image', which is no"):
                PreparedSource("pictures", folder)
        assert not imported.exists()

    def test_damaged_descriptions(self, prepared):
        folder, good, _ = prepared
        for text in ("", "[", "3", "{}", '{"pythonClassName": 3}', '{"type": "Image", "content": "{"}', "[" * 100_000):
            (folder / "features.json").write_text(text)
            with pytest.raises(InputError, match=r"features\.json|cannot be read"):
                PreparedSource("pictures", folder)
        video = {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video", "video": {}}
        good["featuresDict"]["features"]["more"] = video
        (folder / "features.json").write_text(json.dumps(good))
        with pytest.raises(InputError, match=r"has a feature that needs tensorflow|cannot be read"):
            PreparedSource("pictures", folder)

    def test_a_dataset_without_splits(self, prepared):
        folder, _, _ = prepared
        path = folder / "dataset_info.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {"splits": []}))
        with pytest.raises(InputError, match="has no split 'train'; it has none"):
            PreparedSource("pictures", folder)
        path.write_text(before)

    def test_only_what_is_asked_for_is_decoded(self, made, ghostscript):
        source = PreparedSource("pictures", made)
        assert source[1]["text"] == "a cat" and np.array_equal(source[1]["image"], np.full((3, 4, 3), 90))
        assert not ghostscript.exists()
