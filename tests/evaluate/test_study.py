"""The human study: its page hides the models, and its figures agree with the literature and scipy."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from safetensors.numpy import load_file, save_file

import zeroseg_jax
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.study import __main__ as command
from zeroseg_jax.evaluate.study.__main__ import main
from zeroseg_jax.evaluate.study.page import make_study
from zeroseg_jax.evaluate.study.score import describe, krippendorff_alpha, score, wilson_interval

LABELS = ["cat", "grass"]


@pytest.fixture(scope="module")
def study(tiny_clip, pictures, tmp_path_factory):
    """A study of two CLIPs with other weights on four pictures of a folder."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny_clip, folder / "other_clip")
    weights = {name: np.asarray(-value) for name, value in load_file(tiny_clip / "model.safetensors").items()}
    save_file(weights, folder / "other_clip/model.safetensors")
    models = {"a": str(tiny_clip), "b": str(folder / "other_clip")}
    assert make_study(models, pictures, LABELS, folder / "out", limit=4, seed=1) == 4
    return folder / "out"


def trials(study):
    page = (study / "study.html").read_text(encoding="utf-8")
    result = re.search(r'<script type="application/json" id="trials">(.*?)</script>', page, re.DOTALL)
    assert result
    return page, json.loads(result[1])


def test_the_page_does_not_tell_the_models(study):
    page, shown = trials(study)
    key = json.loads((study / "key.json").read_text())
    assert sorted(t["left"] for t in key["trials"]) == ["a", "a", "b", "b"]
    assert len({t["image"] for t in key["trials"]}) == 4
    assert [set(trial) for trial in shown] == [{"labels", "of", "image", "left", "right"}] * 4
    assert [(trial["labels"], trial["of"]) for trial in shown] == [(LABELS, 2)] * 4
    assert key["labels"] == LABELS and set(key["trials"][0]) == {"image", "left"}
    words = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*", "", page)
    for secret in (key["a"], key["b"], "clip"):
        assert secret not in words
    assert "http" not in words
    assert key["study"] in page


def test_the_same_seed_draws_the_same_pairs(study, pictures, tmp_path):
    key = json.loads((study / "key.json").read_text())
    make_study({"a": key["b"], "b": key["a"]}, pictures, LABELS, tmp_path, limit=4, seed=1)
    assert json.loads((tmp_path / "key.json").read_text())["trials"] == key["trials"]
    # the models are swapped, and so are the pictures
    before, after = trials(study)[1], trials(tmp_path)[1]
    assert [(t["left"], t["right"]) for t in before] == [(t["right"], t["left"]) for t in after]
    assert any(t["left"] != t["right"] for t in before)


@pytest.mark.end_to_end
def test_of_many_labels_the_page_lists_those_that_were_used(study, pictures, tmp_path):
    key = json.loads((study / "key.json").read_text())
    labels = [f"thing {i}" for i in range(30)]
    models = {side: key[side] for side in "ab"}
    make_study(models, pictures, labels, tmp_path, limit=2, seed=1)
    page, shown = trials(tmp_path)
    assert "many more that neither of them" in page and "many more" not in trials(study)[0]
    assert json.loads((tmp_path / "key.json").read_text())["labels"] == labels
    loaded = [zeroseg_jax.load(source) for source in models.values()]
    for trial, made in zip(shown, json.loads((tmp_path / "key.json").read_text())["trials"], strict=True):
        results = [model.segment(pictures / f"{made['image']}.png", labels) for model in loaded]
        used = sorted({int(i) for result in results for i in np.unique(result.label_map)})
        assert 0 < len(used) < 30 and (trial["labels"], trial["of"]) == ([labels[i] for i in used], 30)


def test_by_default_the_study_is_the_papers(tiny_clip, pictures, tmp_path, monkeypatch, capsys):
    """1000 names, 200 of the images, five raters."""
    made = {}

    def fake_make(models, images, labels, out, **options):
        made.update(options, labels=labels)
        return 200

    monkeypatch.setattr(command, "make_study", fake_make)
    words = ["make", "--a", "one", "--b", "two", "--images", "folder", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "200 pairs: send" in (told := capsys.readouterr().out) and "to the 5 raters" in told
    labels = made.pop("labels")
    assert len(labels) == 1000 and labels[0] == "tench"
    assert made == {"background": None, "limit": 200, "seed": 0, "raters": 5}
    assert main([*words, "--vocabulary", "voc_zeroseg"]) == 0
    assert len(made["labels"]) == 20 and "background" not in made["labels"] and made["background"] == 0.95
    assert main([*words, "--vocabulary", "voc_mmseg", "--background", "sky"]) == 0
    assert made["background"] == ["sky"]
    assert main([*words, "--vocabulary", "imagnet"]) == 2
    assert "did you mean 'imagenet'" in capsys.readouterr().err


def write_answers(path, study, rater, choices, first=0):
    answers = [{"trial": first + i, "choice": choice, "seconds": 1.5} for i, choice in enumerate(choices)]
    path.write_text(json.dumps({"study": study, "rater": rater, "answers": answers}))
    return path


@pytest.fixture
def key(tmp_path):
    """Four pairs; "a" is on the left of the first two."""
    pairs = [{"image": str(i), "labels": LABELS, "left": side} for i, side in enumerate("aabb")]
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"study": "s1", "a": "one", "b": "two", "seed": 0, "trials": pairs}))
    return path


