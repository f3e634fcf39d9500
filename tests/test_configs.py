"""Every file in configs/ runs: two steps at reduced size, or one evaluation."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from zeroseg_jax.config import flatten, load_config
from zeroseg_jax.distill.views import local_views, view_boxes
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.student_config import make_student_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def small(config: ConfigDict, student: dict, clip: Path, pictures: Path, scenes: Path) -> list[tuple[str, str]]:
    """Overrides that make a config run in seconds without a download; what they do not name stays as it is."""
    changes = {
        "steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "init.mae": "",
        "data.source": "folder",
        "data.root": pictures,
        "data.limit": 0,
        "data.workers": 0,
        "teacher.path": clip,
        "eval.dataset": "scenes/tiny",
        "eval.root": scenes,
        "eval.limit": 2,
        "eval.baselines": (),
        **{f"student.{name}": value for name, value in student.items()},
    }
    if config.task == "distill":
        changes["image_size"] = 16
        stages = len(config.student.segment_tokens)
        changes["student.segment_tokens"], changes["student.segment_depths"] = (6, 4)[-stages:], (1, 1)[-stages:]
    if config.task == "eval":
        changes["model"] = clip
    return [(key, str(value)) for key, value in changes.items() if key in flatten(config)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_two_steps(path, tiny_student, tiny_clip, pictures, tmp_path, monkeypatch, capsys):
    assert f"python main.py --config=configs/{path.name}" in path.read_text()
    monkeypatch.syspath_prepend(ROOT)
    from main import run

    config = load_config(path)
    overrides = small(config, tiny_student, tiny_clip, pictures, tmp_path)
    run("eval" if config.task == "eval" else "train", str(path), str(tmp_path / "run"), overrides)
    if config.task != "eval":
        lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
    if config.task != "teacher":
        results = json.loads(capsys.readouterr().out.splitlines()[-1])
        whole = json.loads((tmp_path / "run/results.json").read_text())
        short = {name: {"miou": row["miou"]} for name, row in whole["baselines"].items()}
        assert results == {key: whole[key] for key in results} | {"baselines": short}
        assert {"dataset", "miou", "pixel_accuracy", "iou", "images", "baselines"} <= results.keys()
        assert results["images"] == 2


def test_vitb16_has_what_the_paper_says():
    """The facts of ZeroSeg's main text (ICCV 2023): architecture, teacher, losses and training."""
    config = load_config(ROOT / "configs/vitb16.py")
    student = make_student_config(config, embed_dim=768)
    assert (student.image_size, student.patch_size, student.width, student.depth) == (224, 16, 768, 12)
    assert student.mask_ratio == 0.6 and student.decoder_depth == 8
    assert student.segment_tokens == (32, 8)
    assert student.segment_depths == (2, 2) and student.pool_depth == 1  # five layers in all
    assert config.student.encoder == "mae"
    assert config.teacher.path == "openai/clip-vit-large-patch14" and config.teacher.source == "cache"
    boxes = view_boxes(config.views.grids, config.views.windows)
    assert config.views.grids == (1, 2, 3, 4) and len(boxes) == 30
    assert local_views(boxes).tolist() == [False] + [True] * 29  # the whole image is the first
    assert (config.data.augment, config.data.flip, config.image_size) == ("center", False, 224)
    assert config.loss.distance == "l1" and config.loss.ground == 0
    assert min(config.loss["global"], config.loss.match, config.loss.mae) > 0
    images = 1_281_167
    assert config.batch_size == 4096 and config.steps == 80 * images // 4096
    assert config.optimizer.warmup_steps == 20 * images // 4096
    assert config.optimizer.lr == pytest.approx(1.5e-4 * 4096 / 256)


@pytest.mark.parametrize(("devices", "parts"), [("24gb", 64), ("8x80gb", 2), ("16xv5e", 4)])
def test_the_papers_recipe_on_other_devices(devices, parts):
    path = ROOT / "configs/vitb16.py"
    plain, config = load_config(path), load_config(f"{path}:{devices}")
    assert config.optimizer.accumulate == parts
    different = {key for key, value in flatten(config).items() if value != flatten(plain)[key]}
    assert different <= {"optimizer.accumulate", "teacher.chunk"}
    with pytest.raises(InputError, match="has no settings for '9xh100'; choose 24gb, 8x80gb, 16xv5e"):
        load_config(f"{path}:9xh100")
