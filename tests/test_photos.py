"""`configs/photos.py`: a folder of photographs, any CLIP, and a picture at the end."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zeroseg_jax.checkpoint import load_student
from zeroseg_jax.errors import InputError
from zeroseg_jax.segment import load

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.end_to_end


@pytest.fixture
def train(tiny_student, tiny_clip, pictures, tmp_path, monkeypatch, capsys):
    """Runs the config with a tiny student on a copy of the pictures; returns what stderr says."""
    monkeypatch.syspath_prepend(ROOT)
    from main import run

    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    (folder / "metadata.jsonl").unlink()
    sizes = {
        name: value for name, value in tiny_student.items() if name not in ("patch_size", "width", "depth", "heads")
    }
    small = {f"student.{name}": value for name, value in sizes.items()}
    small |= {"data.root": folder, "teacher.path": tiny_clip, "steps": 2, "batch_size": 4, "data.held_out": 3}

    def start(workdir: Path, **overrides: object) -> str:
        run(
            "train",
            str(ROOT / "configs/photos.py"),
            str(workdir),
            [(k, str(v)) for k, v in (small | overrides).items()],
        )
        return capsys.readouterr().err

    start.folder = folder
    return start


def test_a_folder_and_a_clip_give_a_student_and_a_picture(train, tmp_path, caplog):
    caplog.set_level("INFO")
    (train.folder / "labels.txt").write_text("a cat\nthe grass\n")
    said = train(tmp_path / "run")
    assert said.splitlines()[-1] == f"Results: {tmp_path / 'run/gallery.png'}"
    for line in ("training on 17 images", "to compute: ", "compiling the training step ..."):
        assert line in caplog.text
    student = load_student(tmp_path / "run")[0]
    assert (student.config.image_size, student.config.patch_size) == (8, 4)  # the teacher's
    assert student.config.tower is not None
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["image_size"], config["student"]["patch_size"]) == (8, 4)
    with_words = Image.open(tmp_path / "run/gallery.png")
    assert load(tmp_path / "run").segment(train.folder / "00.png", ["a cat"]).label_map.shape == (20, 24)

    (train.folder / "labels.txt").unlink()
    train(tmp_path / "other")
    assert Image.open(tmp_path / "other/gallery.png").height < with_words.height


def test_a_run_starts_from_an_earlier_student(train, tmp_path):
    train(tmp_path / "first")
    load(tmp_path / "first").save(tmp_path / "exported")
    for source in ("first", "exported"):
        # without a learning rate the student stays as it was
        train(tmp_path / f"from_{source}", **{"init.student": tmp_path / source, "optimizer.lr": 0.0})
        before, after = (load_student(tmp_path / name)[0] for name in ("first", f"from_{source}"))
        pairs = zip(*(jax.tree.leaves(nnx.to_pure_dict(nnx.state(s))) for s in (before, after)), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


def test_an_earlier_student_that_does_not_fit_is_told_before_the_run(train, tiny_clip, tmp_path):
    train(tmp_path / "first")
    with pytest.raises(InputError, match=r"is a student of other sizes: decoder_depth 1 instead of 2"):
        train(tmp_path / "second", **{"init.student": tmp_path / "first", "student.decoder_depth": 2})
    with pytest.raises(InputError, match="holds no student"):
        train(tmp_path / "second", **{"init.student": tiny_clip})
    assert not (tmp_path / "second/checkpoints").exists()


def test_words_that_are_no_labels_are_told_before_the_run(train, tmp_path):
    with pytest.raises(InputError, match="'cat' is there twice"):
        train(tmp_path / "run", **{"eval.labels": "cat,cat"})
    assert not (tmp_path / "run/checkpoints").exists()
