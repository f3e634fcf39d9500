"""`python -m zeroseg_jax.segment`."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroseg_jax import InputError
from zeroseg_jax.segment import SegmentResult
from zeroseg_jax.segment.__main__ import main, parse, read_options
from zeroseg_jax.segment.input_files import find_images, name_outputs
from zeroseg_jax.segment.options import FIELDS, Options, change


@pytest.fixture
def folder(image, tmp_path):
    """Two images of one name, one in a folder below, and one that cannot be read."""
    (tmp_path / "in/below").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "in/a.png")
    Image.fromarray(image[:, ::-1]).save(tmp_path / "in/a.jpg")
    Image.fromarray(image).convert("L").save(tmp_path / "in/below/c.png")
    (tmp_path / "in/b.jpg").write_bytes(b"")
    return tmp_path / "in"


def test_a_folder_with_an_unreadable_file(tiny_clip, folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(folder), "--model", str(tiny_clip), "--out", str(out), "--templates", "name"]
    assert main([*arguments, "--labels", "cat, grass", "--json", "--background", "0.6"]) == 1
    said = capsys.readouterr()
    sentences = [line for line in said.err.splitlines() if "b.jpg" in line]
    assert sentences == [f"the image {folder / 'b.jpg'} cannot be read (the file is empty); repair or remove it"]
    assert "segment 4/4" in said.err  # the progress
    result = json.loads((out / "segments.json").read_text())
    assert result == json.loads(said.out)
    assert result["labels"] == ["cat", "grass"] and result["failed"] == sentences
    assert [entry["mask"] for entry in result["images"]] == ["a_jpg_mask.png", "a_png_mask.png", "below/c_mask.png"]
    for number, entry in enumerate(result["images"]):
        assert (entry["width"], entry["height"]) == (34, 21)
        mask = Image.open(out / entry["mask"])
        assert mask.mode == "P" and set(np.unique(mask)) <= {0, 1, 255}
        assert Image.open(out / entry["overlay"]).width == 34 * 14
        assert sum(a["area"] for a in entry["annotations"]) == (np.asarray(mask) < 255).sum()
        assert all(a["image_id"] == number for a in entry["annotations"])


def test_labels_of_a_file_and_single_images(tiny_clip, folder, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\ufeffcat\r\n\n grass, long\n")
    arguments = [str(folder / "a.png"), "--model", str(tiny_clip), "--out", str(tmp_path / "out")]
    arguments += ["--labels-file", str(tmp_path / "labels.txt"), "--templates", "a {}", "--flip", "--no-overlay"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"1 of 1 images segmented into {tmp_path / 'out'}\n"
    result = json.loads((tmp_path / "out/segments.json").read_text())
    assert result["labels"] == ["cat", "grass, long"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_mask.png", "segments.json"]


def test_every_option_of_inference_is_a_flag(tiny_clip, folder):
    command = [str(folder), "--model", str(tiny_clip), "--out", "out", "--labels", "cat"]
    texts = {"mix": "embeddings", "scale": "2", "guide": "0", "rename": "none", "readout": "sclip", "window": "16"}
    flags = [part for name, text in texts.items() for part in (f"--{name}", text)]
    arguments = parse([*command, *flags, "--flip", "--no-normalise-prompts", "--scales", "0.5,1", "--short-side", "8"])
    options = read_options(arguments)
    assert {options.pop("templates"), options.pop("background")} == {None}
    expected = Options(mix="embeddings", scale=2.0, guide=0.0, readout="sclip", window=16, flip=True, short_side=8)
    assert change(Options(), options) == dataclasses.replace(expected, scales=(0.5, 1.0), normalise_prompts=False)
    assert set(vars(arguments)) >= set(FIELDS)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--readout=dino", "there is no readout 'dino' of this model; it has maskclip, sclip, clearclip, naclip"),
        ("--guide=far", "guide is 'far'; it must be a number of at least 0"),
        ("--scales=1,big", "scales is (1, 'big'); it must be 0 to 64 numbers above 0"),
        ("--stride=1.5", "stride is 1.5; it must be a whole number of at least 0"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(tiny_clip, folder, tmp_path, capsys, flag, said):
    command = [str(folder), "--model", str(tiny_clip), "--out", str(tmp_path / "out"), "--labels", "cat", flag]
    assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(said)


def test_what_an_earlier_run_wrote_is_left_out(folder):
    files, said = find_images([str(folder)])
    assert [name for _, name in files] == ["a_jpg", "a_png", "b", "below/c"] and not said
    nothing = np.zeros((2, 2), np.int32)
    result = SegmentResult(np.zeros((2, 2, 3), np.uint8), nothing, nothing, np.zeros((1, 1), np.float32), ["cat"])
    result.save_mask(folder / "out/a_mask.png")
    result.save(folder / "out/a_overlay.png")
    result.save_voc(folder / "out/SegmentationClass/a.png")
    Image.new("RGB", (2, 2)).save(folder / "my_mask.png")  # not ours
    for name in ("x.HEIC", "y.heic", "z.jxl", "notes.txt", "v.mp4", ".hidden"):
        (folder / name).write_bytes(b"")
    files, said = find_images([str(folder), str(folder / "a.png")])  # one of them twice
    assert [name for _, name in files] == ["a_jpg", "a_png", "b", "below/c", "my_mask"]
    assert said == [
        "left out: 3 files that an earlier run of this command wrote",
        "left out: images of formats that are not read here (2 x .heic, 1 x .jxl); convert them to JPEG or PNG",
        "left out: 1 file of video; give the path of each video, not of its folder",
        "left out: 1 file that is no image (.txt)",
    ]
    with pytest.raises(InputError, match="holds only files that this command wrote"):
        find_images([str(folder / "out")])
    with pytest.raises(InputError, match="holds only files that this command wrote"):
        find_images([str(folder / "out/a_mask.png")])  # as a shell writes out/*
    result.save(folder / "mine.png")
    assert [name for _, name in find_images([str(folder / "mine.png")])[0]] == ["mine"]


def test_every_image_has_outputs_of_its_own():
    names = ["x_jpg_3.png", "x.jpg", "x.png", "x_jpg.png", "X.jpg", "below/x.jpg"]
    named = [name for _, name in name_outputs([(Path("in") / name, name) for name in names])]
    assert named == ["x_jpg_3", "x_jpg_2", "x_png", "x_jpg", "X_jpg_4", "below/x"]
    assert len({name.casefold() for name in named}) == len(names)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"--labels": "cat,"}, "the label '' is empty"),
        ({"--labels": "cat,cat"}, "there twice"),
        ({"--model": "nowhere"}, "there is no folder nowhere"),
        ({"--out": "IN/a.png/out"}, "cannot be made"),
        ({"--batch": "0"}, "--batch is 0"),
        ({"--background": "2"}, "threshold is 2.0"),
        ({"--templates": "photograph"}, "there are no templates"),
        ({"images": "IN/none.png"}, "there is no image or folder"),
        ({"images": "IN/empty"}, "has no images"),
    ],
)
def test_what_cannot_start_is_one_sentence(tiny_clip, folder, tmp_path, capsys, changes, words):
    (folder / "empty").mkdir()
    values = {"--model": str(tiny_clip), "--labels": "cat", "--out": str(tmp_path / "out"), "images": "IN/a.png"}
    values = {name: text.replace("IN", str(folder)) for name, text in (values | changes).items()}
    arguments = [values.pop("images")] + [part for pair in values.items() for part in pair]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.strip().splitlines()) == 1 and not said.out


@pytest.mark.end_to_end
def test_bad_usage_is_one_sentence():
    run = subprocess.run([sys.executable, "-m", "zeroseg_jax.segment", "x.png"], capture_output=True, text=True)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
