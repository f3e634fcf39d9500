"""Every file in configs/ runs: two steps at reduced size, or one evaluation."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from zeroseg_jax.config import flatten, load_config

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
        "data.augment": "none" if config.get("teacher", {}).get("source") == "cache" else "crop",
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
        assert results == json.loads((tmp_path / "run/results.json").read_text())
        assert results["images"] == 2
