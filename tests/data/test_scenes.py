"""The procedural scenes as a dataset."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from zeroseg_jax.data.scenes import builder
from zeroseg_jax.data.scenes.render import scene
from zeroseg_jax.data.sources.open import open_source
from zeroseg_jax.errors import InputError


@pytest.mark.end_to_end
def test_example_i_is_scene_i(tmp_path):
    config = SimpleNamespace(source="scenes/tiny", root=str(tmp_path), split="validation")
    source = open_source(config)
    assert len(source) == builder.SIZES["tiny"]["validation"]
    for i in (0, 7):
        drawn = scene(i, "validation")
        assert np.array_equal(source[i]["image"], drawn.image)
        assert source[i]["text"] == source.text(i) == drawn.caption and source.key(i) == f"validation/{i:07d}"
    assert len(open_source(config, "train")) == 64 and len(open_source(config, "train[:5]")) == 5

    folder = builder.prepare(tmp_path, "tiny")
    examples = tfds.data_source("zeroseg_scenes/tiny", split="test", data_dir=str(folder))
    drawn = scene(3, "test")
    assert np.array_equal(examples[3]["segmentation"][..., 0], drawn.mask)
    assert np.array_equal(examples[3]["image"], drawn.image)


def test_drawing_shows_where_it_is(tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        builder.prepare(tmp_path, "tiny")
    shown = capsys.readouterr().err
    for split in ("train", "validation", "test"):
        assert f"draw scenes, {split} " in shown
    assert "drawing" in caplog.text and str(tmp_path) in caplog.text


def test_a_complete_folder_is_used_again(tmp_path, monkeypatch):
    folder = builder.prepare(tmp_path, "tiny")
    monkeypatch.setattr(builder, "_draw_all", None)
    assert builder.prepare(tmp_path, "tiny") == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing else is left behind


@pytest.mark.end_to_end
def test_changed_code_draws_anew(tmp_path, monkeypatch):
    folder = builder.prepare(tmp_path, "tiny")
    monkeypatch.setattr(builder, "_digest", lambda: "changed")
    assert builder.prepare(tmp_path, "tiny") != folder


@pytest.mark.end_to_end
def test_two_processes_at_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        first, second = pool.starmap(builder.prepare, [(tmp_path, "tiny")] * 2)
    assert first == second and [path.name for path in tmp_path.iterdir()] == [first.name]


def test_another_process_was_faster(tmp_path):
    for name in ("scratch", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    builder._publish(tmp_path / "scratch", tmp_path / "final")
    assert (tmp_path / "final/file").read_text() == "final"


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="no scenes 'large'"):
        builder.prepare(tmp_path, "large")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file"):
        builder.prepare(tmp_path / "file", "tiny")


def test_no_scenes_are_drawn_among_other_things(tmp_path):
    """`data.root` of somebody who forgot `data.source=folder`."""
    (tmp_path / "IMG_0001.jpg").touch()
    config = SimpleNamespace(source="scenes", root=str(tmp_path), split="train")
    with pytest.raises(InputError, match=r"other things than scenes \(IMG_0001.jpg\).*set data.source=folder"):
        open_source(config)
    assert [path.name for path in tmp_path.iterdir()] == ["IMG_0001.jpg"]


@pytest.mark.parametrize("root", ["/proc/scenes", "nul\0", "a" * 300, "~nobody_of_that_name/x"])
def test_a_root_that_cannot_be_written_to_is_told(root):
    with pytest.raises(InputError, match="the scenes cannot be written to"):
        builder.prepare(root, "tiny")
