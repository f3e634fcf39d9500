"""What a vocabulary makes of the labels, and how answers become classes again."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from zeroseg_jax.config import default_config
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.protocol import DEFAULT, inference_options, make_protocol
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.segment import Options, Segmenter
from zeroseg_jax.segment.methods import DenseClipMethod, StudentMethod

OWN = """
classes = ["background", "cat", "grass"]
background = ["sky", "wall"]
templates = "name"
{more}
[aliases]
cat = ["cat", "kitten"]
"""


@pytest.fixture(scope="module")
def model(tiny_clip):
    clip = load_clip(tiny_clip)
    return Segmenter(DenseClipMethod(clip, 16), clip, templates="photo")


class Masks:
    """A benchmark without images."""

    groups, vocabulary = {}, ""

    def __init__(self, name, classes, background=None):
        self.name, self.classes, self.background = name, classes, background

    def __len__(self):
        return 0

    def __getitem__(self, i):
        raise IndexError(i)


def protocol_for(benchmark, model, **options):
    config = default_config()
    config.eval.update(options)
    return make_protocol(benchmark, model, config.eval)


VOC = Masks("voc", [str(i) for i in range(21)], 0)
FOLDER = Masks("folder", ("background", "cat", "grass"))


def test_names_alone(model):
    protocol = protocol_for(FOLDER, model)
    assert protocol.labels == FOLDER.classes and protocol.background is None and protocol.vocabulary == ""
    assert protocol.class_of_label.tolist() == [0, 1, 2, -1] and protocol.templates == ("a photo of a {}.",)
    with pytest.raises(InputError, match="has no background class"):
        protocol_for(FOLDER, model, background="0.5")


def test_a_protocol(model):
    protocol = protocol_for(VOC, model, vocabulary="voc_clip_dinoiser")
    assert len(protocol.labels) == 20 and protocol.labels[10] == "dining table" and len(protocol.templates) == 80
    assert protocol.background == ["background"] and protocol.class_of_label.tolist() == [*range(1, 21), 0]
    assert protocol.vocabulary == "voc_clip_dinoiser"
    # what is given replaces the vocabulary's
    changed = protocol_for(VOC, model, vocabulary="voc_groupvit", templates=("{}",), background="0.4")
    assert changed.background == 0.4 and changed.templates == model.templates
    assert protocol_for(VOC, model, vocabulary="voc_groupvit").background == 0.95
    assert protocol_for(VOC, model, vocabulary="voc_zeroseg").templates == ("a photo of the {}.",)
    assert protocol_for(VOC, model, vocabulary="voc_groupvit", background="sky, wall").background == ["sky", "wall"]
    assert protocol_for(VOC, model).background == ["0"]  # without any vocabulary: the name of the class


def test_several_phrases(model, tmp_path):
    for combine in ("max", "mean"):
        (tmp_path / f"{combine}.toml").write_text(OWN.format(more=f'combine = "{combine}"'))
    best = protocol_for(FOLDER, model, vocabulary=str(tmp_path / "max.toml"))
    assert best.labels == ("cat", "kitten", "grass") and best.class_of_label.tolist() == [1, 1, 2, 0]
    assert best.background == ["sky", "wall"] and best.templates == ("{}",)
    mean = protocol_for(FOLDER, model, vocabulary=str(tmp_path / "mean.toml"))
    assert mean.labels == ("cat / kitten", "grass") and mean.class_of_label.tolist() == [1, 2, 0]

    mean.predictor(model)  # which gives the label its meaning
    single = model.embed_labels(["cat", "kitten", "grass"], "name")
    expected = single[:2].sum(axis=0) / np.linalg.norm(single[:2].sum(axis=0))
    np.testing.assert_allclose(model.embed_labels(mean.labels, "name"), [expected, single[2]], atol=1e-6)


def test_wrong_vocabularies(model):
    with pytest.raises(InputError, match="made for context, but the masks of voc have 21"):
        protocol_for(VOC, model, vocabulary="context_groupvit")
    with pytest.raises(InputError, match="masks of folder have 3"):
        protocol_for(FOLDER, model, vocabulary="voc_groupvit")


def test_the_protocol_of_a_vocabulary():
    config = default_config()
    of_model = Options(scale=7.0, guide=1.5, flip=True)
    config.eval.vocabulary = "voc_groupvit"
    result = inference_options(VOC, config, of_model)
    sizes = {"short_side": 448, "long_side": 2048, "window": 448, "stride": 224}
    rules = {"top_classes": 5, "rule": "groupvit", "normalise_prompts": False}
    assert result == Options(scale=7.0, guide=0.0, slide=0.0, **sizes, **rules)
    # what is set wins
    config.eval.update(guide=2.0, stride=448, rule="", top_classes=0)
    changed = inference_options(VOC, config, of_model)
    assert (changed.guide, changed.stride, changed.rule, changed.top_classes, changed.window) == (2.0, 448, "", 0, 448)
    # without a protocol everything is the model's own
    assert inference_options(FOLDER, default_config(), of_model) == of_model


@pytest.mark.end_to_end
@pytest.mark.parametrize(("segments", "guide"), [(False, 0.0), (True, 1.0), (True, 0.0)])
def test_groupvits_rule_applies_the_threshold(model, tiny_student, segments, guide):
    if segments:
        student = Student(StudentConfig(image_size=16, embed_dim=8, **tiny_student), rngs=nnx.Rngs(0))
        model = Segmenter(StudentMethod(student, model.clip), model.clip, templates="photo")
    protocol = protocol_for(FOLDER, model, vocabulary="")
    protocol = dataclasses.replace(protocol, background=0.4, class_of_label=np.array([0, 1, 2, 9], np.int32))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    options = {"rule": "groupvit", "guide": guide}
    segmenter = Segmenter(model.method, model.clip, options=Options(**options))
    prediction = next(protocol.predictor(segmenter)([image], None)[DEFAULT])

    def hidden(threshold: float) -> np.ndarray:
        result = model.segment(image, protocol.labels, templates=protocol.templates, background=threshold, **options)
        return result.label_map < 0

    np.testing.assert_array_equal(prediction.classes == 9, hidden(0.4))
    # one pass tells of every threshold, but not where every patch is a segment or where maps are guided
    assert (prediction.probability is not None) == (segments and not guide)
    if prediction.probability is not None:
        critical = np.unique(prediction.probability[prediction.probability < 1])
        assert len(critical)
        for threshold in np.array([critical - 1e-4, critical + 1e-4]).ravel().tolist():
            np.testing.assert_array_equal(prediction.probability < np.float32(threshold), hidden(threshold))