def test_score_by_hand(key, tmp_path):
    ann = write_answers(tmp_path / "ann", "s1", "Ann", ["left", "left", "left", "tie"])  # a a b tie
    bob = write_answers(tmp_path / "bob", "s1", "Bob", ["left", "right", "left"])  # a b b
    result = score([ann, bob], key)
    assert result["votes"] == {"a": 3, "b": 3, "tie": 1}
    assert result["preference"]["rate"] == pytest.approx(3.5 / 7)
    low, high = result["preference"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert {k: result["images"][k] for k in ("a", "b", "even", "rate")} == {"a": 1, "b": 1, "even": 2, "rate": 0.5}
    assert result["left"] == pytest.approx(5 / 6)
    assert result["raters"] == {"Ann": 4, "Bob": 3}
    # pairs answered twice: aa, ab, bb; 1 - (6 - 1) x (6 - 4) / (36 - 18)
    assert result["agreement"] == pytest.approx(1 - 5 * 2 / 18)
    assert score([ann], key)["agreement"] is None


def test_votes_are_counted_as_in_the_paper(tmp_path):
    """The paper reports 677 of 1000: 200 images, five raters. No study of anybody's: answers made up for the count."""
    pairs = [{"image": str(i), "left": "ab"[i % 2]} for i in range(200)]
    made = {"study": "s", "a": "zeroseg", "b": "groupvit", "raters": 5, "seed": 0, "labels": LABELS, "trials": pairs}
    (tmp_path / "key").write_text(json.dumps(made))
    counts = [150, 140, 130, 130, 127]  # images on which each rater prefers "a"
    files = []
    for n in counts:
        choices = ["left" if (i < n) == (i % 2 == 0) else "right" for i in range(200)]
        files.append(write_answers(tmp_path / f"rater{len(files)}", "s", f"rater {len(files)}", choices))
    result = score(files, tmp_path / "key")
    assert result["votes"] == {"a": 677, "b": 323, "tie": 0} and result["expected"] == 1000
    assert "votes of 1000 (200 images x 5 raters): 677 for a, 323 for b, 0 ties\n" in describe(result)
    result = score(files[:4], tmp_path / "key")
    assert "votes of 1000 (200 images x 5 raters): 550 for a, 250 for b, 0 ties, 200 not given" in describe(result)


def test_the_command_prints_figures(key, tmp_path, capsys):
    ann = write_answers(tmp_path / "ann", "s1", "Ann", ["left", "left"])
    assert main(["score", str(ann), "--key", str(key)]) == 0
    assert "Ann answered 2 of 4 pairs" in capsys.readouterr().out
    assert main(["score", str(ann), "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preference"]["rate"] == 1


def test_alpha_agrees_with_krippendorffs_example():
    """Four observers, twelve units, missing values: nominal alpha is 0.743 (Krippendorff 2011, section C)."""
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    votes = np.array([[sum(o[unit] == str(v) for o in observers) for v in range(1, 6)] for unit in range(12)])
    assert krippendorff_alpha(votes) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(np.array([[2, 0], [0, 2]])) == 1
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None


@pytest.mark.parametrize(("wins", "trials"), [(0, 5), (7, 9), (40, 40)])
def test_wilson_agrees_with_scipy(wins, trials):
    reference = scipy.stats.binomtest(wins, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(wins, trials), reference, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"study": "s2", "rater": "Ann", "answers": []}, "answers the study s2, but"),
        ({"study": "s1", "rater": "Ann", "answers": [{"trial": 4, "choice": "left"}]}, "for one of 4 pairs"),
        ({"study": "s1", "rater": "Ann", "answers": [{"trial": 0, "choice": "up"}]}, "none of left, right, tie"),
        ({"study": "s1", "rater": "Ann", "answers": [{"trial": 0, "choice": "tie"}] * 2}, "the pair 0 twice"),
        ({"study": "s1", "rater": "Ann", "answers": []}, "not a single answer"),
        ({"study": "s1"}, "has no 'rater'"),
        ([1], "has no 'study'"),
    ],
)
def test_answers_that_cannot_be_scored(key, tmp_path, content, said, capsys):
    (tmp_path / "answers").write_text(json.dumps(content))
    assert main(["score", str(tmp_path / "answers"), "--key", str(key)]) == 2
    assert said in capsys.readouterr().err


def test_one_file_of_each_rater(key, tmp_path):
    ann = write_answers(tmp_path / "ann", "s1", "Ann", ["left"])
    with pytest.raises(InputError, match="a second file of the rater 'Ann'"):
        score([ann, ann], key)
    with pytest.raises(InputError, match="cannot be read"):
        score([tmp_path / "none"], key)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="is no JSON"):
        score([tmp_path / "text"], key)


@pytest.mark.end_to_end
def test_studies_that_cannot_be_made(tiny_clip, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (20, 20)).save(images / "one.png")
    (images / "one.txt").write_text("cat\n\n")
    models = ["make", "--a", str(tiny_clip), "--b", str(tiny_clip), "--images", str(images), "--out", str(tmp_path)]
    for words, said in (
        (["--labels", "cat,"], "is empty"),
        (["--labels-folder", str(tmp_path)], "the labels of one cannot be read"),
        (["--labels", "cat", "--raters", "0"], "at least one rater, not 0"),
    ):
        assert main([*models, *words]) == 2
        assert said in capsys.readouterr().err
    assert main([*models, "--labels-folder", str(images)]) == 0
    assert json.loads((tmp_path / "key.json").read_text())["trials"][0]["labels"] == ["cat"]
