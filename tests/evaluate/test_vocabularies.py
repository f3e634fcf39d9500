"""The shipped vocabularies against facts, and what is said of files that cannot be used."""

import dataclasses

import pytest

from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.vocabularies import Vocabulary, choose_vocabulary, load_vocabulary, vocabulary_names

TWENTY_ONE = tuple(f"class {i}" for i in range(21))
COUNTS = {
    **{"voc": 21, "voc20": 20, "context": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171},
    **{"ade20k": 150, "cityscapes": 19, "coco_panoptic": 133},
}


@pytest.mark.parametrize("name", vocabulary_names())
def test_shipped(name):
    result = load_vocabulary(name)
    if not result.dataset:
        assert name == "imagenet" and result.source
        return
    assert name.startswith(result.dataset) and len(result.classes) == COUNTS[result.dataset]
    assert result.source and result.templates and len(result.phrases) == len(result.classes)
    # every protocol has a rule for the background where there is one, and the class is the first
    assert (result.background is not None) == (result.classes[0] == "background")
    if name.endswith(("_groupvit", "_segclip")):
        size = 448 if "groupvit" in name else 224
        options = result.options
        assert (options["short_side"], options["window"], options["top_classes"]) == (size, size, 5)
        assert result.templates == ("a photo of a {}.",) and not options["normalise_prompts"]


def test_variants_differ_as_published():
    def get(name):
        return load_vocabulary(name)

    assert len(vocabulary_names()) == 38
    assert [get(f"{n}_groupvit").background for n in ("voc", "context", "coco_object")] == [0.95, 0.35, 0.95]
    assert [get(f"{n}_segclip").background for n in ("voc", "context", "coco_object")] == [0.8, 0.25, 0.65]
    assert get("voc_clip_dinoiser").background == ("background",) and len(get("voc_clip_dinoiser").templates) == 80
    assert len(get("voc_mmseg").templates) == 9 and get("voc_mmseg").background == 0.5
    assert [get(f"voc_{n}").classes[11] for n in ("groupvit", "mmseg", "clip_dinoiser")] == [
        "table",
        "diningtable",
        "dining table",
    ]
    assert get("context_groupvit").classes[1] == "airplane" and get("context59_mmseg").classes[0] == "aeroplane"
    assert get("coco_object_clip_dinoiser").classes[5] == "aeroplane"
    assert dict(zip(*(getattr(get("coco_panoptic_plain"), f) for f in ("classes", "phrases")), strict=True))[
        "sky-other-merged"
    ] == ("sky",)


@pytest.mark.parametrize(("dataset", "threshold"), [("voc", 0.95), ("context", 0.05), ("coco_object", 0.35)])
def test_the_papers_evaluation(dataset, threshold):
    """Its thresholds and size, and its example of a prompt; the rest is GroupViT's."""
    result, groupvit = load_vocabulary(f"{dataset}_zeroseg"), load_vocabulary(f"{dataset}_groupvit")
    assert (result.background, result.options["short_side"], result.options["rule"]) == (threshold, 448, "groupvit")
    assert result.templates == ("a photo of the {}.",)
    changes = {"name": result.name, "source": result.source, "background": threshold, "templates": result.templates}
    assert result == dataclasses.replace(groupvit, **changes)


def test_the_classes_of_imagenet():
    result = load_vocabulary("imagenet")
    assert len(result.classes) == 1000 == len(set(result.classes)) and result.background is None
    known = {
        0: "tench",
        22: "bald eagle",
        207: "Golden Retriever",
        281: "tabby cat",
        292: "tiger",
        569: "garbage truck",
    }
    known |= {657: "missile", 744: "projectile", 836: "sunglass", 837: "sunglasses", 963: "pizza", 999: "toilet paper"}
    assert {i: result.classes[i] for i in known} == known
    assert choose_vocabulary("imagenet", "folder", [str(i) for i in range(1000)]).classes == result.classes


def test_choose_vocabulary():
    assert choose_vocabulary("", "folder", ("cat", "grass")) == Vocabulary("", ("cat", "grass"), (("cat",), ("grass",)))
    assert choose_vocabulary("", "voc", TWENTY_ONE, "voc_groupvit").name == "voc_groupvit"
    with pytest.raises(InputError, match=r"21 classes, but the masks of folder have 2; set eval\.vocabulary to a file"):
        choose_vocabulary("voc_mmseg", "folder", ("cat", "grass"))
    with pytest.raises(InputError, match=r"is made for context, but the masks of voc .* voc_clip_dinoiser, voc_group"):
        choose_vocabulary("context_mmseg", "voc", TWENTY_ONE)
    with pytest.raises(InputError, match="did you mean 'voc_groupvit'"):
        load_vocabulary("voc_groupvti")


@pytest.mark.parametrize(
    "text, message",
    [
        ("classes = ['cat'", "cannot be used"),
        ("clases = ['cat']", "holds 'clases'; did you mean 'classes'"),
        ("dataset = 'x'", "list of class names is empty"),
        ("classes = ['cat', 'cat']", "'cat' is there twice"),
        ("classes = ['cat', 'dog']\n[aliases]\ncat = ['dog']", "'dog' is there twice"),
        ("classes = ['cat']\n[aliases]\ncta = ['kitten']", "'cta' belong to no class; did you mean 'cat'"),
        ("classes = ['cat']\nbackground = 0.5", "no class of that name"),
        ("classes = ['background']\nbackground = 2.0", "between 0 and 1"),
        ("classes = ['cat']\ncombine = 'sum'", "one of max, mean"),
        ("classes = ['cat']\nstride = -1", "at least 0"),
        ("classes = ['cat']\nwindow = 'big'", "must be a whole number"),
        ("classes = ['cat']\ntemplates = 'a photo'", "there are no templates"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_vocabulary(str(path))
    with pytest.raises(InputError, match="no vocabulary file"):
        load_vocabulary(str(tmp_path / "other.toml"))
