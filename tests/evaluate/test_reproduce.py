"""The command that runs published results again, on tiny data in VOC's layout with a small CLIP."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zeroseg_jax.evaluate.reproduce import run
from zeroseg_jax.evaluate.reproduce.__main__ import main, spoken
from zeroseg_jax.evaluate.reproduce.rows import choose_rows, read_rows
from zeroseg_jax.evaluate.vocabularies import load_vocabulary
from zeroseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from zeroseg_jax.models.clip_encoder import ClipEncoder
from zeroseg_jax.models.tokenizer import build_word_tokenizer
from zeroseg_jax.segment.options import FIELDS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """VOCdevkit/VOC2012 with three images, and a CLIP with patches of 16 pixels as weights/clip-vit-b16."""
    root = tmp_path_factory.mktemp("data")
    voc = root / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(voc / f"JPEGImages/{i}.jpg")
        mask = rng.choice(np.array([0, 8, 15, 255], np.uint8), (24, 20))
        Image.fromarray(mask).save(voc / f"SegmentationClass/{i}.png")
    (voc / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    tokenizer = build_word_tokenizer(["a photo of a cat on the grass"], vocabulary=530, context=77)
    ids = dict(start_id=tokenizer.bos_token_id, end_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id)
    text = TextConfig(vocabulary=len(tokenizer), context=77, width=8, depth=1, heads=2, mlp_width=16, **ids)
    vision = VisionConfig(image_size=32, patch_size=16, width=16, depth=2, heads=2, mlp_width=32)
    model = CLIP(CLIPConfig(vision, text, embed_dim=8), rngs=nnx.Rngs(0))
    ClipEncoder(model, tokenizer).save(root / "weights/clip-vit-b16")
    return root


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    """The results of one row."""
    out = tmp_path_factory.mktemp("out")
    assert main(["--root", str(root), "--rows", "sclip-voc21", "--out", str(out)]) == 0
    return out


@pytest.mark.end_to_end
def test_a_row_is_run_and_reported(out):
    results = json.loads((out / "sclip-voc21/results.json").read_text())
    settings = results["settings"]
    assert settings["vocabulary"] == "voc21_sclip" and settings["readout"]["readout"] == "sclip"
    assert (settings["readout"]["scale"], settings["readout"]["area"]) == (65.0, 0.1)
    assert settings["background"][-1] == 0.1 and results["images"] == 3
    (line,) = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("| sclip-voc21")]
    ours = 100 * results["miou"]
    assert f"| 59.63 | {ours:.2f} | {ours - 59.63:+.2f} | differs | 3 |" in line


def test_a_finished_row_is_kept(root, out, monkeypatch, capsys):
    before = (out / "results.md").read_text()

    def never(*arguments):
        raise AssertionError("it is evaluated again")

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", never)
        assert main(["--root", str(root), "--rows", "sclip-voc21", "--out", str(out)]) == 0
        assert "ours" in capsys.readouterr().out and (out / "results.md").read_text() == before
        # other settings are another row
        with pytest.raises(AssertionError, match="again"):
            main(["--root", str(root), "--rows", "sclip-voc21", "--out", str(out), "--limit", "2"])
    state = json.loads((out / "sclip-voc21/row.json").read_text())
    assert state["result"]["images"] == 3 and state["settings"]["vocabulary"] == "voc21_sclip"


@pytest.mark.end_to_end
def test_a_stopped_command_goes_on(root, out, monkeypatch):
    """Of two rows the first one is finished, so the second one alone runs."""
    ran, real = [], run.evaluate

    def spy(model, config, workdir):
        ran.append(workdir.name)
        return real(model, config, workdir)

    monkeypatch.setattr(run, "evaluate", spy)
    assert main(["--root", str(root), "--rows", "sclip-voc21,sc-clip-voc20", "--out", str(out)]) == 0
    assert ran == ["sc-clip-voc20"]
    text = (out / "results.md").read_text()
    assert "| sclip-voc21 |" in text and "| sc-clip-voc20 |" in text
    with (out / "sc-clip-voc20/row.json").open("w") as file:
        file.write("{")
    assert main(["--root", str(root), "--rows", "sc-clip-voc20", "--out", str(out)]) == 2


def test_what_is_missing_is_named(root, tmp_path, capsys):
    assert main(["--root", str(root), "--rows", "sclip-ade20k", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "ADEChallengeData2016.zip" in told.out and str(root / "ADEChallengeData2016") in told.out
    assert told.err.count("\n") == 1 and "no row can run" in told.err
    assert main(["--root", str(root), "--rows", "groupvit-voc21", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert "huggingface.co/nvidia/groupvit-gcc-yfcc" in told and str(root / "weights/groupvit-gcc-yfcc") in told
    assert main(["--root", str(root), "--rows", "proxyclip-voc21", "--out", str(tmp_path)]) == 2
    assert "DINO" in capsys.readouterr().out
    assert main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.end_to_end
def test_without_any_data_the_command_says_what_to_download(tmp_path):
    command = [sys.executable, "-m", "zeroseg_jax.evaluate.reproduce", "--root", str(tmp_path)]
    done = subprocess.run([*command, "--rows", "sclipp-voc21"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'sclip-voc21'" in done.stderr and done.stderr.count("\n") == 1
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "VOCtrainval_11-May-2012.tar" in done.stdout
    assert "no row can run" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.end_to_end
def test_a_broken_weight_fails_alone(root, tmp_path, capsys):
    """The row is told, and the next one runs."""
    data = tmp_path / "data"
    (data / "weights/groupvit-gcc-yfcc").mkdir(parents=True)
    (data / "weights/clip-vit-b16").symlink_to(root / "weights/clip-vit-b16")
    (data / "VOCdevkit").symlink_to(root / "VOCdevkit")
    rows = "groupvit-voc21,maskclip-voc20"
    assert main(["--root", str(data), "--rows", rows, "--out", str(tmp_path / "out"), "--limit", "1"]) == 2
    told = capsys.readouterr()
    assert "groupvit-voc21 failed" in told.err
    text = (tmp_path / "out/results.md").read_text()
    assert "| maskclip-voc20 |" in text and "first 1 images" in text and "differs" not in text


def test_the_list(root, capsys):
    assert main(["--root", str(root), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (ready,) = [line for line in lines if "naclip-pamr-voc21" in line]
    assert "64.07" in ready and "ready" in ready and re.search(r"\d+ (s|min|h) ", ready)
    assert any(line.startswith("ade20k: ") and "data.csail.mit.edu" in line for line in lines)
    assert (spoken(0.1), spoken(80.0), spoken(1000.0), spoken(7200.0)) == ("1 s", "80 s", "17 min", "2 h")


@pytest.mark.parametrize("row", [row for row in read_rows() if not row.missing], ids=lambda row: row.name)
def test_every_row_has_a_config(row, tmp_path):
    """The vocabulary fits the data set, and the options exist and may have these values."""
    config = run.row_config(row, tmp_path, "", "demo")
    if row.vocabulary:
        assert load_vocabulary(row.vocabulary).dataset == row.data.dataset
    assert set(row.options) <= {*FIELDS, "threshold"}
    options = run._options(row)
    assert options.window == 0 or options.window >= 224
    assert run.estimated_seconds(row, 1e12) > 0
    if "threshold" in row.options:
        rule = config.eval.background
        assert rule.endswith(str(row.options["threshold"])) and len(rule.split(",")) > 1


def test_the_published_figures():
    """A few facts from the papers."""
    rows = {row.name: row for row in read_rows()}
    assert len(rows) == len(read_rows())
    assert (rows["sc-clip-context59"].published, rows["naclip-pamr-voc21"].published) == (40.1, 64.07)
    assert (rows["zeroseg-voc21"].published, rows["groupvit-coco_object"].published) == (40.8, 24.3)
    assert rows["naclip-pamr-voc21"].options == {"scale": 40.0, "area": 0.0, "pamr": 10, "window": 2048}
    assert all(row.published for row in choose_rows(list(rows.values()), ""))
    assert choose_rows(list(rows.values()), "demo-*-scenes")[0].name == "demo-maskclip-scenes"
