"""The command: exit status 2 and one sentence for bad input, results as the last line, modes and tasks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zeroseg_jax.config import to_json

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=580
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config=configs/demo.py", "--config.stepz=3"], "there is no config key 'stepz'; did you mean 'steps'?"),
        (["--config=configs/demo.py", "--config.image_size=90"], "image_size 90 is not divisible by the patch size 8"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config=configs/demo.py", "--mode=test"], "flag --mode=test: value should be one of"),
        (["--config=configs/demo.py", "--stepz=3"], "Unknown command line flag 'stepz'"),
        (["--config=configs/demo.py", "--config.steps"], "write --config.steps=VALUE"),
        (["--config=configs/eval.py"], "configs/eval.py trains nothing; add --mode=eval"),
        (["--config=configs/demo.py", "--mode=eval"], "/run holds no config.json, so it is not the workdir of a run"),
        (["--config=configs/vitb16.py", "--mode=eval"], "there is nothing to evaluate on; set --config.eval.dataset"),
        ([], "--config is missing"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(arguments, told, tmp_path):
    done = command(*arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def config_file(tiny_config, tmp_path) -> Path:
    """A config file with the values of `tiny_config`."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "import json\nfrom zeroseg_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(json.loads({json.dumps(to_json(tiny_config))!r}))\n"
    )
    return path


def test_train_then_eval(config_file, tmp_path):
    where = [f"--config={config_file}", f"--workdir={tmp_path}/run"]
    scenes = ["--config.eval.dataset=scenes/tiny", f"--config.eval.root={tmp_path}", "--config.eval.limit=4"]
    done = command(*where, *scenes, "--config.eval.baselines=()")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["images"] == 4 and 0 <= results["miou"] <= 1
    assert (tmp_path / "run/gallery.png").exists()

    (tmp_path / "run/results.json").unlink()
    again = command(*where, *scenes, "--mode=eval", "--config.eval.baselines=()")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["miou"] == results["miou"]
    assert json.loads((tmp_path / "run/results.json").read_text()) == json.loads(again.stdout.splitlines()[-1])
