"""Saved models: the same predictions, a card that the hub reads, and the upload."""

import copy
import json
from typing import ClassVar

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError

import zeroseg_jax
from zeroseg_jax import InputError
from zeroseg_jax.evaluate.baselines import PaintedViews, cells
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.segment import Options, Segmenter
from zeroseg_jax.segment.io import _about
from zeroseg_jax.segment.methods import DenseClipMethod

LABELS = ["cat", "grass", "sky"]
ABOUT = {
    "teacher": "openai/clip-vit-base-patch16",
    "training": {"images": "scenes, train", "steps": 600, "loss": {"global": 1.0, "ground": 2.0}},
    "results": {
        "dataset": "scenes",
        "split": "test",
        "images": 200,
        "miou": 0.642,
        "pixel_accuracy": 0.889,
        "baselines": {"sliding windows": {"miou": 0.467, "pixel_accuracy": 0.81}},
    },
}


def assert_same_predictions(model, again, image):
    assert (again.templates, again.options, again.about) == (model.templates, model.options, model.about)
    before, after = model.segment(image, LABELS), again.segment(image, LABELS)
    np.testing.assert_array_equal(before.label_map, after.label_map)
    np.testing.assert_array_equal(before.segments, after.segments)
    np.testing.assert_array_equal(before.scores, after.scores)


@pytest.mark.end_to_end
def test_a_student(model, image, tmp_path):
    options = Options(scale=14.0, rename="teacher", rename_weight=0.5)
    model = Segmenter(model.method, model.clip, templates=("a {}", "{}"), options=options, about=ABOUT)
    model.save(tmp_path / "mine")
    again = zeroseg_jax.load(tmp_path / "mine")
    assert_same_predictions(model, again, image)
    again.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "clip/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()


def test_a_student_from_before_the_layer_over_its_segments(model, image, tmp_path):
    model.save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["student"].pop("pool_depth") == 0
    path.write_text(json.dumps(config))
    assert_same_predictions(model, zeroseg_jax.load(tmp_path), image)


def test_the_weights_that_it_runs_with_are_saved(model, image, tmp_path):
    halved = dict(model.method.params)
    halved["student"] = jax.tree.map(lambda x: x / 2, halved["student"])
    other = model.with_params(halved)
    other.save(tmp_path)
    assert_same_predictions(other, zeroseg_jax.load(tmp_path), image)


@pytest.mark.parametrize("size", [8, 16])
def test_a_clip(tiny_clip, image, tmp_path, size):
    clip = load_clip(tiny_clip)
    model = Segmenter(DenseClipMethod(clip, size), clip, templates="name", options=Options(scale=100.0))
    model.save(tmp_path)
    again = zeroseg_jax.load(tmp_path)
    assert again.method.image_size == size
    assert_same_predictions(model, again, image)
    assert ModelCard.load(tmp_path / "README.md").data.tags[-1] == "clip"
    np.testing.assert_array_equal(load_clip(tmp_path).encode_text(["cat"]), clip.encode_text(["cat"]))


def test_definitions_are_saved(model, tmp_path):
    named = copy.deepcopy(model)
    named.define("pet", ["cat", "dog"])
    named.save(tmp_path / "named")
    again = zeroseg_jax.load(tmp_path / "named")
    np.testing.assert_allclose(again.embed_labels(["pet"]), named.embed_labels(["pet"]), atol=1e-6)
    assert not np.allclose(again.embed_labels(["pet"]), model.embed_labels(["pet"]))


def test_a_place_that_cannot_be_written_to(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the folder .*file cannot be written to \(File exists\); give another"):
        model.save(tmp_path / "file")


def test_a_baseline_cannot_be_saved(tiny_clip, tmp_path):
    clip = load_clip(tiny_clip)
    with pytest.raises(InputError, match="a PaintedViews cannot be saved; save the CLIP that it reads out"):
        Segmenter(PaintedViews(clip, 24, cells(3)), clip).save(tmp_path)


def test_the_card(model, tmp_path):
    Segmenter(model.method, model.clip, templates="imagenet80", about=ABOUT).save(tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine/README.md")  # as the hub parses it
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("zeroseg_jax", "image-segmentation")
    assert data.base_model == "openai/clip-vit-base-patch16" and "zeroseg" in data.tags
    assert [(r.metric_name, r.metric_value, r.dataset_name) for r in data.eval_results] == [("mIoU", 0.642, "scenes")]
    for line in (
        "# mine",
        'model = zeroseg_jax.load("mine")',
        "| segment tokens | 4 |",
        "| steps | 600 |",
        "| loss | global 1.0, ground 2.0 |",
        "| this model | 64.2 | 88.9 |",
        "| sliding windows | 46.7 | 81.0 |",
    ):
        assert line in card.text.splitlines()
    assert "frozen CLIP `openai/clip-vit-base-patch16`" in card.text
    assert "`a bad photo of a {}.`" in card.text and "and 72 more" in card.text


def test_a_card_without_results(model, tmp_path):
    model.save(tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine/README.md")
    assert card.data.eval_results is None and "Results" not in card.text and "Training" not in card.text


@pytest.mark.parametrize(
    "content", ["{}", "{", "[]", "7", '{"settings": {}}', '{"settings": {"model": ""}, "baselines": []}', "\0"]
)
def test_a_run_whose_results_are_damaged_has_a_card_without_them(tmp_path, tiny_config, content):
    (tmp_path / "results.json").write_text(content)
    about = _about(tmp_path, tiny_config)
    assert about["training"]["steps"] == tiny_config.steps and "results" not in about


@pytest.mark.parametrize(
    "broken", [{"options": {"mixes": 1}}, {"readout": {"mixes": 1}}, {"options": 1}, {"definitions": 1}, []]
)
def test_broken_defaults(model, tmp_path, broken):
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"segmenter": broken}))
    with pytest.raises(InputError, match=r"damaged|no option 'mixes'"):
        zeroseg_jax.load(tmp_path)


class FakeApi:
    """Records what is asked of the hub."""

    calls: ClassVar[list] = []
    error: ClassVar[Exception | None] = None

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        again = zeroseg_jax.load(folder_path)
        self.calls.append(("upload", repo_id, again, (ModelCard.load(f"{folder_path}/README.md")).text))


def test_push_to_hub(model, image, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    assert model.push_to_hub("me/students", private=True, token="secret") == "https://hub.example/me/students"
    token, create, upload = FakeApi.calls
    assert token == ("token", "secret")
    assert create == ("create", "me/students", {"private": True, "exist_ok": True})
    assert upload[1] == "me/students"
    assert_same_predictions(model, upload[2], image)
    assert 'zeroseg_jax.load("me/students")' in upload[3]


@pytest.mark.parametrize("error", [OSError("Token is required.\nMore lines."), HFValidationError("Repo id is wrong")])
def test_a_refused_upload_is_one_sentence(model, monkeypatch, error):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", error)
    with pytest.raises(
        InputError, match=r"me/students could not be uploaded .*(Token is required|Repo id is wrong)\);"
    ):
        model.push_to_hub("me/students")


def test_the_hub_sends_every_file_of_a_saved_model(model, fake_hub, tmp_path, monkeypatch):
    model.save(tmp_path / "saved")
    fake_hub.add("me/students", tmp_path / "saved")
    template = fake_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake_hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert zeroseg_jax.load("me/students").templates == model.templates
    files = {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*.*")}
    assert files - set(fake_hub.fetched()) == {"README.md", "clip/README.md"} & files
